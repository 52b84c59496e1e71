"""What tasks that learn a vector for each word have in common (word2vec; Mikolov et al., 2013).

2013b is "Distributed Representations of Words and Phrases and their Compositionality".
"""

import heapq
import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.options import TaskOptions
from sslkit.contract.task import Batch, EncoderBuilder, PretextTask
from sslkit.text.encoders.word_vectors import WordVectors, encode_words

_LARGE = 20.0  # score, of which exp(-score) is below the precision of float32
_SHARED_NEGATIVES = 64  # per sample


class WordOptions(TaskOptions):
    """Options of tasks that pair words with their neighbors."""

    loss: Literal["negative", "hierarchical"] = Field(
        default="negative", description="Negative sampling, or hierarchical softmax over a Huffman tree."
    )
    negatives: int = Field(default=5, ge=1, le=1000, description="Negative samples per positive pair.")
    power: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="Exponent of word counts in sampling negatives.",
    )
    window: int = Field(default=5, ge=1, le=100, description="Maximum window in words; each word samples 1 to this.")
    subsample: float = Field(
        default=1e-3,
        ge=0,
        lt=1,
        description="Threshold frequency of subsampling, 0 for none (1e-5 in the paper).",
    )
    min_count: int = Field(default=5, ge=1, description="Minimum count of a word; rarer words get no vector.")


