"""Files of arrays: whatever is in them, a reader answers in our words or returns a row for each sample."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sslkit import SslkitError
from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.locations import find_parts
from sslkit.image.options import IMAGES
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = ["u1", "<u2", ">u2", "<i4", "<f4", "<f8", "<f2", "?", "<c8", "<U3", "S2", "<M8[s]", "V4"]


def stored(shape: tuple[int, ...], dtype: str, suffix: str, labels: int) -> bytes:
    array, stream = np.zeros(shape, dtype), io.BytesIO()
    if suffix == ".npy":
        np.save(stream, array)
    else:
        np.savez(stream, images=array, labels=np.arange(labels) % 2)
    return stream.getvalue()


@fuzzed
@given(
    shape=st.lists(st.integers(0, 9), max_size=5).map(tuple),
    dtype=st.sampled_from(DTYPES),
    suffix=st.sampled_from([".npy", ".npz"]),
    labels=st.integers(0, 9),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 2**12),
)
def test_arrays_of_any_shape_type_and_bytes(
    shape: tuple[int, ...],
    dtype: str,
    suffix: str,
    labels: int,
    changes: list[tuple[int, int]],
    cut: int | None,
    tmp_path: Path,
) -> None:
    content = bytearray(stored(shape, dtype, suffix, labels))
    for place, value in changes:
        content[place % len(content)] = value
    file = tmp_path / f"images{suffix}"
    file.write_bytes(content if cut is None else content[: cut % (len(content) + 1)])
    try:
        index = ImageSource.read_index(find_parts(str(file), IMAGES)["train"], DataSpec(layout="auto"))
        assert index.array is not None and len(index) == len(index.array) > 0
        assert index.labels is None or len(index.labels) == len(index)
        source = ImageSource.for_training(index, DataSpec(cache="off", size=8))
        assert len(source.read(np.arange(len(index)))[0]["canvas"]) == len(index)
    except SslkitError as error:
        assert "\n" not in str(error).strip()
    except UnreadableSampleError as error:  # values that are not finite
        pytest.fail(str(error))
