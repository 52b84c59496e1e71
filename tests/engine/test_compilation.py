"""Compilation of `predict`: tasks it does not apply to, failures, and memory formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit import Batch, DataInfo, PretextTask, SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.compilation import Predict, eager_reason
from sslkit.engine.precision import Machine
from sslkit.engine.stepper import _set_memory_formats

TASK = """
import torch
from torch import nn
from sslkit import PretextTask


class {name}(PretextTask):
    "Predict the mean of an image."

    requires = ("feature_map",)

    def build_head(self):
        return {head}

    def transform(self, batch):
        return {{"image": batch["canvas"], "target": batch["canvas"].mean(dim=(1, 2, 3))}}

    def predict(self, batch):
        features = self.encoder.feature_map(batch["image"])
        {predict}

    def loss(self, output, batch):
        return (output.flatten(1).mean(dim=1) - batch["target"]).square().mean()
"""

LSTM = {
    "name": "Recurrent",
    "head": "nn.LSTM(self.encoder.width, 4, batch_first=True)",
    "predict": "return self.head(features.flatten(2).transpose(1, 2))[0]",
}
CONV3D = {"name": "Volume", "head": "nn.Conv3d(1, 2, 3, padding=1)", "predict": "return self.head(features[:, None])"}


@pytest.mark.parametrize(
    ("task", "compile", "message"),
    [
        (LSTM, "on", "compile        off: torch.compile does not support recurrent layers (LSTM)"),
        (CONV3D, "off", "compile        off: as given"),
        pytest.param(CONV3D, "on", "compile        on: as given", marks=pytest.mark.slow),
    ],
)
def test_recurrent_and_volumetric_heads_train(
    task: dict[str, str],
    compile: str,
    message: str,
    digits: Path,
    quick: list[str],
    tmp_path: Path,
    sslkit: Callable[..., Any],
) -> None:
    file = tmp_path / "task.py"
    file.write_text(TASK.format(**task))
    flags = ["--data", digits, *quick, "--steps", 4, "--compile", compile, "--device", "cpu", "--out", tmp_path / "run"]
    result = sslkit("pretrain", file, *flags)
    assert result.code == 0, result.err
    assert message in result.err
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["step"] == 4


class Plain(PretextTask):
    def predict(self, batch: Batch) -> Tensor:
        return self.head(batch["image"])

    def build_head(self) -> nn.Module:
        return nn.Linear(4, 2)


class GraphBreak(Plain):
    def predict(self, batch: Batch) -> Tensor:
        output = super().predict(batch)
        return output * 2 if output.sum().item() > 0 else output


class Eager(GraphBreak):
    compiles = False


def task_of(task_class: type[PretextTask]) -> PretextTask:
    encoder = build_encoder(recipe_for("resnet_micro", 16, options={"width": "8"}))
    return task_class(task_class.Options(), encoder, DataInfo(8, 16))


def machine(required: bool) -> Machine:
    return Machine(torch.device("cpu"), None, compile=True, compile_required=required)


def test_a_failed_compilation_falls_back(capsys: pytest.CaptureFixture[str]) -> None:
    task, batch = task_of(GraphBreak), {"image": torch.rand(3, 4)}
    predict = Predict(task, machine(required=False))
    assert torch.equal(predict(batch), task.predict(batch)) and predict.fell_back
    assert "predict cannot be compiled" in capsys.readouterr().err
    predict(batch)
    assert not capsys.readouterr().err


def test_a_failed_compilation_is_an_error_if_compilation_is_on() -> None:
    with pytest.raises(SslkitError, match=r"^--compile: on, but predict cannot be compiled: .*\(use --compile off\)"):
        Predict(task_of(GraphBreak), machine(required=True))({"image": torch.rand(3, 4)})


@pytest.mark.slow
def test_the_backward_graph_is_compiled_with_the_forward_graph() -> None:
    from torch._inductor import metrics
    from torch._inductor.utils import fresh_cache

    predict = Predict(task_of(Plain), machine(required=True))
    with fresh_cache():
        metrics.reset()
        output = predict({"image": torch.rand(3, 4)})
        compiled = metrics.generated_kernel_count
        output.square().sum().backward()
        assert 0 < compiled == metrics.generated_kernel_count


def test_errors_of_the_task_are_not_hidden() -> None:
    with pytest.raises(KeyError, match="image"):
        Predict(task_of(Eager), Machine(torch.device("cpu"), None, compile=False))({})


def test_reasons_to_run_eagerly() -> None:
    assert eager_reason(task_of(Plain)) is None
    assert eager_reason(task_of(Eager)) == "torch.compile does not support predict of Eager"
    task = task_of(Plain)
    task.head = nn.GRU(4, 2)
    assert eager_reason(task) == "torch.compile does not support recurrent layers (GRU)"


def test_memory_formats_by_dimension() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv3d(2, 4, 3), nn.Linear(4, 3))
    before = [parameter.clone() for parameter in module.parameters()]
    _set_memory_formats(module)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert module[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert module[2].weight.is_contiguous()
    assert all(map(torch.equal, module.parameters(), before))
