"""Convolutional restricted Boltzmann machines (Lee et al., 2009)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, Run
from sslkit.contract.options import TaskOptions
from sslkit.image.encoders.conv_rbm_stack import ConvRBMStack
from sslkit.pictures import side_by_side

_MEASURED = 1024  # images from which the deviation of pixels is taken


class ConvRBM(ImageTask):
    """Learn filters whose stochastic units share their weights over the image (Lee et al., 2009).

    Of the units of a block one is on, or none (probabilistic max-pooling). Each layer is trained for an equal share of the run
    by contrastive divergence, on the pooled probabilities of the layer below.
    """

    class Options(TaskOptions):
        """Options of `conv_rbm`."""

        noise: float = Field(
            default=0.5, gt=0, description="Deviation of visible units about their mean, in those of the data."
        )
        gibbs_steps: int = Field(default=1, ge=1, le=1000, description="Steps of the chain: the k of CD-k.")
        sparsity_target: float = Field(
            default=0.02, ge=0, lt=1, description="Mean probability that hidden units are to have (Lee et al., 2008); 0: any."
        )
        sparsity: float = Field(default=5.0, ge=0, description="Weight by which --sparsity-target changes hidden biases.")

    options: Options
    encoder: ConvRBMStack
    head: nn.ParameterList
    mean_activity: Tensor
    requires: ClassVar = ("competing_units",)
    defaults: ClassVar = {
        "encoder": "conv_rbm_stack",
        "optimizer": "sgd",
        "lr": 0.01,
        "weight_decay": 1e-3,
        "batch_size": 50,
        "warmup": 0.0,
    }
    paper: ClassVar = Paper(
        source="sections 3.3 and 4.1 of the paper",
        settings={"encoder": "conv_rbm_stack", "encoder_option": {"bases": "24-100", "kernel": "10"}},
        unsupported=("images of nature whitened as a whole", "inference that also reads the layer above (section 3.6)"),
    )
    compiles: ClassVar = False  # the stage that is trained changes
    preview_columns: ClassVar = ("image", "whitened", "reconstruction", "filter")

    def build_head(self) -> nn.Module:
        """Build the bias of each channel of visible units, of each layer."""
        return nn.ParameterList(torch.zeros(weight.shape[1]) for weight in self.encoder.weights)

    def setup(self) -> None:
        """Register the mean activity of each filter."""
        widest = max(len(weight) for weight in self.encoder.weights)
        self.register_buffer("mean_activity", torch.full((len(self.encoder.weights), widest), self.options.sparsity_target))
        self.working = 0  # the layer of the step at hand

    def param_groups(self) -> list[dict[str, Any]]:
        """Keep the rate as it is, for all layers; biases do not decay."""
        biases = [*self.encoder.biases, *self.head]
        return [
            {"params": list(self.encoder.weights), "fixed_lr": True},
            {"params": biases, "fixed_lr": True, "weight_decay": 0.0},
        ]

    def before_epoch(self, run: Run) -> None:
        """Measure the deviation of pixels from their neighborhood."""
        if self.clock.epoch == 0:
            self.encoder.scale.fill_(1)
            pixels = run.batch(_MEASURED, lambda batch: {"pixels": self.encoder.visible(self.center_crop(batch))})["pixels"]
            self.encoder.scale.copy_(self.options.noise * pixels.std().clamp(min=1e-3))

    @property
    def layer(self) -> int:
        """Return which layer is trained at this moment."""
        count = len(self.encoder.weights)
        return min(count - 1, int(self.clock.progress * count))

    def transform(self, batch: Batch) -> Batch:
        """Return images, `[B, C, S, S]`, and visible units of the layer at work: from the `data`, and at the chain's end."""
        image, self.working = self.center_crop(batch), self.layer
        data = self._below(image, self.working)
        return {"image": image, "data": data, "negative": self._walk(data, self.working), "layer": str(self.working)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return free energies of data and chains `[B]`, the mean probability of each filter's units, `activity` `[B, K]`, and
        reconstructions `[B, C, H, W]`.
        """
        with torch.autocast(batch["image"].device.type, enabled=False):
            layer, data = int(batch["layer"]), batch["data"].to(self.encoder.scale.dtype)
            hidden = self.encoder.hidden(data, layer).detach()
            return {
                "data_energy": self.free_energy(data, layer),
                "negative_energy": self.free_energy(batch["negative"].to(data.dtype), layer),
                "activity": self.encoder.hidden(data, layer, train_weights=False).mean(dim=(2, 3, 4)),
                "reconstruction": self.mean_visible(hidden, layer, data.shape).detach(),
            }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the difference of free energies per place of a filter, whose gradient is that of contrastive divergence.

        With a sparsity target also a term whose gradient moves each bias, so that its filter's mean probability goes there.
        """
        layer = int(batch["layer"])
        places = (batch["data"].shape[2] - self.encoder.kernel + 1) * (batch["data"].shape[3] - self.encoder.kernel + 1)
        terms = {"divergence": (output["data_energy"] - output["negative_energy"]).mean() / places}
        if self.options.sparsity_target:
            activity = output["activity"]
            excess = self.mean_activity[layer, : activity.shape[1]] - self.options.sparsity_target
            terms["sparsity"] = self.options.sparsity * (excess * activity).sum(dim=1).mean()
        return terms

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return the probabilities of hidden units."""
        return {"activity": output["activity"].detach()}

    def after_step(self, remembered: Batch) -> None:
        """Keep a running mean of each filter's probability."""
        activity = remembered["activity"].mean(dim=0)
        self.mean_activity[self.working, : len(activity)].lerp_(activity, 0.1)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the squared error of reconstructions relative to predicting 0, and how active units are."""
        target: Tensor = batch["data"]
        error = (output["reconstruction"] - target).square().sum(dim=(1, 2, 3))
        share = error / target.square().sum(dim=(1, 2, 3)).clamp(min=1e-6)
        return {"error_share": share, "activity": output["activity"].mean(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return what predicting 0 reaches."""
        return {"error_share": 1.0}

    def free_energy(self, visible: Tensor, layer: int) -> Tensor:
        """Return the free energy of visible units `[B, C, H, W]`: the negative log of their unnormalized probability, `[B]`."""
        cells, bias = self.encoder.blocks(visible, layer), self.head[layer][:, None, None]
        hidden = torch.cat([cells, torch.zeros_like(cells[..., :1])], dim=4).logsumexp(dim=4).sum(dim=(1, 2, 3))
        energy: Tensor = (visible - bias).square() / 2 if layer == 0 else -visible * bias
        return energy.sum(dim=(1, 2, 3)) - hidden

    def mean_visible(self, hidden: Tensor, layer: int, shape: torch.Size) -> Tensor:
        """Return the mean of visible units, of a shape `[B, C, H, W]`, given hidden ones `[B, K, h, w, P * P]`."""
        total: Tensor = self.encoder.down(hidden, layer, shape) + self.head[layer][:, None, None]
        return total if layer == 0 else total.sigmoid()

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return images, whitened and, once trained, reconstructed from the first layer, and one of its filters a row."""
        image: Tensor = batch["image"]
        visible = self.encoder.visible(image)
        largest = visible.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        columns = [image, 0.5 + 0.5 * visible / largest]
        if output is not None:
            reconstruction = self.mean_visible(self.encoder.hidden(visible, 0), 0, visible.shape).detach()
            filters = self.encoder.weights[0].detach()
            filters = filters[torch.arange(len(image), device=image.device) % len(filters)]
            filters = 0.5 + 0.5 * filters / filters.abs().amax(dim=(1, 2, 3), keepdim=True)
            larger = max(1, image.shape[3] // filters.shape[3])
            filters = filters.repeat_interleave(larger, dim=2).repeat_interleave(larger, dim=3)
            columns += [(0.5 + 0.5 * reconstruction / largest).clamp(0, 1), filters]
        return side_by_side(*columns)

    @torch.no_grad()
    def _below(self, image: Tensor, layer: int) -> Tensor:
        """Return what the visible units of a layer have: whitened pixels, or the pooled probabilities of the layer below."""
        return self.encoder.visible(image) if layer == 0 else self.encoder.layers(image)[layer - 1]

    @torch.no_grad()
    def _walk(self, visible: Tensor, layer: int) -> Tensor:
        """Return the means of visible units at the end of a chain in which hidden ones are sampled."""
        for _ in range(self.options.gibbs_steps):
            visible = self.mean_visible(self._sample(self.encoder.hidden(visible, layer)), layer, visible.shape)
        return visible

    def _sample(self, probability: Tensor) -> Tensor:
        """Return of each block which unit is on, 0 or 1 `[B, K, h, w, P * P]`; none with the probability that is left."""
        upper, draw = probability.cumsum(dim=4), torch.rand_like(probability[..., :1])
        lower = F.pad(upper[..., :-1], (1, 0))
        return ((draw >= lower) & (draw < upper)).to(probability.dtype)
