"""The two encoders of a joint embedding space, as checkpoints of clip and albef have them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.data.index import Index
from sslkit.encoders.build import build_encoder
from sslkit.engine.checkpoint import Checkpoint, load_strictly
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.models import CHECKPOINT, RANDOM, Model
from sslkit.evaluation.splits import evaluation_size
from sslkit.image.source import ImageSource
from sslkit.image_text.specs import ZeroshotSpec
from sslkit.specs.use import SearchSpec
from sslkit.text.encoders.base import Framing, TokenEncoder
from sslkit.text.tokenizer import Tokenizer

_LONGEST = 4096  # tokens of a text
_CHUNK = 1024  # texts encoded at once


@dataclass(frozen=True)
class Towers:
    """The image and text encoders of a joint embedding space, and the tokenizer of the texts."""

    image: Model
    projector: nn.Linear
    text: Encoder
    text_projector: nn.Module
    tokenizer: Tokenizer
    frame: Framing
    length: int

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Return unit vectors of texts, `[N, D]`, on the CPU."""
        tokens = torch.from_numpy(self.frame.pad(self.tokenizer.encode(texts), self.length)).long()
        vectors = [self.text(chunk.to(self.text.device)).float().cpu() for chunk in tokens.split(_CHUNK)]
        return F.normalize(self.text_projector(torch.cat(vectors)), dim=1)

    @torch.no_grad()
    def embed_images(self, index: Index, spec: ZeroshotSpec) -> tuple[Tensor, NDArray[np.int64]]:
        """Return unit vectors of images, `[N, D]`, on the CPU, and their rows in the data."""
        model = self.image
        samples = ImageSource.for_evaluation(index, spec, model.encoder, model.size)
        features = cached_features(model, samples, "last", "auto", spec)
        return self.project_images(features.layers["last"]), features.rows

    @torch.no_grad()
    def project_images(self, features: Tensor) -> Tensor:
        """Return unit vectors of images from their features, `[N, D]`."""
        return F.normalize(self.projector(features), dim=1)


def load_towers(checkpoint: Checkpoint, spec: ZeroshotSpec | SearchSpec, device: torch.device, trained: bool = True) -> Towers:
    """Return both towers, with a checkpoint's weights or random ones."""
    path = checkpoint.path
    recipe = checkpoint.metadata.get("parts", {}).get("text", {}).get("recipe")
    if not isinstance(recipe, dict) or not checkpoint.part("projector"):
        task = checkpoint.metadata["task"]
        raise SslkitError(
            f"{path} has no text encoder (trained with {task})", "zeroshot needs a checkpoint of clip or albef", flag="ckpt"
        )
    length = recipe.get("size")
    if type(length) is not int or not 1 <= length <= _LONGEST:
        problem = f"the text tower in {path} has an input length of {length!r} tokens"
        raise SslkitError(problem, "the file was altered", flag="ckpt")
    encoder: Encoder = checkpoint.build_encoder(spec.encoder)
    text = checkpoint.with_part("text").build_encoder(spec.encoder)
    if not isinstance(text, TokenEncoder):
        raise SslkitError(f"the text tower in {path} is no encoder of text", "the file was altered", flag="ckpt")
    tokenizer, frame = text.tokenizer(), text.framing()
    if not trained:
        seed_stage(spec.seed, "random", 0)
        encoder = build_encoder(checkpoint.recipe, allowed=spec.encoder).eval()
        text = build_encoder(recipe, allowed=spec.encoder).eval()
    image_projector, text_projector = (
        _load_projector(checkpoint, name, tower.width, trained)
        for name, tower in (("projector", encoder), ("text_projector", text))
    )
    if image_projector.out_features != text_projector.out_features:
        raise SslkitError(f"the towers in {path} do not fit together", "the file was altered", flag="ckpt")
    size = evaluation_size(spec, checkpoint)
    encoder = encoder.to(device)
    model = Model(CHECKPOINT, encoder, size, "checkpoint") if trained else Model(RANDOM, encoder, size, "random")
    return Towers(model, image_projector, text.to(device), text_projector, tokenizer, frame, length)


def _load_projector(checkpoint: Checkpoint, name: str, width: int, trained: bool) -> nn.Linear:
    """Return the projector of a tower of this width, with the checkpoint's weights or random ones."""
    state = checkpoint.part(name)
    weight = state.get("weight")
    if weight is None or weight.dim() != 2 or weight.shape[1] != width:
        raise SslkitError(f"the towers in {checkpoint.path} do not fit together", "the file was altered", flag="ckpt")
    projector = nn.Linear(width, len(weight), bias=False)
    if trained:
        load_strictly(projector, state, f"--ckpt: the {name} in {checkpoint.path}")
    return projector.eval()
