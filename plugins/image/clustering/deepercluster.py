"""DeeperCluster (Caron et al., 2019)."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, SslkitError
from sslkit.image.cluster_labels import ClusterCount, OwnClusterOptions, OwnClusters
from sslkit.image.transforms import right_angle_rotations
from sslkit.nn import cluster_count, kmeans
from sslkit.pictures import contact_sheets

_ROTATIONS = 4
Groups = Annotated[int, Field(ge=1)]


class DeeperCluster(OwnClusters):
    """Predict an image's rotation and its cluster of features in one hierarchy (DeeperCluster; Caron et al., 2019).

    Features are clustered into groups, and each group into clusters. A linear classifier predicts the superclass, which is
    group and rotation together; a further one of each superclass predicts the cluster within its group. Made for uncurated
    data: rotations keep the features from collapsing to what a long tail of images has in common.
    """

    class Options(OwnClusterOptions):
        """Options of `deepercluster`."""

        clusters: ClusterCount | Literal["auto"] = Field(
            default="auto",
            description="Clusters in all; auto: a tenth of the images, at most 100 (320,000 in the paper).",
        )
        groups: Groups | Literal["auto"] = Field(
            default="auto", description="Groups of clusters; auto: 4 as in the paper, which make 16 superclasses."
        )
        reassign: int = Field(default=3, ge=1, description="Epochs between clusterings, as in the paper.")

    options: Options
    modality: ClassVar = "image"  # `sslkit tasks` reads no base class
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 128}
    paper: ClassVar = Paper(
        source="README and main.py of the authors",
        settings={
            "size": 224,
            "batch_size": 3072,
            "epochs": 100,
            "optimizer": "sgd",
            "lr": 0.1,
            "weight_decay": 1e-5,
            "warmup": 0.0,
            "crop_scale": 0.08,
            "clusters": 320_000,
            "groups": 4,
            "components": 4096,
            "reassign": 3,
            "sobel": True,
        },
        unsupported=(
            "VGG-16 with BatchNorm, started from a RotNet",
            "96 million images; a process for each superclass, which keeps the classifier of its clusters only",
            "a constant rate (here a cosine)",
        ),
    )

    def build_head(self) -> nn.Module:
        """Build the linear classifiers: of superclasses, then of the clusters in each of them."""
        self.clusters, requested = cluster_count(self.options.clusters, self.data.samples), self.options.groups
        self.groups = min(4, self.clusters) if requested == "auto" else requested
        if self.groups > self.clusters:
            raise SslkitError(f"{requested} exceeds the {self.clusters} clusters", "use fewer groups", flag="groups")
        self.superclasses, self.per_group = _ROTATIONS * self.groups, self.clusters // self.groups
        return nn.Linear(self.encoder.width, self.superclasses * (1 + self.per_group))

    def cluster(self, features: Tensor) -> Tensor:
        """Return the cluster of each image: those of the first group, then those of the second, and so on."""
        group = kmeans(features, self.groups).labels
        label = self.per_group * group
        for place in range(self.groups):
            members = (group == place).nonzero()[:, 0]
            if len(members):  # there may be fewer distinct images than groups
                label[members] += kmeans(features[members], min(self.per_group, len(members))).labels
        return label

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image in all four rotations, `[B, 4, C, S, S]`, and its cluster, `label` `[B]`."""
        batch = super().transform(batch)
        return {**batch, "image": right_angle_rotations(batch["image"])}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy with the superclass, and with the cluster by the superclass's classifier (equation 4)."""
        superclass, cluster = self._scores(output, batch)
        return {
            "superclass": F.cross_entropy(superclass.flatten(0, 1), self._superclass(batch).flatten()),
            "cluster": F.cross_entropy(cluster.flatten(0, 1), self._within_group(batch).repeat_interleave(_ROTATIONS)),
        }

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether superclass and cluster are both correct, and whether the superclass is, over the four rotations."""
        superclass, cluster = self._scores(output, batch)
        correct = superclass.argmax(dim=2) == self._superclass(batch)
        both = correct & (cluster.argmax(dim=2) == self._within_group(batch)[:, None])
        return {"accuracy": both.float().mean(dim=1), "superclass_accuracy": correct.float().mean(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return the accuracies of a guess."""
        return {"accuracy": 1 / (self.superclasses * self.per_group), "superclass_accuracy": 1 / self.superclasses}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return a contact sheet of the clusters."""
        return contact_sheets(batch["original"], batch["label"])

    def _superclass(self, batch: Batch) -> Tensor:
        """Return the superclass of each rotation of each image, `[B, 4]`."""
        group: Tensor = batch["label"] // self.per_group
        return _ROTATIONS * group[:, None] + torch.arange(_ROTATIONS, device=group.device)

    def _within_group(self, batch: Batch) -> Tensor:
        """Return the cluster of each image, counted within its group, `[B]`."""
        cluster: Tensor = batch["label"] % self.per_group
        return cluster

    def _scores(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return scores of superclasses `[B, 4, superclasses]`, and of the true one's clusters `[B, 4, clusters]`."""
        superclass, cluster = output.split([self.superclasses, self.superclasses * self.per_group], dim=2)
        places = self._superclass(batch)[:, :, None, None].expand(-1, -1, 1, self.per_group)
        return superclass, cluster.unflatten(2, (self.superclasses, self.per_group)).gather(2, places)[:, :, 0]
