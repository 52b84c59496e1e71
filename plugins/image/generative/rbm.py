"""Restricted Boltzmann machines (Hinton, 2002; Hinton & Salakhutdinov, 2006)."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, ImageTask, Paper, Run, SslkitError
from sslkit.contract.options import TaskOptions
from sslkit.image.encoders.rbm_stack import RBMStack
from sslkit.pictures import side_by_side

_MEASURED = 2048  # images from which the mean and the deviation of pixels are taken
_MOST_VALUES = 48 * 48 * 3  # of an image
_LEAST_SHARE = 0.01  # by which the probability of a pixel is kept from 0 and 1


class RBM(ImageTask):
    """Learn layers of stochastic units that give images a high probability (Hinton, 2002; Hinton & Salakhutdinov, 2006).

    Each layer is a restricted Boltzmann machine on the probabilities of the layer below, trained for an equal share of the run
    by contrastive divergence. With `--unroll` the stack is a deep autoencoder at the end.
    """

    class Options(TaskOptions):
        """Options of `rbm`."""

        visible: Literal["binary", "gaussian"] = Field(
            default="binary",
            description="Pixels; binary: probabilities, for drawings; gaussian: standardized values, for photographs.",
        )
        gibbs_steps: int = Field(default=1, ge=1, le=1000, description="Steps of the chain: the k of CD-k.")
        chains: int = Field(
            default=0,
            ge=0,
            description="Chains that go on from step to step (PCD; Tieleman, 2008), such as 100; 0: they begin at the data.",
        )
        sparsity_target: float = Field(
            default=0.0, ge=0, lt=1, description="Mean probability that hidden units are to have (Lee et al., 2008); 0: any."
        )
        sparsity: float = Field(default=0.1, ge=0, description="Weight by which --sparsity-target changes hidden biases.")
        unroll: float = Field(
            default=0.0, ge=0, lt=1, description="Share of the run, at its end, that trains the stack as an autoencoder."
        )

    options: Options
    encoder: RBMStack
    head: nn.ParameterList
    chains: Tensor
    mean_activity: Tensor
    begun: Tensor
    requires: ClassVar = ("units",)
    defaults: ClassVar = {
        "encoder": "rbm_stack",
        "optimizer": "sgd",
        "lr": 0.01,
        "weight_decay": 2e-4,
        "batch_size": 100,
        "warmup": 0.0,
    }
    paper: ClassVar = Paper(
        source="the paper's supporting material, section 13 of Hinton's guide (2010)",
        settings={
            "encoder": "rbm_stack",
            "encoder_option": {"widths": "1000-500-250-30"},
            "size": 28,
            "batch_size": 100,
            "epochs": 200,
            "lr": 0.1,
            "unroll": 0.5,
        },
        unsupported=("linear units at the top", "conjugate gradients for the autoencoder, with weights of its own"),
    )
    compiles: ClassVar = False  # the stage that is trained changes
    preview_columns: ClassVar = ("image", "reconstruction", "filters")

    @classmethod
    def build_encoder(cls, options: Any, build: EncoderBuilder) -> Encoder:
        """Build the encoder; raise SslkitError for images so large that its weights are too many."""
        channels, size = build.data.channels, build.data.size
        if channels * size**2 > _MOST_VALUES:
            problem = f"images of {size} px have {channels * size**2:,} values, each with a weight to every hidden unit"
            raise SslkitError(problem, f"use at most {int((_MOST_VALUES / channels) ** 0.5)}", flag="size")
        return build()

    def build_head(self) -> nn.Module:
        """Build the biases of visible units, of each layer."""
        return nn.ParameterList(torch.zeros(len(weight)) for weight in self.encoder.weights)

    def setup(self) -> None:
        """Register chains and mean activities, of the layer at work."""
        weights = self.encoder.weights
        widest = max(len(weight) for weight in weights)
        self.register_buffer("chains", torch.zeros(self.options.chains, widest))
        widths = [weight.shape[1] for weight in weights]
        self.register_buffer("mean_activity", torch.full((len(weights), max(widths)), self.options.sparsity_target))
        self.register_buffer("begun", torch.full((), -1))  # the layer whose chains there are
        self.working: int | None = None  # the layer of the step at hand

    def param_groups(self) -> list[dict[str, Any]]:
        """Keep the rate as it is, for all layers; biases do not decay."""
        biases = [*self.encoder.biases, *self.head]
        return [
            {"params": list(self.encoder.weights), "fixed_lr": True},
            {"params": biases, "fixed_lr": True, "weight_decay": 0.0},
        ]

    def before_epoch(self, run: Run) -> None:
        """Measure pixels: biases begin at the log odds of the data, and gaussian units are standardized."""
        if self.clock.epoch > 0:
            return
        pixels = run.batch(_MEASURED, lambda batch: {"pixels": self.center_crop(batch).flatten(1)})["pixels"]
        mean = pixels.mean(dim=0)
        with torch.no_grad():
            if self.options.visible == "gaussian":
                self.encoder.mean.copy_(mean)
                self.encoder.scale.copy_(pixels.std(dim=0).clamp(min=1e-2))
            else:
                self.head[0].copy_(torch.logit(mean, eps=_LEAST_SHARE))

    @property
    def layer(self) -> int | None:
        """Return which layer is trained at this moment; None once the stack is an autoencoder."""
        count, share = len(self.encoder.weights), 1 - self.options.unroll
        if self.clock.progress >= share and self.options.unroll:
            return None
        return min(count - 1, int(self.clock.progress / share * count))

    def transform(self, batch: Batch) -> Batch:
        """Return images, `[B, C, S, S]`, and visible units of the layer at work: from the `data`, and at the chain's end."""
        image, layer = self.center_crop(batch), self.layer
        self.working = layer
        if layer is None:
            return {"image": image}
        data = self._below(image, layer)
        start = data
        if self.options.chains:
            row = torch.arange(len(data), device=data.device) % self.options.chains
            start = torch.where(torch.eq(self.begun, layer), self.chains[row, : data.shape[1]], data)
        negative = self._walk(start, layer)
        return {"image": image, "data": data, "negative": negative, "layer": str(layer)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return free energies `[B]` of data and chains, and reconstructions; of the autoencoder, reconstructions alone."""
        with torch.autocast(batch["image"].device.type, enabled=False):
            if "layer" not in batch:
                return {"reconstruction": self._unrolled(batch["image"])}
            layer = int(batch["layer"])
            data = batch["data"].to(self.encoder.mean.dtype)
            hidden = self.encoder.hidden(data, layer)
            return {
                "data_energy": self.free_energy(data, layer),
                "negative_energy": self.free_energy(batch["negative"].to(data.dtype), layer),
                "activity": self.encoder.hidden(data, layer, train_weights=False),
                "reconstruction": self.mean_visible(hidden.detach(), layer).detach(),
            }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the difference of free energies, whose gradient is that of contrastive divergence; or the error of pixels.

        With a sparsity target also a term whose gradient moves each hidden bias, so that the mean probability goes there.
        """
        if "layer" not in batch:
            return {"reconstruction": self._pixel_error(output["reconstruction"], batch["image"]).mean()}
        terms = {"divergence": (output["data_energy"] - output["negative_energy"]).mean()}
        if self.options.sparsity_target:
            width = output["activity"].shape[1]
            excess = self.mean_activity[int(batch["layer"]), :width] - self.options.sparsity_target
            terms["sparsity"] = self.options.sparsity * (excess * output["activity"]).sum(dim=1).mean()
        return terms

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return the ends of chains, and the probabilities of hidden units."""
        if "layer" not in batch:
            return {}
        return {"chains": batch["negative"].detach(), "activity": output["activity"].detach()}

    def after_step(self, remembered: Batch) -> None:
        """Keep the chains, and a running mean of each unit's probability."""
        if self.working is None:
            return
        chains, activity = remembered["chains"], remembered["activity"]
        kept = chains[: self.options.chains]
        self.chains[: len(kept), : chains.shape[1]] = kept
        self.mean_activity[self.working, : activity.shape[1]].lerp_(activity.mean(dim=0), 0.1)
        self.begun.fill_(self.working)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the squared error of reconstructions relative to predicting each sample's mean, and how active units are."""
        target: Tensor = batch["data"] if "layer" in batch else self.encoder.visible(batch["image"])
        error = (output["reconstruction"] - target).square().sum(dim=1)
        spread: Tensor = (target - target.mean(dim=1, keepdim=True)).square().sum(dim=1)
        result = {"error_share": error / spread.clamp(min=1e-6)}
        if "layer" in batch:
            result |= {"free_energy": output["data_energy"], "activity": output["activity"].mean(dim=1)}
        return result

    def free_energy(self, visible: Tensor, layer: int) -> Tensor:
        """Return the free energy of visible units `[B, values]`: the negative log of their unnormalized probability, `[B]`."""
        bias, weight = self.head[layer], self.encoder.weights[layer]
        hidden: Tensor = F.softplus(visible @ weight + self.encoder.biases[layer]).sum(dim=1)
        energy: Tensor = (visible - bias).square().sum(dim=1) / 2 if self._is_gaussian(layer) else -(visible @ bias)
        return energy - hidden

    def mean_visible(self, hidden: Tensor, layer: int) -> Tensor:
        """Return the mean of visible units given hidden ones `[B, width]`, `[B, values]`."""
        total: Tensor = hidden @ self.encoder.weights[layer].T + self.head[layer]
        return total if self._is_gaussian(layer) else total.sigmoid()

    def chance(self) -> dict[str, float]:
        """Return what predicting each sample's mean reaches."""
        return {"error_share": 1.0}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return images, and, once trained, what the stack reconstructs of them, and a filter of the first layer a row."""
        image: Tensor = batch["image"]
        if output is None:
            return image[:, None]
        with torch.no_grad():
            reconstruction = self.encoder.image(self._unrolled(image)).clamp(0, 1)
        filters = self.encoder.weights[0].detach().T[: len(image)]
        filters = filters[torch.arange(len(image), device=image.device) % len(filters)]
        filters = 0.5 + 0.5 * filters / filters.abs().amax(dim=1, keepdim=True)
        return side_by_side(image, reconstruction, filters.unflatten(1, image.shape[1:]))

    def _is_gaussian(self, layer: int) -> bool:
        return layer == 0 and self.options.visible == "gaussian"

    @torch.no_grad()
    def _below(self, image: Tensor, layer: int) -> Tensor:
        """Return what the visible units of a layer have: pixels, or the probabilities of the layer below, `[B, values]`."""
        return self.encoder.visible(image) if layer == 0 else self.encoder.layers(image)[layer - 1]

    @torch.no_grad()
    def _walk(self, visible: Tensor, layer: int) -> Tensor:
        """Return the visible units at the end of a chain; hidden ones are sampled, visible ones only if chains go on.

        (Hinton, 2010, section 3: means of visible units make less noise.)
        """
        for _ in range(self.options.gibbs_steps):
            visible = self.mean_visible(torch.bernoulli(self.encoder.hidden(visible, layer)), layer)
            if self.options.chains:
                gaussian = self._is_gaussian(layer)
                visible = visible + torch.randn_like(visible) if gaussian else torch.bernoulli(visible)
        return visible

    def _unrolled(self, image: Tensor) -> Tensor:
        """Return what the stack reconstructs of images from its highest layer, standardized, `[B, values]`."""
        x: Tensor = self.encoder(image)
        for layer in reversed(range(len(self.encoder.weights))):
            x = self.mean_visible(x, layer)
        return x

    def _pixel_error(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Return the cross-entropy of binary pixels, or half the squared error of gaussian ones, summed over pixels, `[B]`."""
        target = self.encoder.visible(image)
        if self.options.visible == "gaussian":
            return (reconstruction - target).square().sum(dim=1) / 2
        return F.binary_cross_entropy(reconstruction, target, reduction="none").sum(dim=1)
