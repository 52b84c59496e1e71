"""Continuous bag of words (word2vec; Mikolov et al., 2013).

2013a is "Efficient Estimation of Word Representations in Vector Space".
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit import Batch, Paper
from sslkit.text.word_task import WordOptions, WordTask, softplus


class CBOW(WordTask):
    """Predict each word from the mean of the words in a window around it (CBOW; Mikolov et al., 2013).

    The gradient of the mean is divided by the number of words, which word2vec's own code leaves out (Irsoy et al., 2021).
    """

    class Options(WordOptions):
        """Options of `cbow`."""

    options: Options
    visible_targets: ClassVar = ("words", "negatives")
    paper: ClassVar = Paper(
        source="section 3.1 of Mikolov et al., 2013a, and word2vec.c",
        settings={
            "encoder_option": {"width": "300"},
            "window": 4,
            "loss": "hierarchical",
            "subsample": 0.0,
        },
        unsupported=("SGD after every word, at a rate of 0.025 that falls linearly (here AdamW)",),
    )

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return scores of the mean of each word's neighbors: with the word, `[B, N]`, and with negatives, `[B, N, M]`.

        Of the tree, with the nodes on the word's path, `[B, N, depth]`.
        """
        pair_mask = batch["pair_mask"].to(self.encoder.table.weight.dtype)
        context = pair_mask @ self.encoder.tokens(batch["words"]) / batch["neighbors"].clamp(min=1)[..., None]
        if self.options.loss == "hierarchical":
            return {"nodes": torch.einsum("btd,btnd->btn", context, self.head(self.nodes[batch["words"]]))}
        return {
            "word": (context * self.head(batch["words"])).sum(dim=2),
            "negatives": context @ self.head(batch["negatives"]).transpose(1, 2),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of losses over words with a neighbor; `counts` divides it. A word is no negative of its own."""
        has_context = batch["neighbors"] > 0
        if self.options.loss == "hierarchical":
            signs = self.signs[batch["words"]]  # 0 after the end of a path
            losses = -(F.logsigmoid(signs * output["nodes"]) * (signs != 0)).sum(dim=2)
            return {"words": (losses * has_context).sum()}
        other = batch["negatives"][:, None] != batch["words"][..., None]
        negative = (softplus(output["negatives"]) * other).sum(dim=2) / other.sum(dim=2).clamp(min=1)
        return {"words": ((softplus(-output["word"]) + self.options.negatives * negative) * has_context).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of words with a neighbor."""
        return {"words": (batch["neighbors"] > 0).sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the margin between the scores of words and of negatives."""
        if self.options.loss == "hierarchical":
            return {}
        has_context = batch["neighbors"] > 0
        margin = (output["word"] - output["negatives"].mean(dim=2)) * has_context
        return {"margin": margin.sum(dim=1) / has_context.sum(dim=1).clamp(min=1)}
