"""Are the features alive: looked at during training, without labels, on a fixed batch.

One set of thresholds serves all tasks. They are relative, to where the run began or to what could be, so that they hold
for any width, loss and batch; `benchmarks/health.md` has what each kind of failure looks like.
"""

import math
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.task import Batch
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import Stepper
from sslkit.image.source import ImageSource
from sslkit.image.transforms import flip, random_resized_crop
from sslkit.nn import Teacher, batch_statistics
from sslkit.specs.train import PretrainSpec

SAMPLES = 256


_EVERY = 20


_LOOKS = 3  # in a row, before something is called by its name: one may be an accident


_ALIKE = 0.05  # deviation of features that tell nothing apart; random weights have 0.2 and more


_RANK = 0.25  # of the rank at the start; healthy runs keep 0.29 and more


_ENTROPY = 0.3  # nats; a teacher of random weights has 1.5


_FROZEN, _WINDOW = 0.002, 40  # range of the loss, as a share of it, over so many steps; batches alone make ten times that


Classify = Callable[[Encoder], float]  # k-NN accuracy of an encoder as it is


class Health:
    """Look at a task's features every so many steps, and say what is wrong with them."""

    def __init__(self, stepper: Stepper, spec: PretrainSpec, classify: Classify | None = None) -> None:
        self.stepper, self.task, self.classify = stepper, stepper.task, classify
        self.stops, self.every = spec.on_collapse == "stop", spec.health_every
        self.called = stepper.plan.source.called
        self.views = two_views(stepper)
        self.losses: deque[float] = deque(maxlen=_WINDOW)
        self.seen: dict[str, list[int]] = {}  # steps in a row at which a sign was there
        self.told: set[str] = set()
        self.start = self.measure(fresh=True)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to know to judge as this one would."""
        return {"start": self.start, "seen": self.seen, "told": sorted(self.told), "losses": list(self.losses)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        self.start, self.seen, self.told = state["start"], state["seen"], set(state["told"])
        self.losses.extend(state["losses"])

    def after_step(self, loss: float) -> tuple[dict[str, float], list[str]]:
        """Note a step's loss; every so many steps, return what was measured, and what is wrong and was not told before."""
        clock = self.stepper.clock
        self.losses.append(loss)
        every = max(_EVERY, clock.steps // 100) if self.every == "auto" else self.every
        if clock.step % every and clock.step != clock.steps:
            return {}, []
        said = self.measure()
        return said, self.judge(said, clock.step)

    @torch.no_grad()
    def measure(self, fresh: bool = False) -> dict[str, float]:
        """Return what can be said of the features now; the task is in eval mode for it, and nothing in it changes.

        With `fresh`, BatchNorm measures these samples instead of using what it has kept: before the first step that is
        mean 0 and variance 1 in every layer, with which random features seem to have a third of their rank.
        `rankme`: effective rank of both views. `feature_deviation`: 1 if unit features are spread evenly, 0 if all are
        alike. `feature_alignment` and `uniformity` of unit features. `teacher_entropy`: of which of its outputs is the largest,
        over samples, in nats. `online_knn` if it was asked for.
        """
        training = self.task.training
        self.task.eval()
        try:
            with batch_statistics(self.task.encoder) if fresh else nullcontext():
                first, second = (self._features(self.task.encoder, view) for view in self.views)
            both = torch.cat([first, second])
            said = {
                "rankme": rankme(both),
                "feature_deviation": deviation(both),
                "feature_alignment": alignment(first, second),
                "uniformity": uniformity(first),
            }
            for module in self.task.modules():
                if isinstance(module, Teacher) and isinstance(module.parts[0], Encoder):  # others see no images
                    output = self._features(module, self.views[0])
                    if output.dim() == 2:
                        said |= {"teacher_entropy": entropy_of_largest(output), "teacher_deviation": deviation(output)}
                    break
            if self.classify is not None:
                said["online_knn"] = self.classify(self.task.encoder)
        finally:
            self.task.train(training)
        return said

    def judge(self, said: dict[str, float], step: int) -> list[str]:
        """Return what has been wrong for three looks in a row, and was not told before."""
        signs = self._signs(said)
        for name in [name for name in self.seen if name not in signs]:
            del self.seen[name]
        alarms = []
        for name, text in signs.items():
            steps = self.seen.setdefault(name, [])
            steps.append(step)
            if len(steps) >= _LOOKS and name not in self.told:
                self.told.add(name)
                alarms.append(f"{text}, since step {steps[0]}")
        return alarms

    def _signs(self, said: dict[str, float]) -> dict[str, str]:
        width, rank, signs = self.task.encoder.width, said["rankme"], dict[str, str]()
        if not math.isfinite(rank):
            return {"finite": f"features of {self.called} are not finite numbers"}
        if said["feature_deviation"] < _ALIKE:
            signs["alike"] = f"features of all {self.called} are nearly alike (deviation {said['feature_deviation']:.1g})"
        elif rank < _RANK * self.start["rankme"]:
            signs["rank"] = f"features span {rank:.0f} of {width} dimensions (about {self.start['rankme']:.0f} at the start)"
        if said.get("teacher_entropy", 1.0) < _ENTROPY and said["teacher_deviation"] < self.start["teacher_deviation"]:
            signs["teacher"] = (
                f"the teacher says the same of all {self.called} (entropy {said['teacher_entropy']:.2f} nats, "
                f"{self.start['teacher_entropy']:.2f} at the start)"
            )
        if len(self.losses) == _WINDOW:
            low, high = min(self.losses), max(self.losses)
            if high - low < _FROZEN * abs(high):
                signs["frozen"] = f"the loss has stood still at {high:.4g} for {_WINDOW} steps and more: nothing is learned"
        return signs

    def _features(self, module: Callable[[Tensor], Tensor], view: Tensor) -> Tensor:
        with self.stepper.machine.autocast():
            return torch.cat([module(piece).float() for piece in view.split(self.stepper.micro_batch)])


def two_views(stepper: Stepper) -> tuple[Tensor, Tensor]:
    """Return two random crops of the same images, the same ones for a seed, whatever the task makes of images.

    Of other modalities they are two of the views that the source has of each sample, or the sample twice.
    """
    plan, source = stepper.plan, stepper.plan.source

    def few(batch: Batch) -> Batch:
        view = source.view(batch)
        several = view.dim() == stepper.task.encoder.sample_dims + 2
        return {"view": view[:, :2].clone() if several else view[:, None]}  # of a clip, not all frames

    if not isinstance(source, ImageSource):
        view = stepper.batch(SAMPLES, few)["view"]
        return view[:, 0], view[:, -1]
    batch = stepper.batch(SAMPLES)
    seed_stage(stepper.spec.seed, "health", 0)
    first, second = (flip(random_resized_crop(batch["image"], plan.data.size, scale=(0.2, 1.0))) for _ in range(2))
    return first, second


def rankme(features: Tensor) -> float:
    """Return the effective rank of features `[N, D]`: exp of their singular values' entropy (RankMe: Garrido et al., 2023).

    It is nan if they are not finite.
    """
    if not torch.isfinite(features).all():
        return math.nan  # svdvals would raise an error of its own
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def deviation(features: Tensor) -> float:
    """Return the mean standard deviation of unit features' dimensions, times √D: 1 if spread evenly, 0 if all are alike."""
    return float(F.normalize(features, dim=1).std(dim=0).mean() * features.shape[1] ** 0.5)


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean squared distance of unit features of two views, `[N, D]` each (Wang & Isola, 2020, section 4.1)."""
    return float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Return the log of the mean Gaussian potential, t=2, of pairs of unit features (Wang & Isola, 2020, section 4.1)."""
    return float(torch.pdist(F.normalize(features, dim=1)).square().mul(-2).exp().mean().log())


def entropy_of_largest(output: Tensor) -> float:
    """Return the entropy, in nats, of which of the outputs `[N, D]` is the largest: 0 if it is the same for all samples."""
    shares = torch.bincount(output.argmax(dim=1), minlength=output.shape[1]) / len(output)
    return float(torch.special.entr(shares).sum())
