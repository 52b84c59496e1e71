"""ClusterFit (Yan et al., 2020)."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field

from sslkit import Paper, Run, SslkitError
from sslkit.engine.teacher_file import read_teacher
from sslkit.image.cluster_labels import ClusterCount, ClusterLabels, ClusterOptions
from sslkit.image.examples import example_checkpoint
from sslkit.nn import kmeans


class ClusterFit(ClusterLabels):
    """Predict k-means clusters of another encoder's features (ClusterFit; Yan et al., 2020).

    Features specific to the teacher's pretext task are lost in the clustering; what images have in common is kept.
    """

    class Options(ClusterOptions):
        """Options of `clusterfit`."""

        teacher: Path = Field(description="model.safetensors of the run whose features are clustered.")
        clusters: ClusterCount | Literal["auto"] = Field(
            default="auto", description="Number of clusters; auto: a tenth of the images, at most 100 (16,000 in the paper)."
        )

    options: Options
    modality: ClassVar = "image"  # `sslkit tasks` reads no base class
    paper: ClassVar = Paper(
        source="the experiments of the paper on ImageNet",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "clusters": 16_000,
        },
        unsupported=("the optimization of the paper",),
    )

    @classmethod
    def example_options(cls, folder: Path) -> dict[str, Any]:
        """Return a teacher with random weights."""
        return {"teacher": str(example_checkpoint(folder))}

    def before_epoch(self, run: Run) -> None:
        """Cluster the teacher's features before the first epoch; raises SslkitError if the teacher does not fit the images."""
        if self.clock.epoch > 0:
            return
        data = self.data
        teacher = read_teacher(self.options.teacher, data)
        if teacher.size != data.size:
            raise SslkitError(
                f"the teacher was trained at {teacher.size} px, the images are {data.size} px",
                f"use --size {teacher.size}",
                flag="teacher",
            )
        features = F.normalize(run.features(teacher.build_encoder()), dim=1).to(self.label.device)
        self.label.copy_(kmeans(features, self.clusters).labels)
