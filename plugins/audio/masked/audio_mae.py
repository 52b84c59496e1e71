"""Audio-MAE (Huang et al., 2022)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.audio.encoders.spectrogram import SpectrogramEncoder
from sslkit.audio.pictures import draw_patches
from sslkit.image.decoders import PatchDecoder, PatchDecoderOptions
from sslkit.image.transforms import (
    denormalize_patches,
    masked_patch_count,
    normalize_patches,
    patchify,
    random_mask,
    replace_patches,
    split_patches,
    take_patches,
)
from sslkit.pictures import side_by_side


class AudioMAE(PretextTask):
    """Reconstruct hidden patches of a spectrogram from the visible ones (Audio-MAE; Huang et al., 2022)."""

    class Options(PatchDecoderOptions):
        """Options of `audio_mae`."""

        mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="Fraction of masked patches (0.8 in the paper).")
        target: Literal["normalized", "energies"] = Field(
            default="normalized", description="Target: log energies of bands, or these normalized per patch."
        )

    options: Options
    encoder: SpectrogramEncoder
    modality: ClassVar = "audio"
    requires: ClassVar = ("spectrogram_patches",)
    masked: ClassVar = True
    visible_targets: ClassVar = ("counted",)
    defaults: ClassVar = {
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "batch_size": 64,
        "seconds": "recording",
    }
    paper: ClassVar = Paper(
        source="section 4.1 of the paper, main_pretrain.py of the authors",
        settings={
            "seconds": 10.0,
            "sample_rate": 16_000,
            "encoder": "spectrogram:vit_base_patch16_224",
            "encoder_option": {"mels": "128"},
            "batch_size": 512,
            "epochs": 32,
            "lr": 2e-4,
            "lr_scale": "linear",
            "betas": "0.9,0.95",
            "warmup": 3 / 32,
            "mask_ratio": 0.8,
            "decoder_depth": 16,
            "decoder_width": 512,
        },
        unsupported=(
            "Kaldi's filter banks, standardized by mean and deviation of the data",
            "a decoder with attention in shifted windows",
        ),
    )
    preview_columns: ClassVar = ("spectrogram", "masked", "prediction")

    def build_head(self) -> nn.Module:
        """Build the decoder."""
        depth, width = self.options.decoder_size(self.encoder.width)
        self.grid = self.encoder.grid(round(self.data.size * self.data.details["sample_rate"] / 1000))
        return PatchDecoder(self.encoder.width, width, depth, self.grid, self.encoder.patch**2)

    def setup(self) -> None:
        """Count the masked patches; raise SslkitError if the spectrogram is a single one."""
        self.hidden = masked_patch_count(self.options.mask_ratio, self.grid)

    def transform(self, batch: Batch) -> Batch:
        """Return sound `[B, T]`, the indices of `visible` and `masked` patches, the `target` of the latter, and which count.

        Those that are masked after the end of a recording do not count, `[B, H]`.
        """
        sound = batch["audio"][:, 0]
        mask = random_mask(len(sound), self.grid[0] * self.grid[1], self.hidden, sound.device)
        visible, masked = split_patches(mask, self.hidden)
        patches = take_patches(patchify(self.encoder.picture(sound), self.encoder.patch), masked)
        target = normalize_patches(patches) if self.options.target == "normalized" else patches
        counted = self.encoder.recorded_patches(sound).gather(1, masked)
        return {"audio": sound, "visible": visible, "masked": masked, "target": target, "counted": counted}

    def predict(self, batch: Batch) -> Tensor:
        """Return the prediction for the masked patches, `[B, H, values]`."""
        tokens = self.encoder.tokens(batch["audio"], keep=batch["visible"])
        return take_patches(self.head(tokens, self.encoder.prefix, keep=batch["visible"]), batch["masked"])

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error, a mean over a patch's values, summed over the masked patches that count."""
        error = (output - batch["target"]).square().mean(dim=2)
        return {"error": (error * batch["counted"]).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of masked patches that count."""
        return {"error": batch["counted"].sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error relative to predicting the mean of each patch."""
        target, counted = batch["target"], batch["counted"]
        error, baseline = (
            (each.square().mean(dim=2) * counted).sum(dim=1)
            for each in (output - target, target - target.mean(dim=2, keepdim=True))
        )
        return {"error_share": (error / baseline.clamp(min=1e-4)).where(counted.any(dim=1), 1.0)}

    def chance(self) -> dict[str, float]:
        """Return what predicting the true mean of each patch reaches."""
        return {"error_share": 1.0}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the spectrogram, the masked one, and, once trained, that with predicted patches; low bands at the bottom."""
        picture, masked = self.encoder.picture(batch["audio"]), batch["masked"]
        columns = list(draw_patches(picture, masked, self.grid))
        if output is not None:
            output = output.float()
            if self.options.target == "normalized":
                output = denormalize_patches(output, take_patches(patchify(picture, self.encoder.patch), masked))
            predicted = replace_patches(picture, masked, output, self.encoder.patch)
            columns.append(draw_patches(predicted, masked, self.grid)[0])
        return side_by_side(*columns)
