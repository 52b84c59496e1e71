"""Whatever bytes a file holds, it is read or refused in one line; benchmarks/faults/hostile.py has cases made by hand."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sslkit import SslkitError
from sslkit.cli.options import read_spec_file
from sslkit.data.cache import cache_folder
from sslkit.data.index import index_folder
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import load
from sslkit.engine.resume_file import read_resume
from sslkit.image.options import IMAGES
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec
from sslkit.specs.train import PretrainSpec

# The folder of a test lasts for all its examples; nothing is timed on shared machines.
fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=8,
)


def read_or_refused(read: Callable[[], Any]) -> None:
    """Fail on everything but a result or an error that a user is told, in one line."""
    try:
        read()
    except SslkitError as error:
        assert "\n" not in str(error).strip()


@fuzzed
@given(start=st.integers(0, 2**20), junk=st.binary(min_size=1, max_size=40), cut=st.booleans())
def test_checkpoints_of_mutated_bytes(start: int, junk: bytes, cut: bool, trained: Path, tmp_path: Path) -> None:
    whole = trained.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    place = start % (header + 100)  # what decides is in front
    file = tmp_path / "model.safetensors"
    file.write_bytes(whole[:place] + junk + (b"" if cut else whole[place + len(junk) :]))
    read_or_refused(lambda: load(file))


@fuzzed
@given(name=st.sampled_from(["task", "recipe", "size", "step", "data", "format", "contract", "modality"]), value=values)
def test_checkpoints_that_say_anything(name: str, value: Any, trained: Path, tmp_path: Path) -> None:
    whole = trained.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    description = json.loads(header["__metadata__"]["sslkit"])
    header["__metadata__"]["sslkit"] = json.dumps({**description, name: value})
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    read_or_refused(lambda: load(file))


@fuzzed
@given(place=st.integers(0, 2**20), junk=st.binary(min_size=1, max_size=40))
def test_resume_files_of_mutated_bytes(place: int, junk: bytes, trained: Path, tmp_path: Path) -> None:
    whole = (trained.parent / "resume.pt").read_bytes()
    place %= len(whole)
    file = tmp_path / "resume.pt"
    file.write_bytes(whole[:place] + junk + whole[place + len(junk) :])
    read_or_refused(lambda: read_resume(file, torch.device("cpu")))


# Found by the test above: a storage that a number names, and a number that was cut off.
@pytest.mark.parametrize("pickled", [b"\x80\x02K\x00Q.", b"\x80\x02J\x00"])
def test_resume_files_whose_pickle_is_odd(pickled: bytes, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "resume.pt"
    with zipfile.ZipFile(trained.parent / "resume.pt") as whole, zipfile.ZipFile(file, "w") as odd:
        for name in whole.namelist():
            odd.writestr(name, pickled if name.endswith("/data.pkl") else whole.read(name))
    with pytest.raises(SslkitError, match="cannot be read"):
        read_resume(file, torch.device("cpu"))


@fuzzed
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace")))
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_spec_files_of_any_bytes(suffix: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"spec{suffix}"
    file.write_bytes(content)
    read_or_refused(lambda: read_spec_file(str(file)))


@pytest.mark.slow
@fuzzed
@given(value=st.dictionaries(st.sampled_from([*PretrainSpec.model_fields, "hook"]), values, max_size=4))
def test_spec_files_of_any_values(value: dict[str, Any], sslkit: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(value))
    ran = sslkit("pretrain", "rotation", "--spec", file, "--data", tmp_path / "missing", "--out", tmp_path / "run")
    assert ran.code == 2 and "Traceback" not in ran.err


@fuzzed
@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".npy", ".npz", ".tar"])
def test_data_of_any_bytes(suffix: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"data{suffix}"
    named = f"wds:{file}" if suffix == ".tar" else str(file)
    for start in (b"", {".csv": b"path,label\n", ".npy": b"\x93NUMPY\x01\x00", ".npz": b"PK\x03\x04"}.get(suffix, b"")):
        file.write_bytes(start + content)
        read_or_refused(lambda: [ImageSource.read_index(part, DataSpec()) for part in find_parts(named, IMAGES).values()])


@fuzzed
@given(place=st.integers(0, 2**20), junk=st.binary(min_size=1, max_size=30))
def test_an_index_in_the_cache_that_is_damaged_is_made_anew(place: int, junk: bytes, digits: Path) -> None:
    sound = index_folder("data", digits / "train", False, IMAGES)
    for file in (cache_folder() / "index").glob("*.npz"):
        whole = file.read_bytes()
        start = place % len(whole)
        file.write_bytes(whole[:start] + junk + whole[start + len(junk) :])
    index = index_folder("data", digits / "train", False, IMAGES)
    assert index.paths == sound.paths and np.array_equal(index.stamps, sound.stamps)
    index_folder("data", digits / "train", True, IMAGES)
