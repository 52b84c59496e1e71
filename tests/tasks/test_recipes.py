"""`--recipe paper`: the authors' settings, of every task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sslkit import DataInfo, Paper, registry
from sslkit.contract.options import flat_fields
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.pretrain import _check_encoder
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.load import load_task
from sslkit.tasks.recipes import setting_rows, with_task_settings
from sslkit.testing import check_task

WITH_PAPER = [name for name in registry.names(registry.TASKS) if load_task(name).paper is not None]
# Their set-up reads a file or computes with numbers, which the meta device does not have.
_NOT_ON_META = {"beit", "cae", "colorization", "distill", "jigsaw", "npid", "pirl"}
QUICK = ["--encoder", "resnet_micro", "--encoder-option", "width=8", "--size", 16, "--batch-size", 16, "--steps", 1]


def paper_spec(name: str, **values: Any) -> PretrainSpec:
    return with_task_settings(PretrainSpec(task=name, data="x", recipe="paper", **values), load_task(name))


@pytest.mark.parametrize("name", WITH_PAPER)
def test_the_models_accept_the_authors_settings(name: str, tmp_path: Path) -> None:
    task_class, spec = load_task(name), paper_spec(name)
    spec.check_modality(task_class.modality)
    options = task_class.Options.model_validate({**task_class.example_options(tmp_path), **spec.options})
    for setting, value in task_class.paper.settings.items():
        if setting in task_class.Options.model_fields:
            assert getattr(options, setting) == value or str(getattr(options, setting)).rstrip("0").rstrip(".") == value
        else:
            assert {**spec.data_values(), **spec.model_dump()}[setting] == value
    assert task_class.paper.source and not task_class.paper.source.endswith(".")


@pytest.mark.parametrize("name", WITH_PAPER)
def test_the_authors_encoder_fits_their_task(name: str) -> None:
    task_class, spec = load_task(name), paper_spec(name)
    _check_encoder(spec, task_class, name)
    if task_class.modality != "image" or name in _NOT_ON_META:
        return
    chosen = "vit_small_patch16_224" if "tokens" in task_class.requires else "resnet50"
    encoder, size = chosen if spec.encoder == "auto" else spec.encoder, spec.sample_size("image") or 224
    data = DataInfo(1_281_167, size, batch_size=spec.batch_size, classes=("cat", "dog"))
    options = task_class.Options.model_validate({**spec.options, **({"teacher": "x"} if name == "clusterfit" else {})})
    with torch.device("meta"):
        build = RecipeBuilder(recipe_for(encoder, size, 3, spec.encoder_option), data)
        task_class(options, task_class.build_encoder(options, build), data)


def test_flags_win_and_take_what_depends_on_them_along() -> None:
    spec = paper_spec("simclr", lr=0.1, size=96, options={"temperature": 0.7})
    assert (spec.lr, spec.image.size, spec.options["temperature"]) == (0.1, 96, 0.7)
    assert (spec.optimizer, spec.batch_size, spec.options["hidden"]) == ("lars", 4096, 2048)
    assert paper_spec("simclr", minutes=1).epochs == "auto"
    assert paper_spec("jigsaw").steps == 350_000 and paper_spec("jigsaw", epochs=2).steps is None
    assert paper_spec("mocov3").encoder_option == {"num_heads": "12"}
    assert paper_spec("mocov3", encoder="vit_micro").encoder_option == {}
    default = with_task_settings(PretrainSpec(task="simclr", data="x"), load_task("simclr"))
    assert (default.optimizer, default.lr, default.options) == ("sgd", 0.12, {})


def test_defaults_of_the_task_stay_where_the_paper_says_nothing() -> None:
    spec = paper_spec("dino")
    assert (spec.weight_decay, spec.weight_decay_end, spec.clip, spec.clip_by) == (0.04, 0.4, 3.0, "parameter")


@pytest.mark.parametrize("name", ["simclr+rotation", "margin"])
def test_tasks_without_a_paper_are_refused_in_one_line(
    name: str, sslkit: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    ran = sslkit("pretrain", name, "--data", digits, *QUICK, "--recipe", "paper", "--out", tmp_path / "run")
    assert ran.code == 2 and len(ran.err.strip().splitlines()) == 1
    assert "--recipe: " in ran.err and "settings of" in ran.err and "are not recorded" in ran.err


def test_a_run_records_its_recipe_and_goes_on_with_it(sslkit: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    run = ["pretrain", "simclr", "--data", digits, "--out", tmp_path / "run"]
    settings = sslkit(*run, *QUICK, "--recipe", "paper", "--dry-run", "--json").json
    assert settings["temperature"] == {"value": 0.1, "source": "authors of simclr"}
    assert settings["optimizer"] == {"value": "lars", "source": "authors of simclr"}
    assert settings["batch_size"] == {"value": 16, "source": "flag"} and settings["gray"]["source"] == "default"
    assert sslkit(*run, *QUICK, "--recipe", "paper").code == 0
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert (spec["recipe"], spec["lr"], spec["lr_scale"]) == ("paper", 0.3, "linear")
    assert (spec["options"]["temperature"], spec["options"]["blur"]) == (0.1, 0.5)
    assert sslkit(*run, "--resume").code == 0 and sslkit(*run, "--resume", "--recipe", "paper").code == 0
    ran = sslkit(*run, "--resume", "--recipe", "default")
    assert ran.code == 2 and "--recipe default (the run has paper)" in ran.err


def test_the_settings_of_a_task_are_listed(sslkit: Callable[..., Any]) -> None:
    listed = sslkit("tasks", "dino", "--json").json
    rows = {row["name"]: row for row in listed["settings"]}
    assert rows["outputs"] == {"name": "outputs", "default": "1024", "paper": "65536"}
    assert rows["clip_by"] == {"name": "clip_by", "default": "parameter", "paper": ""}
    assert "main_dino.py" in listed["source"] and listed["unsupported"]
    text = sslkit("tasks", "dino").out
    assert "--lr-scale" in text and "linear" in text and "main_dino.py" in text
    assert "not stated" in sslkit("tasks", "margin").out


@pytest.mark.parametrize("name", registry.names(registry.TASKS))
def test_every_choice_of_a_task_has_a_row(name: str) -> None:
    task_class = load_task(name)
    names = [row.name for row in setting_rows(task_class)]
    chosen = {*task_class.defaults, *({} if task_class.paper is None else task_class.paper.settings)}
    assert set(names) == chosen and len(names) == len(chosen)
    assert chosen <= {*flat_fields(PretrainSpec), *task_class.Options.model_fields}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "paper cannot set epoch to 3"),
        ({"lr": -1}, "paper cannot set lr to -1"),
        ({"crop_scale": 2.0}, "paper cannot set crop_scale to 2.0"),
        ({"seconds": 1.0}, "--seconds: applies to audio data only"),
    ],
)
def test_check_names_a_setting_that_is_none(settings: dict[str, Any], message: str) -> None:
    class Wrong(load_task("rotation")):  # type: ignore[misc]
        paper: ClassVar = Paper("nowhere", settings)

    verdict = check_task(Wrong)[0]
    assert not verdict.passed and message in verdict.detail
