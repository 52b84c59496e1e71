"""DeepCluster (Caron et al., 2018)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from sslkit import Encoder, EncoderBuilder, Paper, Run, SslkitError
from sslkit.image.cluster_labels import ClusterCount, ClusterLabels, ClusterOptions
from sslkit.nn import kmeans, whiten


class DeepCluster(ClusterLabels):
    """Predict k-means clusters of the encoder's own features (DeepCluster; Caron et al., 2018).

    Clusters are sampled equally often, empty ones take over half of a large one, and each clustering resets the classifier,
    since the cluster indices change their meaning.
    """

    class Options(ClusterOptions):
        """Options of `deepcluster`."""

        clusters: ClusterCount | Literal["auto"] = Field(
            default="auto", description="Number of clusters; auto: a tenth of the images, at most 100 (10,000 in the paper)."
        )
        components: ClusterCount | Literal["auto"] = Field(
            default="auto", description="Principal components to cluster; auto: a quarter of the features, at most 256."
        )
        reassign: int = Field(default=2, ge=1, description="Epochs between clusterings (1 in the paper, of 5,000 steps).")
        sobel: bool = Field(default=False, description="Feed the encoder Sobel edges instead of colors, as in the paper.")

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

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build the encoder, with Sobel edges as its input if `--sobel` is set."""
        if options.sobel and build.data.channels != 3:
            raise SslkitError(
                f"the images have {build.data.channels} channels", "Sobel edges are computed from RGB only", flag="sobel"
            )
        return build(select="sobel") if options.sobel else build()

    def before_epoch(self, run: Run) -> None:
        """Cluster the features, sample all clusters equally often, and reset the classifier."""
        if self.clock.epoch % self.options.reassign:
            return
        requested = self.options.components
        components = min(256, max(2, self.encoder.width // 4)) if requested == "auto" else requested
        features = whiten(run.features(), components).to(self.label.device)
        self.label.copy_(kmeans(features, self.clusters).labels)
        run.sample_balanced(self.label)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        run.reset_optimizer_state(self.head)
