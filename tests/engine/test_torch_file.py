"""Files of torch.save: tensors come out, code does not run, and no file takes more memory than it has bytes."""

import argparse
import collections
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sslkit import SslkitError
from sslkit.engine.torch_file import is_torch_file, read_torch_file


class Calls:
    """Run a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_have_the_keys_that_lead_to_them(zipped: bool, tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    saved = {
        "state_dict": collections.OrderedDict(a=weight, b=torch.nn.Parameter(weight[1:, 2:]), half=weight.half()),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
        "args": argparse.Namespace(lr=0.1, shape=torch.Size([3]), device=torch.device("cuda"), dtype=torch.bfloat16),
        "best": np.float64(0.3),
        "count": np.int64(3),
        "names": {"a", "b"},
        "none": None,
    }
    torch.save(saved, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    read = read_torch_file(tmp_path / "file.pth", "init")
    assert list(read) == ["state_dict.a", "state_dict.b", "state_dict.half", "optimizer.state.0.exp_avg"]
    assert torch.equal(read["state_dict.a"], weight) and torch.equal(read["state_dict.b"], weight[1:, 2:])
    assert read["state_dict.half"].dtype == torch.float16 and is_torch_file(tmp_path / "file.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_names_of_code_are_refused_and_nothing_runs(zipped: bool, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    for payload, name in (
        (Calls(os.system, f"touch {proof}"), "posix.system"),
        (Calls(eval, f"open({str(proof)!r}, 'w')"), "builtins.eval|__builtin__.eval"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (Path("/"), "pathlib.PosixPath"),
    ):
        saved = {"state_dict": {"w": torch.ones(2)}, "extra": payload}
        torch.save(saved, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(SslkitError, match=rf"--init: .*bad.pth names ({name}), which is code .*save its weights anew"):
            read_torch_file(tmp_path / "bad.pth", "init")
    assert not proof.exists()


def rewritten(file: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "bomb.pth")
    rewritten(tmp_path / "bomb.pth", lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(SslkitError, match="a member is compressed"):
        read_torch_file(tmp_path / "bomb.pth", "init")


def test_a_small_file_cannot_claim_gigabytes(tmp_path: Path) -> None:
    """The pickle of a small file is changed so that its tensor has 2³⁰ elements, on a storage of one."""
    torch.save({"w": torch.zeros(1)}, tmp_path / "claim.pth")

    def enlarge(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        size = content.index(b"K\x01\x85")  # the tuple (1,), the first of which is the size
        return content[:size] + b"J" + (2**30).to_bytes(4, "little") + content[size + 2 :]

    rewritten(tmp_path / "claim.pth", enlarge)
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom sslkit.engine.torch_file import read_torch_file\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_torch_file(Path(sys.argv[1]), 'init')\nexcept Exception as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "claim.pth"], capture_output=True, text=True, check=True)
    message, kilobytes = ran.stdout.strip().splitlines()
    assert "larger than the file" in message and int(kilobytes) < 500_000, ran.stdout


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 and no archive",
        b"\x80\x02garbage",
        pickle.dumps({"a": 1}, protocol=2),
        pickle.dumps({"a": 1}, protocol=4),
        b"\x80\x02]q\x00(h\x00e.",
    ],
)
def test_other_files_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(SslkitError, match=r"--init: .*file.pth cannot be read: "):
        read_torch_file(tmp_path / "file.pth", "init")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (Calls(bytearray, 2_013_265_920), "bytearray, which is code and not data"),
        (np.array("x", dtype="S2000000000")[()], "NumPy values of type"),
        (Calls(np.dtype, "S2000000000"), "NumPy values of type"),
        (torch.zeros(1).expand(10**12), "repeats values of its memory"),
    ],
    ids=["bytearray", "text", "dtype", "expanded"],
)
def test_what_would_take_more_memory_than_the_file_is_refused(payload: Any, message: str, tmp_path: Path) -> None:
    if isinstance(payload, np.bytes_):
        payload = Calls(np.float64(0).__reduce__()[0], np.dtype("S2000000000"), b"x")
    torch.save({"w": payload}, tmp_path / "bomb.pth")
    with pytest.raises(SslkitError, match=message):
        read_torch_file(tmp_path / "bomb.pth", "init")


def test_lists_that_contain_each_other_are_entered_once(tmp_path: Path) -> None:
    nested: list[Any] = [torch.ones(2)]
    for _ in range(12):
        nested = [nested] * 10  # 10^12 ways to the same tensor
    torch.save({"w": nested}, tmp_path / "shared.pth")
    assert len(read_torch_file(tmp_path / "shared.pth", "init")) <= 1


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_safetensors_file_is_not_taken_for_a_pickle(length: int, tmp_path: Path) -> None:
    for padding in range(2000):
        save_file({"w": torch.ones(2)}, tmp_path / "weights.safetensors", {"x": "y" * padding})
        start = (tmp_path / "weights.safetensors").read_bytes()[:2]
        if start == length.to_bytes(8, "little")[:2]:
            break
    else:
        raise AssertionError("no header of that length")
    assert not is_torch_file(tmp_path / "weights.safetensors")


def test_loops_in_a_pickle_end(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"w": torch.ones(2)}
    loop["self"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    assert "w" in read_torch_file(tmp_path / "loop.pth", "init")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2**20), junk=st.binary(min_size=1, max_size=8))
def test_damaged_files_are_read_or_one_line(place: int, junk: bytes, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"w": torch.ones(4), "args": argparse.Namespace(a=1)}, stream, _use_new_zipfile_serialization=place % 2 == 0)
    whole = stream.getvalue()
    start = place % len(whole)
    (tmp_path / "file.pth").write_bytes(whole[:start] + junk + whole[start + len(junk) :])
    try:
        read_torch_file(tmp_path / "file.pth", "init")
    except SslkitError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"hello", b"<!DOCTYPE html>" * 9, b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_neither_says_how_it_begins(
    content: bytes, digits: Path, tmp_path: Path, quick: list[str], sslkit: Callable[..., Any]
) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    ran = sslkit("pretrain", "rotation", "--data", digits, *quick, "--init", tmp_path / "model.pth", "--out", tmp_path / "run")
    problem = f"is neither a safetensors nor a PyTorch file: it begins with {content[:16]!r} (is the download complete?)"
    assert ran.code == 2 and f"--init: {tmp_path / 'model.pth'} {problem}" in ran.err
