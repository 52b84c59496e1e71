"""Augmentation of labeled images."""

from typing import Any

from torch import Tensor

from sslkit.contract.task import Batch
from sslkit.image.mixing import draw_mixing, mix
from sslkit.image.transforms import erase, rand_augment, random_resized_crop


class ImageAugmentation:
    """Crop, flip, change and mix images at random, as the options of `sslkit finetune` ask for."""

    def __init__(self, options: Any, size: int) -> None:
        self.options, self.size = options, size

    def __call__(self, batch: Batch, target: Tensor) -> tuple[Batch, Tensor]:
        """Return `image` `[B, C, S, S]` and targets `[B, classes]`, changed at random."""
        image = self.change(batch)
        if self.options.mixup or self.options.cutmix:
            known = target.new_ones(len(target)).bool()
            mixing = draw_mixing(known, self.options.mixup, self.options.cutmix)
            image, target = mix(image, image[mixing.partner], mixing.kept, mixing.box), mixing.mix_targets(target)
        return {"image": image}, target

    def change(self, batch: Batch) -> Tensor:
        """Return a random view of each image, `[B, C, S, S]`, not mixed."""
        options, scale = self.options, (self.options.crop_scale, 1.0)
        image = random_resized_crop(batch["canvas"], self.size, scale, flipped=0.5, aspect=batch["aspect"])
        if options.randaugment:
            image = rand_augment(image, options.randaugment)
        return erase(image, options.erasing) if options.erasing else image
