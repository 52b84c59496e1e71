"""Autoencoders: plain, sparse, denoising and layer-wise."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from sslkit import Batch, ImageTask, SslkitError
from sslkit.contract.encoder import Encoder
from sslkit.image.decoders import CodeDecoder, ConvDecoder
from sslkit.image.views import CropOptions
from sslkit.nn import Norm, error_share, in_eval_mode
from sslkit.pictures import side_by_side


class Autoencoder(ImageTask):
    """Reconstruct an image from a low-dimensional code (Hinton & Salakhutdinov, 2006).

    `--sparsity` penalizes the code's L1 norm; `--noise` sets input pixels to zero (denoising; Vincent et al., 2010). With
    `--layerwise`, the encoder's stages are trained one after the other, each to reconstruct its input (Bengio et al., 2007);
    with noise, from a corrupted one (stacked denoising autoencoders).
    """

    class Options(CropOptions):
        """Options of `autoencoder`."""

        code: int = Field(default=64, ge=1, description="Width of the code; less than the number of values of an image.")
        sparsity: float = Field(default=0.0, ge=0, description="Weight of the L1 penalty, the code's mean absolute value (λ).")
        noise: float = Field(
            default=0.0,
            ge=0,
            lt=1,
            description="Fraction of input pixels set to zero; layer-wise, of the values that a stage reads.",
        )
        layerwise: bool = Field(
            default=False, description="Train the encoder's stages one after the other, for an equal number of steps each."
        )
        norm: Norm = Field(default="batch", description="Normalization inside the decoder.")

    options: Options
    head: Any  # a decoder per stage, or code and decoder
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}

    def build_head(self) -> nn.Module:
        """Build the layer to the code and the decoder, or a decoder per stage."""
        options, data, width = self.options, self.data, self.encoder.width
        values = data.channels * data.size**2
        if options.layerwise:
            if options.sparsity:
                raise SslkitError(
                    "layer-wise training has no code that could be sparse",
                    "use only one of them",
                    flag=("layerwise", "sparsity"),
                )
            return nn.ModuleDict({str(stage): decoder for stage, decoder in enumerate(self._stage_decoders())})
        if options.code >= values:
            raise SslkitError(
                f"{options.code} is not a bottleneck for images of {values} values", f"use less than {values}", flag="code"
            )
        return nn.ModuleDict(
            {
                "code": nn.Linear(width, options.code),
                "decoder": CodeDecoder(options.code, width, data.size, data.channels, options.norm),
            }
        )

    def setup(self) -> None:
        """Determine which parameters belong to which stage."""
        if self.options.layerwise:
            self.layers_of = (_Layers(self.encoder),)  # in a tuple, so that the encoder is not registered twice
            self.stages = _stages(self.layers_of[0], self._example())
            self.corruption: tuple[int, Tensor] | None = None  # the trained stage, and which values it reads
            self.clean: Tensor | None = None
            if self.options.noise:
                self._corrupt_between_stages()

    def param_groups(self) -> list[dict[str, Any]]:
        """Give all stages the same learning rate: under the run's cosine schedule, the last would hardly train."""
        if not self.options.layerwise:
            return []
        return [{"params": [*self.encoder.parameters(), *self.head.parameters()], "fixed_lr": True}]

    def transform(self, batch: Batch) -> Batch:
        """Return the image, `[B, C, S, S]`, the encoder's `input`, and, layer-wise, the index of the trained stage."""
        image, noise = self.crop(batch), self.options.noise
        corrupted, entries = image, dict[str, Any]()
        stage = min(len(self.stages) - 1, int(self.clock.progress * len(self.stages))) if self.options.layerwise else 0
        if self.options.layerwise:
            entries["stage"] = str(stage)  # a string: each stage gets a compiled graph
        if noise and stage:
            entries["kept"] = torch.rand(len(image), *self.shapes[stage - 1], device=image.device) >= noise
        elif noise:
            corrupted = image * (torch.rand(len(image), 1, *image.shape[2:], device=image.device) >= noise)
        return {"image": image, "input": corrupted, **entries}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the `code` and the `reconstruction`; layer-wise, a stage's `target` and its `reconstruction`."""
        if self.options.layerwise:
            return self._predict_stage(batch)
        code = self.head["code"](self.encoder(batch["input"]))
        if self.options.sparsity:
            code = F.relu(code)  # so that values can be exactly zero
        return {"code": code, "reconstruction": self.head["decoder"](code)}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error and the L1 penalty of the code."""
        terms = {"reconstruction": F.mse_loss(output["reconstruction"], self._target(output, batch))}
        if self.options.sparsity and "code" in output:
            terms["sparsity"] = self.options.sparsity * output["code"].abs().mean()
        return terms

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the squared error relative to predicting the mean color (layer-wise: the mean of each input channel)."""
        return {"error_share": error_share(output["reconstruction"], self._target(output, batch))}

    preview_columns: ClassVar = ("image", "input", "reconstruction")

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, the encoder's input, and the reconstruction."""
        columns = [batch["image"], batch["input"]]
        if output is not None and "code" in output:
            columns.append(output["reconstruction"].clamp(0, 1))
        return side_by_side(*columns)

    @staticmethod
    def _target(output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the reconstruction target: the image, or a stage's input."""
        target: Tensor = output["target"] if "target" in output else batch["image"]
        return target

    def _example(self) -> Tensor:
        return torch.zeros(1, self.data.channels, self.data.size, self.data.size)

    def _stage_decoders(self) -> Iterator[nn.Module]:
        """Build, for each stage, a decoder from its output to its input."""
        if "layers" not in self.encoder.provides:
            raise SslkitError(
                f"the encoder provides only {', '.join(self.encoder.provides)}", "it needs layers", flag="layerwise"
            )
        with torch.no_grad(), in_eval_mode(self.encoder):
            maps = self.encoder.layers(self._example())
        if maps[0].dim() != 4:
            raise SslkitError("the encoder's layers are not feature maps", "use resnet_micro", flag="layerwise")
        for stage_input, stage_output in zip([self._example(), *maps[:-1]], maps, strict=True):
            height, width = stage_output.shape[2:]
            side, channels = stage_input.shape[2], stage_input.shape[1]
            yield ConvDecoder(stage_output.shape[1], (height, width), side, channels, self.options.norm)

    def _corrupt_between_stages(self) -> None:
        """Prepare to corrupt what each stage reads; raises SslkitError unless one module of the encoder ends each stage."""
        ends = self.encoder.sequence()
        with torch.no_grad(), in_eval_mode(self.encoder):
            self.shapes = [output.shape[1:] for output in self.encoder.layers(self._example())]
        if len(ends) != len(self.shapes):
            raise SslkitError(
                "noise between the stages of this encoder is not possible", "use resnet_micro, or no noise", flag="noise"
            )
        for stage, end in enumerate(ends[:-1], start=1):
            end.register_forward_hook(partial(self._corrupt, stage))

    def _corrupt(self, stage: int, end: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Set values of the map that a stage reads to zero while it is trained, and keep the map as it was."""
        if self.corruption is None or self.corruption[0] != stage:
            return output
        self.clean = output
        return output * self.corruption[1]

    def _predict_stage(self, batch: Batch) -> dict[str, Tensor]:
        stage = int(batch["stage"])
        layers = self.layers_of[0]
        # Only the parameters of this stage get a gradient; those of earlier stages are already trained.
        fixed = {
            name: value if name in self.stages[stage] else value.detach()
            for name, value in (*layers.named_parameters(), *layers.named_buffers())
        }
        self.corruption = (stage, batch["kept"]) if "kept" in batch else None
        outputs = functional_call(layers, fixed, (batch["input"],))
        target = outputs[stage - 1].detach() if stage else batch["image"]
        if self.clean is not None:
            target = self.clean.detach()
        self.corruption = self.clean = None
        return {"target": target, "reconstruction": self.head[batch["stage"]](outputs[stage])}


class _Layers(nn.Module):
    """Module whose forward pass returns an encoder's layers."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.encoder.layers(image)


def _stages(layers: nn.Module, image: Tensor) -> list[set[str]]:
    """Return the names of the parameters of each stage: those that its layer depends on and no earlier layer does."""
    parameters: dict[str, Any] = dict(layers.named_parameters())
    stages: list[set[str]] = []
    with in_eval_mode(layers):
        outputs = layers(image)
    for output in outputs:
        gradients = torch.autograd.grad(output.sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
        reached = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
        stages.append(reached.difference(*stages))
    return stages
