"""torchvision's networks for clips as encoders: `torchvision_video:r3d_18`."""

from typing import Any, ClassVar

import torchvision
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder, EncoderLibrary
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.image.encoders.torchvision import CLASSIFIERS
from sslkit.video.encoders.base import VideoEncoder, check_frames

_KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # mean and deviation of what they are published for


class TorchvisionVideoLibrary(EncoderLibrary):
    """torchvision's classification models of clips."""

    modality: ClassVar = "video"

    def names(self) -> list[str]:
        """Return the names of all architectures that take clips of any size; those of MViT take one."""
        names = torchvision.models.list_models(module=torchvision.models.video)
        return [name for name in names if not name.startswith("mvit")]

    def build(
        self, name: str, in_channels: int, size: int, stem: str = "standard", pretrained: bool = False, **options: Any
    ) -> Encoder:
        """Build a model of clips and take its classifier off."""
        if name not in self.names():
            raise SslkitError(f"torchvision has no model {name} of clips", did_you_mean(name, self.names()), flag="encoder")
        frames, frame_step = (int(options.pop(option, default)) for option, default in (("frames", 16), ("frame_step", 6)))
        check_frames(f"torchvision_video:{name}", in_channels, frames, frame_step)
        if in_channels != 3:
            raise SslkitError(f"torchvision_video:{name} takes 3 channels (got {in_channels})", flag="encoder")
        model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
        return TorchvisionVideo(model, frames, frame_step)

    def version(self) -> str:
        """Return torchvision's version."""
        return f"torchvision {torchvision.__version__}"


class TorchvisionVideo(VideoEncoder):
    """A model of torchvision without its classifier."""

    def __init__(self, model: Any, frames: int, frame_step: int) -> None:
        attribute = next(name for name in CLASSIFIERS if hasattr(model, name))
        classifier = getattr(model, attribute)
        last = next(layer for layer in classifier.modules() if isinstance(layer, nn.Linear | nn.Conv3d))
        width = last.in_features if isinstance(last, nn.Linear) else last.in_channels
        setattr(model, attribute, nn.Identity())
        if isinstance(last, nn.Conv3d):  # S3D pools 7 × 7 places, and then averages what is left
            model.avgpool = nn.Identity()
        super().__init__(width, 3, frames, frame_step, _KINETICS)
        self.model: Any = model

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]` of clips `[B, T, C, H, W]`."""
        features: Tensor = self.model(self.normalize(sample).transpose(1, 2))
        return features
