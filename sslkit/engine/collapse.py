"""Feature health during training: collapse, measured without labels on a fixed batch.

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
from sslkit.engine.precision import Machine
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import Stepper
from sslkit.nn import Teacher, batch_statistics
from sslkit.registry import load_modality
from sslkit.specs.data import MAIN_PART
from sslkit.specs.train import PretrainSpec

SAMPLES = 256


_EVERY = 20


_LOOKS = 3  # in a row, before something is called by its name: one may be an accident


_ALIKE = 0.05  # deviation of features that tell nothing apart; random weights have 0.2 and more


_RANK = 0.25  # of the rank at the start; healthy runs keep 0.29 and more


_ENTROPY = 0.3  # nats; a teacher of random weights has 1.5


_FROZEN, _WINDOW = 0.002, 40  # range of the loss, as a share of it, over so many steps; batches alone make ten times that


Classify = Callable[[Encoder, Machine], float]  # k-NN accuracy of an encoder as it is


class Health:
    """Check a task's features every so many steps and report what is wrong with them."""

    def __init__(self, stepper: Stepper, spec: PretrainSpec, classify: Classify | None = None) -> None:
        self.stepper, self.task, self.classify = stepper, stepper.task, classify
        self.stops, self.every = spec.on_collapse == "stop", spec.health_every
        self.noun = stepper.settings.source.noun
        self.views = two_views(stepper)
        self.losses: deque[float] = deque(maxlen=_WINDOW)
        self.streaks: dict[str, list[int]] = {}  # steps in a row at which a sign was there
        self.reported: set[str] = set()
        self.start = self.measure(fresh=True)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to know to judge as this one would."""
        return {"start": self.start, "streaks": self.streaks, "reported": sorted(self.reported), "losses": list(self.losses)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.start, self.streaks, self.reported = state["start"], state["streaks"], set(state["reported"])
        self.losses.extend(state["losses"])

    @property
    def due(self) -> bool:
        """Return whether the features are to be checked after this step."""
        clock = self.stepper.clock
        every = max(_EVERY, clock.steps // 100) if self.every == "auto" else self.every
        return clock.step % every == 0 or clock.step == clock.steps

    def check(self) -> tuple[dict[str, float], list[str]]:
        """Return the measurements, and alarms that were not reported before."""
        measured = self.measure()
        return measured, self.judge(measured, self.stepper.clock.step)

    @torch.no_grad()
    def measure(self, fresh: bool = False) -> dict[str, float]:
        """Measure the features now; the task is in eval mode meanwhile, and nothing in it changes.

        With `fresh`, BatchNorm measures these samples instead of using what it has kept: before the first step that is
        mean 0 and variance 1 in every layer, with which random features seem to have a third of their rank.
        `rankme`: effective rank of both views. `feature_deviation`: 1 if unit features are spread evenly, 0 if all are
        alike. `feature_alignment` and `uniformity` of unit features. `teacher_entropy`: of which of its outputs is the largest,
        over samples, in nats. `online_knn` if it was asked for.
        """
        training = self.task.training
        self.task.eval()
        try:
            encoder = self._exported().eval()
            with batch_statistics(encoder) if fresh else nullcontext():
                first, second = (self._features(encoder, view) for view in self.views)
            both = torch.cat([first, second])
            measured = {
                "rankme": rankme(both),
                "feature_deviation": deviation(both),
                "feature_alignment": alignment(first, second),
                "uniformity": uniformity(first),
            }
            for module in self.task.modules():
                if isinstance(module, Teacher) and isinstance(module.parts[0], Encoder):  # others see no images
                    output = self._features(module, self.views[0])
                    if output.dim() == 2:
                        measured |= {"teacher_entropy": entropy_of_largest(output), "teacher_deviation": deviation(output)}
                    break
            if self.classify is not None:
                measured["online_knn"] = self.classify(encoder, self.stepper.machine)
        finally:
            self.task.train(training)
        return measured

    def judge(self, measured: dict[str, float], step: int) -> list[str]:
        """Return what has been wrong in three checks in a row and was not reported before."""
        signs = self._signs(measured)
        for name in [name for name in self.streaks if name not in signs]:
            del self.streaks[name]
        alarms = []
        for name, text in signs.items():
            steps = self.streaks.setdefault(name, [])
            steps.append(step)
            if len(steps) >= _LOOKS and name not in self.reported:
                self.reported.add(name)
                alarms.append(f"{text}, since step {steps[0]}")
        return alarms

    def _signs(self, measured: dict[str, float]) -> dict[str, str]:
        width, rank, signs = self._exported().width, measured["rankme"], dict[str, str]()
        if not math.isfinite(rank):
            return {"finite": f"features of {self.noun} are not finite numbers"}
        if measured["feature_deviation"] < _ALIKE:
            deviates = measured["feature_deviation"]
            signs["alike"] = f"features of all {self.noun} are nearly identical (deviation {deviates:.1g})"
        elif rank < _RANK * self.start["rankme"]:
            signs["rank"] = f"features span {rank:.0f} of {width} dimensions (about {self.start['rankme']:.0f} at the start)"
        if measured.get("teacher_entropy", 1.0) < _ENTROPY and measured["teacher_deviation"] < self.start["teacher_deviation"]:
            entropies = f"entropy {measured['teacher_entropy']:.2f} nats, {self.start['teacher_entropy']:.2f} at the start"
            signs["teacher"] = f"teacher output has collapsed: nearly constant across {self.noun} ({entropies})"
        if len(self.losses) == _WINDOW:
            low, high = min(self.losses), max(self.losses)
            if high - low < _FROZEN * abs(high):
                signs["frozen"] = f"loss has been flat at {high:.4g} for at least {_WINDOW} steps; the model is not learning"
        return signs

    def _exported(self) -> Encoder:
        """Return the encoder that checkpoints hold: of some tasks that is the teacher's, not the one that is trained."""
        encoder = self.task.exports()[MAIN_PART]
        assert isinstance(encoder, Encoder)
        return encoder

    def _features(self, module: Callable[[Tensor], Tensor], view: Tensor) -> Tensor:
        with self.stepper.machine.autocast():
            return torch.cat([module(piece).float() for piece in view.split(self.stepper.micro_batch)])


def two_views(stepper: Stepper) -> tuple[Tensor, Tensor]:
    """Return two views of the same samples, the same ones for a seed, as their modality makes them."""
    settings, source = stepper.settings, stepper.settings.source
    modality = load_modality(settings.data.modality)
    encoder = stepper.task.encoder
    samples = stepper.batch(SAMPLES, lambda batch: modality.health_samples(source, batch, encoder))
    seed_stage(stepper.spec.seed, "health", 0)
    return modality.health_views(samples, settings.data)


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
