"""What pretext tasks on images share: crops of canvases in their true proportions."""

from typing import ClassVar

from torch import Tensor

from sslkit.contract.task import Batch, PretextTask
from sslkit.image.transforms.geometry import center_view, random_resized_crop


class ImageTask(PretextTask):
    """A pretext task on images, which a batch holds as `canvas` `[B, C, canvas, canvas]`, float32 in [0, 1].

    A canvas is a whole image, stretched to a square; `aspect` `[B]` is width / height before that.
    """

    modality: ClassVar = "image"
    encodes: ClassVar = "image"

    def crop(self, batch: Batch, size: int | None = None, scale: float | None = None) -> Tensor:
        """Return a random crop of each image, flipped half the time, `[B, C, size, size]`.

        By default at the training size, of at least `crop_scale` of the image's area if that is an option.
        """
        scale = getattr(self.options, "crop_scale", 0.08) if scale is None else scale
        return random_resized_crop(batch["canvas"], size or self.data.size, (scale, 1.0), flipped=0.5, aspect=batch["aspect"])

    def center_crop(self, batch: Batch) -> Tensor:
        """Return the middle of each image at the training size, `[B, C, S, S]`: what evaluations see."""
        return center_view(batch["canvas"], self.data.size, batch["aspect"])
