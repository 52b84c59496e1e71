"""What is evaluated: a checkpoint, and what its number has to be compared with."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import torch

from sslkit.audio.baselines import BANDS, MeanSpectrum
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.encoders.build import build_encoder, recipe_for
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.run_folder import MODEL
from sslkit.engine.seeds import seed_stage
from sslkit.image.baselines import RawPixels

CHECKPOINT, RANDOM = "checkpoint", "random weights"


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
        models.append(Model(RANDOM, build_encoder(checkpoint.recipe, allowed=allowed).eval(), own))
        models.append(_raw(models[0].encoder, checkpoint.channels, own, pixels))
    models += [_other(name, own, size, checkpoint, allowed) for name in against]
    for model in models:
        model.encoder.to(device)
    return models


def _raw(encoder: Encoder, channels: int, size: int, pixels: int) -> Model:
    """Return the plainest features of what an encoder is shown."""
    if encoder.modality == "audio":
        return Model(f"mean spectrum, {BANDS} bands", MeanSpectrum(encoder.sample_rate, BANDS), size)
    raw = RawPixels(channels, size, pixels)
    return Model(f"raw pixels, {raw.side} px", raw, size)


def _other(name: str, own: int, size: int | str, checkpoint: Checkpoint, allowed: str | None) -> Model:
    channels, samples = checkpoint.channels, checkpoint.samples
    path = Path(name, MODEL) if Path(name).is_dir() else Path(name)
    if path.suffix == ".safetensors":
        other = read_model(path, "against")
        if other.samples != samples:
            raise SslkitError(f"{path} was trained on {other.samples} data, the checkpoint on {samples}", flag="against")
        if other.channels != channels:
            raise SslkitError(f"{path} takes images of {other.channels} channels, the checkpoint {channels}", flag="against")
        return Model(name, other.build_encoder(allowed), other.size if isinstance(size, str) else size)
    if samples == "audio":
        raise SslkitError(
            f"should be a checkpoint (got {name})", "timm and torchvision publish no audio encoders", flag="against"
        )
    published, _, pixels = name.partition("@")
    if pixels and not pixels.isdigit():
        raise SslkitError(f"should be a checkpoint, NAME or NAME@SIZE (got {name})", flag="against")
    shown = int(pixels) if pixels else own
    recipe = recipe_for(published, shown, channels, pretrained=True)
    with renamed_flags({"encoder": "against"}):
        encoder = build_encoder(recipe, pretrained=True, allowed=allowed)
    return Model(f"{published}, pretrained, at {shown} px", encoder.eval(), shown)


def weights_hash(encoder: Encoder) -> str:
    """Return a hash of what an encoder computes: its recipe and all weights."""
    digest = blake2b(repr(encoder.recipe).encode(), digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
