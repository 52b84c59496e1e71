"""Whole runs: the run folder, resume, extension, interruption, failure."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import sslkit as public
from sslkit import SslkitError
from sslkit.contract.errors import RunFailedError, RunInterruptedError
from sslkit.engine.pretrain import prepare, pretrain
from sslkit.engine.run_folder import RunFolder
from sslkit.image.source import ImageSource
from sslkit.specs.train import PretrainSpec
from tests.run_files import RUN_FILES

Run = Callable[..., Any]


def spec(digits: Path, out: Path, task: str = "rotation", **changes: Any) -> PretrainSpec:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 16, "size": 16, "encoder_option": {"width": "8"}, "workers": 0}
    return PretrainSpec(task=task, data=str(digits), out=str(out), **{**settings, **changes})


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(run: Path, other: Path) -> bool:
    first, second = weights(run), weights(other)
    states = [torch.load(folder / "resume.pt", weights_only=True)["task"] for folder in (run, other)]
    return all(torch.equal(first[name], second[name]) for name in first) and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def test_a_run_from_the_command_line(sslkit: Run, digits: Path, tmp_path: Path, quick: list[str]) -> None:
    out = tmp_path / "run"
    ran = sslkit("pretrain", "rotation", "--data", digits, "--out", out, "--epochs", 4, *quick, "--json")
    result = ran.json
    assert set(result) == {"run", "checkpoint", "steps", "samples_per_second", "loss", "seconds", "metrics", "chance"}
    assert result["steps"] == 12 and result["samples_per_second"] > 0 and result["loss"] < 2
    assert {path.name for path in out.iterdir()} == RUN_FILES
    assert result["chance"] == {"accuracy": 0.25} and result["metrics"].keys() == {"accuracy"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    assert {"loss", "accuracy", "lr", "gradient_norm", "epoch"} <= set(lines[0])
    for word in ("48 images", "pretraining reads train only", "device", "steps"):
        assert word in ran.err


def test_the_plan_gives_reasons(sslkit: Run, digits: Path, tmp_path: Path) -> None:
    ran = sslkit("pretrain", "rotation", "--data", digits, "--out", tmp_path / "r", "--dry-run", "--batch-size", 16)
    assert ran.code == 0
    for text in ("images have 16 px on the short side", "images up to 64 px", "no GPU found", "default of rotation"):
        assert text in ran.out or torch.cuda.is_available(), ran.out
    assert not (tmp_path / "r").exists()


def test_test_images_never_reach_pretraining(digits: Path, tmp_path: Path) -> None:
    settings = prepare(spec(digits, tmp_path / "run")).settings
    assert isinstance(settings.source, ImageSource)
    assert settings.data.samples == len(settings.source.index) == 48
    assert settings.source.index.root.name == "train" and settings.source.index.labels is None


def test_repeating_spec_json_gives_the_same_weights(sslkit: Run, digits: Path, tmp_path: Path) -> None:
    pretrain(spec(digits, tmp_path / "one"))
    assert sslkit("pretrain", "--spec", tmp_path / "one" / "spec.json", "--out", tmp_path / "two").code == 0
    assert same(tmp_path / "one", tmp_path / "two")


def test_names_of_runs(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [pretrain(spec(digits, tmp_path).model_copy(update={"out": None, "epochs": 1})).run for _ in range(2)]
    assert runs == ["runs/rotation", "runs/rotation-2"]


@pytest.fixture(scope="module")
def whole_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return the folder of an uninterrupted run; every task is trained once with each optimizer."""
    runs: dict[tuple[str, str], Path] = {}

    def run(task: str, optimizer: str) -> Path:
        if (task, optimizer) not in runs:
            folder = runs[task, optimizer] = tmp_path_factory.mktemp("whole") / "run"
            pretrain(spec(digits, folder, task, **_OPTIMIZERS[optimizer]))
        return runs[task, optimizer]

    return run


_OPTIMIZERS: dict[str, dict[str, Any]] = {"default": {}, "adamw": {"optimizer": "adamw", "lr": 1e-3}}


