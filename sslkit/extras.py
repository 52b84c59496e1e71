"""Optional dependencies: imported where they are used, the error naming the extra that brings them."""

from importlib import import_module
from typing import Any

from sslkit.contract.errors import SslkitError


def load_extra(name: str, extra: str, purpose: str) -> Any:
    """Return a module that an extra of sslkit installs; raises SslkitError, saying what needs it, if it is not there."""
    try:
        return import_module(name)
    except ImportError as error:
        raise SslkitError(f"{purpose} needs {name.partition('.')[0]}", f"pip install 'sslkit[{extra}]'") from error
