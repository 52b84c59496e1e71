"""`--profile` shows the time of each stage of a step, and the options that would reduce it."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.engine.pretrain import prepare
from sslkit.engine.profile import BACKWARD, COPY, FORWARD, LOSS, OPTIMIZER, REST, TRANSFORM, WAITING, Profile, advice
from sslkit.specs.train import PretrainSpec

TASK = """
import time
from sslkit.testing import *
from sslkit_plugins.image.predictive.rotation import Rotation

class Slow(Rotation):
    "Rotation, with a slow stage."

    def {stage}:
        time.sleep(0.2)
        return super().{call}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "call", "label"),
    [
        ("transform(self, batch)", "transform(batch)", "transform"),
        ("predict(self, batch)", "predict(batch)", "forward"),
        ("loss(self, output, batch)", "loss(output, batch)", "loss"),
        ("after_step(self, remembered)", "after_step(remembered)", "hooks and metrics"),
    ],
)
def test_time_is_counted_where_it_goes(
    stage: str, call: str, label: str, digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    file = tmp_path / "slow.py"
    file.write_text(TASK.format(stage=stage, call=call).replace("from sslkit.testing import *\n", ""))
    ran = sslkit(
        "pretrain", file, "--data", digits, *quick, "--steps", 8, "--profile", 4, "--health-every", 0, "--out", tmp_path / "run"
    )
    assert ran.code == 0 and "profile of 4 steps" in ran.err
    milliseconds = {
        name.strip(): float(value.replace(",", "")) for name, value in re.findall(r"  (.{20}) *([\d.,]+) ms", ran.err)
    }
    assert max(milliseconds, key=lambda name: milliseconds[name]) == label and milliseconds[label] >= 200
    headline = re.search(r"profile of 4 steps: ([\d.,]+) ms", ran.err)
    assert headline is not None
    total = float(headline[1].replace(",", ""))
    assert sum(milliseconds.values()) == pytest.approx(total, abs=1)


def test_a_profile_changes_nothing(digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    for name, flags in (("with", ["--profile", 2]), ("without", [])):
        arguments = ["--data", digits, *quick, "--micro-batch", 4, "--steps", 6, "--out", tmp_path / name]
        assert sslkit("pretrain", "simclr", *arguments, *flags).code == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without")]
    weights = [blob[8 + int.from_bytes(blob[:8], "little") :] for blob in files]  # the spec in the header differs
    assert weights[0] == weights[1]


def test_a_run_that_is_too_short_says_so(digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    arguments = ["--data", digits, *quick, "--steps", 2, "--profile", 5, "--out", tmp_path / "run"]
    assert "the run ended before step 4" in sslkit("pretrain", "rotation", *arguments).err


def test_advice(digits: Path, tmp_path: Path) -> None:
    def advice_for(share: dict[str, float], **options: Any) -> str:
        settings = prepare(
            PretrainSpec(task="rotation", data=str(digits), batch_size=16, size=16, workers=0, **options)
        ).settings
        stages = (WAITING, COPY, TRANSFORM, FORWARD, LOSS, BACKWARD, OPTIMIZER, "hooks and metrics", REST)
        return "\n".join(advice({stage: share.get(stage, 0.0) for stage in stages}, settings))

    assert "--cache on" in advice_for({WAITING: 0.3}, cache="off")
    assert "--workers" in advice_for({WAITING: 0.3})
    assert "--canvas" in advice_for({TRANSFORM: 0.4})
    assert "--batch-size" in advice_for({OPTIMIZER: 0.4})
    assert "--health-every" in advice_for({REST: 0.4})
    assert "--micro-batch 4 splits" in advice_for({FORWARD: 1.0}, micro_batch=4)
    assert "forward, loss and backward take 100%" in advice_for({FORWARD: 0.4, BACKWARD: 0.6})


def test_every_moment_belongs_to_one_stage(digits: Path) -> None:
    settings = prepare(PretrainSpec(task="rotation", data=str(digits), batch_size=16, size=16, workers=0)).settings
    profile, started_at = Profile(settings, 1, 0), time.perf_counter()
    for stage in (FORWARD, BACKWARD, FORWARD):
        profile.enter(stage)
        torch.rand(100).sum()
    profile.enter(REST)
    assert sum(profile.seconds.values()) == pytest.approx(time.perf_counter() - started_at, abs=0.01)
