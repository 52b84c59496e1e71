"""`sslkit push` shows what goes, asks, and uploads; a local server stands for the Hub."""

import getpass
import io
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sslkit import load
from sslkit.exporting.push import find_private
from tests.hub_server import NEW_COMMIT, Hub, serve_hub

Run = Callable[..., Any]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub({"me/there": {}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# net\n")
    (folder / "config.json").write_text("{}")
    return folder


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_run_goes_as_checkpoint_and_card(hub: Hub, trained: Path, tmp_path: Path, sslkit: Run) -> None:
    ran = sslkit("push", trained.parent, "me/new", "--yes", "--license", "MIT")
    assert ran.code == 0, ran.err
    assert f"to me/new on {hub.address}, a new repository, private:" in ran.err
    assert "model.safetensors" in ran.err and "no path, host name or user name is in these files" in ran.err
    assert f"--init hf_hub:me/new@{NEW_COMMIT}" in ran.out
    files = hub.repositories["me/new"]
    assert sorted(files) == ["README.md", "model.safetensors"] and "me/new" in hub.private
    assert files["model.safetensors"] == trained.read_bytes()
    card = files["README.md"].decode()
    assert card.startswith('---\nlibrary_name: "sslkit"') and 'license: "mit"' in card
    assert 'encoder = sslkit.load("model.safetensors")' in card and "image = torch.from_numpy(image)" in card
    assert str(trained.parent.parent) not in card
    (tmp_path / "again.safetensors").write_bytes(files["model.safetensors"])
    assert load(tmp_path / "again.safetensors").width == 64


def test_a_folder_is_uploaded_after_a_yes(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    ran = sslkit("push", folder, "me/there", "--json")
    assert ran.json == {"repository": "me/there", "commit": NEW_COMMIT, "files": {"README.md": 27, "config.json": 2}}
    assert "which is public:" in ran.err and "Upload these files? [y/N]" in ran.err
    assert hub.repositories["me/there"].keys() == {"README.md", "config.json"}
    assert not any("create" in request for request in hub.requests)


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_goes_without_a_yes(answer: str, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    ran = sslkit("push", folder, "me/there")
    assert ran.code != 0 and not hub.repositories["me/there"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # not a terminal
    ran = sslkit("push", folder, "me/there")
    assert ran.code == 2 and "nobody is there to confirm the upload (add --yes)" in ran.err
    assert all(request.startswith("GET") for request in hub.requests)


def test_what_names_the_machine_is_shown_and_never_goes_unasked(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "workstation-7")
    monkeypatch.setattr(getpass, "getuser", lambda: "marie")
    (folder / "config.json").write_text(json.dumps({"by": "marie", "on": "workstation-7", "data": "/home/marie/photos"}))
    ran = sslkit("push", folder, "me/there", "--yes")
    assert ran.code == 2 and "--yes: not confirmed for files that name this machine or its user" in ran.err
    for line in ("a path: /home/marie", "the host name: workstation-7", "the user name: marie"):
        assert f"config.json holds {line}" in ran.err
    assert not hub.repositories["me/there"]


def test_of_a_safetensors_file_the_header_is_searched(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.frombuffer(bytearray(b"/home/marie/photos"), dtype=torch.uint8)}, tmp_path / "a.safetensors")
    assert not list(find_private("a", tmp_path / "a.safetensors"))
    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors", {"from": "C:\\Users\\marie\\x"})
    assert "holds a path: C:" in next(find_private("b", tmp_path / "b.safetensors"))
    (tmp_path / "empty.json").write_text("")
    assert not list(find_private("e", tmp_path / "empty.json"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", ".hidden.json", "inner/"])
def test_other_files_are_refused(name: str, hub: Hub, folder: Path, sslkit: Run) -> None:
    (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("")
    ran = sslkit("push", folder, "me/there", "--yes")
    assert ran.code == 2 and name.strip("/") in ran.err and len(ran.err.splitlines()) == 1


def test_mistakes_are_one_line(hub: Hub, folder: Path, tmp_path: Path, sslkit: Run) -> None:
    for arguments, message in (
        ([folder], "REPOSITORY is missing (sslkit push SOURCE REPOSITORY)"),
        ([folder, "there"], "there is no repository: OWNER/NAME is expected"),
        ([tmp_path / "none", "me/there", "--yes"], "is no folder"),
        ([folder, "me/there", "--yes", "--license", "mit"], "--license: "),
    ):
        ran = sslkit("push", *arguments)
        assert ran.code == 2 and message in ran.err and len(ran.err.splitlines()) == 1, ran.err
    (folder / "README.md").unlink()
    ran = sslkit("push", folder, "me/there", "--yes")
    assert ran.code == 2 and "has no README.md (sslkit export --to hf writes one)" in ran.err


def test_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ran = sslkit("push", folder, "me/there", "--yes")
    assert ran.code == 2 and "cannot be reached: " in ran.err and len(ran.err.splitlines()) == 1
