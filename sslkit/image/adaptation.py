"""How a classifier adapts to test images without labels: statistics of the batch, entropy, or its pretext task."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import PretextTask
from sslkit.engine.seeds import seed_stage
from sslkit.image.source import ImageSource
from sslkit.nn.norms import batch_statistics

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_NORMS = (_BATCH_NORMS, nn.GroupNorm, nn.LayerNorm)


class ImageClassifier(nn.Module):
    """Encoder and linear classifier of images on evaluation canvases."""

    def __init__(self, encoder: Encoder, head: nn.Linear, source: ImageSource) -> None:
        super().__init__()
        self.encoder, self.head, self.source = encoder, head, source

    def forward(self, canvases: Tensor) -> Tensor:
        """Return logits `[B, classes]` of canvases `[B, C, side, side]`."""
        logits: Tensor = self.head(self.encoder(self.source.view({"canvas": canvases}, "image")))
        return logits

    @property
    def has_batch_norm(self) -> bool:
        """Return whether statistics of the batch could replace those of training."""
        return any(isinstance(module, _BATCH_NORMS) for module in self.encoder.modules())

    def norm_parameters(self) -> list[nn.Parameter]:
        """Return scales and shifts of the encoder's normalization layers."""
        norms = [module for module in self.encoder.modules() if isinstance(module, _NORMS)]
        return [parameter for norm in norms for parameter in norm.parameters(recurse=False)]


class Snapshot:
    """The state of networks, to be restored: nothing that one test set taught may reach another."""

    def __init__(self, *networks: nn.Module) -> None:
        self.networks = [(network, deepcopy(network.state_dict())) for network in networks]

    def restore(self) -> None:
        """Put the state back."""
        for network, state in self.networks:
            network.load_state_dict(state)


@torch.no_grad()
def predict_plainly(classifier: ImageClassifier, canvases: Tensor, batch_size: int) -> Tensor:
    """Return the class of each image, `[N]` on the CPU."""
    return torch.cat([classifier(part).argmax(dim=1).cpu() for part in _batches(canvases, batch_size)])


@torch.no_grad()
def predict_by_batch(classifier: ImageClassifier, canvases: Tensor, batch_size: int) -> Tensor:
    """Return the class of each image, `[N]`, with BatchNorm by the statistics of its batch (Schneider et al., 2020)."""
    with batch_statistics(classifier):
        return torch.cat([classifier(part).argmax(dim=1).cpu() for part in _batches(canvases, batch_size)])


def predict_by_tent(classifier: ImageClassifier, canvases: Tensor, batch_size: int, lr: float) -> Tensor:
    """Return the class of each image, `[N]`, while scales and shifts of norms learn to be certain (TENT; Wang et al., 2021).

    Each batch is one step, and is answered before it. BatchNorm uses the statistics of the batch.
    """
    snapshot, parameters = Snapshot(classifier), classifier.norm_parameters()
    learning = [(parameter, parameter.requires_grad) for parameter in classifier.parameters()]
    for parameter, _ in learning:
        parameter.requires_grad_(any(parameter is other for other in parameters))
    optimizer, predictions = torch.optim.Adam(parameters, lr=lr), list[Tensor]()
    with batch_statistics(classifier):
        for part in _batches(canvases, batch_size):
            logits = classifier(part)
            predictions.append(logits.detach().argmax(dim=1).cpu())
            entropy = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
            optimizer.zero_grad()
            entropy.backward()
            optimizer.step()
    snapshot.restore()
    for parameter, learns in learning:
        parameter.requires_grad_(learns)
    return torch.cat(predictions)


@dataclass(frozen=True)
class TestTimeTraining:
    """Train encoder and pretext head on views of each test image before it is classified (Sun et al., 2020)."""

    __test__ = False  # not a test class of pytest's

    classifier: ImageClassifier
    task: PretextTask  # on the same encoder
    steps: int
    lr: float
    copies: int
    resets: bool  # after each image; else what one image taught helps the next
    batchnorm_trains: bool
    seed: int

    def predict(self, canvases: Tensor, rows: list[int]) -> Iterator[int]:
        """Yield the class of each image; what is random depends on the seed and its row."""
        snapshot = Snapshot(self.classifier, self.task)
        parameters = [parameter for parameter in self.task.parameters() if parameter.requires_grad]
        for canvas, row in zip(canvases, rows, strict=True):
            if self.resets:
                snapshot.restore()
            seed_stage(self.seed, "adapt", row)
            optimizer = torch.optim.SGD(parameters, lr=self.lr)
            self._train_norms(self.batchnorm_trains)
            for _ in range(self.steps):
                loss = self._loss(as_float(canvas[None]).expand(self.copies, -1, -1, -1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            self._train_norms(False)
            with torch.no_grad():
                yield int(self.classifier(as_float(canvas[None])).argmax())
        snapshot.restore()

    def _loss(self, canvases: Tensor) -> Tensor:
        with torch.no_grad():
            batch = self.task.transform({"canvas": canvases, "aspect": canvases.new_ones(len(canvases))})
        output = self.task.predict(batch)
        terms = self.task.loss(output, batch)
        named, counts = terms if isinstance(terms, dict) else {"loss": terms}, self.task.counts(batch)
        return torch.stack([value / counts.get(name, 1) for name, value in named.items()]).sum()

    def _train_norms(self, training: bool) -> None:
        for module in self.task.encoder.modules():
            if isinstance(module, _BATCH_NORMS):
                module.train(training)


def check_task(task: PretextTask, name: str) -> None:
    """Raise SslkitError for a task that cannot be trained on views of one image."""
    problem = ""
    if task.couples_samples:
        problem = "compares images with each other"
    elif task.needs:
        problem = f"needs {' and '.join(task.needs)}"
    if problem:
        raise SslkitError(f"{name} {problem}, and test images come one by one", "rotation does not", flag="pretext")


def as_float(canvases: Tensor) -> Tensor:
    """Return canvases of bytes as values from 0 to 1."""
    return canvases.float() / 255


def _batches(canvases: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield batches of nearly the same size: the statistics of a small rest would be none."""
    for part in canvases.tensor_split(-(-len(canvases) // batch_size)):
        yield as_float(part)
