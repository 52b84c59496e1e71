"""Sparse coding (Olshausen & Field, 1996)."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, Run
from sslkit.contract.options import TaskOptions
from sslkit.image.encoders.sparse_patches import SparsePatches
from sslkit.image.transforms import cut_tiles
from sslkit.nn.sparse import fista
from sslkit.pictures import side_by_side, tile_grid

_MEASURED = 1024  # images whose patches are whitened together
_RIDGE = 0.1  # added to variances before whitening (Coates, Ng & Lee, 2011)
_UNUSED = 1e-4  # share of codes in which an atom is not zero, below which it begins anew
_SHOWN = 16


class SparseCoding(ImageTask):
    """Learn a dictionary of which every patch is the sum of a few atoms (Olshausen & Field, 1996).

    Codes are those of the lasso, by FISTA; the dictionary, of atoms of length 1, follows the gradient of the error (Mairal et
    al., 2009). Atoms that no patch uses begin anew at patches.
    """

    class Options(TaskOptions):
        """Options of `sparse_coding`."""

        sparsity: float = Field(default=1.0, gt=0, description="Weight of the codes' absolute values (λ).")
        iterations: int = Field(default=50, ge=1, le=1000, description="Steps of FISTA.")
        patches: int = Field(default=16, ge=1, le=1024, description="Random patches of each image.")

    options: Options
    encoder: SparsePatches
    usage: Tensor
    requires: ClassVar = ("atoms",)
    visible_targets: ClassVar = ("patch",)
    compiles: ClassVar = False  # a loop of small matrix products
    defaults: ClassVar = {
        "encoder": "sparse_patches",
        "optimizer": "adamw",
        "lr": 0.01,
        "weight_decay": 0.0,
        "batch_size": 128,
    }
    paper: ClassVar = Paper(
        source="the paper",
        settings={
            "encoder": "sparse_patches",
            "encoder_option": {"patch": "12", "atoms": "144"},
            "batch_size": 100,
            "weight_decay": 0.0,
        },
        unsupported=(
            "images of nature of 512 px, low-pass filtered and whitened as a whole",
            "a penalty of log(1 + x²), minimized by conjugate gradients",
        ),
    )
    preview_columns: ClassVar = ("patches", "sums of atoms", "atoms")

    def build_head(self) -> nn.Module:
        """Build nothing: codes are computed, not predicted."""
        return nn.Identity()

    def setup(self) -> None:
        """Register how often atoms are used."""
        self.register_buffer("usage", torch.ones(len(self.encoder.dictionary)))

    def before_epoch(self, run: Run) -> None:
        """Measure the whitening of patches and begin with some of them; later, begin unused atoms anew."""
        if self.clock.epoch > 0 and not bool((self.usage < _UNUSED).any()):
            return
        patches = run.batch(_MEASURED, lambda batch: {"patch": self._cut(batch)})["patch"].flatten(0, 1)
        if self.clock.epoch == 0:
            normalized = self.encoder.normalize(patches).double().cpu()
            mean = normalized.mean(dim=0)
            centered = normalized - mean
            values, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
            self.encoder.mean.copy_(mean)
            self.encoder.whitening.copy_(vectors @ torch.diag((values.clamp(min=0) + _RIDGE).rsqrt()) @ vectors.T)
            self.usage.zero_()
        unused = (self.usage < _UNUSED).nonzero()[:, 0]
        chosen = torch.randperm(len(patches))[: len(unused)].to(patches.device)
        unused = unused[: len(chosen)]
        with torch.no_grad():
            self.encoder.dictionary[unused] = self.encoder.whiten(patches[chosen])
        self.usage[unused] = 1.0
        if self.clock.epoch > 0:
            run.reset_optimizer_state(self.encoder)

    def transform(self, batch: Batch) -> Batch:
        """Return random patches of each image, whitened, `[B, n, values]`."""
        return {"patch": self.encoder.whiten(self._cut(batch))}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return codes `[B, n, K]`, without gradient, and the sums of atoms that they stand for, `[B, n, values]`."""
        with torch.autocast(batch["patch"].device.type, enabled=False):
            atoms = self.encoder.atoms()
            patch = batch["patch"].to(atoms.dtype)
            with torch.no_grad():
                code = fista(patch.flatten(0, 1), atoms, self.options.sparsity, self.options.iterations)
            code = code.unflatten(0, patch.shape[:2])
            return {"code": code, "reconstruction": code @ atoms}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return half the squared error of a patch, and the weighted sum of its code's absolute values: the lasso's terms."""
        error = (output["reconstruction"] - batch["patch"]).square().sum(dim=2)
        return {
            "reconstruction": error.mean() / 2,
            "sparsity": self.options.sparsity * output["code"].abs().sum(dim=2).mean(),
        }

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the squared error relative to that of predicting 0, the share of codes that are not 0, and of unused atoms."""
        patch, code = batch["patch"], output["code"]
        error = (output["reconstruction"] - patch).square().sum(dim=(1, 2)) / patch.square().sum(dim=(1, 2)).clamp(min=1e-6)
        unused = (self.usage < _UNUSED).to(error.dtype).mean()
        return {"error_share": error, "active": (code != 0).float().mean(dim=(1, 2)), "unused_atoms": unused.expand(len(error))}

    def chance(self) -> dict[str, float]:
        """Return what codes of zeros reach."""
        return {"error_share": 1.0}

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return how often each atom is used for a sample."""
        return {"used": (output["code"] != 0).to(self.usage.dtype).mean(dim=1)}

    def after_step(self, remembered: Batch) -> None:
        """Keep a running mean of how often atoms are used."""
        self.usage.lerp_(remembered["used"].mean(dim=0), 0.05)

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return whitened patches, and, once trained, the sums of atoms for them, and a part of the dictionary a row."""
        patches = batch["patch"][:, :_SHOWN]
        columns = [self._tiles(patches)]
        if output is not None:
            columns.append(self._tiles(output["reconstruction"][:, :_SHOWN].float()))
            atoms = self.encoder.atoms().detach().float()
            place = torch.arange(len(patches) * _SHOWN, device=atoms.device) % len(atoms)
            columns.append(self._tiles(atoms[place].view(len(patches), _SHOWN, -1)))
        return side_by_side(*columns)

    def _tiles(self, patches: Tensor) -> Tensor:
        """Return patches `[B, n, values]` as tiles, each between its extremes, `[B, C, H, W]`."""
        scaled = 0.5 + 0.5 * patches / patches.abs().amax(dim=2, keepdim=True).clamp(min=1e-6)
        side = self.encoder.patch
        return tile_grid(scaled.unflatten(2, (self.data.channels, side, side)), columns=4)

    def _cut(self, batch: Batch) -> Tensor:
        """Return random patches of the middle of each image, `[B, n, values]`."""
        image, side = self.center_crop(batch), self.encoder.patch
        shape = (len(image), self.options.patches)
        top, left = (torch.randint(image.shape[2] - side + 1, shape, device=image.device) for _ in range(2))
        return cut_tiles(image, top, left, side).flatten(2)