@pytest.mark.parametrize(
    "task",
    ["simclr", *(pytest.param(task, marks=pytest.mark.slow) for task in ("rotation", "deepcluster", "swav", "exemplar"))],
)
@pytest.mark.parametrize("stop", [2, 3, 5])  # inside the first epoch, at its end, inside the second
def test_resume_is_bit_equal(
    task: str,
    stop: int,
    digits: Path,
    tmp_path: Path,
    whole_run: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizer = "adamw" if stop == 2 else "default"
    settings, whole = _OPTIMIZERS[optimizer], whole_run(task, optimizer)
    interrupt_after(stop, monkeypatch)
    with pytest.raises(RunInterruptedError) as stopped:
        pretrain(spec(digits, tmp_path / "parts", task, **settings))
    monkeypatch.undo()
    assert stopped.value.exit_code == 143
    assert torch.load(tmp_path / "parts" / "resume.pt", weights_only=True)["step"] == stop
    pretrain(PretrainSpec(task=task, out=str(tmp_path / "parts"), resume=True))
    assert same(whole, tmp_path / "parts")
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(9))


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process after a number of steps."""
    from sslkit.engine.stepper import Stepper

    step = Stepper.step

    def counted(self: Stepper, raw: Any) -> dict[str, float]:
        metrics = step(self, raw)
        if self.clock.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(Stepper, "step", counted)


def test_resume_checks_the_flags(sslkit: Run, digits: Path, tmp_path: Path, quick: list[str]) -> None:
    out = tmp_path / "run"
    base = ["pretrain", "rotation", "--data", digits, "--out", out, *quick]
    assert sslkit(*base, "--epochs", 1, "--resume").code == 0  # nothing there: starts afresh
    ran = sslkit(*base, "--epochs", 1)
    assert ran.code == 2 and "holds a run" in ran.err and "--resume" in ran.err
    ran = sslkit(*base, "--epochs", 2, "--lr", 0.5, "--crop-scale", 0.5, "--resume")
    assert ran.code == 2
    for text in ("--epochs 2 (the run has 1)", "--lr 0.5 (the run has 0.06)", "--crop-scale 0.5 (the run has 0.6)"):
        assert text in ran.err
    again = sslkit(*base, "--epochs", 1, "--crop-scale", "0.60", "--resume", "--workers", 0, "--json")
    assert again.json["steps"] == 3 and again.json["loss"] > 0


def test_resume_on_other_data(digits: Path, tmp_path: Path) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(digits, data)
    pretrain(spec(data, tmp_path / "run", epochs=1))
    next((data / "train" / "digit 0").iterdir()).unlink()
    with pytest.raises(SslkitError, match="is no longer the data of the run"):
        pretrain(PretrainSpec(task="rotation", out=str(tmp_path / "run"), resume=True))


def test_a_restart_without_a_checkpoint_does_not_log_twice(digits: Path, tmp_path: Path) -> None:
    pretrain(spec(digits, tmp_path / "run", epochs=1))
    (tmp_path / "run" / "resume.pt").unlink()
    with pytest.raises(SslkitError, match=r"--resume: .* has a model and no resume\.pt"):
        pretrain(spec(digits, tmp_path / "run", epochs=1, resume=True))
    (tmp_path / "run" / "model.safetensors").unlink()  # killed before its first checkpoint
    pretrain(spec(digits, tmp_path / "run", epochs=1, resume=True))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_extension(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(SslkitError, match="holds no finished run"):
        pretrain(spec(digits, out, epochs=2, extend_to=4))
    pretrain(spec(digits, out, epochs=2))
    before = weights(out)
    with pytest.raises(SslkitError, match="1 epochs are 3 steps"):
        pretrain(PretrainSpec(task="rotation", out=str(out), extend_to=1))
    result = pretrain(PretrainSpec(task="rotation", out=str(out), extend_to=4))
    assert result.steps == 12
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines]
    assert rates[5] < rates[6]  # a new warm-up
    assert any(not torch.equal(before[name], value) for name, value in weights(out).items())
    from sslkit.engine.checkpoint import read_model

    assert read_model(out / "model.safetensors").metadata["extended_from"] == 6
    again = pretrain(PretrainSpec(task="rotation", out=str(out), resume=True))  # finished: nothing to do, nothing changed
    assert again.steps == 12 and read_model(out / "model.safetensors").metadata["extended_from"] == 6


def test_init_starts_from_weights(trained: Path, digits: Path, tmp_path: Path) -> None:
    pretrain(spec(digits, tmp_path / "run", init=str(trained), lr=0.0, epochs=1, weight_decay=0.0))
    before, after = load_file(trained), weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before if "running" not in name and "num_batches" not in name)
    with pytest.raises(SslkitError, match="does not match the encoder: shape"):
        pretrain(spec(digits, tmp_path / "other", init=str(trained), encoder_option={"width": "16"}))
    assert not (tmp_path / "other").exists()


def test_init_from_timm(digits: Path, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("resnet10t", in_chans=3)
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    changes = {"encoder": "resnet10t", "encoder_option": {}, "steps": 1, "epochs": "auto", "lr": 0.0, "weight_decay": 0.0}
    pretrain(spec(digits, tmp_path / "run", init=str(tmp_path / "timm.safetensors"), **changes))
    assert torch.equal(weights(tmp_path / "run")["encoder.model.layer1.0.conv1.weight"], model.layer1[0].conv1.weight)


def test_minutes_fix_the_steps(digits: Path, tmp_path: Path) -> None:
    result = pretrain(spec(digits, tmp_path / "run", epochs="auto", minutes=0.03))
    recorded = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert recorded["steps"] == result.steps > 3
    assert recorded["minutes"] == 0.03
    resumed = pretrain(PretrainSpec(task="rotation", out=str(tmp_path / "run"), resume=True, minutes=0.03))
    assert resumed.steps == result.steps


def test_a_rehearsal_leaves_no_trace(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run long enough to be timed first gives the weights of one that is not."""
    from sslkit.engine import training

    pretrain(spec(digits, tmp_path / "long", epochs="auto", steps=24))
    monkeypatch.setattr(training, "estimate_steps", lambda stepper, loader, stop: stepper.spec)
    pretrain(spec(digits, tmp_path / "cut", epochs="auto", steps=24))
    assert same(tmp_path / "long", tmp_path / "cut")


