"""Completion of values in the shell; a field of a spec names its kind by `completes`."""

from sslkit import registry


def task(incomplete: str) -> list[str]:
    """Return the tasks that may be meant; of several joined by + or a comma the last."""
    end = max(incomplete.rfind(mark) for mark in "+,") + 1
    first, last = incomplete[:end], incomplete[end:]
    return [f"{first}{name}" for name in registry.names(registry.TASKS) if name.startswith(last)]


def encoder(incomplete: str) -> list[str]:
    """Return our encoders and timm's that may be meant."""
    from timm import list_models  # takes a second, and the shell waits for it only here

    return [name for name in (*registry.names(registry.ENCODERS), *list_models()) if name.startswith(incomplete)]


def export_format(incomplete: str) -> list[str]:
    """Return the installed export formats that may be meant."""
    return [name for name in registry.names(registry.EXPORTERS) if name.startswith(incomplete)]


COMPLETES = {"task": task, "encoder": encoder, "format": export_format}
