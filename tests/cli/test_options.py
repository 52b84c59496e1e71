"""Flags, their errors and where values come from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslkit import registry
from sslkit.cli import task_schema
from sslkit.contract.errors import flag_name
from sslkit.contract.options import flat_fields
from sslkit.specs.evaluation import EvaluateSpec, KnnSpec, LadderSpec, ProbeSpec, RetrievalSpec
from sslkit.specs.extend import NewTaskSpec
from sslkit.specs.look import MapSpec, PreviewSpec, ReportSpec, WatchSpec
from sslkit.specs.train import CompareSpec, DemoSpec, FinetuneSpec, PretrainSpec
from sslkit.specs.use import EmbedSpec, ExportSpec, PredictSpec, PushSpec, SearchSpec
from sslkit.tasks.load import load_task

# A change of interface is seen here.
_TABLES = {
    "audio": "--seconds --sample-rate",
    "audio_video": "",
    "image": "--size --canvas --layout --channels --range --targets",
    "image_text": "",
    "points": "--point-count --point-features",
    "spectrogram": "--spectrogram-rate",
    "text": "--unit --vocabulary --context --documents --held-out",
    "video": "--frames --poses --cameras --frame-step",
}
_DATA = (
    "--data --label --label-pattern --group --group-pattern --batch-size --seed --device --workers --cache --cache-limit "
    "--reindex"
)
_TRAIN = (
    f"{_DATA} --out --devices --encoder --encoder-option --pretrained --epochs --steps --minutes --micro-batch --optimizer "
    "--lr --lr-scale --betas --sgd-momentum --nesterov --weight-decay --weight-decay-end --warmup --clip --clip-by --precision "
    "--compile --sync-batchnorm --checkpoint-every --max-broken --activation-checkpointing --log --resume --init --dialect "
    "--extend-to"
)
_PRETRAIN = (
    "--recipe --health-every --on-collapse --init-part --label-share "
    "--all-labels --labeled-in-batch --keep-parts --online-knn --shard --profile"
)
_FEATURES = f"{_DATA} --ckpt --part --encoder --layer --pool"
_EVALUATION = f"{_FEATURES} --test --against --baselines --details"
GOLDEN = {
    PretrainSpec: f"{_TRAIN} --task {_PRETRAIN} --options",
    FinetuneSpec: (
        f"{_TRAIN} --ckpt --part --test --protocol --recipe --loss --teacher --distill --teacher-weight "
        "--teacher-temperature --encoder-lr --layer-decay --projector-layers --head-first --freeze-blocks --last-blocks "
        "--batchnorm --crop-scale --label-smoothing --drop-path --mixup --cutmix --randaugment --erasing --ema --shares "
        "--seeds --scratch --details"
    ),
    KnnSpec: f"{_EVALUATION} --protocol --k --temperature --shots --seeds",
    ProbeSpec: f"{_EVALUATION} --protocol --c --lr --seeds",
    RetrievalSpec: _EVALUATION,
    LadderSpec: f"{_DATA} --ckpt --encoder --task --test --shares --seeds --steps --out --resume --details",
    EvaluateSpec: f"{_EVALUATION} --protocol --seeds --out --resume",
    EmbedSpec: f"{_FEATURES} --out",
    PredictSpec: f"{_DATA} --ckpt --encoder --out",
    MapSpec: f"{_FEATURES} --out --method --samples",
    ExportSpec: "--ckpt --part --to --out --encoder --dynamic-batch --dynamic-size --license",
    PushSpec: "--source --repository --public --license --encoder --yes",
    ReportSpec: f"{_DATA} --runs --out --encoder --test --samples",
    WatchSpec: "--run --port --open",
    CompareSpec: f"{_DATA} --tasks --minutes --encoder --encoder-option --test --out",
    NewTaskSpec: "--name --out",
    DemoSpec: "--out --images-only --steps --seed",
    SearchSpec: f"{_DATA} --ckpt --part --queries --k --approximate --out --encoder",
    PreviewSpec: f"{_DATA} --task --ckpt --out --rows --samples --encoder --encoder-option --options",
}
_WITHOUT_DATA = {NewTaskSpec, DemoSpec, PushSpec, WatchSpec}


@pytest.mark.parametrize(("model", "flags"), GOLDEN.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_golden_flags(model: Any, flags: str) -> None:
    tables = [] if model in _WITHOUT_DATA else list(_TABLES)
    assert " ".join(flag_name(name) for name in model.model_fields if name not in tables) == flags
    assert [name for name in model.model_fields if name in _TABLES] == tables


@pytest.mark.parametrize(("modality", "flags"), _TABLES.items())
def test_golden_data_options(modality: str, flags: str) -> None:
    assert " ".join(map(flag_name, registry.data_options()[modality].model_fields)) == flags


def test_flags_are_unique_over_all_modalities_and_tasks() -> None:
    data = [field for options in registry.data_options().values() for field in options.model_fields]
    assert len(set(data)) == len(data)
    assert not set(data) & set(PretrainSpec.model_fields)
    for entry in registry.entries(registry.TASKS):
        assert not set(data) & set(load_task(entry.name).Options.model_fields), entry.name


_AUDIO, _IMAGE = "--seconds --sample-rate", "--size --canvas --layout --channels --range --targets"
_IN_ORDER = f"{_AUDIO} {_IMAGE} {_TABLES['points']} {_TABLES['spectrogram']} {_TABLES['text']} {_TABLES['video']}"
_IMAGE_FIRST = f"{_IMAGE} {_AUDIO} {_TABLES['points']} {_TABLES['spectrogram']} {_TABLES['text']} {_TABLES['video']}"
_REAL = {
    "pretrain": f"task --crop-scale {_TRAIN} {_PRETRAIN} {_IMAGE_FIRST} --spec --dry-run --json --help",
    "preview": (
        f"task --crop-scale {GOLDEN[PreviewSpec].replace(' --task', '').removesuffix(' --options')} "
        f"{_IMAGE_FIRST} --json --help"
    ),
    "finetune": f"{GOLDEN[FinetuneSpec]} {_IN_ORDER} --spec --json --help",
    "knn": f"{GOLDEN[KnnSpec]} {_IN_ORDER} --spec --json --help",
    "probe": f"{GOLDEN[ProbeSpec]} {_IN_ORDER} --spec --json --help",
    "export": f"{GOLDEN[ExportSpec]} {_IN_ORDER} --spec --json --help",
    "search": f"queries {_DATA} --ckpt --part --k --approximate --out --encoder {_IN_ORDER} --spec --json --help",
    "predict": f"{GOLDEN[PredictSpec]} {_IN_ORDER} --spec --json --help",
    "compare": f"{GOLDEN[CompareSpec]} {_IN_ORDER} --spec --json --help",
    "report": (
        f"{GOLDEN[ReportSpec].replace('--runs ', '').replace('--data', 'runs --data', 1)} {_IN_ORDER} --spec --json --help"
    ),
    "new-task": "name --out --spec --json --help",
    "env": "--json --help",
    "ladder": f"{GOLDEN[LadderSpec]} {_IN_ORDER} --spec --json --help",
    "retrieval": f"{GOLDEN[RetrievalSpec]} {_IN_ORDER} --spec --json --help",
    "evaluate": f"{GOLDEN[EvaluateSpec]} {_IN_ORDER} --spec --json --help",
    "embed": f"{GOLDEN[EmbedSpec]} {_IN_ORDER} --spec --json --help",
    "map": f"{GOLDEN[MapSpec]} {_IN_ORDER} --spec --json --help",
    "protocols": "--json --help",
    "check": "task --full --json --help",
    "demo": f"{GOLDEN[DemoSpec]} --spec --json --help",
    "tasks": "name --json --help",
    "encoders": "pattern --json --help",
    "cache": "--clear --json --help",
}


@pytest.mark.parametrize("name", _REAL)
def test_the_command_line_has_these_options(name: str) -> None:
    import typer

    from sslkit.cli.app import build_app

    command: Any = typer.main.get_command(build_app([name, "rotation"] if name in ("pretrain", "preview") else [name]))
    params = command.commands[name].params
    assert " ".join([parameter.opts[0] for parameter in params] + ["--help"]) == _REAL[name]


@pytest.mark.parametrize("model", GOLDEN, ids=lambda model: model.__name__)
def test_every_field_has_a_text(model: Any) -> None:
    assert all(field.description and field.description.endswith(".") for field in flat_fields(model).values())


def test_a_tasks_help_shows_the_options_of_its_data_only(sslkit: Callable[..., Any]) -> None:
    text = sslkit("pretrain", "skipgram", "--help").out
    assert "--context" in text and "--size" not in text and "--seconds" not in text
    text = sslkit("pretrain", "clip", "--help").out
    assert "--context" in text and "--size" in text and "--frames" not in text


def test_an_option_of_other_data_is_refused_by_name(sslkit: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words " * 200)
    ran = sslkit("pretrain", "skipgram", "--data", tmp_path / "text.txt", "--size", 64)
    listed = _TABLES["text"].replace(" ", ", ")
    hint = f"options of text data: {listed}"
    assert (ran.code, ran.err) == (2, f"error: --size: applies to image data only, and this is text data ({hint})\n")


def test_help_of_an_evaluation_shows_the_options_of_the_checkpoints_data(
    sslkit: Callable[..., Any], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["knn", "--ckpt", str(trained), "--help"]
    monkeypatch.setattr("sys.argv", ["sslkit", *words])
    text = sslkit(*words).out
    assert "--size" in text and "--seconds" not in text
    monkeypatch.setattr("sys.argv", ["sslkit", "knn", "--help"])
    assert "--seconds" in sslkit("knn", "--help").out


def test_the_help_of_a_task_is_kept_until_its_file_changes(sslkit: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    source = (Path(__file__).parents[2] / "examples" / "tilt.py").read_text()
    file.write_text(source)
    first = sslkit("pretrain", file, "--help").out
    assert task_schema.stored(str(file)) is not None
    assert sslkit("pretrain", file, "--help").out == first
    file.write_text(source + "\n# changed\n")
    assert task_schema.stored(str(file)) is None


def test_task_help_shows_both_panels(sslkit: Callable[..., Any]) -> None:
    text = sslkit("pretrain", "rotation", "--help").out
    assert "Options of rotation" in text
    assert "--crop-scale" in text
    assert "default 0.06" in text  # the task's learning rate, not the model's
    assert "0, at most 1" in text or "above 0" in text


def test_all_mistakes_at_once(sslkit: Callable[..., Any], digits: Path) -> None:
    ran = sslkit(
        "pretrain", "rotation", "--data", digits, "--epochs", 0, "--lr", "fast", "--optimizer", "adam", "--crop-scale", 2
    )
    assert ran.code == 2
    lines = ran.err.strip().splitlines()
    assert lines == [
        "error: --epochs: should be a whole number, 1 or more, or auto (got 0)",
        "error: --optimizer: should be sgd, adamw or lars (got adam)",
        "error: --lr: should be a number, 0 or more (got fast)",
        "error: --crop-scale: should be a number, above 0, at most 1 (got 2)",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "rotatoin"], "unknown task rotatoin (did you mean rotation?)"),
        (
            ["pretrain", "rotation", "--epoch", "3"],
            "--epoch is not an option of sslkit pretrain (did you mean --epochs? --help lists them all)",
        ),
        (["pretrain", "rotation"], "--data: missing"),
        (["pretrain"], "which task?"),
        (["pretrain", "rotation", "--data", "nowhere"], "nowhere does not exist (expected a folder of images"),
        (["pretrain", "rotation", "--epochs", "1", "--steps", "3", "--data", "x"], "--epochs and --steps: give only one"),
        (["pretrain", "nowhere.py"], "task file nowhere.py does not exist"),
        (
            ["pretrain", "rotation", "--encoder-option", "width", "--data", "x"],
            "--encoder-option: should be KEY=VALUE (got width)",
        ),
        (["knn"], "--ckpt is missing"),
        (["knn", "--ckpt", "nowhere"], "--ckpt: nowhere is not a file"),
        (
            ["pretrain", "rotation", "--data", ".", "--device", "tpu"],
            "--device: should be auto, cpu, cuda, cuda:N or mps (got tpu)",
        ),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_one_line_errors(sslkit: Callable[..., Any], arguments: list[str], message: str) -> None:
    ran = sslkit(*arguments)
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert not ran.out


def test_near_miss_of_a_flag(sslkit: Callable[..., Any]) -> None:
    assert "--epochs" in sslkit("pretrain", "rotation", "--epoch", "3").err


def test_precedence(sslkit: Callable[..., Any], digits: Path, tmp_path: Path, quick: list[str]) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text('task = "rotation"\nlr = 0.5\nwarmup = 0.2\n[options]\ncrop_scale = 0.3\n')
    ran = sslkit(
        "pretrain", "--spec", spec, "--data", digits, "--out", tmp_path / "run", "--lr", 0.7, *quick, "--dry-run", "--json"
    )
    settings = ran.json
    assert settings["lr"] == {"value": 0.7, "source": "flag"}
    assert settings["warmup"] == {"value": 0.2, "source": str(spec)}
    assert settings["crop_scale"] == {"value": 0.3, "source": str(spec)}
    assert settings["weight_decay"] == {"value": 5e-4, "source": "default of rotation"}
    assert settings["clip"] == {"value": None, "source": "default"}
    assert settings["canvas"]["source"] == "auto, small images are kept whole"
    assert not (tmp_path / "run").exists()


def test_a_flag_for_the_length_wins_over_the_file(
    sslkit: Callable[..., Any], digits: Path, tmp_path: Path, quick: list[str]
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"task": "rotation", "data": str(digits), "minutes": 9, "options": {"crop-scale": 0.3}}))
    settings = sslkit("pretrain", f"--spec={spec}", "--epochs", 2, "--crop-scale", 0.4, *quick, "--dry-run", "--json").json
    assert (settings["epochs"]["value"], settings["minutes"]["value"], settings["crop_scale"]["value"]) == (2, None, 0.4)
    spec.write_text(json.dumps({"task": "simclr", "options": {"temperature": 0.5}}))
    other = sslkit("pretrain", "rotation", "--spec", spec)
    assert other.code == 2 and "is for simclr, not rotation" in other.err and len(other.err.splitlines()) == 1
    spec.write_text(json.dumps({"task": "rotation", "options": 3}))
    assert "should be a table" in sslkit("pretrain", "--spec", spec).err


def test_spec_file_mistakes(sslkit: Callable[..., Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("task = ")
    assert "is not TOML" in sslkit("pretrain", "rotation", "--spec", bad).err
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps({"epoch": 3}))
    assert "--epoch: no such setting (did you mean --epochs?)" in sslkit("pretrain", "rotation", "--spec", unknown).err


def test_version(sslkit: Callable[..., Any]) -> None:
    assert sslkit("--version").out.startswith("sslkit 0.")


def test_unexpected_error_is_one_line_and_a_log(tmp_path: Path) -> None:
    import subprocess
    import sys

    task = tmp_path / "broken.py"
    task.write_text(
        "from sslkit import PretextTask\nclass Bug(PretextTask):\n    'A bug.'\n    def setup(self):\n        return 1 / 0\n"
        "    transform = loss = setup\n"
    )
    import numpy as np

    np.save(tmp_path / "images.npy", np.zeros((4, 32, 32, 3), np.uint8))
    command = [sys.executable, "-m", "sslkit", "pretrain", str(task), "--data", "images.npy", "--batch-size", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "unexpected" in line]
    log = line.partition("traceback in ")[2].partition(";")[0]
    assert "ZeroDivisionError" in Path(log).read_text()
    Path(log).unlink()
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