def test_a_rehearsed_epoch_leaves_no_trace_and_is_counted(digits: Path, tmp_path: Path) -> None:
    from sslkit.contract.task import Clock
    from sslkit.data.loader import Loader
    from sslkit.engine import rehearsal
    from sslkit.engine.job import build_task
    from sslkit.engine.rehearsal import estimate_steps, rehearse_epochs
    from sslkit.engine.signals import StopSignal
    from sslkit.engine.stepper import Stepper

    job = prepare(spec(digits, tmp_path / "run", "deepcluster", epochs="auto", minutes=0.05))
    stepper = Stepper(build_task(job, initialize=True), job.settings, Clock(steps=10**9))
    stepper.before_epoch(0)
    before = {name: value.clone() for name, value in stepper.task.state_dict().items()}
    weights = stepper.weights.clone()
    assert rehearse_epochs(stepper, 0.0) > 0 and stepper.clock.epoch == 0
    assert all(torch.equal(value, before[name]) for name, value in stepper.task.state_dict().items())
    assert torch.equal(stepper.weights, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "rehearse_steps", lambda *_: 0.01)
        patch.setattr(rehearsal, "rehearse_epochs", lambda *_: 0.3)
        estimated = estimate_steps(stepper, Loader(job.settings.source, 0, substitute=True), StopSignal())
    assert estimated.steps == round(3 / (0.01 + 0.3 / 3))  # an epoch has three steps


def test_micro_batches_from_the_command_line(digits: Path, tmp_path: Path) -> None:
    options = {"norm": "none"}
    runs = []
    for micro_batch in ("auto", 6):
        out = tmp_path / str(micro_batch)
        pretrain(
            spec(digits, out, "simclr", micro_batch=micro_batch, encoder="vit_micro", options=options, epochs=1).model_copy(
                update={"encoder_option": {"width": "16", "depth": "1", "heads": "2"}}
            )
        )
        runs.append(weights(out))
    for name in runs[0]:
        assert torch.allclose(runs[0][name], runs[1][name], atol=1e-4), name


