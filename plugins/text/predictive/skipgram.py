"""Skip-gram word vectors (word2vec; Mikolov et al., 2013).

2013b is "Distributed Representations of Words and Phrases and their Compositionality".
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit import Batch, Paper
from sslkit.text.word_task import WordOptions, WordTask, softplus


class SkipGram(WordTask):
    """Predict the words in a window around each word (skip-gram; Mikolov et al., 2013).

    A sample is a stretch of text. In every step, rare words and a random part of the frequent ones are removed, the rest
    closes up, and each word is paired with its neighbors in a window of random width.
    """

    class Options(WordOptions):
        """Options of `skipgram`."""

    options: Options
    paper: ClassVar = Paper(
        source="section 3 of Mikolov et al., 2013b",
        settings={
            "encoder_option": {"width": "300"},
            "subsample": 1e-5,
        },
        unsupported=("SGD after every pair, at a rate of 0.025 that falls linearly (here AdamW)",),
    )

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return scores of words with each other, `[B, N, N]`, and with negatives, `[B, N, M]`; or with tree nodes."""
        center = self.encoder.tokens(batch["words"])
        if self.options.loss == "hierarchical":
            return {"nodes": torch.einsum("btd,bsnd->btsn", center, self.head(self.nodes[batch["words"]]))}
        return {
            "neighbors": center @ self.head(batch["words"]).transpose(1, 2),
            "negatives": center @ self.head(batch["negatives"]).transpose(1, 2),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of losses over pairs (2013b, equation 4; equation 3 for the tree); `counts` divides it."""
        pair_mask = batch["pair_mask"]
        if self.options.loss == "hierarchical":
            signs = self.signs[batch["words"]][:, None]  # 0 after the end of a path
            losses = -(F.logsigmoid(signs * output["nodes"]) * (signs != 0)).sum(dim=3)
            return {"pairs": (losses * pair_mask).sum()}
        negative = softplus(output["negatives"]).mean(dim=2) * batch["neighbors"]
        positive = softplus(-output["neighbors"]) * pair_mask
        return {"pairs": positive.sum() + self.options.negatives * negative.sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of pairs."""
        return {"pairs": batch["neighbors"].sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the margin between the mean scores of words with their neighbors and with negatives."""
        if self.options.loss == "hierarchical":
            return {}
        pair_mask = batch["pair_mask"]
        count = batch["neighbors"].sum(dim=1).clamp(min=1)
        near = (output["neighbors"] * pair_mask).sum(dim=(1, 2)) / count
        far = (output["negatives"].mean(dim=2) * batch["neighbors"]).sum(dim=1) / count
        return {"margin": near - far}
