"""Several tasks on one encoder: the same terms as alone, weighted; options, state and refusals by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task, task_name
from sslkit.testing import check_task
from tests.canvases import canvases


def joint_task(name: str, batch_size: int = 4, **options: Any) -> Any:
    task_class, data = load_task(name), DataInfo(64, 32, batch_size=batch_size)
    encoder = RecipeBuilder(recipe_for("resnet_micro", 32, 3, {"width": "8"}), data)()
    return task_class(task_class.Options(**options), encoder, data)


def test_terms_are_those_of_each_task_alone_weighted() -> None:
    task = joint_task("simclr+rotation", weights="1,0.5", simclr__temperature=0.2)
    assert task.tasks["simclr"].options.temperature == 0.2 and task.tasks["simclr"].encoder is task.encoder
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    terms = task.loss(task.predict(batch), batch)
    assert list(terms) == ["simclr.loss", "rotation.loss"]
    for (name, alone), weight in zip(task.tasks.items(), (1.0, 0.5), strict=True):
        task_batch = {key.removeprefix(f"{name}."): value for key, value in batch.items() if key.startswith(f"{name}.")}
        assert torch.allclose(terms[f"{name}.loss"], weight * alone.loss(alone.predict(task_batch), task_batch), rtol=1e-4)
    assert set(task.metrics(task.predict(batch), batch)) == {
        "simclr.accuracy",
        "simclr.alignment",
        "simclr.information_bound_nats",
        "rotation.accuracy",
    }


def test_other_settings_are_those_of_the_first() -> None:
    assert load_task("simclr+dino").defaults == load_task("simclr").defaults
    assert load_task("rotation+mcmae").defaults == {"encoder": "convvit_micro", **load_task("rotation").defaults}


def test_errors_of_one_name_its_own_flags() -> None:
    with pytest.raises(SslkitError, match=r"^--moco\.queue: 32 is smaller than the batch size of 64 "):
        joint_task("simclr+moco", batch_size=64, moco__queue=32)


def test_files_take_part_wherever_they_lie(tmp_path: Path) -> None:
    source = (Path(__file__).parents[2] / "examples" / "tilt.py").read_text()
    odd = tmp_path / "c++" / "tilt.py"
    odd.parent.mkdir()
    odd.write_text(source)
    assert load_task(str(odd)).__name__ == "Tilt" and task_name(str(odd)) == "tilt"
    joint = load_task(f"simclr+{odd}")
    assert list(joint.children_of) == ["simclr", "tilt"] and task_name(f"{odd}+simclr") == "tilt+simclr"
    odd.rename(tmp_path / "my-tilt.py")
    with pytest.raises(SslkitError, match="my-tilt cannot stand in a flag"):
        load_task(f"simclr+{tmp_path / 'my-tilt.py'}")


def test_state_of_each_task_is_its_own() -> None:
    task = joint_task("moco+swav", moco__queue=32, swav__prototypes=8)
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    before = task.tasks["moco"].queue.rows.clone()
    with torch.no_grad():
        task.after_step(task.remember(task.predict(batch), batch))
    assert (task.tasks["moco"].queue.rows != before).any(dim=1).sum() == 4
    assert any(name.startswith("tasks.swav.") for name in task.state_dict())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simclr+simclr", "should be different tasks"),
        ("simclr+", "should be different tasks"),
        ("simclr+skipgram", "simclr reads image, skipgram reads text"),
        ("simclr+split_brain", "split_brain builds an encoder of its own kind"),
        ("simclr+rotatoin", "unknown task rotatoin"),
    ],
)
def test_what_cannot_be_joined_is_refused(name: str, message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        load_task(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr+rotation", "mocov3+simmim", "dino+inpainting"])
def test_joint_tasks_keep_the_contract_in_full(name: str) -> None:
    assert not [verdict for verdict in check_task(name, full=True) if not verdict.passed]


def test_from_the_command_line(sslkit: Callable[..., Any], digits: Path, quick: list[str], tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text('[options]\n"rotation.crop-scale" = 0.7\n[options.simclr]\ntemperature = 0.3\n')
    arguments = ["--data", digits, *quick, "--out", tmp_path / "run"]
    ran = sslkit(
        "pretrain", "simclr+rotation", *arguments, "--steps", 2, "--weights", "1,0.5", "--spec", tmp_path / "spec.toml"
    )
    assert ran.code == 0, ran.err
    options = json.loads((tmp_path / "run" / "spec.json").read_text())["options"]
    assert options["simclr__temperature"] == 0.3 and options["rotation__crop_scale"] == 0.7 and options["weights"] == "1,0.5"
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["loss"] == pytest.approx(line["simclr.loss"] + line["rotation.loss"]) and "rotation.accuracy" in line
    assert sslkit("pretrain", "simclr+rotation", "--resume", "--out", tmp_path / "run").code == 0
    ran = sslkit("pretrain", "simclr+rotation", *arguments, "--weights", "1", "--simclr.temperature", "-1")
    assert ran.code == 2
    assert "--weights: should be 2 numbers, not below 0 and not all 0, one for each of simclr, rotation (got 1)" in ran.err
    assert "--simclr.temperature: should be a number, above 0 (got -1)" in ran.err
    for wrong in ("1,-1", "0,0", "1,x"):
        assert (
            f"not below 0 and not all 0, one for each of simclr, rotation (got {wrong})"
            in sslkit("pretrain", "simclr+rotation", *arguments, "--weights", wrong).err
        )
    ran = sslkit("pretrain", "simclr+simmim", "--data", digits, "--encoder", "resnet_micro", "--out", tmp_path / "no")
    assert ran.code == 2 and "simmim requires tokens and resnet_micro provides" in ran.err


def test_preview_has_the_pictures_of_both(sslkit: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    from PIL import Image

    arguments = ["--data", digits, "--size", 32, "--workers", 0]
    for name in ("simclr", "simclr+jigsaw"):
        ran = sslkit("preview", name, *arguments, "--out", tmp_path / f"{name}.png", "--rows", 3)
        assert ran.code == 0, ran.err
    with Image.open(tmp_path / "simclr.png") as single, Image.open(tmp_path / "simclr+jigsaw.png") as both:
        assert both.width > 1.8 * single.width
