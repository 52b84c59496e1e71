"""Every installed task keeps the promises of the contract, and the suite notices one that does not."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, TaskOptions, registry
from sslkit.testing import Ranks, check_task

INSTALLED = [entry.name for entry in registry.entries(registry.TASKS) if entry.package == "sslkit"]


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    with Ranks() as pair:
        yield pair


@pytest.mark.parametrize("name", INSTALLED)
def test_installed_task(name: str) -> None:
    assert not [verdict for verdict in check_task(name) if not verdict.passed]


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTALLED)
def test_installed_task_in_full(name: str, ranks: Ranks) -> None:
    assert not [verdict for verdict in check_task(name, full=True, ranks=ranks) if not verdict.passed]


class Good(PretextTask):
    """Predict the mean brightness."""

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.width, 1)

    def transform(self, batch: Batch) -> Batch:
        return {"image": batch["canvas"], "target": batch["canvas"].mean(dim=(1, 2, 3))}

    def loss(self, output: Tensor, batch: Batch) -> Any:
        return F.mse_loss(output[:, 0], batch["target"])


class Unbounded(Good):
    class Options(TaskOptions):
        weight: float = Field(default=1.0, description="A weight.")


class Shadowing(Good):
    class Options(TaskOptions):
        lr: float = Field(default=1.0, ge=0, description="A rate.")


class ReadsLabels(Good):
    """Uses labels where there are some, without a word about it."""

    def transform(self, batch: Batch) -> Batch:
        return {**super().transform(batch), "target": batch["label"].float()} if "label" in batch else super().transform(batch)


class Supervised(Good):
    """Classify the samples with a label."""

    needs = ("label",)

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.width, len(self.data.classes))

    def transform(self, batch: Batch) -> Batch:
        return {"image": batch["canvas"], "label": batch["label"]}

    def loss(self, output: Tensor, batch: Batch) -> Any:
        return {"loss": F.cross_entropy(output, batch["label"], ignore_index=-1, reduction="sum")}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (batch["label"] >= 0).sum()}


class ReadsTarget(Good):
    """Predicts the target from the target."""

    def predict(self, batch: Batch) -> Tensor:
        return super().predict(batch) + batch["target"][:, None]


class ViewsFirst(Good):
    def transform(self, batch: Batch) -> Batch:
        return {**super().transform(batch), "views": torch.stack([batch["canvas"], batch["canvas"]])}


class NoRow(Good):
    """Returns an entry for all rows together."""

    def predict(self, batch: Batch) -> Any:
        output = super().predict(batch)
        return {"output": output, "mean": output.mean(dim=0)}

    def loss(self, output: Any, batch: Batch) -> Any:
        return super().loss(output["output"], batch)


class Counting(Good):
    def setup(self) -> None:
        self.register_buffer("calls", torch.zeros(()))

    def predict(self, batch: Batch) -> Tensor:
        self.calls += 1
        return super().predict(batch)


class Infinite(Good):
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return super().loss(output, batch) / 0


class Detached(Good):
    def predict(self, batch: Batch) -> Tensor:
        return self.head(self.encoder(batch["image"]).detach())


class TrainedTeacher(Good):
    """Keeps a copy that nobody froze: the optimizer would decay it."""

    def setup(self) -> None:
        self.copy = copy.deepcopy(self.head)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            total = self.copy.weight.sum()
        return super().loss(output, batch) + 0 * total


class OtherGenerator(Good):
    """Draws with NumPy, whose generator nobody seeds."""

    def transform(self, batch: Batch) -> Batch:
        noise = torch.from_numpy(np.random.random(batch["canvas"].shape).astype(np.float32))
        return {**super().transform(batch), "image": batch["canvas"] + 0.01 * noise.to(batch["canvas"])}


class Hopeless(Good):
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return -super().loss(output, batch).clamp(max=0) + 1 + 0 * output.sum()


class UnsavedQueue(Good):
    """Keeps its queue in a plain attribute."""

    def setup(self) -> None:
        self.past = torch.zeros(4)

    def remember(self, output: Tensor, batch: Batch) -> Batch:
        return {"output": output[:, 0]}

    def after_step(self, remembered: Batch) -> None:
        self.past = torch.cat([self.past, remembered["output"].detach()])[-4:]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return super().loss(output, batch) + (output.mean() - self.past.mean()).square()


class PrivateSchedule(Good):
    """Follows a schedule in an attribute instead of the clock."""

    def setup(self) -> None:
        self.weight = 1.0

    def after_step(self, remembered: Batch) -> None:
        self.weight *= 0.5

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return self.weight * super().loss(output, batch)


class Nameless(Good):
    """Keeps an encoder that no recipe describes."""

    def exports(self) -> dict[str, nn.Module]:
        return {"encoder": nn.Sequential(self.encoder, nn.LayerNorm(self.encoder.width))}


class Ragged(Good):
    """Means over a number of values that varies, without `counts`."""

    needs = ("index",)

    def transform(self, batch: Batch) -> Batch:
        chosen = torch.arange(len(batch["canvas"]), device=batch["canvas"].device) < 3
        return {**super().transform(batch), "chosen": chosen | (batch["index"] == 6)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        error = (output[:, 0] - batch["target"]).square()
        return (error * batch["chosen"]).sum() / batch["chosen"].sum().clamp(min=1)


class HiddenCoupling(Good):
    """Compares samples with each other without saying so."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return super().loss(output, batch) + (output[:, 0] - output[:, 0].mean().detach()).square().mean()