DIVERGES = """
import torch
from sslkit import PretextTask
class Diverges(PretextTask):
    "Goes wrong in the third step."
    def transform(self, batch):
        return {"image": batch["canvas"]}
    def loss(self, output, batch):
        good = output.square().mean()
        return {"good": good, "bad": good / 0 if self.clock.step == 2 else good}
"""


def test_divergence_names_step_and_term(sslkit: Run, digits: Path, tmp_path: Path, quick: list[str]) -> None:
    (tmp_path / "diverges.py").write_text(DIVERGES)
    out = tmp_path / "run"
    ran = sslkit("pretrain", tmp_path / "diverges.py", "--data", digits, "--out", out, "--checkpoint-every", 1, *quick)
    assert ran.code == 1
    assert "step 3 diverged: loss bad is not finite" in ran.err
    assert torch.load(out / "resume.pt", weights_only=True)["step"] == 2
    assert all(torch.isfinite(value).all() for value in weights(out).values())


def test_a_huge_learning_rate_ends_with_code_1(sslkit: Run, digits: Path, tmp_path: Path, quick: list[str]) -> None:
    ran = sslkit("pretrain", "rotation", "--data", digits, "--out", tmp_path / "r", "--lr", 1e30, "--epochs", 5, *quick)
    assert ran.code == 1 and "diverged" in ran.err and "--lr" in ran.err


