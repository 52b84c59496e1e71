"""What is evaluated: a checkpoint, and what its number has to be compared with."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit import encoders
from sslkit.encoders import Encoder, ImageEncoder, LogMel
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.folder import MODEL
from sslkit.engine.seeds import seed_stage
from sslkit.errors import SslkitError, naming

CHECKPOINT, RANDOM = "checkpoint", "random weights"
_BANDS = 64


@dataclass(frozen=True)
class Model:
    """Hold an encoder, the name it has in results, and the image size it is shown."""

    name: str
    encoder: Encoder
    size: int

    @cached_property
    def weights(self) -> str:
        """Return the hash of the encoder's weights."""
        return weights_hash(self.encoder)


class RawPixels(ImageEncoder):
    """Return the image itself, shrunk to at most `side` pixels: what features have to beat."""

    def __init__(self, in_channels: int, size: int, side: int) -> None:
        side = min(size, side)
        super().__init__(in_channels * side * side, in_channels)
        self.side = side
        self.recipe = {"name": "normalised pixels", "in_channels": in_channels, "size": side}

    def forward(self, image: Tensor) -> Tensor:
        """Return `[B, C * side * side]`, normalised: without a mean to take off, all images would be alike to a cosine."""
        if image.shape[-1] > self.side:
            image = F.interpolate(image, size=(self.side, self.side), mode="bilinear", antialias=True)
        return self.normalise(image).flatten(1)


class MeanSpectrum(Encoder):
    """Return the mean log-mel spectrum and its deviation over time: what features of sound have to beat."""

    modality: ClassVar = "audio"
    sample_dims = 1

    def __init__(self, sample_rate: int, mels: int) -> None:
        super().__init__(2 * mels, in_channels=1)
        self.sample_rate, self.spectrogram = sample_rate, LogMel(sample_rate, mels)
        self.recipe = {"name": "mean spectrum", "sample_rate": sample_rate, "mels": mels}

    def forward(self, sample: Tensor) -> Tensor:
        """Return `[B, 2 * mels]`, the level taken off: it is the recording's, not the sound's."""
        bands = self.spectrogram(sample)
        mean = bands.mean(dim=2)
        return torch.cat([mean - mean.mean(dim=1, keepdim=True), bands.std(dim=2, correction=0)], dim=1)


def compared(
    checkpoint: Checkpoint,
    size: int | str,
    baselines: bool,
    against: list[str],
    seed: int,
    device: torch.device,
    allowed: str | None,
    pixels: int,
) -> list[Model]:
    """Return the checkpoint and what it is compared with; raises SslkitError for what can't be built."""
    own = checkpoint.size if isinstance(size, str) else size
    models = [Model(CHECKPOINT, checkpoint.build_encoder(allowed), own)]
    if baselines:
        seed_stage(seed, "random", 0)
        models.append(Model(RANDOM, encoders.build_encoder(checkpoint.recipe, allowed=allowed).eval(), own))
        models.append(_raw(models[0].encoder, checkpoint.channels, own, pixels))
    models += [_other(name, own, size, checkpoint, allowed) for name in against]
    for model in models:
        model.encoder.to(device)
    return models


def _raw(encoder: Encoder, channels: int, size: int, pixels: int) -> Model:
    """Return the plainest features of what an encoder is shown."""
    if encoder.modality == "audio":
        return Model(f"mean spectrum, {_BANDS} bands", MeanSpectrum(encoder.sample_rate, _BANDS), size)
    raw = RawPixels(channels, size, pixels)
    return Model(f"raw pixels, {raw.side} px", raw, size)


def _other(name: str, own: int, size: int | str, checkpoint: Checkpoint, allowed: str | None) -> Model:
    channels, samples = checkpoint.channels, checkpoint.samples
    path = Path(name, MODEL) if Path(name).is_dir() else Path(name)
    if path.suffix == ".safetensors":
        other = read_model(path, "--against")
        if other.samples != samples:
            raise SslkitError(f"--against: {path} was trained on {other.samples} data, the checkpoint on {samples}")
        if other.channels != channels:
            raise SslkitError(f"--against: {path} takes images of {other.channels} channels, the checkpoint {channels}")
        return Model(name, other.build_encoder(allowed), other.size if isinstance(size, str) else size)
    if samples == "audio":
        raise SslkitError(f"--against: should be a checkpoint (got {name})", "timm and torchvision publish no audio encoders")
    published, _, pixels = name.partition("@")
    if pixels and not pixels.isdigit():
        raise SslkitError(f"--against: should be a checkpoint, NAME or NAME@SIZE (got {name})")
    shown = int(pixels) if pixels else own
    recipe = encoders.recipe_for(published, shown, channels, pretrained=True)
    with naming("--against", "--encoder"):
        encoder = encoders.build_encoder(recipe, pretrained=True, allowed=allowed)
    return Model(f"{published}, pretrained, at {shown} px", encoder.eval(), shown)


def weights_hash(encoder: Encoder) -> str:
    """Return a hash of what an encoder computes: its recipe and all weights."""
    digest = blake2b(repr(encoder.recipe).encode(), digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
