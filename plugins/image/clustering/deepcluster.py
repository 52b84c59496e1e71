"""DeepCluster (Caron et al., 2018)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from sslkit import Paper
from sslkit.image.cluster_labels import ClusterCount, OwnClusterOptions, OwnClusters
from sslkit.nn import kmeans


class DeepCluster(OwnClusters):
    """Predict k-means clusters of the encoder's own features (DeepCluster; Caron et al., 2018).

    Clusters are sampled equally often, empty ones take over half of a large one, and each clustering resets the classifier,
    since the cluster indices change their meaning.
    """

    class Options(OwnClusterOptions):
        """Options of `deepcluster`."""

        clusters: ClusterCount | Literal["auto"] = Field(
            default="auto", description="Number of clusters; auto: a tenth of the images, at most 100 (10,000 in the paper)."
        )
        reassign: int = Field(default=2, ge=1, description="Epochs between clusterings (1 in the paper, of 5,000 steps).")

    options: Options
    modality: ClassVar = "image"  # `sslkit tasks` reads no base class
    paper: ClassVar = Paper(
        source="main.sh and main.py of the authors",
        settings={
            "size": 224,
            "batch_size": 256,
            "epochs": 200,
            "optimizer": "sgd",
            "lr": 0.05,
            "weight_decay": 1e-5,
            "warmup": 0.0,
            "crop_scale": 0.08,
            "clusters": 10_000,
            "components": 256,
            "reassign": 1,
            "sobel": True,
        },
        unsupported=(
            "AlexNet or VGG-16 with dropout, clustered after two fully connected layers",
            "a constant rate (here a cosine)",
        ),
    )

    def cluster(self, features: Tensor) -> Tensor:
        """Return the cluster of each image by k-means."""
        return kmeans(features, self.clusters).labels
