"""Tell the words around a word from others."""

import heapq
import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, PretextTask, SslkitError, TaskOptions
from sslkit.text.encoders import WordVectors, encode_words

_SHARED = 64  # words drawn for a stretch


class SkipGram(PretextTask):
    """Tell the words around a word from others (Mikolov et al., 2013a and b): word vectors.

    A sample is a stretch of text. In every step rare words and a share of the frequent ones are taken out of it, what
    is left moves together, and each word is paired with its neighbors in a window of random width.
    """

    class Options(TaskOptions):
        """Hold the options of skipgram."""

        loss: Literal["negative", "hierarchical"] = Field(
            default="negative", description="Against words drawn at random, or along the paths of a Huffman tree."
        )
        negatives: int = Field(default=5, ge=1, le=1000, description="As how many words drawn at random count for each pair.")
        power: float = Field(default=0.75, ge=0, le=1, description="They are drawn by their count to this power.")
        window: int = Field(default=5, ge=1, le=100, description="Largest distance of a pair; each word draws 1 to this.")
        subsample: float = Field(
            default=1e-3,
            ge=0,
            lt=1,
            description="Words above this share are thinned out (1e-5 in the paper); 0: none.",
        )
        min_count: int = Field(default=5, ge=1, description="Words that occur less often get no vector.")

    options: Options
    encoder: WordVectors
    head: nn.Embedding
    kept: Tensor
    drawn: Tensor
    nodes: Tensor
    turns: Tensor
    modality: ClassVar = "text"
    reads: ClassVar = ("tokens",)
    defaults: ClassVar = {
        "encoder": "word_vectors",
        "optimizer": "adamw",
        "lr": 5e-2,
        "weight_decay": 0.0,
        "batch_size": 16,
        "epochs": 20,
    }

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build a table for the words that occur often enough, and keep their spelling in it."""
        if build.recipe["name"] != "word_vectors":
            raise SslkitError(f"skipgram learns word_vectors (got {build.recipe['name']})", "leave it out", flag="encoder")
        counts, words = build.data.details["counts"], build.data.details["words"]
        kept = int((counts >= options.min_count).sum())
        if kept < 2:
            raise SslkitError(f"{options.min_count} leaves {kept} of {len(words)} words", "lower it", flag="min_count")
        letters = len(encode_words(words[:kept]))
        return build(in_channels=kept, options={**build.recipe["options"], "letters": letters})

    def build_head(self) -> nn.Module:
        """Build the vectors that words have as neighbors, or those of the tree's inner nodes."""
        words = self.encoder.in_channels
        table = nn.Embedding(words if self.options.loss == "negative" else words - 1, self.encoder.width)
        nn.init.uniform_(table.weight, -0.5 / self.encoder.width, 0.5 / self.encoder.width)
        return table

    def setup(self) -> None:
        """Keep what the data's counts tell: who is thinned out, who is drawn, the tree."""
        options, words = self.options, self.encoder.in_channels
        self.encoder.spell(self.data.details["words"][:words])
        counts = self.data.details["counts"][:words].double()
        share = counts / counts.sum()
        # Equation 5 of Mikolov et al., 2013b.
        kept = (options.subsample / share).sqrt().clamp(max=1) if options.subsample else torch.ones(words)
        self.register_buffer("kept", kept.float(), persistent=False)
        # Room for what stays of a stretch: four deviations above the mean. What has none, now and then, is left out.
        length, stay = self.data.size, float((share * kept).sum() * counts.sum() / self.data.details["counts"].sum())
        self.room = min(length, math.ceil(length * stay + 4 * math.sqrt(length * stay * (1 - stay))) + 1)
        if options.loss == "negative":
            drawn = (counts**options.power).cumsum(0)
            self.register_buffer("drawn", (drawn / drawn[-1]).float(), persistent=False)
        else:
            nodes, turns = huffman(counts.long().tolist())
            self.register_buffer("nodes", nodes, persistent=False)
            self.register_buffer("turns", turns, persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return the `words` that stay, `[B, N]`, and which of them are pairs, bool `paired` `[B, N, N]`: center, neighbor.

        With the negative loss also `negatives` `[B, M]`, drawn for the whole stretch: as many pairs share each of them, their
        scores are one product of matrices (Ji et al., 2016). Those of a pair are weighted to count as `--negatives` do.
        """
        tokens, window = batch["tokens"], self.options.window
        known = tokens < self.encoder.in_channels
        stays = known & (torch.rand(tokens.shape, device=tokens.device) < self.kept[tokens.where(known, 0)])
        order = (~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : self.room]  # what stays moves together
        words, stays = tokens.gather(1, order).where(stays.gather(1, order), 0), stays.gather(1, order)
        reach = torch.randint(1, window + 1, words.shape, device=tokens.device)
        place = torch.arange(words.shape[1], device=tokens.device)
        distance = (place[:, None] - place).abs()
        paired = (distance > 0) & (distance <= reach[:, :, None]) & stays[:, :, None] & stays[:, None]
        found = {"words": words, "paired": paired}
        if self.options.loss == "negative":
            chance = torch.rand(len(words), _SHARED, device=tokens.device)
            found["negatives"] = torch.searchsorted(self.drawn, chance).clamp(max=len(self.drawn) - 1)
        return found

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return scores of words with each other, `[B, N, N]`, and with those drawn, `[B, N, M]`; or with nodes."""
        center = self.encoder.tokens(batch["words"])
        if self.options.loss == "hierarchical":
            return {"nodes": torch.einsum("btd,bsnd->btsn", center, self.head(self.nodes[batch["words"]]))}
        return {
            "neighbors": center @ self.head(batch["words"]).transpose(1, 2),
            "negatives": center @ self.head(batch["negatives"]).transpose(1, 2),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum over pairs (equation 4 of 2013b; 3 of 2013b for the tree), which `counts` divides."""
        paired = batch["paired"]
        if self.options.loss == "hierarchical":
            turns = self.turns[batch["words"]][:, None]  # 0 beyond the end of a path
            each = -(F.logsigmoid(turns * output["nodes"]) * (turns != 0)).sum(dim=3)
            return {"pairs": (each * paired).sum()}
        others = F.softplus(output["negatives"]).mean(dim=2) * paired.sum(dim=2)
        return {"pairs": (F.softplus(-output["neighbors"]) * paired).sum() + self.options.negatives * others.sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of pairs."""
        return {"pairs": batch["paired"].sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how much better words go with their neighbors than with those drawn, as a difference of mean scores."""
        if self.options.loss == "hierarchical":
            return {}
        paired = batch["paired"]
        count = paired.sum(dim=(1, 2)).clamp(min=1)
        near = (output["neighbors"] * paired).sum(dim=(1, 2)) / count
        far = (output["negatives"].mean(dim=2) * paired.sum(dim=2)).sum(dim=1) / count
        return {"margin": near - far}


def huffman(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Return the path to each word in the Huffman tree of the counts: inner nodes and turns, `[words, depth]` each.

    A turn is 1 or -1, and 0 beyond the end of a path. There are `words - 1` inner nodes.
    """
    heap: list[tuple[int, int, Any]] = [(count, place, place) for place, count in enumerate(counts)]
    heapq.heapify(heap)
    for inner in range(len(counts) - 1):
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (first[0] + second[0], len(counts) + inner, (inner, first[2], second[2])))
    paths: list[list[tuple[int, int]]] = [[] for _ in counts]
    waiting: list[tuple[Any, list[tuple[int, int]]]] = [(heap[0][2], [])]
    while waiting:
        node, path = waiting.pop()
        if isinstance(node, int):
            paths[node] = path
        else:
            inner, left, right = node
            waiting += [(left, [*path, (inner, 1)]), (right, [*path, (inner, -1)])]
    depth = max(len(path) for path in paths)
    filled = torch.tensor([path + [(0, 0)] * (depth - len(path)) for path in paths])
    return filled[..., 0], filled[..., 1]
