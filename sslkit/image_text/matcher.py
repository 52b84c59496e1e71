"""Networks that read a caption together with an image: one transformer over both, or words that attend to the image."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.engine.checkpoint import Checkpoint, build_strictly
from sslkit.engine.seeds import seed_stage
from sslkit.image.encoders.timm import VisionTransformerEncoder
from sslkit.image_text.encoders import caption_framing
from sslkit.nn import CrossBlock
from sslkit.text.encoders.base import Framing, TextEncoder
from sslkit.text.language_model import LanguageModelHead
from sslkit.text.tokenizer import PAD, SPECIALS, Tokenizer

PART = "matcher"  # of a checkpoint
_DEVIATION = 0.02  # of initial weights
_DEEPEST, _LONGEST, _LARGEST = 64, 4096, 2**24  # blocks, tokens and any other size that a checkpoint may describe


class Matcher(nn.Module):
    """Base: what both have, heads that tell from the states of a caption whether it matches, and which words are hidden."""

    kind: ClassVar[str]
    sizes: ClassVar[tuple[str, ...]]  # that a checkpoint describes

    def __init__(self, width: int, ids: int) -> None:
        super().__init__()
        self.width, self.first_special = width, ids - len(SPECIALS)
        self.lm = LanguageModelHead(width, ids, transform=True, bias=True)
        self.classifier = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))

    def encode_image(self, encoder: Encoder, image: Tensor) -> Tensor:
        """Return what captions are read with: a vector for each place of images, `[B, M, width]`."""
        raise TypeError(f"{type(self).__name__} does not define encode_image()")

    def encode_pair(self, encoder: Encoder, text: Encoder | None, places: Tensor, tokens: Tensor) -> Tensor:
        """Return a state for each of `tokens` `[B, T]`, which has seen the image, `[B, T, width]`."""
        raise TypeError(f"{type(self).__name__} does not define encode_pair()")

    def vectors(self, text: Encoder | None) -> Tensor:
        """Return the vectors of all tokens, `[ids, width]`."""
        raise TypeError(f"{type(self).__name__} does not define vectors()")

    def is_padding(self, tokens: Tensor) -> Tensor:
        """Return which tokens are padding, bool `[B, T]`."""
        return tokens == self.first_special + PAD

    def summarize(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the state of each caption's last token, which ends it, `[B, width]`."""
        last = (~self.is_padding(tokens)).sum(dim=1).clamp(min=1) - 1
        return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]

    def predict_words(self, states: Tensor, places: Tensor, text: Encoder | None) -> Tensor:
        """Return logits of the tokens hidden at `places` `[B, K]` of captions, `[B, K, ids]`."""
        hidden = states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))
        logits: Tensor = self.lm(hidden, self.vectors(text))
        return logits

    def match_logits(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return logits `[B, 2]`: the caption is of another image, or of this one."""
        logits: Tensor = self.classifier(self.summarize(states, tokens))
        return logits

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint records to build it again."""
        raise TypeError(f"{type(self).__name__} does not define describe()")


class JointMatcher(Matcher):
    """Patches and words pass through the blocks of the image encoder together (Kim et al., 2021, section 3.1).

    The tokenizer is kept as `letters` bytes of JSON.
    """

    kind = "joint"
    sizes = ("width", "ids", "length", "letters")
    spelling: Tensor

    def __init__(self, width: int, ids: int, length: int, letters: int) -> None:
        super().__init__(width, ids)
        self.token, self.position = nn.Embedding(ids, width), nn.Parameter(torch.empty(length, width))
        # ViLT has a vector for patches, too: they have learned positions, and so the encoder reads images without words alike.
        self.word_type = nn.Parameter(torch.empty(width))
        self.register_buffer("spelling", torch.zeros(letters, dtype=torch.uint8))
        for parameter in (self.token.weight, self.position, self.word_type):
            nn.init.normal_(parameter, std=_DEVIATION)

    def keep_tokenizer(self, content: bytes) -> None:
        """Keep a tokenizer, as `Tokenizer.to_bytes` wrote it, beside the weights."""
        self.spelling.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def encode_image(self, encoder: Encoder, image: Tensor) -> Tensor:
        """Return the patches before the first block."""
        assert isinstance(encoder, VisionTransformerEncoder)
        return encoder.embed(image)

    def encode_pair(self, encoder: Encoder, text: Encoder | None, places: Tensor, tokens: Tensor) -> Tensor:
        """Return the states of tokens after the last block."""
        assert isinstance(encoder, VisionTransformerEncoder)
        words = self.token(tokens) + self.position[: tokens.shape[1]] + self.word_type
        patches = torch.ones(places.shape[:2], dtype=torch.bool, device=places.device)
        visible = torch.cat([patches, ~self.is_padding(tokens)], dim=1)
        return encoder.run_blocks(torch.cat([places, words], dim=1), visible)[:, places.shape[1] :]

    def vectors(self, text: Encoder | None) -> Tensor:
        """Return the input vectors."""
        return self.token.weight

    def describe(self) -> dict[str, Any]:
        """Return its sizes."""
        sizes = {"width": self.width, "ids": self.token.num_embeddings, "length": len(self.position)}
        return {"kind": self.kind, **sizes, "letters": len(self.spelling)}


class CrossMatcher(Matcher):
    """The states of a text tower attend to the tokens of an image, in blocks of their own (Li et al., 2021, section 3.1)."""

    kind = "cross"
    sizes = ("features", "width", "ids", "depth", "heads")

    def __init__(self, features: int, width: int, ids: int, depth: int, heads: int) -> None:
        super().__init__(width, ids)
        self.memory = nn.Linear(features, width)
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(depth))
        self.norm, self.heads = nn.LayerNorm(width), heads

    def encode_image(self, encoder: Encoder, image: Tensor) -> Tensor:
        """Return the tokens after the last block, as vectors of this width."""
        places: Tensor = self.memory(encoder.tokens(image))
        return places

    def encode_pair(self, encoder: Encoder, text: Encoder | None, places: Tensor, tokens: Tensor) -> Tensor:
        """Return the states of tokens after the last of the blocks that attend to the image."""
        assert isinstance(text, TextEncoder)
        return self.fuse(places, text.states(tokens), tokens)

    def fuse(self, places: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the same, of the text tower's states `[B, T, width]`."""
        visible = ~self.is_padding(tokens)
        for block in self.blocks:
            states = block(states, places, visible)
        output: Tensor = self.norm(states)
        return output

    def vectors(self, text: Encoder | None) -> Tensor:
        """Return the text tower's input vectors."""
        assert isinstance(text, TextEncoder)
        return text.token.weight

    def describe(self) -> dict[str, Any]:
        """Return its sizes."""
        sizes = {"features": self.memory.in_features, "width": self.width, "ids": self.first_special + len(SPECIALS)}
        return {"kind": self.kind, **sizes, "depth": len(self.blocks), "heads": self.heads}


class PairEncoder(nn.Module):
    """Read texts together with images, as a checkpoint was trained to: image encoder, text tower if it has one, matcher."""

    def __init__(self, encoder: Encoder, text: TextEncoder | None, matcher: Matcher, length: int) -> None:
        super().__init__()
        self.encoder, self.text, self.matcher, self.length = encoder, text, matcher, length

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of captions; raises SslkitError if it is damaged."""
        if self.text is not None:
            return self.text.tokenizer()
        assert isinstance(self.matcher, JointMatcher)
        return Tokenizer.from_checkpoint(self.matcher.spelling.cpu().numpy().tobytes(), self.matcher.token.num_embeddings)

    def framing(self) -> Framing:
        """Return what stands around the tokens of a caption."""
        return caption_framing(self.tokenizer()) if self.text is None else self.text.framing()

    def encode_image(self, image: Tensor) -> Tensor:
        """Return what captions are read with, `[B, M, width]`."""
        return self.matcher.encode_image(self.encoder, image)

    def summarize(self, places: Tensor, tokens: Tensor) -> Tensor:
        """Return a vector for each pair, `[B, width]`."""
        return self.matcher.summarize(self.matcher.encode_pair(self.encoder, self.text, places, tokens), tokens)

    def match_score(self, places: Tensor, tokens: Tensor) -> Tensor:
        """Return by how much a match is likelier than none, as a difference of logits, `[B]`."""
        logits = self.matcher.match_logits(self.matcher.encode_pair(self.encoder, self.text, places, tokens), tokens).float()
        return logits[:, 1] - logits[:, 0]


def read_pair_encoder(checkpoint: Checkpoint, allowed: str | None, seed: int | None = None) -> PairEncoder:
    """Return what reads pairs in a checkpoint, in eval mode; with a seed, the same network with random weights.

    Raises SslkitError if it has none.
    """
    make, sizes = _read_description(checkpoint)
    state, altered = checkpoint.part(PART), _altered(checkpoint)
    matcher = build_strictly(lambda: make(**sizes), state, str(checkpoint.path))
    encoder, text, length = checkpoint.build_encoder(allowed), None, sizes.get("length", 0)
    if make is CrossMatcher:
        part = checkpoint.with_part("text")
        text, length = part.build_encoder(allowed), part.size
        if not isinstance(text, TextEncoder) or (text.width, text.in_channels) != (sizes["width"], sizes["ids"]):
            raise altered
        text.check_length(length)
    if encoder.width != sizes.get("features", sizes["width"]) or length > _LONGEST:
        raise altered
    if not isinstance(encoder, VisionTransformerEncoder) if make is JointMatcher else "tokens" not in encoder.provides:
        raise altered
    if seed is not None:
        seed_stage(seed, "random", 0)
        encoder, matcher = build_encoder(checkpoint.recipe, allowed=allowed), make(**sizes)
        if isinstance(matcher, JointMatcher):
            matcher.spelling.copy_(state["spelling"])
        if text is not None:
            trained, text = text, build_encoder(checkpoint.with_part("text").recipe, allowed=allowed)
            text.take_over(trained)
    assert text is None or isinstance(text, TextEncoder)
    return PairEncoder(encoder, text, matcher, length).eval()


def _altered(checkpoint: Checkpoint) -> SslkitError:
    return SslkitError(f"{checkpoint.path} does not describe its matcher", "the file was altered", flag="ckpt")


def _read_description(checkpoint: Checkpoint) -> tuple[type[JointMatcher] | type[CrossMatcher], dict[str, int]]:
    """Return class and sizes of a checkpoint's matcher; raises SslkitError if it has none, or impossible sizes."""
    described = checkpoint.recorded_by_task(PART)
    if described is None or not checkpoint.part(PART):
        raise SslkitError(
            f"{checkpoint.path} does not read images and captions together: it was trained by {checkpoint.metadata['task']}",
            "expected a checkpoint of albef or vilt",
            flag="ckpt",
        )
    make: type[JointMatcher] | type[CrossMatcher] = JointMatcher if described.get("kind") == JointMatcher.kind else CrossMatcher
    sizes = {name: described.get(name) for name in make.sizes}
    if described.get("kind") != make.kind or not all(type(size) is int and 0 < size <= _LARGEST for size in sizes.values()):
        raise _altered(checkpoint)
    whole = {name: int(size) for name, size in sizes.items() if size is not None}
    if whole["ids"] <= len(SPECIALS) or whole.get("depth", 1) > _DEEPEST or whole["width"] % whole.get("heads", 1):
        raise _altered(checkpoint)
    return make, whole
