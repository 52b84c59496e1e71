"""Paint an image again from a narrow code of it."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from sslkit import Batch, PretextTask, SslkitError
from sslkit.contract.encoder import Encoder
from sslkit.image.decoders import CodeDecoder, ConvDecoder
from sslkit.image.views import CropOptions, random_crop_view
from sslkit.nn import Norm, error_share, in_eval_mode
from sslkit.pictures import side_by_side


class Autoencoder(PretextTask):
    """Paint an image again from a narrow code of it (Hinton & Salakhutdinov, 2006).

    The code may have to be sparse (`--sparsity`), or be found in an image with pixels set to zero (`--noise`; Vincent et
    al., 2010). With `--layerwise` the encoder's stages learn one after the other, each to paint what it sees (Bengio et al.,
    2007).
    """

    class Options(CropOptions):
        """Hold the options of autoencoder."""

        code: int = Field(default=64, ge=1, description="Width of the code; narrower than the image has values.")
        sparsity: float = Field(default=0.0, ge=0, description="Weight of the code's mean absolute value (λ).")
        noise: float = Field(default=0.0, ge=0, lt=1, description="Share of pixels that the encoder sees as zero.")
        layerwise: bool = Field(
            default=False, description="Train the encoder's stages one after the other, for the same time each."
        )
        norm: Norm = Field(default="batch", description="Norm inside the decoder.")

    options: Options
    head: Any  # a decoder for each stage, or code and decoder
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}

    def build_head(self) -> nn.Module:
        """Build the layer to the code and the decoder, or a decoder for each stage."""
        options, data, width = self.options, self.data, self.encoder.width
        values = data.channels * data.size**2
        if options.layerwise:
            if options.sparsity:
                raise SslkitError(
                    "stages trained layer by layer have no code to keep sparse",
                    "leave one of them out",
                    flag=("layerwise", "sparsity"),
                )
            return nn.ModuleDict({str(stage): decoder for stage, decoder in enumerate(self._stage_decoders())})
        if options.code >= values:
            raise SslkitError(f"{options.code} values for an image of {values}", "a bottleneck is narrower", flag="code")
        return nn.ModuleDict(
            {
                "code": nn.Linear(width, options.code),
                "decoder": CodeDecoder(options.code, width, data.size, data.channels, options.norm),
            }
        )

    def setup(self) -> None:
        """Settle which parameters belong to which stage."""
        if self.options.layerwise:
            self.layers_of = (_Layers(self.encoder),)  # in a tuple, or the encoder would be registered twice
            self.stages = _stages(self.layers_of[0], self._example())

    def param_groups(self) -> list[dict[str, Any]]:
        """Give all stages the same rate: on the run's cosine the last would hardly learn."""
        if not self.options.layerwise:
            return []
        return [{"params": [*self.encoder.parameters(), *self.head.parameters()], "fixed_lr": True}]

    def transform(self, batch: Batch) -> Batch:
        """Return the image, `[B, C, S, S]`, what the encoder sees of it, `seen`, and which stage learns."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        seen = image
        if self.options.noise:
            seen = image * (torch.rand(len(image), 1, *image.shape[2:], device=image.device) >= self.options.noise)
        if not self.options.layerwise:
            return {"image": image, "seen": seen}
        stage = min(len(self.stages) - 1, int(self.clock.progress * len(self.stages)))
        return {"image": image, "seen": seen, "stage": str(stage)}  # a text: a compiled graph is made for each

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the code and the image painted from it; or what a stage sees, `wanted`, and what is painted of it."""
        if self.options.layerwise:
            return self._predict_stage(batch)
        code = self.head["code"](self.encoder(batch["seen"]))
        if self.options.sparsity:
            code = F.relu(code)  # so that values can be nothing
        return {"code": code, "painted": self.head["decoder"](code)}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error, and how far the code is from nothing."""
        terms = {"reconstruction": F.mse_loss(output["painted"], self._wanted(output, batch))}
        if self.options.sparsity and "code" in output:
            terms["sparsity"] = self.options.sparsity * output["code"].abs().mean()
        return terms

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the error as a share of what the mean color (or mean of each channel that a stage sees) would make."""
        return {"error_share": error_share(output["painted"], self._wanted(output, batch))}

    preview_columns: ClassVar = ("image", "as seen", "painted")

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, what the encoder sees, and what is painted."""
        columns = [batch["image"], batch["seen"]]
        if output is not None and "code" in output:
            columns.append(output["painted"].clamp(0, 1))
        return side_by_side(*columns)

    @staticmethod
    def _wanted(output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return what is to be painted: the image, or what a stage sees."""
        wanted: Tensor = output["wanted"] if "wanted" in output else batch["image"]
        return wanted

    def _example(self) -> Tensor:
        return torch.zeros(1, self.data.channels, self.data.size, self.data.size)

    def _stage_decoders(self) -> Iterator[nn.Module]:
        """Build, for each stage, a decoder from what it says to what it sees."""
        if "layers" not in self.encoder.offers:
            raise SslkitError(f"the encoder offers {', '.join(self.encoder.offers)}", "it needs layers", flag="layerwise")
        with torch.no_grad(), in_eval_mode(self.encoder):
            maps = self.encoder.layers(self._example())
        if maps[0].dim() != 4:
            raise SslkitError("the encoder's layers are no feature maps", "try resnet_micro", flag="layerwise")
        for seen, said in zip([self._example(), *maps[:-1]], maps, strict=True):
            height, width = said.shape[2:]
            yield ConvDecoder(said.shape[1], (height, width), seen.shape[2], seen.shape[1], self.options.norm)

    def _predict_stage(self, batch: Batch) -> dict[str, Tensor]:
        stage = int(batch["stage"])
        layers = self.layers_of[0]
        # Only this stage's own parameters get a gradient: what it sees comes from stages that are done.
        fixed = {
            name: value if name in self.stages[stage] else value.detach()
            for name, value in (*layers.named_parameters(), *layers.named_buffers())
        }
        found = functional_call(layers, fixed, (batch["seen"],))
        wanted = found[stage - 1].detach() if stage else batch["image"]
        return {"wanted": wanted, "painted": self.head[batch["stage"]](found[stage])}


class _Layers(nn.Module):
    """Return an encoder's layers when called."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.encoder.layers(image)


def _stages(layers: nn.Module, image: Tensor) -> list[set[str]]:
    """Return the names of the parameters of each stage: those that its layer depends on, and no earlier one."""
    named: dict[str, Any] = dict(layers.named_parameters())
    found: list[set[str]] = []
    with in_eval_mode(layers):
        said = layers(image)
    for layer in said:
        gradients = torch.autograd.grad(layer.sum(), list(named.values()), retain_graph=True, allow_unused=True)
        reached = {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
        found.append(reached.difference(*found))
    return found
