"""Tell by how many right angles an image was turned."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.transforms import right_angle_rotations
from sslkit.image.views import CropOptions, CropScale, random_crop_view
from sslkit.pictures import add_frame


class Rotation(PretextTask):
    """Tell by how many right angles an image was turned (Gidaris et al., 2018).

    All four turns of each image are in every step, as the paper found best.
    """

    class Options(CropOptions):
        """Hold rotation's options."""

        crop_scale: CropScale = 0.6

    options: Options
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 128}
    preview_columns: ClassVar = ("upright", "90 degrees", "180 degrees", "270 degrees")

    def build_head(self) -> nn.Module:
        """Build the linear four-way classifier."""
        return nn.Linear(self.encoder.width, 4)

    def transform(self, batch: Batch) -> Batch:
        """Return every image in its four turns, `[B, 4, C, S, S]`."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        return {"image": right_angle_rotations(image)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of logits `[B, 4, 4]` against the turns."""
        return F.cross_entropy(output.flatten(0, 1), self._turns(output).flatten())

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the share of the four turns told right."""
        return {"accuracy": (output.argmax(dim=-1) == self._turns(output)).float().mean(dim=1)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the four turns, add_frame by whether they were told right."""
        image = batch["image"]
        return image if output is None else add_frame(image, output.argmax(dim=-1) == self._turns(output))

    def _turns(self, output: Tensor) -> Tensor:
        return torch.arange(4, device=output.device).expand(len(output), 4)
