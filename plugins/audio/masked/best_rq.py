"""BEST-RQ (Chiu et al., 2022) on patches of spectrograms, which is also the first iteration of BEATs (Chen et al., 2023)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, Run, TaskOptions
from sslkit.audio.encoders.spectrogram import SpectrogramEncoder
from sslkit.audio.pictures import draw_patches
from sslkit.image.transforms import masked_patch_count, patchify, random_mask
from sslkit.nn import widen
from sslkit.pictures import side_by_side

_MEASURED, _AT_ONCE = 1024, 64  # recordings from which mean and deviation are taken


class BestRQ(PretextTask):
    """Predict the codes of masked patches by a quantizer with random weights (BEST-RQ; Chiu et al., 2022).

    A random projection and the nearest of random unit codes: nothing is learned, and nothing can collapse but the use of
    codes, for which patches are standardized before. Patches as in BEATs, whose first iteration this is (Chen et al., 2023).
    """

    class Options(TaskOptions):
        """Options of `best_rq`."""

        codes: int = Field(default=256, ge=2, description="Codes (8,192 in the paper, 1,024 in BEATs).")
        code_width: int = Field(default=16, ge=2, description="Width of codes (16 in the paper, 256 in BEATs).")
        mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="Fraction of masked patches (0.75 in BEATs).")

    options: Options
    encoder: SpectrogramEncoder
    mean: Tensor
    deviation: Tensor
    projection: Tensor
    codebook: Tensor
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
        source="section 4.1 of BEATs, iteration 1",
        settings={
            "seconds": 10.0,
            "sample_rate": 16_000,
            "encoder": "spectrogram:vit_base_patch16_224",
            "encoder_option": {"mels": "128"},
            "batch_size": 512,
            "steps": 400_000,
            "lr": 5e-4,
            "betas": "0.9,0.98",
            "warmup": 0.08,
            "codes": 1024,
            "code_width": 256,
        },
        unsupported=(
            "relative positions and deep norm in the encoder",
            "the second and third iteration, whose codes are learned",
        ),
    )
    preview_columns: ClassVar = ("spectrogram", "masked")

    def build_head(self) -> nn.Module:
        """Build the classifier of codes."""
        return nn.Linear(self.encoder.width, self.options.codes)

    def setup(self) -> None:
        """Draw projection and codes, and count the masked patches; raise SslkitError if the spectrogram is a single one."""
        options, values = self.options, self.encoder.patch**2
        self.grid = self.encoder.grid(round(self.data.size * self.data.details["sample_rate"] / 1000))
        self.hidden = masked_patch_count(options.mask_ratio, self.grid)
        self.fill = nn.Parameter(0.02 * torch.randn(self.encoder.width))
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("deviation", torch.ones(values))
        projection = nn.init.xavier_uniform_(torch.empty(values, options.code_width))
        self.register_buffer("projection", projection)
        self.register_buffer("codebook", F.normalize(torch.randn(options.codes, options.code_width), dim=1))

    def before_epoch(self, run: Run) -> None:
        """Measure mean and deviation of a patch's values over recorded patches, once: without, few codes are used."""
        if self.clock.epoch == 0:
            parts = run.batch(_MEASURED, lambda batch: {"audio": batch["audio"][:, :1]})["audio"][:, 0].split(_AT_ONCE)
            count, sums = torch.zeros((), device=self.mean.device), torch.zeros(2, len(self.mean), device=self.mean.device)
            for sound in parts:
                recorded = self.encoder.recorded_patches(sound)[..., None]
                patches = self._patches(sound) * recorded
                count += recorded.sum()
                sums += torch.stack([patches.sum(dim=(0, 1)), patches.square().sum(dim=(0, 1))])
            mean, square = sums / count
            self.mean.copy_(mean)
            self.deviation.copy_((square - mean.square()).clamp(min=1e-6).sqrt())

    def transform(self, batch: Batch) -> Batch:
        """Return sound `[B, T]`, the `mask` and the codes of patches, `[B, N]`, and which `counted`: masked and recorded."""
        sound = batch["audio"][:, 0]
        mask = random_mask(len(sound), self.grid[0] * self.grid[1], self.hidden, sound.device)
        projected = F.normalize((self._patches(sound) - self.mean) / self.deviation @ self.projection, dim=2)
        code = (projected @ self.codebook.T).argmax(dim=2)
        return {"audio": sound, "mask": mask, "code": code, "counted": mask & self.encoder.recorded_patches(sound)}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of codes for all patches, `[B, N, codes]`."""
        tokens = self.encoder.tokens(batch["audio"], mask=batch["mask"], fill=self.fill)
        return widen(self.head(tokens[:, self.encoder.prefix :]))

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of codes, summed over the patches that count."""
        nats = F.cross_entropy(output.transpose(1, 2), batch["code"], reduction="none")
        return {"masked_nats": (nats * batch["counted"]).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of patches that count."""
        return {"masked_nats": batch["counted"].sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy over patches that count, and the share of a recording's most frequent code."""
        counted, code = batch["counted"], batch["code"]
        count = counted.sum(dim=1).clamp(min=1)
        used = torch.zeros(len(code), self.options.codes, device=code.device).scatter_add_(1, code, counted.float())
        return {
            "accuracy": ((output.argmax(dim=2) == code) & counted).sum(dim=1) / count,
            "most_frequent": used.amax(dim=1) / count,
        }

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the spectrogram and the masked one, low bands at the bottom."""
        picture = self.encoder.picture(batch["audio"])
        masked = batch["mask"].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : self.hidden]
        return side_by_side(*draw_patches(picture, masked, self.grid))

    def _patches(self, sound: Tensor) -> Tensor:
        return patchify(self.encoder.picture(sound), self.encoder.patch)
