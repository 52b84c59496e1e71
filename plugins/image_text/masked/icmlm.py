"""ICMLM (Sariyildiz et al., 2020)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, SslkitError, TaskOptions
from sslkit.console import say_once
from sslkit.data.tables import read_lines
from sslkit.image.transforms import random_resized_crop
from sslkit.image.views import CropScale
from sslkit.image_text.task import build_reading_tower
from sslkit.nn import Attention, CrossBlock
from sslkit.text.encoders.transformer import BidirectionalTransformer
from sslkit.text.language_model import token_nats
from sslkit.text.masking import starts_word, word_groups
from sslkit.text.tokenizer import MASK, Tokenizer

# English words that name nothing to be seen. The paper keeps nouns, adjectives and verbs, which takes a tagger.
_STOP_WORDS = """
a an and are as at be been but by can each either for from had has have he her him his i if in into is it its more most no not
of off on one only or other our out over she so some such than that the their them then there these they this those to under up
upon was we were what when where which while who whose will with without you your
"""
_NONE = -1  # of a token: its word is no concept
_CHUNK = 4096  # captions whose words are counted at once


class ICMLM(PretextTask):
    """Predict a concept that is hidden in a caption from the rest of it and the image (ICMLM; Sariyildiz et al., 2020).

    Concepts are the most frequent words of the captions. Images are not flipped, because captions distinguish left from right.
    """

    class Options(TaskOptions):
        """Options of `icmlm`."""

        concepts: int = Field(default=500, ge=2, description="Most frequent words that are hidden and predicted.")
        min_count: int = Field(default=5, ge=1, description="Captions that a concept occurs in at least.")
        stop_words: str | None = Field(
            default=None, description="File of words, one a line, that are no concepts; default: English function words."
        )
        fusion: Literal["transformer", "attention"] = Field(
            default="transformer",
            description="transformer: a block in which the caption attends to the image; attention: only the hidden word does.",
        )
        tag_weight: float = Field(
            default=1.0, ge=0, description="Weight of predicting all concepts of the caption from the image alone; 0: off."
        )
        freeze_text: bool = Field(
            default=False, description="Keep the text tower of --init-part as it is, as the paper keeps BERT."
        )
        text_width: int = Field(default=128, ge=4, multiple_of=4, description="Width of the text tower (768 in the paper).")
        text_depth: int = Field(default=2, ge=1, le=48, description="Blocks of the text tower (12 in the paper).")
        crop_scale: CropScale = 0.6

    options: Options
    head: nn.ModuleDict
    text: BidirectionalTransformer
    token_concept: Tensor
    word_hash: Tensor
    starts_word: Tensor
    factors: Tensor
    modality: ClassVar = "image_text"
    encodes: ClassVar = "image"
    requires: ClassVar = ("feature_map",)
    defaults: ClassVar = {"lr": 1e-3, "weight_decay": 0.05, "batch_size": 64, "clip": 10.0}
    preview_columns: ClassVar = ("image",)

    def build_head(self) -> nn.ModuleDict:
        """Build the text tower and what fuses it with the image, and count the words of all captions."""
        options = self.options
        settings = {"width": options.text_width, "depth": options.text_depth}
        self.text = build_reading_tower(self.data, settings, options, "icmlm")
        if options.freeze_text and self.data.details["text_checkpoint"] is None:
            raise SslkitError("a text tower of random weights would stay random", "name one by --init-part", flag="freeze_text")
        self._find_concepts()
        width, count = self.text.width, len(self.names)
        fusion: nn.Module
        if options.fusion == "transformer":
            fusion = CrossBlock(width, self.text.heads)
        else:
            fusion = Attention(width, self.text.heads)
        parts = {"places": nn.Linear(self.encoder.width, width), "fusion": fusion, "concept": nn.Linear(width, count)}
        if options.tag_weight:
            parts["tags"] = nn.Linear(self.encoder.width, count)
        return nn.ModuleDict(parts)

    def setup(self) -> None:
        """Keep a text tower that is not trained as it is."""
        if self.options.freeze_text:
            self.text.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Keep a frozen text tower in eval mode."""
        super().train(mode)
        if self.options.freeze_text:
            self.text.eval()
        return self

    def transform(self, batch: Batch) -> Batch:
        """Return crops `[B, C, S, S]`, captions in which one concept is masked, `tokens` `[B, T]`, and the `place` of its first
        token `[B, 1]`; which one it is, `concept` `[B]`, and `weight` `[B]`: 0 for captions without any; and which concepts the
        caption has, `tags` `[B, K]` of 0 and 1.
        """
        tokens, scale = batch["tokens"], (self.options.crop_scale, 1.0)
        image = random_resized_crop(batch["canvas"], self.data.size, scale, aspect=batch["aspect"])
        word, concept = self._concepts(tokens)
        begins = _begins(word)
        order = torch.rand(tokens.shape, device=tokens.device).masked_fill((concept == _NONE) | ~begins, -1)
        place = order.argmax(dim=1, keepdim=True)
        chosen = concept.gather(1, place)
        hidden = (concept == chosen) & (chosen != _NONE)  # wherever it stands: another one would tell it
        tags = torch.zeros(len(tokens), len(self.names) + 1, device=tokens.device)
        tags.scatter_(1, concept.where(concept != _NONE, len(self.names)), 1.0)
        return {
            "image": image,
            "tokens": tokens.masked_fill(hidden, self.text.first_special + MASK),
            "place": place,
            "concept": chosen[:, 0].clamp(min=0),
            "weight": (chosen[:, 0] != _NONE).float(),
            "tags": tags[:, :-1],
        }

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits of the hidden concept, `concept` `[B, K]`, and of all, `tags` `[B, K]`, and the image's `places`
        `[B, M, width]`.
        """
        feature_map = self.encoder.feature_map(batch["image"])
        places = self.head["places"](feature_map.flatten(2).transpose(1, 2))
        output = {"concept": self._fuse(places, batch), "places": places}
        if self.options.tag_weight:
            output["tags"] = self.head["tags"](feature_map.mean(dim=(2, 3)))
        return output

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the cross-entropies of hidden concepts, which `counts` divides, and the mean over tags."""
        terms = {"concept_nats": self._nats(output["concept"], batch).sum()}
        if self.options.tag_weight:
            terms["tags"] = self.options.tag_weight * F.binary_cross_entropy_with_logits(output["tags"], batch["tags"])
        return terms

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of captions with a concept."""
        return {"concept_nats": batch["weight"].sum()}

    @torch.no_grad()
    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return whether the hidden concept is recognized, and `image_gain`: by how many nats it is likelier with its image
        than with another one of the batch. Means are over captions with a concept.
        """
        share = batch["weight"].mean().clamp(min=1 / len(batch["weight"]))  # others are 0
        correct = (output["concept"].argmax(dim=1) == batch["concept"]) * batch["weight"]
        other = self._nats(self._fuse(output["places"].roll(1, 0), batch).float(), batch)
        return {"accuracy": correct / share, "image_gain": (other - self._nats(output["concept"], batch)) / share}

    def chance(self) -> dict[str, float]:
        """Return how often the most frequent concept is the hidden one, and what a random image adds."""
        return {"accuracy": self.most_frequent, "image_gain": 0.0}

    def exports(self) -> dict[str, nn.Module]:
        """Return both encoders."""
        return {"encoder": self.encoder, "text": self.text}

    def metadata(self) -> dict[str, Any]:
        """Return the concepts."""
        return {"concepts": self.names}

    def _fuse(self, places: Tensor, batch: Batch) -> Tensor:
        """Return logits of the hidden concept `[B, K]`."""
        tokens, place = batch["tokens"], batch["place"][..., None].expand(-1, -1, self.text.width)
        states = self.text.states(tokens)
        if self.options.fusion == "transformer":
            fused = self.head["fusion"](states, places, ~self.text.is_padding(tokens)).gather(1, place)[:, 0]
        else:
            query = states.gather(1, place)
            fused = (query + self.head["fusion"](query, places))[:, 0]
        logits: Tensor = self.head["concept"](fused)
        return logits

    def _nats(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return -log p of each hidden concept `[B]`, in nats; 0 where there is none."""
        weight: Tensor = batch["weight"]
        return token_nats(logits, batch["concept"]) * weight

    def _find_concepts(self) -> None:
        """Count the words of all captions, and keep the most frequent ones: their names, hashes and numbers."""
        options, details = self.options, self.data.details
        tokenizer = Tokenizer.from_bytes(details["tokenizer"])
        if tokenizer.unit == "byte":
            raise SslkitError("bytes are no words", "use word, wordpiece or bpe", flag="unit")
        self.register_buffer("starts_word", starts_word(tokenizer), persistent=False)
        factors = torch.randint(2**62, (details["length"],), generator=torch.Generator().manual_seed(1)) | 1
        self.register_buffer("factors", factors, persistent=False)
        captions = torch.as_tensor(details["captions"])
        counts, name_of = Counter[str](), dict[int, str]()
        for chunk in captions.split(_CHUNK):
            for words in self._named_words(chunk.long(), tokenizer, name_of):
                counts.update(set(words))
        skipped = {name.lower() for name in self._stop_words()}
        frequent = [name for name, count in counts.most_common() if count >= options.min_count]
        self.names = [name for name in frequent if name not in skipped and any(map(str.isalnum, name))][: options.concepts]
        if len(self.names) < 2:
            problem = f"{len(self.names)} words occur in at least {options.min_count} captions"
            raise SslkitError(problem, "at least two are needed; use a smaller one", flag="min_count")
        say_once(f"concepts: {len(self.names):,} words, such as {', '.join(self.names[:5])}")
        places = {name: place for place, name in enumerate(self.names)}
        hashes = sorted(value for value, name in name_of.items() if name in places)
        self.register_buffer("word_hash", torch.tensor(hashes))
        self.register_buffer("token_concept", torch.tensor([places[name_of[value]] for value in hashes]))
        self.most_frequent = self._best_guess(captions)

    def _named_words(self, captions: Tensor, tokenizer: Tokenizer, name_of: dict[int, str]) -> Iterator[list[str]]:
        """Yield the words of each caption in lower case; those that are new are added to `name_of`, by their hashes."""
        word, hashes = self._words(captions)
        text = captions < self.text.first_special
        begins = text & _begins(word)
        for row in range(len(captions)):
            columns = begins[row].nonzero()[:, 0].tolist()
            values = hashes[row, columns].tolist()
            for column, value in zip(columns, values, strict=True):
                if value not in name_of:
                    name_of[value] = tokenizer.decode(captions[row][word[row] == word[row, column]].tolist()).strip().lower()
            yield [name_of[value] for value in values]

    def _best_guess(self, captions: Tensor) -> float:
        """Return how often the hidden concept is the one that is most often hidden."""
        hidden, count = torch.zeros(len(self.names), dtype=torch.float64), 0
        for chunk in captions.split(_CHUNK):
            word, concept = self._concepts(chunk.long())
            begins = (concept != _NONE) & _begins(word)
            share = begins.double() / begins.sum(dim=1, keepdim=True).clamp(min=1)
            hidden += torch.bincount(concept[begins], share[begins], minlength=len(self.names))
            count += int(begins.any(dim=1).sum())
        return float(hidden.max() / max(1, count))

    def _stop_words(self) -> list[str]:
        """Return the words that are no concepts."""
        file = self.options.stop_words
        return _STOP_WORDS.split() if file is None else [line.strip() for _, line in read_lines(Path(file), "stop_words")]

    def _words(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return of each token `[B, T]` which word it belongs to, and a hash of that word."""
        word = word_groups(tokens, self.starts_word, self.text.first_special)
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        first = torch.zeros_like(word).scatter_reduce(1, word, place, "amin", include_self=False).gather(1, word)
        weighted = (tokens + 1) * self.factors[place - first]
        return word, torch.zeros_like(word).scatter_add(1, word, weighted).gather(1, word)

    def _concepts(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return of each token `[B, T]` which word it belongs to, and which concept that is, -1: none."""
        word, hashes = self._words(tokens)
        place = torch.searchsorted(self.word_hash, hashes).clamp(max=len(self.word_hash) - 1)
        known = (self.word_hash[place] == hashes) & (tokens < self.text.first_special)
        return word, self.token_concept[place].where(known, _NONE)


def _begins(word: Tensor) -> Tensor:
    """Return which tokens are the first of their word, bool `[B, T]`, of the number of the word of each `[B, T]`."""
    return F.pad(word[:, 1:] != word[:, :-1], (1, 0), value=True)
