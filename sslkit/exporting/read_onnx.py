"""Read an ONNX graph with onnxruntime. Stand-alone: imports nothing of sslkit."""

from collections.abc import Callable
from typing import Any


def load(file: str, settings: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the graph as a function of arrays `[B, ...]`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda samples: session.run(None, {settings["input"]: samples})[0]
