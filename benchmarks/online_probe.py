"""SimCLR with a linear classifier that is trained beside it on its features, as peers watch a run: for peer_rules.py."""

import torch.nn.functional as F
from sslkit_plugins.image.contrastive.simclr import SimCLR
from torch import Tensor, nn

from sslkit import Batch


class OnlineProbe(SimCLR):
    """Train SimCLR, and a linear classifier on features that it gets no gradient from."""

    needs = ("label",)

    def build_head(self) -> nn.Module:
        """Build the projector and the classifier."""
        classifier = nn.Linear(self.encoder.width, len(self.data.classes))
        return nn.ModuleDict({"projector": super().build_head(), "classifier": classifier})

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, and its label."""
        return {**super().transform(batch), "label": batch["label"]}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return projections `[B, 2, D]`, and class scores of both views `[B, 2, classes]`."""
        features = self.each_view(self.encoder, batch["image"])
        projections = self.head["projector"](features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return {"projection": projections, "scores": self.head["classifier"](features.detach())}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return NT-Xent, and the classifier's cross-entropy."""
        scores = output["scores"]
        return {
            "contrast": super().loss(output["projection"], batch),
            "classifier": F.cross_entropy(scores.flatten(0, 1), batch["label"].repeat_interleave(scores.shape[1])),
        }

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return those of SimCLR."""
        return super().metrics(output["projection"], batch)