class WordTask(PretextTask):
    """Base of tasks that learn a vector for each word from the words in a window around it.

    A sample is a stretch of text. In every step, rare words and a random part of the frequent ones are removed, the rest
    closes up, and each word is paired with its neighbors in a window of random width.
    """

    options: WordOptions
    encoder: WordVectors
    head: nn.Embedding
    keep_probability: Tensor
    noise_cdf: Tensor
    nodes: Tensor
    signs: Tensor
    modality: ClassVar = "text"
    visible_targets: ClassVar[tuple[str, ...]] = ("words",)  # predict each other; the loss of the tree reads their paths
    requires: ClassVar = ("tokens",)
    defaults: ClassVar = {
        "encoder": "word_vectors",
        "held_out": 0.0,
        "optimizer": "adamw",
        "lr": 5e-2,
        "weight_decay": 0.0,
        "batch_size": 64,
        "epochs": 20,
    }

    @classmethod
    def build_encoder(cls, options: WordOptions, build: EncoderBuilder) -> Encoder:
        """Build a table of vectors for words with at least `--min-count` occurrences, and room for their spelling."""
        if build.recipe["name"] != "word_vectors":
            raise SslkitError(
                f"a table of word vectors is needed (got {build.recipe['name']})", "use word_vectors", flag="encoder"
            )
        if build.data.details["unit"] != "word":
            raise SslkitError(f"vectors of words need word (got {build.data.details['unit']})", flag="unit")
        words = build.data.details["words"]
        counts = build.data.details["counts"][: len(words)]
        frequent = int((counts >= options.min_count).sum())
        if frequent < 2:
            raise SslkitError(
                f"{options.min_count} leaves {frequent} of {len(words)} words", "use a lower count", flag="min_count"
            )
        letters = len(encode_words(words[:frequent]))
        return build(in_channels=frequent, options={**build.recipe["options"], "letters": letters})

    def build_head(self) -> nn.Module:
        """Build the output vectors of words, or of the tree's inner nodes."""
        words = self.encoder.in_channels
        table = nn.Embedding(words if self.options.loss == "negative" else words - 1, self.encoder.width)
        nn.init.uniform_(table.weight, -0.5 / self.encoder.width, 0.5 / self.encoder.width)
        return table

    def setup(self) -> None:
        """Compute from word counts the subsampling, the distribution of negatives, and the tree."""
        options, words = self.options, self.encoder.in_channels
        self.encoder.spell(self.data.details["words"][:words])
        counts = self.data.details["counts"][:words].double()
        frequency = counts / counts.sum()
        # Equation 5 of Mikolov et al., 2013b.
        keep = (options.subsample / frequency).sqrt().clamp(max=1) if options.subsample else torch.ones(words)
        self.register_buffer("keep_probability", keep.float(), persistent=False)
        # Space for the remaining words of a sample: four standard deviations above the mean; rarely, surplus words are dropped.
        length, total = self.data.size, self.data.details["counts"].sum()
        rate = float((frequency * keep).sum() * counts.sum() / total)
        self.max_words = min(length, math.ceil(length * rate + 4 * math.sqrt(length * rate * (1 - rate))) + 1)
        if options.loss == "negative":
            cdf = (counts**options.power).cumsum(0)
            self.register_buffer("noise_cdf", (cdf / cdf[-1]).float(), persistent=False)
        else:
            nodes, signs = huffman(counts.long().tolist())
            self.register_buffer("nodes", nodes, persistent=False)
            self.register_buffer("signs", signs, persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return the remaining `words` `[B, N]`, and which of them are pairs, bool `pair_mask` `[B, N, N]`: center, neighbor.

        `neighbors` `[B, N]` is their number. With negative sampling also `negatives` `[B, M]`, sampled once per sample and
        shared by its pairs, so that all scores are one matrix product (Ji et al., 2016); their losses are weighted to equal
        `--negatives` samples per pair.
        """
        tokens, window = batch["tokens"], self.options.window
        known = tokens < self.encoder.in_channels
        keep = known & (torch.rand(tokens.shape, device=tokens.device) < self.keep_probability[tokens.where(known, 0)])
        order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, : self.max_words]  # the kept words first, in order
        words, keep = tokens.gather(1, order).where(keep.gather(1, order), 0), keep.gather(1, order)
        reach = torch.randint(1, window + 1, words.shape, device=tokens.device)
        position = torch.arange(words.shape[1], device=tokens.device)
        distance = (position[:, None] - position).abs()
        pair_mask = (distance > 0) & (distance <= reach[:, :, None]) & keep[:, :, None] & keep[:, None]
        result = {"words": words, "pair_mask": pair_mask, "neighbors": pair_mask.sum(dim=2)}
        if self.options.loss == "negative":
            uniform = torch.rand(len(words), _SHARED_NEGATIVES, device=tokens.device)
            result["negatives"] = torch.searchsorted(self.noise_cdf, uniform).clamp(max=len(self.noise_cdf) - 1)
        return result


def softplus(scores: Tensor) -> Tensor:
    """Return log(1 + exp(score)), by functions that are ten times as fast on a CPU as torch's own."""
    # Of large scores it is the score itself; that of the others would be the log of 0.
    small = scores.clamp(max=_LARGE)
    return torch.where(scores > _LARGE, scores, -torch.sigmoid(-small).log())


def huffman(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Return the path to each word in the Huffman tree of the counts: inner nodes and signs, int64 `[words, depth]` each.

    A sign is 1 (left), -1 (right), or 0 after the end of a path. There are `words - 1` inner nodes.
    """
    heap: list[tuple[int, int, Any]] = [(count, word, word) for word, count in enumerate(counts)]
    heapq.heapify(heap)
    for inner in range(len(counts) - 1):
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (first[0] + second[0], len(counts) + inner, (inner, first[2], second[2])))
    paths: list[list[tuple[int, int]]] = [[] for _ in counts]
    stack: list[tuple[Any, list[tuple[int, int]]]] = [(heap[0][2], [])]
    while stack:
        node, path = stack.pop()
        if isinstance(node, int):
            paths[node] = path
        else:
            inner, left, right = node
            stack += [(left, [*path, (inner, 1)]), (right, [*path, (inner, -1)])]
    depth = max(len(path) for path in paths)
    padded = torch.tensor([path + [(0, 0)] * (depth - len(path)) for path in paths])
    return padded[..., 0], padded[..., 1]
