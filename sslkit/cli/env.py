"""`sslkit env`."""

from typing import Annotated

import typer

from sslkit.console import print_json, stdout


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    app.command("env", help=summary, rich_help_panel=panel)(_env)


def _env(
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")] = False,
) -> None:
    """Print versions, devices and plugins, for a bug report."""
    environment = _environment()
    if as_json:
        print_json(environment)
        return
    for name, value in environment.items():
        for line in value if isinstance(value, list) else [value]:
            stdout.print(f"{name:<14} {line}", markup=False, highlight=False)
            name = ""


def _environment() -> dict[str, str | list[str]]:
    """Return what a bug report needs: nothing about data; of paths, where sslkit is installed and its cache."""
    import os
    import platform
    import sys
    from importlib.metadata import version

    import torch

    from sslkit import registry
    from sslkit.data.cache import cache_folder
    from sslkit.data.process_share import available_cores

    packages = ("sslkit", "torch", "torchvision", "timm", "numpy", "scikit-learn", "pydantic", "typer")
    usable, installed = available_cores(), os.cpu_count()
    cores = f"{usable} cores" if usable == installed else f"{usable} of {installed} cores"
    devices = [f"cpu: {cores}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    devices += [
        f"cuda:{place}: {torch.cuda.get_device_name(place)}, CUDA {torch.version.cuda}"
        for place in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    points = [*registry.entries(registry.TASKS), *registry.entries(registry.ENCODERS), *registry.entries(registry.MODALITIES)]
    others = sorted({f"{entry.name} of {entry.package} {entry.version}" for entry in points if entry.package != "sslkit"})
    return {
        "python": f"{platform.python_version()} on {platform.platform()}",
        "installed in": sys.prefix,
        "packages": [f"{name} {version(name)}" for name in packages],
        "devices": devices,
        "plugins": others or ["none but sslkit's own"],
        "cache": str(cache_folder()),
    }
