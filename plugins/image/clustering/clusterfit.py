"""Tell clusters apart that were found in another encoder's features."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, Run, SslkitError, read_model
from sslkit.image.examples import example_checkpoint
from sslkit.image.views import CropOptions, CropScale, random_crop_view
from sslkit.nn import cluster_count, kmeans
from sslkit.pictures import contact_sheets

Count = Annotated[int, Field(ge=2)]


class ClusterFit(PretextTask):
    """Tell clusters apart that were found in another encoder's features (Yan et al., 2020).

    What the other encoder learned for its own task alone is lost on the way; what images have in common stays.
    """

    class Options(CropOptions):
        """Hold clusterfit's options."""

        teacher: Path = Field(description="model.safetensors of the run whose features are clustered.")
        clusters: Count | Literal["auto"] = Field(
            default="auto", description="Clusters; auto: a tenth of the images, 100 at most (16,000 in the paper)."
        )
        crop_scale: CropScale = 0.3

    options: Options
    label: Tensor
    needs: ClassVar = ("index",)
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 256}
    preview_columns: ClassVar = ("a cluster in each row",)

    @classmethod
    def example_options(cls, folder: Path) -> dict[str, Any]:
        """Return a teacher of random weights."""

        return {"teacher": str(example_checkpoint(folder))}

    def build_head(self) -> nn.Module:
        """Build the linear classifier."""
        self.clusters = cluster_count(self.options.clusters, self.data.samples)
        return nn.Linear(self.encoder.width, self.clusters)

    def setup(self) -> None:
        """Keep the cluster of each image."""
        self.register_buffer("label", torch.zeros(self.data.samples, dtype=torch.int64))

    def before_epoch(self, run: Run) -> None:
        """Cluster the teacher's features, once; raises SslkitError for a teacher that can't see these images."""
        if self.clock.epoch > 0:
            return
        teacher, data = read_model(self.options.teacher, "teacher"), self.data
        teacher.check_images("teacher")
        if teacher.channels != data.channels:
            raise SslkitError(f"it sees {teacher.channels} channels, and the images have {data.channels}", flag="teacher")
        if teacher.size != data.size:
            raise SslkitError(
                f"it was trained at {teacher.size} px, and images are seen at {data.size}",
                f"try --size {teacher.size}",
                flag="teacher",
            )
        features = F.normalize(run.features(teacher.build_encoder()), dim=1).to(self.label.device)
        self.label.copy_(kmeans(features, self.clusters).labels)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image, `[B, C, S, S]`, and its cluster, `label` `[B]`."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        return {"image": image, "label": self.label[batch["index"]]}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(output, batch["label"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the cluster was told right: by chance, one in `clusters`."""
        return {"accuracy": (output.argmax(dim=1) == batch["label"]).float()}

    def reasons(self) -> dict[str, str]:
        """Say what `auto` became."""
        return {"clusters": f"{self.clusters}: of {self.data.samples:,} images"} if self.options.clusters == "auto" else {}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return a contact sheet of the teacher's clusters, or, of a trained task, of those that are told."""
        return contact_sheets(batch["original"], batch["label"] if output is None else output.argmax(dim=1))
