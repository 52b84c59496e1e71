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
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import describe, save_model
from sslkit.exporting.push import find_private
from tests.hub_server import COMMIT, NEW_COMMIT, Hub, serve_hub, use_hub

Run = Callable[..., Any]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub({"me/there": {}}) as server:
        use_hub(monkeypatch, server.address)
        monkeypatch.setenv("HF_TOKEN", "hf_token")
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
    assert "model.safetensors" in ran.err and "no absolute path, host name or user name was recognized" in ran.err
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
    assert ran.code == 2 and "not confirmed: nothing was uploaded" in ran.err and not hub.repositories["me/there"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # not a terminal
    ran = sslkit("push", folder, "me/there")
    assert ran.code == 2 and "cannot ask for confirmation: stdin is not a terminal (add --yes)" in ran.err
    assert all(request.startswith("GET") for request in hub.requests)


def test_what_names_the_machine_is_shown_and_never_goes_unasked(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "workstation-7")
    monkeypatch.setattr(getpass, "getuser", lambda: "marie")
    (folder / "config.json").write_text(json.dumps({"by": "marie", "on": "workstation-7", "data": "/home/marie/photos"}))
    ran = sslkit("push", folder, "me/there", "--yes", "--public")
    assert ran.code == 2 and "--yes: files contain a path, host name or user name (rerun without --yes to confirm)" in ran.err
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

    save_file({"a": torch.ones(1)}, tmp_path / "c.safetensors", {"sslkit": json.dumps({"from": "C:\\Users\\marie\\x"})})
    assert "holds a path: C:" in next(find_private("c", tmp_path / "c.safetensors"))


@pytest.mark.parametrize(
    "path",
    [
        *("/home/anna/x", "/gpfs/project/x", "/work/anna", "/data/photos/cats", "/Volumes/My Disk/x", "/private/var/folders"),
        *("file:///home/anna/x", "D:\\photos", "C:\\Users\\anna", "C:/Users/anna", "\\\\server\\share\\x"),
    ],
)
def test_paths_that_are_recognized(path: str, tmp_path: Path) -> None:
    inner = json.dumps({"data": path})
    for content in (f"from {path}\n", f"(`{path}`)", inner, json.dumps({"sslkit": inner}), json.dumps({"text": f"of\n{path}"})):
        (tmp_path / "a.json").write_text(content)
        assert list(find_private("a", tmp_path / "a.json")), content


def test_what_is_not_a_path(tmp_path: Path) -> None:
    text = """https://huggingface.co/me/net and 120 images/s on 1/2/2026, GPL-2.0/MIT, and/or/both, image/png, x / y / z
    </details> image = (image / 255 - mean) / std  # [1, 3, 224, 224], http://127.0.0.1:80/a/b, ./a/b, ../a/b"""
    for content in (text, json.dumps({"text": text})):
        (tmp_path / "a.json").write_text(content)
        assert not list(find_private("a", tmp_path / "a.json"))


def test_a_name_in_other_letters_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "jörgen")
    inner = json.dumps({"by": "jörgen"})
    for content in ("by jörgen", inner, json.dumps({"sslkit": inner})):
        (tmp_path / "a.json").write_text(content, encoding="utf-8")
        assert list(find_private("a", tmp_path / "a.json")) == ["a holds the user name: jörgen"]


def test_users_of_containers_are_not_private(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run) -> None:
    monkeypatch.delenv("LOGNAME", raising=False)
    monkeypatch.setenv("USER", "sslkit")
    (folder / "config.json").write_text('{"sslkit_export": "by sslkit"}')
    ran = sslkit("push", folder, "me/new", "--yes")
    assert ran.code == 0, ran.err


def test_a_public_repository_needs_a_confirmation(hub: Hub, folder: Path, sslkit: Run) -> None:
    hub.repositories["me/there"]["README.md"] = b"old"
    ran = sslkit("push", folder, "me/there", "--yes")
    assert ran.code == 2 and "--yes: me/there is public (add --public, or rerun without --yes to confirm)" in ran.err
    assert hub.repositories["me/there"] == {"README.md": b"old"}
    ran = sslkit("push", folder, "me/there", "--yes", "--public")
    assert ran.code == 0 and [line for line in ran.err.splitlines() if "replaces" in line] == [
        f"  {'README.md':<24} {27:>15} bytes, replaces the file there"
    ]
    hub.private.add("me/there")
    ran = sslkit("push", folder, "me/there", "--yes", "--public")
    assert ran.code == 2 and "--public: me/there is private (change that on the Hub, or leave it out)" in ran.err


def test_without_a_login(hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    ran = sslkit("push", folder, "me/new", "--yes")
    assert ran.code == 2 and "not logged in to the Hub (log in: hf auth login)" in ran.err
    assert len(ran.err.splitlines()) == 1 and not hub.requests


def test_initial_weights_of_the_hub_are_named(hub: Hub, folder: Path, sslkit: Run) -> None:
    (folder / "config.json").write_text(json.dumps({"init": f"hf_hub:them/secret@{COMMIT}"}))
    ran = sslkit("push", folder, "me/new", "--yes")
    assert ran.code == 0 and f"config.json names the initial weights: hf_hub:them/secret@{COMMIT}" in ran.err


FACTORY = """
from sslkit.encoders.build import build_encoder

def net():
    return build_encoder("resnet_micro", size=32)
"""


def test_an_encoder_of_a_factory_is_imported_if_it_is_repeated(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run
) -> None:
    (tmp_path / "pushed_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    name, run = "pushed_factory:net", tmp_path / "run"
    encoder = build_encoder(recipe_for(name, 32), allowed=name)
    run.mkdir()
    (run / "spec.json").write_text("{}")
    described = {**describe(encoder), "task": "none", "size": 32, "step": 1, "data": ""}
    save_model(run / "model.safetensors", {"encoder": encoder}, described)
    ran = sslkit("push", run, "me/new", "--yes")
    assert ran.code == 2 and f"allow it with --encoder {name}" in ran.err
    ran = sslkit("push", run, "me/new", "--yes", "--encoder", name)
    assert ran.code == 0 and "model.safetensors" in hub.repositories["me/new"], ran.err


@pytest.mark.parametrize("name", ["pytorch_model.bin", ".hidden.json", "inner/"])
def test_other_files_are_refused(name: str, hub: Hub, folder: Path, sslkit: Run) -> None:
    (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("")
    ran = sslkit("push", folder, "me/there", "--yes")
    assert ran.code == 2 and name.strip("/") in ran.err and len(ran.err.splitlines()) == 1


def test_mistakes_are_one_line(hub: Hub, folder: Path, tmp_path: Path, sslkit: Run) -> None:
    for arguments, message in (
        ([folder], "REPOSITORY is missing (sslkit push SOURCE REPOSITORY)"),
        ([folder, "there"], "there is not a repository name (expected OWNER/NAME)"),
        ([tmp_path / "none", "me/there", "--yes"], "is not a folder"),
        ([folder, "me/there", "--yes", "--license", "mit"], "--license: "),
        ([folder, "me/there", "--yes", "--encoder", "a.b:c"], "--encoder: "),
    ):
        ran = sslkit("push", *arguments)
        assert ran.code == 2 and message in ran.err and len(ran.err.splitlines()) == 1, ran.err
    (folder / "README.md").unlink()
    ran = sslkit("push", folder, "me/there", "--yes")
    assert ran.code == 2 and "has no README.md (sslkit export --to hf writes one)" in ran.err


def test_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    ran = sslkit("push", folder, "me/there", "--yes")
    assert ran.code == 2 and "cannot be reached: " in ran.err and len(ran.err.splitlines()) == 1
