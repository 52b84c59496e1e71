"""Feature maps of any layer of an encoder."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.features import Read, extract
from sslkit.engine.precision import Machine
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.models import CHECKPOINT, RANDOM, Model, load_other
from sslkit.evaluation.splits import evaluation_size
from sslkit.image.source import ImageSource
from sslkit.image.specs import AnomalySpec, CorrespondSpec, SegmentSpec


@dataclass(frozen=True)
class MapReader:
    """Read the feature maps of one layer: the last, or a number counted from the input."""

    encoder: Encoder
    name: str  # in messages
    layer: str = "last"
    flag: str = "ckpt"  # that names the encoder

    def check(self, command: str) -> None:
        """Raise SslkitError for an encoder that has no feature maps of images."""
        if self.encoder.modality != "image" or "feature_map" not in self.encoder.provides:
            problem = f"{self.name} is an encoder of {self.encoder.modality} data with {', '.join(self.encoder.provides)}"
            raise SslkitError(problem, f"{command} needs feature maps of images", flag=self.flag)

    def __call__(self, image: Tensor) -> Tensor:
        """Return feature maps `[B, D, h, w]` of images `[B, C, S, S]`; raises SslkitError for a layer that there is not."""
        if self.layer == "last":
            return self.encoder.feature_map(image)
        layers = self.encoder.layers(image) if "layers" in self.encoder.provides else []
        if not 1 <= int(self.layer) <= len(layers):
            raise SslkitError(f"{self.name} has {len(layers)} layers (got {self.layer})", flag="layer")
        return as_map(layers[int(self.layer) - 1], self.encoder.prefix)


def as_map(layer: Tensor, prefix: int) -> Tensor:
    """Return a layer as a feature map `[B, D, h, w]`; tokens are those of a square grid, class token and registers first."""
    if layer.dim() == 4:
        return layer
    places = layer[:, prefix:].transpose(1, 2)
    grid: Tensor = places.unflatten(2, (round(places.shape[2] ** 0.5), -1))
    return grid


def read_models(
    spec: SegmentSpec | CorrespondSpec, checkpoint: Checkpoint, encoder: Encoder, machine: Machine, command: str
) -> list[tuple[Model, MapReader]]:
    """Return the checkpoint's encoder, random weights and the models of `--against`, on the device, and what reads their maps.

    The size of a model is the side of its images. Raises SslkitError for an encoder without feature maps.
    """
    models = [Model(CHECKPOINT, encoder, spec.resolution, "checkpoint")]
    if spec.baselines:
        seed_stage(spec.seed, "random", 0)
        models.append(Model(RANDOM, build_encoder(checkpoint.recipe, allowed=spec.encoder).eval(), spec.resolution, "random"))
    models += [load_other(name, evaluation_size(spec, checkpoint), spec, checkpoint, spec.encoder) for name in spec.against]
    readers = []
    for model in models:
        read = MapReader(model.encoder, model.name, spec.layer, "against" if model.role == "other" else "ckpt")
        read.check(command)
        side = model.encoder.nearest_valid_size(spec.resolution)
        readers.append((Model(model.name, model.encoder.to(machine.device), side, model.role), read))
    return readers


def extract_every(
    encoder: Encoder, images: ImageSource, machine: Machine, spec: SegmentSpec | CorrespondSpec | AnomalySpec, read: Read
) -> Tensor:
    """Return what `read` computes as `last` of all images; raises SslkitError if one of them can't be read."""
    taken = extract(encoder, images, machine, spec.batch_size, spec.workers, read=read)
    if len(taken.rows) < len(images.index):
        missing = images.index.name(int(np.setdiff1d(np.arange(len(images.index)), taken.rows)[0]))
        raise SslkitError(f"{missing} of {images.location} can't be read", "remove it, or mend it", flag="data")
    return taken.layers["last"]
