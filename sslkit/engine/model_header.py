"""The description in a `model.safetensors`, read without torch and without the tensors."""

import json
import struct
from pathlib import Path
from typing import Any

_LONGEST = 2**25  # bytes of a header


def read_metadata(file: str | Path) -> dict[str, Any]:
    """Return the description in a checkpoint; an empty one if the file is missing, damaged or not ours."""
    try:
        with open(file, "rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(size, _LONGEST)))
        metadata = json.loads(header["__metadata__"]["sslkit"])
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
