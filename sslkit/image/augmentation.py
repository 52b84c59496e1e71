"""Augmentation of labeled images in fine-tuning."""

import torch
from torch import Tensor, nn

from sslkit.specs.train import FinetuneSpec


class Augmentation:
    """Change images `[B, C, H, W]` in [0, 1] and targets `[B, classes]` by torchvision's pieces, one after the other."""

    def __init__(self, each: list[nn.Module], mixed: list[nn.Module]) -> None:
        self.each, self.mixed = each, mixed

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return changed images and targets."""
        for change in self.each:  # torchvision draws once a call: image by image, or all would be changed alike
            image = torch.stack([change(one) for one in image])
        if self.mixed:
            choice = int(torch.randint(len(self.mixed), ()))
            image, target = self.mixed[choice](image, target)
        return image, target


def build_augmentation(spec: FinetuneSpec, classes: int) -> Augmentation:
    """Build what `--randaugment`, `--erasing`, `--mixup` and `--cutmix` ask for; of the last two, one in each step."""
    each: list[nn.Module] = []
    mixed: list[nn.Module] = []
    if spec.randaugment or spec.erasing or spec.mixup or spec.cutmix:
        from torchvision.transforms import v2  # not at the top: it takes a second

        if spec.randaugment:
            each.append(v2.RandAugment(num_ops=2, magnitude=spec.randaugment))
        if spec.erasing:
            each.append(v2.RandomErasing(p=spec.erasing))
        if spec.mixup:
            mixed.append(v2.MixUp(alpha=spec.mixup, num_classes=classes))
        if spec.cutmix:
            mixed.append(v2.CutMix(alpha=spec.cutmix, num_classes=classes))
    return Augmentation(each, mixed)
