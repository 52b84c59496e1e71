"""Run an exported file through its format's reader: a stand-alone program, which needs nothing of sslkit.

    python -P verify.py READER FILE SETTINGS SAMPLES OUT

READER is the path of a Python file that defines `load(file, settings)`, SETTINGS is JSON, SAMPLES an .npz of batches
`[N, ...]`; OUT receives, for each batch, the outputs for its first sample alone, then for the whole batch: `[1 + N, width]`.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def load_reader(path: str) -> Callable[[str, dict[str, Any]], Callable[[Any], Any]]:
    """Return the function `load` of a Python file."""
    spec = importlib.util.spec_from_file_location("reader", path)
    assert spec is not None and spec.loader is not None, f"{path} is not a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load: Callable[[str, dict[str, Any]], Callable[[Any], Any]] = module.load
    return load


def main() -> None:
    """Run the file that the arguments name."""
    reader, file, settings, samples, out = sys.argv[1:]
    run = load_reader(reader)(file, json.loads(settings))
    with np.load(samples) as batches:
        np.savez(out, *(np.concatenate([run(batch[:1]), run(batch)]) for batch in batches.values()))


if __name__ == "__main__":
    main()