class NeedlessCoupling(Good):
    couples_samples = True


class NamedCoupling(Good):
    """Couples one of two outputs by name; the other has a mean, a counted sum and remembered rows."""

    needs = ("index",)
    couples_samples = True
    couples = ("projection", "target")

    def setup(self) -> None:
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("center", torch.zeros(()))

    def transform(self, batch: Batch) -> Batch:
        return {**super().transform(batch), "chosen": batch["index"] % 3 == 0}

    def predict(self, batch: Batch) -> Any:
        output = super().predict(batch)
        return {"projection": output, "local": self.encoder(batch["image"])}

    def loss(self, output: Any, batch: Batch) -> Any:
        projection, error = output["projection"][:, 0], output["local"].mean(dim=1) * self.scale
        return {
            "coupled": (projection - batch["target"]).square().mean() + (projection - projection.mean()).square().sum(),
            "mean": error.square().mean(),
            "sum": (error.square() * batch["chosen"]).sum(),
        }

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"sum": batch["chosen"].sum()}

    def remember(self, output: Any, batch: Batch) -> Batch:
        return {"local": output["local"].mean(dim=1).detach(), "projection": output["projection"].detach()}

    def after_step(self, remembered: Batch) -> None:
        self.center.lerp_((remembered["local"] * remembered["projection"][:, 0]).mean(), 0.5)


class UnknownCoupling(NamedCoupling):
    couples = ("projection", "targets")


class Renormed(nn.BatchNorm1d):
    """Normalizes by the running mean, and then updates it in place."""

    def forward(self, features: Tensor) -> Tensor:
        output = (features - self.running_mean) / (self.running_mean.abs() + 1)
        with torch.no_grad():
            self.running_mean.lerp_(features.mean(dim=0), 0.5)
        return output


class ReadsAndUpdates(Good):
    """Has a norm whose compiled gradient is wrong: what it reads is updated before the backward pass."""

    def build_head(self) -> nn.Module:
        return nn.Sequential(Renormed(self.encoder.width), nn.Linear(self.encoder.width, 1))


class MixesRows(Good):
    """Predicts a row from the others, too."""

    def predict(self, batch: Batch) -> Tensor:
        output = super().predict(batch)
        return output + 0.1 * output.mean(dim=0)


class Ordered(Good):
    """Predicts a row by its place in the batch."""

    def predict(self, batch: Batch) -> Tensor:
        output = super().predict(batch)
        return output * (1 + 0.1 * torch.arange(len(output), device=output.device)[:, None])


class ReadsValue(Good):
    """Reads a value while predicting: no graph can hold that."""

    def predict(self, batch: Batch) -> Tensor:
        output = super().predict(batch)
        return output * 2 if output.sum().item() > 0 else output


class CountsEpochs(Good):
    """Counts epochs in an attribute."""

    def setup(self) -> None:
        self.passes = 0

    def before_epoch(self, run: Any) -> None:
        self.passes += 1

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return self.passes * super().loss(output, batch)


class Collapsing(Good):
    """Minimizes the variance of the features."""

    couples_samples = True
    defaults: ClassVar = {"lr": 0.1}

    def build_head(self) -> nn.Module:
        return nn.Identity()

    def loss(self, output: Tensor, batch: Batch) -> Any:
        return (output - output.mean(dim=0)).square().sum(dim=1).mean()


