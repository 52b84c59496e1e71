"""What tasks on moments of videos share: crops of frames, and an encoder of sound."""

from pydantic import Field
from torch import Tensor

from sslkit.audio.encoders.base import AudioEncoder
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.task import DataInfo
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.transforms import color_jitter, random_resized_crop
from sslkit.image.views import CropOptions

_BRIGHTNESS, _SATURATION = 0.4, 0.4


class SoundTowerOptions(CropOptions):
    """Options of tasks with an encoder of sound beside that of images."""

    sound_encoder: str = Field(default="audio_micro", description="Encoder of sound, such as audio_micro or speech_micro.")


def build_sound_tower(options: SoundTowerOptions, data: DataInfo) -> AudioEncoder:
    """Build the encoder of sound for the data's sample rate and window; raises SslkitError for a name of another modality."""
    name, settings = options.sound_encoder, {"sample_rate": str(data.details["sample_rate"])}
    with renamed_flags({"encoder": "sound_encoder", "encoder_option": "sound_encoder"}):
        if build_encoder(recipe_for(name, data.details["window"], 1)).modality != "audio":
            raise SslkitError(f"{name} is not an encoder of sound", "use audio_micro", flag="sound_encoder")
        sound = build_encoder(recipe_for(name, data.details["window"], 1, settings))
    assert isinstance(sound, AudioEncoder)
    return sound


def crop_moments(frames: Tensor, size: int, scale: float, aspect: Tensor) -> Tensor:
    """Return a random crop of each frame of `[B, M, C, H, W]`, half of them mirrored, with other brightness and saturation."""
    flat: Tensor = random_resized_crop(
        frames.flatten(0, 1), size, (scale, 1.0), flipped=0.5, aspect=aspect.repeat_interleave(frames.shape[1])
    )
    moments: Tensor = color_jitter(flat, _BRIGHTNESS, 0.0, _SATURATION, 0.0).unflatten(0, frames.shape[:2])
    return moments
