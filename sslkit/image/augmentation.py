"""Augmentation of labeled images in fine-tuning."""

from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.task import Batch, DataInfo
from sslkit.image.transforms import random_resized_crop


class ImageAugmentation:
    """Crop and flip images at random, then change images and targets by torchvision's transforms, one after the other."""

    def __init__(self, size: int, crop_scale: float, each: list[nn.Module], mixed: list[nn.Module]) -> None:
        self.size, self.crop_scale, self.each, self.mixed = size, crop_scale, each, mixed

    def __call__(self, batch: Batch, target: Tensor) -> tuple[Batch, Tensor]:
        """Return `image` `[B, C, S, S]` and targets `[B, classes]`, changed at random."""
        scale = (self.crop_scale, 1.0)
        image = random_resized_crop(batch["canvas"], self.size, scale, flipped=0.5, aspect=batch["aspect"])
        for change in self.each:  # torchvision draws once per call, so that a batch would be changed alike
            image = torch.stack([change(sample) for sample in image])
        if self.mixed:
            choice = int(torch.randint(len(self.mixed), ()))
            image, target = self.mixed[choice](image, target)
        return {"image": image}, target


def augmentation(options: Any, info: DataInfo, classes: int) -> ImageAugmentation:
    """Build what the options of `sslkit finetune` ask for; of mixup and cutmix, one in each step."""
    each: list[nn.Module] = []
    mixed: list[nn.Module] = []
    if options.randaugment or options.erasing or options.mixup or options.cutmix:
        from torchvision.transforms import v2  # takes a second to import

        if options.randaugment:
            each.append(v2.RandAugment(num_ops=2, magnitude=options.randaugment))
        if options.erasing:
            each.append(v2.RandomErasing(p=options.erasing))
        if options.mixup:
            mixed.append(v2.MixUp(alpha=options.mixup, num_classes=classes))
        if options.cutmix:
            mixed.append(v2.CutMix(alpha=options.cutmix, num_classes=classes))
    return ImageAugmentation(info.size, options.crop_scale, each, mixed)
