"""DeeperCluster (Caron et al., 2019)."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, ImageTask, Paper, Run, SslkitError
from sslkit.image.cluster_labels import ClusterCount, ClusterOptions
from sslkit.image.transforms import right_angle_rotations
from sslkit.nn import cluster_count, kmeans, whiten
from sslkit.pictures import contact_sheets

_ROTATIONS = 4
Groups = Annotated[int, Field(ge=1)]


class DeeperCluster(ImageTask):
    """Predict an image's rotation and its cluster of features in one hierarchy (DeeperCluster; Caron et al., 2019).

    Features are clustered into groups, and each group into clusters. A linear classifier predicts the superclass, which is
    group and rotation together; a further one of each superclass predicts the cluster within its group. Made for uncurated
    data: rotations keep the features from collapsing to what a long tail of images has in common.
    """

    class Options(ClusterOptions):
        """Options of `deepercluster`."""

        clusters: ClusterCount | Literal["auto"] = Field(
            default="auto",
            description="Clusters in all; auto: a tenth of the images, at most 100 (320,000 in the paper).",
        )
        groups: Groups | Literal["auto"] = Field(
            default="auto", description="Groups of clusters; auto: 4 as in the paper, which make 16 superclasses."
        )
        components: ClusterCount | Literal["auto"] = Field(
            default="auto", description="Principal components to cluster; auto: a quarter of the features, at most 256."
        )
        reassign: int = Field(default=3, ge=1, description="Epochs between clusterings, as in the paper.")
        sobel: bool = Field(default=False, description="Feed the encoder Sobel edges instead of colors, as in the paper.")

    options: Options
    head: nn.Linear
    group: Tensor
    cluster: Tensor
    needs: ClassVar = ("index",)
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
    preview_columns: ClassVar = ("one cluster per row",)

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build the encoder, with Sobel edges as its input if `--sobel` is set."""
        if options.sobel and build.data.channels != 3:
            raise SslkitError(
                f"the images have {build.data.channels} channels", "Sobel edges are computed from RGB only", flag="sobel"
            )
        return build(select="sobel") if options.sobel else build()

    def build_head(self) -> nn.Module:
        """Build the linear classifiers: of superclasses, then of the clusters in each of them."""
        self.clusters, requested = cluster_count(self.options.clusters, self.data.samples), self.options.groups
        self.groups = min(4, self.clusters) if requested == "auto" else requested
        if self.groups > self.clusters:
            raise SslkitError(f"{requested} exceeds the {self.clusters} clusters", "use fewer groups", flag="groups")
        self.superclasses, self.per_group = _ROTATIONS * self.groups, self.clusters // self.groups
        return nn.Linear(self.encoder.width, self.superclasses * (1 + self.per_group))

    def setup(self) -> None:
        """Register the buffers with the group of each image, and its cluster within the group."""
        self.register_buffer("group", torch.zeros(self.data.samples, dtype=torch.int64))
        self.register_buffer("cluster", torch.zeros(self.data.samples, dtype=torch.int64))

    def before_epoch(self, run: Run) -> None:
        """Cluster the features in two levels, sample all clusters equally often, and reset the classifiers."""
        if self.clock.epoch % self.options.reassign:
            return
        requested = self.options.components
        components = min(256, max(2, self.encoder.width // 4)) if requested == "auto" else requested
        features = whiten(run.features(), components).to(self.group.device)
        self.group.copy_(kmeans(features, self.groups).labels)
        for group in range(self.groups):
            members = (self.group == group).nonzero()[:, 0]
            if len(members):  # there may be fewer distinct images than groups
                self.cluster[members] = kmeans(features[members], min(self.per_group, len(members))).labels
        run.sample_balanced(self.group * self.per_group + self.cluster)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        run.reset_optimizer_state(self.head)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image in all four rotations, `[B, 4, C, S, S]`, its group and its cluster, `[B]`."""
        index = batch["index"]
        return {"image": right_angle_rotations(self.crop(batch)), "group": self.group[index], "cluster": self.cluster[index]}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy with the superclass, and with the cluster by the superclass's classifier (equation 4)."""
        superclass, cluster = self._scores(output, batch)
        return {
            "superclass": F.cross_entropy(superclass.flatten(0, 1), self._superclass(batch).flatten()),
            "cluster": F.cross_entropy(cluster.flatten(0, 1), batch["cluster"].repeat_interleave(_ROTATIONS)),
        }

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether superclass and cluster are both correct, and whether the superclass is, over the four rotations."""
        superclass, cluster = self._scores(output, batch)
        correct = superclass.argmax(dim=2) == self._superclass(batch)
        both = correct & (cluster.argmax(dim=2) == batch["cluster"][:, None])
        return {"accuracy": both.float().mean(dim=1), "superclass_accuracy": correct.float().mean(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return the accuracies of a guess."""
        return {"accuracy": 1 / (self.superclasses * self.per_group), "superclass_accuracy": 1 / self.superclasses}

    def reasons(self) -> dict[str, str]:
        """Return the number of clusters that `auto` became."""
        return {"clusters": f"{self.clusters}: for {self.data.samples:,} images"} if self.options.clusters == "auto" else {}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return a contact sheet of the clusters."""
        return contact_sheets(batch["original"], batch["group"] * self.per_group + batch["cluster"])

    def _superclass(self, batch: Batch) -> Tensor:
        """Return the superclass of each rotation of each image, `[B, 4]`."""
        group: Tensor = batch["group"]
        return _ROTATIONS * group[:, None] + torch.arange(_ROTATIONS, device=group.device)

    def _scores(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return scores of superclasses `[B, 4, superclasses]`, and of the true one's clusters `[B, 4, clusters]`."""
        superclass, cluster = output.split([self.superclasses, self.superclasses * self.per_group], dim=2)
        places = self._superclass(batch)[:, :, None, None].expand(-1, -1, 1, self.per_group)
        return superclass, cluster.unflatten(2, (self.superclasses, self.per_group)).gather(2, places)[:, :, 0]