class Normed(Good):
    """Has BatchNorm in its head and no option to choose another."""

    def build_head(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(self.encoder.width), nn.Linear(self.encoder.width, 1))


class LocalCenter(Good):
    """Moves a buffer in the loss by the rows of this process: differently in every process."""

    def setup(self) -> None:
        self.register_buffer("center", torch.zeros(()))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        self.center.lerp_(output.detach().mean(), 0.5)
        return super().loss(output, batch)


class FlatPreview(Good):
    """Returns pictures without columns."""

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        return batch["image"]


class PreviewMoves(Good):
    """Changes a buffer in its preview."""

    def setup(self) -> None:
        self.register_buffer("previews", torch.zeros(()))

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        self.previews += 1
        return super().preview(batch, output)


@pytest.mark.parametrize(
    ("task", "detail"),
    [
        (UnsavedQueue, "past changes from step to step and is not in a buffer"),
        (PrivateSchedule, "weight changes from step to step and is not in a buffer"),
        (OtherGenerator, "image is drawn with Python's or NumPy's generator: draw with torch"),
    ],
)
def test_says_what_breaks_a_promise(task: type[PretextTask], detail: str) -> None:
    assert any(detail in verdict.detail for verdict in check_task(task) if not verdict.passed)


@pytest.mark.parametrize(
    ("task", "broken"),
    [
        (Good, ""),
        (Unbounded, "options"),
        (Shadowing, "options"),
        (ReadsLabels, "labels"),
        (Supervised, ""),
        (ReadsTarget, "targets"),
        (ViewsFirst, "samples first"),
        (NoRow, "samples first"),
        (Counting, "predict changes no state"),
        (Infinite, "finite"),
        (Detached, "gradient"),
        (TrainedTeacher, "gradient"),
        (UnsavedQueue, "state"),
        (PrivateSchedule, "state"),
        (OtherGenerator, "draws with torch"),
        (Hopeless, "loss falls"),
        (Nameless, "loads without"),
        (FlatPreview, "previews"),
        (PreviewMoves, "previews"),
    ],
)
def test_names_the_broken_promise(task: type[PretextTask], broken: str) -> None:
    failed = [verdict.promise for verdict in check_task(task) if not verdict.passed]
    if broken:
        assert any(broken in promise for promise in failed), failed
    else:
        assert not failed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "broken"),
    [
        (Good, ""),
        (Supervised, ""),
        (Ragged, "micro-batches"),
        (Normed, "micro-batches"),
        (HiddenCoupling, "couples_samples"),
        (NeedlessCoupling, "couples_samples"),
        (NamedCoupling, ""),
        (UnknownCoupling, "couples_samples"),
        (MixesRows, "no other row"),
        (Ordered, "no other row"),
        (ReadsValue, "compiles"),
        (ReadsAndUpdates, "same gradients"),
        (CountsEpochs, "resume"),
        (Collapsing, "collapse"),
        (LocalCenter, "two processes"),
    ],
)
def test_names_the_broken_promise_in_full(task: type[PretextTask], broken: str, ranks: Ranks) -> None:
    failed = {verdict.promise: verdict.detail for verdict in check_task(task, full=True, ranks=ranks) if not verdict.passed}
    if broken:
        assert any(broken in promise for promise in failed), failed
    else:
        assert not failed


def test_check_from_the_command_line(sslkit: Callable[..., Any], tmp_path: Any) -> None:
    good = sslkit("check", "rotation", "--json").json
    assert good["passed"] and len(good["verdicts"]) == 13
    (tmp_path / "bad.py").write_text(
        "from sslkit import PretextTask\n\n\nclass Bad(PretextTask):\n    '''Do nothing.'''\n", encoding="utf-8"
    )
    bad = sslkit("check", tmp_path / "bad.py")
    assert bad.code == 1 and "BROKEN outputs have samples first: TypeError: Bad does not define transform()" in bad.out
    assert sslkit("check", "rotatoin").code == 2
    (tmp_path / "typo.py").write_text(
        "from sslkit import PretextTask\n\n\nclass Typo(PretextTask):\n    def transform(self, batch):\n        return bacth\n",
        encoding="utf-8",
    )
    typo = sslkit("check", tmp_path / "typo.py")
    assert typo.code == 1 and "NameError: name 'bacth' is not defined" in typo.out
