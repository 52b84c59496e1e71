"""What the machinery asks of images with captions."""

from typing import Any, ClassVar

import torch

from sslkit.contract.modality import JointSpace
from sslkit.contract.options import DataOptions
from sslkit.engine.checkpoint import Checkpoint
from sslkit.image.modality import ImageModality
from sslkit.image_text.options import ImageTextOptions
from sslkit.image_text.source import ImageTextSource
from sslkit.image_text.towers import load_towers


class ImageTextModality(ImageModality):
    """Pairs of an image and its caption; the encoder, and evaluations, are of images."""

    options: ClassVar[type[DataOptions]] = ImageTextOptions
    source: ClassVar = ImageTextSource
    encodes: ClassVar = ("image",)
    evaluated_as: ClassVar = "image"

    def joint_space(self, checkpoint: Checkpoint, spec: Any, device: torch.device) -> JointSpace | None:
        """Return the space of images and captions of a checkpoint of clip or albef."""
        if "text" not in checkpoint.metadata.get("parts", {}) or not checkpoint.part("text_projector"):
            return None
        towers = load_towers(checkpoint, spec, device)
        return JointSpace(towers.project_images, towers.embed_texts)