def test_out_of_memory_suggests_a_micro_batch(digits: Path, tmp_path: Path) -> None:
    from sslkit.engine.stepper import Stepper

    class Greedy(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.empty(2**50).sum() + image

    job = prepare(spec(digits, tmp_path / "run"))
    from sslkit.contract.task import Clock
    from sslkit.encoders.build import build_encoder

    task = job.build_task(build_encoder(job.settings.recipe), job.settings.data)
    task.head = Greedy()
    stepper = Stepper(task, job.settings, Clock(steps=1))
    with pytest.raises(RunFailedError, match=r"out of memory in step 1 with 16 samples at once \(try a smaller --size"):
        images = torch.zeros(16, 16, 16, 3, dtype=torch.uint8)
        stepper.step({"canvas": images, "aspect": torch.ones(16), "index": torch.arange(16), "broken": []})


def test_two_runs_in_the_same_folder(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / "lock"), pytest.raises(SslkitError, match="another process is working"):
        pretrain(spec(digits, tmp_path / "run"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_process_after_a_checkpoint(number: int, digits: Path, tmp_path: Path, quick: list[str]) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sslkit", "pretrain", "rotation", "--data", str(digits), "--out", str(out), *quick]
    command += ["--epochs", "100000", "--workers", "2", "--cache", "off"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (out / "resume.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # workers too, as a terminal or a job scheduler does
    _, error_output = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"(continue with: sslkit pretrain rotation --resume --out {out})" in error_output and "error" not in error_output
    assert math.isfinite(torch.load(out / "resume.pt", weights_only=True)["step"])


def test_broken_images_are_listed_and_left_out(sslkit: Run, tmp_path: Path, quick: list[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(data / f"{i:02}.png")
    (data / "07.png").write_bytes(b"nothing")
    ran = sslkit("pretrain", "rotation", "--data", data, "--out", tmp_path / "run", "--epochs", 2, *quick)
    assert ran.code == 0 and "skipped 1 unreadable image (listed in" in ran.err
    assert (tmp_path / "run" / "broken.csv").read_text().splitlines()[:1] == ["path,reason"]
    assert "07.png,UnidentifiedImageError" in (tmp_path / "run" / "broken.csv").read_text()


def test_workers_and_cache_change_nothing(digits: Path, tmp_path: Path) -> None:
    pretrain(spec(digits, tmp_path / "plain", cache="off"))
    pretrain(spec(digits, tmp_path / "workers", cache="off", workers=2))
    pretrain(spec(digits, tmp_path / "cached", cache="on"))
    assert same(tmp_path / "plain", tmp_path / "workers") and same(tmp_path / "plain", tmp_path / "cached")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "100"], "only 48 images, fewer than a batch"),
        (["--batch-size", "100"], "use 48 or less"),
        (["--encoder", "resnet_mikro"], "did you mean resnet_micro"),
        (["--out", "{file}"], "is a file"),
        (["--out", "{file}/below"], "cannot write to"),
        (["--data", "{file}"], "neither folder nor list"),
        (["--data", "{empty}"], "no image in"),
        (["--data", "{junk}"], "none of 3 files tried"),
        (["--label", "kind"], "has no columns"),
        (["--init", "{file}"], "is neither a safetensors nor a PyTorch file"),
    ],
)
def test_bad_input_writes_nothing(
    sslkit: Run, digits: Path, tmp_path: Path, quick: list[str], flags: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    for i in range(3):
        (tmp_path / "junk" / f"{i}.png").write_bytes(b"junk")
    places = {name: str(tmp_path / name) for name in ("file", "empty", "junk")}
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--data", digits, "--out", tmp_path / "run", *quick, *(flag.format(**places) for flag in flags)]
    ran = sslkit("pretrain", "rotation", *arguments)
    assert ran.code == 2, ran.err
    errors = [line for line in ran.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_was_there_is_left_as_it_was(sslkit: Run, tmp_path: Path, quick: list[str]) -> None:
    (tmp_path / "data").mkdir()
    for i in range(16):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
            tmp_path / "data" / f"{i}.png"
        )
        data = (tmp_path / "data" / f"{i}.png").read_bytes()
        (tmp_path / "data" / f"{i}.png").write_bytes(data[:200])  # the header is fine, the pixels are not
    (tmp_path / "run").mkdir()
    for workers in (0, 2):
        flags = [*quick, "--workers", workers, "--max-broken", 1]
        ran = sslkit("pretrain", "rotation", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags)
        assert ran.code == 2 and "none of the 16 images" in ran.err
        assert len([line for line in ran.err.splitlines() if line.startswith("error")]) == 1
        assert not list((tmp_path / "run").iterdir())


def test_a_task_that_reads_tokens_refuses_an_encoder_without(sslkit: Run, tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(DIVERGES.replace("    def transform", '    requires = ("tokens",)\n    def transform'))
    ran = sslkit("pretrain", tmp_path / "reader.py", "--data", "nowhere", "--encoder", "resnet_micro")
    assert ran.code == 2
    assert "reader requires tokens and resnet_micro provides pooled, feature_map, layers" in ran.err and "vit_micro" in ran.err


class UsesRun(public.PretextTask):
    """Use everything that before_epoch may ask for."""

    needs = ("index",)

    def setup(self) -> None:
        self.register_buffer("labels", torch.zeros(self.data.samples, dtype=torch.int64))

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.width, 2)

    def before_epoch(self, run: Any) -> None:
        features = run.features()
        assert features.shape == (48, self.encoder.width)
        batch = run.batch(5)
        images = batch["canvas"]
        assert images.shape == (5, 3, 16, 16) and images.min() >= 0 and images.max() <= 1 and batch["index"].shape == (5,)
        rows = run.map(lambda batch: torch.stack([batch["index"].float(), batch["canvas"].mean(dim=(1, 2, 3))], dim=1))
        assert torch.equal(rows[:, 0], torch.arange(48.0)) and torch.allclose(
            rows[batch["index"], 1], images.mean(dim=(1, 2, 3))
        )
        self.labels.copy_((features[:, 0] > features[:, 0].quantile(0.9)).long())
        run.sample_balanced(self.labels)
        self.head.reset_parameters()
        run.reset_optimizer_state(self.head)

    def transform(self, batch: public.Batch) -> public.Batch:
        return {"image": batch["canvas"], "label": self.labels[batch["index"]]}

    def loss(self, output: Tensor, batch: public.Batch) -> Tensor:
        return nn.functional.cross_entropy(output, batch["label"])

    def metrics(self, output: Tensor, batch: public.Batch) -> dict[str, Tensor]:
        return {"rare": batch["label"].float()}


def test_before_epoch_uses_the_run(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "uses_run.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_pretrain import UsesRun as Base\n"
        "class UsesRun(Base):\n    'Use the run.'\n"
    )
    pretrain(spec(digits, tmp_path / "whole", str(file)))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert 0.25 < sum(line["rare"] for line in lines) / len(lines) < 0.75  # one in ten, drawn as often as the others
    interrupt_after(4, monkeypatch)
    with pytest.raises(RunInterruptedError):
        pretrain(spec(digits, tmp_path / "parts", str(file)))
    monkeypatch.undo()
    pretrain(PretrainSpec(task=str(file), out=str(tmp_path / "parts"), resume=True))
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_tensorboard_gets_what_is_logged(digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["--data", digits, *quick, "--out", tmp_path / "run", "--log", "tensorboard"]
    assert sslkit("pretrain", "rotation", *arguments, "--steps", 3).code == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines], rel=1e-5)


def test_pictures_are_kept_while_it_trains(digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    def kept(task: str) -> list[str]:
        assert sslkit("pretrain", task, "--data", digits, *quick, "--steps", 8, "--out", tmp_path / task).code == 0
        return sorted(file.name for file in (tmp_path / task / "previews").iterdir())

    assert {"step-0.png", "step-8.png"} <= set(kept("rotation"))
    assert kept("simclr") == ["step-0.png"]  # views, of which it says nothing
    lines = [json.loads(line) for line in (tmp_path / "simclr" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["memory"] > 10**8 for line in lines) and lines[-1]["seconds"] > lines[0]["seconds"] > 0


@pytest.mark.slow
def test_alexnet_learns_rotations(digits: Path, tmp_path: Path, sslkit: Run) -> None:
    """The network of the paper (Gidaris et al., 2018), from torchvision."""
    flags = ["--data", digits, "--size", 64, "--steps", 2, "--batch-size", 8, "--workers", 0, "--out", tmp_path / "run"]
    ran = sslkit("pretrain", "rotation", "--encoder", "torchvision:alexnet", *flags)
    assert ran.code == 0 and public.load(tmp_path / "run" / "model.safetensors")(torch.rand(1, 3, 64, 64)).shape == (1, 9216)


def test_another_number_of_processes_is_reported(
    digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    arguments = ["--data", digits, *quick, "--steps", 4, "--out", tmp_path / "run"]
    assert sslkit("pretrain", "rotation", *arguments).code == 0
    file = tmp_path / "run" / "resume.pt"
    state = torch.load(file, weights_only=True)
    torch.save({**state, "processes": 2}, file)
    ran = sslkit("pretrain", "rotation", *arguments, "--resume")
    assert "1 instead of 2: --batch-size" in ran.err and "are totals over all processes" in ran.err


@pytest.mark.parametrize("missing", ["transform", "loss"])
def test_a_task_with_a_missing_part_is_one_line(missing: str, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    parts = {
        "transform": "    def transform(self, batch): return batch",
        "loss": "    def loss(self, output, batch): return output.mean()",
    }
    body = "\n".join(line for name, line in parts.items() if name != missing)
    (tmp_path / "half.py").write_text(f"from sslkit import PretextTask\nclass Half(PretextTask):\n    'Do half.'\n{body}\n")
    ran = sslkit("pretrain", tmp_path / "half.py", "--data", digits, "--out", tmp_path / "run")
    assert ran.code == 2 and f"half does not define {missing}() (docs/writing-a-task.md" in ran.err
    assert not (tmp_path / "run").exists()


def test_a_run_inside_its_data_is_refused(digits: Path, tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    for command in (["pretrain", "rotation"], ["finetune", "--encoder", "resnet_micro"]):
        ran = sslkit(*command, "--data", data / "train", *quick, "--out", data / "train" / "run")
        assert ran.code == 2 and "is inside the data folder" in ran.err and not (data / "train" / "run").exists()
    assert sslkit("pretrain", "rotation", "--data", data, *quick, "--out", data / "run").code == 0  # beside train/ and test/


def test_compare_names_a_misspelled_task_before_it_measures(digits: Path, tmp_path: Path, sslkit: Run) -> None:
    ran = sslkit("compare", "--tasks", "simclr,rotatoin", "--data", digits, "--out", tmp_path / "out")
    assert (ran.code, ran.err) == (2, "error: --tasks: unknown task rotatoin (did you mean rotation?)\n")


def test_a_full_disk_before_the_first_checkpoint_says_how_to_go_on(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder, pytest.raises(RunFailedError, match="--resume starts it again"):
        folder.started = True
        with folder.writing():
            raise OSError(errno.ENOSPC, "No space left on device")
