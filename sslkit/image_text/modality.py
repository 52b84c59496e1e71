"""What the machinery asks of images with captions."""

from typing import ClassVar

from sslkit.contract.options import DataOptions
from sslkit.image.modality import ImageModality
from sslkit.image_text.options import ImageTextOptions
from sslkit.image_text.source import ImageTextSource


class ImageTextModality(ImageModality):
    """Pairs of an image and its caption; the encoder, and evaluations, are of images."""

    options: ClassVar[type[DataOptions]] = ImageTextOptions
    source: ClassVar = ImageTextSource
    encodes: ClassVar = ("image",)
    evaluated_as: ClassVar = "image"
