"""Audio-visual correspondence (Arandjelović & Zisserman, 2017)."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError, build_encoder
from sslkit.audio.encoders.base import AudioEncoder
from sslkit.audio.pictures import draw_spectrograms
from sslkit.audio_video.moments import crop_moments
from sslkit.contract.errors import renamed_flags
from sslkit.encoders.recipe import recipe_for
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import mlp, symmetric_cross_entropy, widen
from sslkit.pictures import add_frame, side_by_side


class AVCorrespondence(PretextTask):
    """Find which frame and which sound belong together (L3-Net; Arandjelović & Zisserman, 2017).

    The paper's question, whether a pair belongs together, is `--objective correspondence`; its loss stays at chance for a long
    time. Both encoders are exported: `--part sound` evaluates that of sound, on recordings or on the sound of videos.
    """

    class Options(CropOptions):
        """Options of `av_correspondence`."""

        sound_encoder: str = Field(default="audio_micro", description="Encoder of sound, such as audio_micro or speech_micro.")
        objective: Literal["correspondence", "info_nce"] = Field(
            default="info_nce",
            description="info_nce: find the sound among all of a batch; correspondence: tell one pair, as in the paper.",
        )
        negatives: Literal["videos", "times"] = Field(
            default="videos",
            description="Sounds that are not a frame's own: of other videos, or (times) of the same video at another time.",
        )
        hidden: int = Field(default=128, ge=1, description="Width of the hidden layer, or of the joint embedding.")
        temperature: float = Field(default=0.1, gt=0, description="Temperature of info_nce.")
        level: float = Field(default=0.1, ge=0, lt=1, description="By how much of its level a sound gets louder or quieter.")
        crop_scale: CropScale = 0.6

    options: Options
    head: nn.ModuleDict
    sound: AudioEncoder
    modality: ClassVar = "audio_video"
    encodes: ClassVar = "image"
    couples_samples: ClassVar = True
    couples: ClassVar = ("frame_vector", "sound_vector", "apart")
    encoder_inputs: ClassVar = ("image", "audio")
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "batch_size": 64}
    paper: ClassVar = Paper(
        source="section 3 of the paper",
        settings={
            "size": 224,
            "seconds": 1.0,
            "sample_rate": 48_000,
            "batch_size": 256,
            "weight_decay": 1e-5,
            "objective": "correspondence",
            "hidden": 128,
        },
        unsupported=(
            "VGG-like networks for frames and for spectrograms of 257 bands",
            "a weight decay that is part of the gradient",
        ),
    )
    preview_columns: ClassVar = ("frame", "its sound", "frame", "another sound")

    def build_head(self) -> nn.Module:
        """Build what compares a frame with a sound, or projects both to one space."""
        options, image = self.options, self.encoder.width
        self.sound = self._build_sound_tower()
        if options.objective == "correspondence":
            return nn.ModuleDict({"compare": mlp([image + self.sound.width, options.hidden, 1], "none")})
        widths = {"frame": image, "sound": self.sound.width}
        return nn.ModuleDict({name: nn.Linear(width, options.hidden, bias=False) for name, width in widths.items()})

    def _build_sound_tower(self) -> AudioEncoder:
        """Build the encoder of sound for the data's sample rate and window."""
        name, details = self.options.sound_encoder, self.data.details
        settings = {"sample_rate": str(details["sample_rate"])}
        with renamed_flags({"encoder": "sound_encoder", "encoder_option": "sound_encoder"}):
            if build_encoder(recipe_for(name, details["window"], 1)).modality != "audio":
                raise SslkitError(f"{name} is not an encoder of sound", "use audio_micro", flag="sound_encoder")
            sound = build_encoder(recipe_for(name, details["window"], 1, settings))
        assert isinstance(sound, AudioEncoder)
        return sound

    def transform(self, batch: Batch) -> Batch:
        """Return two frames, `[B, 2, C, S, S]`, two sounds, `[B, 2, samples]`, and whether they belong together, `[B, 2]`.

        For `correspondence` the second sound is another video's, or the first frame's where moments are `apart` `[B]`.
        """
        frames, sounds = batch["video"], batch["audio"]
        sample = torch.arange(len(frames), device=frames.device)
        first = torch.randint(2, (len(frames),), device=frames.device)
        order = torch.stack([first, 1 - first], dim=1)
        frames, sounds = frames[sample[:, None], order], sounds[sample[:, None], order]
        image = crop_moments(frames, self.data.size, self.options.crop_scale, batch["aspect"])
        if self.options.objective == "correspondence":
            other = sounds[:, 1].roll(1, dims=0)
            if self.options.negatives == "times":
                other = torch.where(batch["apart"][:, None], sounds[:, 0], other)
            sounds = torch.stack([sounds[:, 0], other], dim=1)
        level = 1 + self.options.level * (2 * torch.rand(*sounds.shape[:2], 1, device=sounds.device) - 1)
        matches = (torch.arange(2, device=frames.device) == 0).expand(len(frames), 2)
        return {"image": image, "audio": level * sounds, "matches": matches, "apart": batch["apart"]}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the `score` of each pair, `[B, 2]`, or unit vectors of frames and sounds, `[B, 2, D]`."""
        image, sound = self.encoder(batch["image"].flatten(0, 1)), self.sound(batch["audio"].flatten(0, 1))
        if self.options.objective == "correspondence":
            return {"score": self.head["compare"](torch.cat([image, sound], dim=1)).view(-1, 2)}
        return {
            f"{name}_vector": F.normalize(widen(self.head[name](features)), dim=1).unflatten(0, (-1, 2))
            for name, features in (("frame", image), ("sound", sound))
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the right sound for frames and the right frame for sounds, or of pairs."""
        if self.options.objective == "correspondence":
            return F.binary_cross_entropy_with_logits(output["score"], batch["matches"].float())
        return symmetric_cross_entropy(self._cosines(output) / self.options.temperature, self._ignored(batch))

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the share of other sounds that are farther from a frame than its own, or of pairs classified correctly."""
        if self.options.objective == "correspondence":
            return {"accuracy": ((output["score"] > 0) == batch["matches"]).float().mean(dim=1)}
        cosine = self._cosines(output)
        negative = ~self._ignored(batch) & ~torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
        farther = ((cosine < cosine.diagonal()[:, None]) & negative).sum(dim=1) / negative.sum(dim=1)
        return {"accuracy": farther.view(-1, 2).mean(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess."""
        return {"accuracy": 1 / 2}

    def exports(self) -> dict[str, nn.Module]:
        """Return both encoders."""
        return {"encoder": self.encoder, "sound": self.sound}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return each first frame and its sound, each second one and the sound it got; once trained, framed green if right."""
        image, sound = batch["image"], batch["audio"].float()
        pictures = draw_spectrograms(sound.flatten(0, 1), self.data.details["sample_rate"]).unflatten(0, sound.shape[:2])
        if output is not None and self.options.objective == "correspondence":
            pictures = add_frame(pictures, (output["score"] > 0) == batch["matches"])
        return side_by_side(image[:, 0], pictures[:, 0], image[:, 1], pictures[:, 1])

    def _cosines(self, output: dict[str, Tensor]) -> Tensor:
        """Return the cosines of all frames and sounds, `[2B, 2B]`."""
        return output["frame_vector"].flatten(0, 1) @ output["sound_vector"].flatten(0, 1).T

    def _ignored(self, batch: Batch) -> Tensor:
        """Return pairs of a frame and a sound of the same video at another time that are no negatives, bool `[2B, 2B]`."""
        video = torch.arange(len(batch["apart"]), device=batch["apart"].device).repeat_interleave(2)
        ignored = (video[:, None] == video) & ~torch.eye(len(video), dtype=torch.bool, device=video.device)
        if self.options.negatives == "times":
            ignored &= ~batch["apart"].repeat_interleave(2)[:, None]
        return ignored
