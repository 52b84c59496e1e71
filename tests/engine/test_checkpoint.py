"""model.safetensors: self-describing, strict, refusing what it should."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sslkit as public
from sslkit import SslkitError
from sslkit.engine.checkpoint import read_model


def rewritten(path: Path, to: Path, metadata: dict[str, Any] | None = None, drop: str = "", **changes: Any) -> Path:
    """Copy a checkpoint with other metadata or without a tensor."""
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["sslkit"])
    tensors = {name: value for name, value in load_file(path).items() if name != drop}
    description = {**description, **changes} if metadata is None else metadata
    save_file(tensors, to, {"sslkit": json.dumps(description)})
    return to


def test_describes_itself(trained: Path, digits: Path) -> None:
    with safe_open(trained, "pt") as file:
        text = file.metadata()["sslkit"]
        assert all(name.startswith("encoder.") for name in file.keys())  # noqa: SIM118
    description = json.loads(text)
    assert (
        description["task"] == "rotation"
        and description["role"] == "student"
        and description["step"] == description["steps"] == 12
    )
    assert description["recipe"]["name"] == "resnet_micro" and description["encoder_from"].startswith("sslkit ")
    assert description["normalization"][0]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert str(digits) not in text and "/" not in json.dumps(description["spec"])  # never a path


def test_load_needs_neither_plugin_nor_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = tmp_path / "alone.safetensors"
    moved.write_bytes(trained.read_bytes())
    from sslkit.tasks import load

    monkeypatch.setattr(load, "load_task", None)
    encoder = public.load(moved)
    assert not encoder.training
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, 64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "not a readable safetensors file"),
        ("pickle", "was written by torch.save"),
        ("foreign", "was not written by sslkit"),
        ("newer", "has format 99, this sslkit reads up to 1"),
        ("missing", "does not match the encoder: missing: stem.weight"),
        ("wider", "does not match the encoder: shape"),
        ("unsaid", "does not say its recipe"),
        ("hostile", "would be imported and run"),
        ("hub", "not supported"),
        ("gone", "is not a file"),
    ],
)
def test_refusals(damage: str, message: str, trained: Path, digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    path = tmp_path / "model.safetensors"
    with safe_open(trained, "pt") as file:
        recipe = json.loads(file.metadata()["sslkit"])["recipe"]
    if damage == "truncated":
        path.write_bytes(trained.read_bytes()[:-100])
    elif damage == "pickle":
        torch.save({"x": torch.ones(1)}, path)
    elif damage == "foreign":
        save_file(load_file(trained), path)
    elif damage == "newer":
        rewritten(trained, path, format=99)
    elif damage == "missing":
        rewritten(trained, path, drop="encoder.stem.weight")
    elif damage == "wider":
        rewritten(trained, path, recipe={**recipe, "options": {"width": 16}})
    elif damage == "unsaid":
        rewritten(trained, path, metadata={"format": 1, "task": "x", "size": 16, "step": 0, "data": ""})
    elif damage == "hostile":
        rewritten(trained, path, recipe={**recipe, "name": "os:system"})
    elif damage == "hub":
        rewritten(trained, path, recipe={**recipe, "name": "hf_hub:someone/model"})
    with pytest.raises(SslkitError, match=message):
        public.load(path)
    for command in ("knn", "finetune", "export"):
        ran = sslkit(command, "--ckpt", path, *(["--data", digits, "--out", tmp_path / "f"] if command == "finetune" else []))
        assert ran.code == 2 and message.partition(":")[0] in ran.err
        assert len([line for line in ran.err.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "f").exists()


def test_damaged_resume(trained: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "spec.json").write_bytes((trained.parent / "spec.json").read_bytes())
    (run / "resume.pt").write_bytes((trained.parent / "resume.pt").read_bytes()[:-500])
    ran = sslkit("pretrain", "rotation", "--out", run, "--resume")
    assert ran.code == 2 and "resume.pt cannot be read" in ran.err
    (run / "resume.pt").write_text("bad\n")
    ran = sslkit("pretrain", "rotation", "--out", run, "--resume")
    assert ran.code == 2 and "resume.pt cannot be read: it is damaged" in ran.err
    torch.save({"format": 1, "step": 3}, run / "resume.pt")
    ran = sslkit("pretrain", "rotation", "--out", run, "--resume")
    assert ran.code == 2 and "is not a checkpoint of this version" in ran.err
    state = torch.load(trained.parent / "resume.pt", weights_only=True)
    del state["task"]["head.weight"]
    torch.save(state, run / "resume.pt")
    ran = sslkit("pretrain", "rotation", "--out", run, "--resume")
    assert ran.code == 2 and "does not fit the task" in ran.err and len(ran.err.splitlines()[-1]) < 400
    (run / "spec.json").write_text('{"task": "rotation", "what": 3}')
    ran = sslkit("pretrain", "rotation", "--out", run, "--resume")
    assert ran.code == 2 and "has a spec.json of another kind" in ran.err


@pytest.mark.parametrize("new", [True, False])
def test_a_file_of_torch_save_is_no_checkpoint(new: bool, digits: Path, sslkit: Callable[..., Any], tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pth", _use_new_zipfile_serialization=new)
    ran = sslkit("knn", "--ckpt", tmp_path / "model.pth", "--data", digits)
    assert ran.code == 2 and "--ckpt: " in ran.err and "was written by torch.save" in ran.err and "--init" in ran.err


def test_a_task_may_describe_its_checkpoint(digits: Path, quick: list[str], sslkit: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "described.py").write_text(
        "from sslkit_plugins.image.predictive.rotation import Rotation\n"
        "class Described(Rotation):\n"
        "    def metadata(self):\n"
        "        return {'answers': 4}\n"
    )
    for task, expected in ((tmp_path / "described.py", {"answers": 4}), ("rotation", None)):
        out = tmp_path / f"run-{expected is None}"
        ran = sslkit("pretrain", task, "--data", digits, *quick, "--steps", 1, "--out", out)
        assert ran.code == 0, ran.err
        assert read_model(out / "model.safetensors").metadata.get("task_metadata") == expected
