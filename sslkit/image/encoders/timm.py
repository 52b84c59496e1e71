"""timm models as encoders."""

from typing import Any, ClassVar

import timm
import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sslkit.contract.encoder import Encoder, EncoderLibrary
from sslkit.contract.errors import SslkitError
from sslkit.image.encoders.base import ImageEncoder, PatchEncoder, WrappedEncoder
from sslkit.image.encoders.narrow import replace_narrow_convolutions
from sslkit.nn.transformer import attention_kernel


class TimmLibrary(EncoderLibrary):
    """timm's architectures; the library of names without a prefix."""

    modality: ClassVar = "image"

    def names(self) -> list[str]:
        """Return the names of all architectures."""
        return timm_names()

    def build(
        self, name: str, in_channels: int, size: int, stem: str = "standard", pretrained: bool = False, **options: Any
    ) -> Encoder:
        """Build a timm model without its classifier."""
        return timm_encoder(name, in_channels, size, stem, pretrained, **options)

    def scale_width(self, name: str, options: dict[str, Any], factor: float) -> dict[str, Any]:
        """Return the options of a wider ResNet or vision transformer."""
        return width_options(name, options, factor)

    def wrap(self, module: nn.Module, in_channels: int, size: int) -> Encoder:
        """Measure the width of what a module returns for images, and wrap it."""
        images = torch.zeros(2, in_channels, size, size)
        training = module.training
        with torch.no_grad():
            output = module.eval()(images)
        module.train(training)
        if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise SslkitError(f"the factory's module should return [B, width] (got {shape} for 2 images)", flag="encoder")
        return WrappedEncoder(module, width=output.shape[1], in_channels=in_channels)

    def version(self) -> str:
        """Return timm's version."""
        return f"timm {timm.__version__}"


def timm_names() -> list[str]:
    """Return the names of all timm architectures."""
    return list(timm.list_models())


def timm_encoder(
    name: str,
    in_channels: int,
    size: int,
    stem: str = "standard",
    pretrained: bool = False,
    distilled: bool = False,
    **options: Any,
) -> ImageEncoder:
    """Build a timm model without its classifier; vision transformers take any image size that their patches divide.

    `distilled`: the features of a `deit_*_distilled_*` are its class and distillation tokens side by side, not their mean.
    """
    from timm.models import model_entrypoint

    probe = model_entrypoint(name.partition(".")[0])
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": in_channels, **options}
    if probe.__module__ in ("timm.models.vision_transformer", "timm.models.deit"):
        settings.setdefault("dynamic_img_size", True)
    model: Any = timm.create_model(name, pretrained=pretrained, **settings)
    if stem == "small":
        small_stem(model, in_channels)
    normalization = None
    mean, std = model.pretrained_cfg.get("mean", ()), model.pretrained_cfg.get("std", ())
    if len(mean) == in_channels:
        normalization = (tuple(mean), tuple(std))
    if distilled:
        if not isinstance(model, VisionTransformerDistilled):
            raise ValueError("only deit_*_distilled_* have a distillation token")
        return DistilledEncoder(model, in_channels, normalization)
    if isinstance(model, VisionTransformer):
        return VisionTransformerEncoder(model, in_channels, normalization)
    if model.pretrained_cfg.get("pool_size"):
        return ConvolutionalEncoder(model, in_channels, normalization)
    return PlainEncoder(model, in_channels, normalization)


def width_options(name: str, options: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return the options that make a timm model `factor` times as wide; none if it is neither ResNet nor ViT."""
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0, **options)
    if isinstance(model, VisionTransformer):
        blocks: Any = model.blocks
        return {"embed_dim": model.embed_dim * factor, "num_heads": max(1, round(blocks[0].attn.num_heads * factor))}
    if isinstance(model, ResNet):
        return {"channels": [round(channels * factor) for channels in options.get("channels", (64, 128, 256, 512))]}
    return {}


def small_stem(model: nn.Module, in_channels: int) -> None:
    """Replace a 7×7 stride-2 stem by a 3×3 convolution with stride 1, and remove the max-pooling after it.

    This is the usual change for images up to 64 px (SimCLR, appendix B.9); models with another stem are left unchanged.
    """
    first = getattr(model, "conv1", None)
    if isinstance(first, nn.Conv2d) and first.kernel_size == (7, 7) and isinstance(model.maxpool, nn.Module):
        model.conv1 = nn.Conv2d(in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()


def timm_stages(model: Any) -> list[list[nn.Parameter]]:
    """Return a timm model's parameters in order of depth, as timm groups them, or as one group if timm does not group them."""
    if not hasattr(model, "group_matcher"):
        return [list(model.parameters())]
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher())
    names = [groups[depth] for depth in sorted(groups)]
    # Parameters that timm does not match come last: norms and pools after the last block, which join its group.
    if len(names) > 1 and not _is_block(model, names[-1], names[-2]):
        last = names.pop()
        names[-1] = names[-1] + last
    return [[model.get_parameter(name) for name in stage] for stage in names]


def _is_block(model: nn.Module, names: list[str], before: list[str]) -> bool:
    """Return whether a group is a block like the previous one: numbered if that is, and with more than norms."""

    def has_number(names: list[str]) -> bool:
        return any(part.isdigit() for name in names for part in name.split("."))

    weights = any(model.get_parameter(name).dim() > 1 for name in names)
    return weights and (has_number(names) or not has_number(before))


class PlainEncoder(ImageEncoder):
    """Any timm model, with pooled features only."""

    def __init__(self, model: Any, in_channels: int, normalization: Any = None) -> None:
        super().__init__(model.num_features, in_channels, normalization)
        replace_narrow_convolutions(model)
        self.model = model

    def checkpoint_activations(self) -> bool:
        """Let timm recompute blocks in the backward pass, except with BatchNorm, which would count every batch twice."""
        has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules())
        if has_batch_norm or not hasattr(self.model, "set_grad_checkpointing"):
            return False
        try:
            self.model.set_grad_checkpointing(True)
        except AssertionError:  # raised by timm models that do not support it
            return False
        return True

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem, then those of each block."""
        return timm_stages(self.model)

    def nearest_valid_size(self, side: int) -> int:
        """Return the only size of a model with a fixed input size, such as Swin, else `side`."""
        if not self.model.pretrained_cfg.get("fixed_input_size"):
            return side
        built_size = getattr(getattr(self.model, "patch_embed", None), "img_size", None)
        return int((built_size or self.model.pretrained_cfg["input_size"])[-1])

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        features: Tensor = self.model(self.normalize(image))
        return features


class ConvolutionalEncoder(PlainEncoder):
    """timm model with feature maps."""

    def __init__(self, model: Any, in_channels: int, normalization: Any = None) -> None:
        super().__init__(model, in_channels, normalization)
        self.provides = ("pooled", "feature_map", *(["layers"] if hasattr(model, "forward_intermediates") else []))

    def layers(self, image: Tensor) -> list[Tensor]:
        """Return the feature map of each resolution, `[B, w, h, w']`."""
        x = self.normalize(image).contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = self.model.forward_intermediates(x, intermediates_only=True)
        return maps

    def sequence(self) -> list[nn.Module]:
        """Return the stages of a ResNet, or of an architecture that keeps them as timm's newer ones do."""
        if isinstance(self.model, ResNet):
            return [getattr(self.model, f"layer{number}") for number in range(1, 5)]
        stages = getattr(self.model, "stages", None)
        return list(stages) if isinstance(stages, nn.ModuleList | nn.Sequential) else []

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the last feature map, `[B, width, h, w]`."""
        x: Tensor = self.model.forward_features(self.normalize(image).contiguous(memory_format=torch.channels_last))
        return x.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else x

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`, pooled by the architecture's own head (some have a norm or a layer after pooling)."""
        x = self.model.forward_features(self.normalize(image).contiguous(memory_format=torch.channels_last))
        features: Tensor = self.model.forward_head(x)
        return features


class VisionTransformerEncoder(PatchEncoder):
    """timm vision transformer, with class token and registers if it has them."""

    provides = (*PatchEncoder.provides, "blocks")  # `embed` and `run_blocks`

    def __init__(self, model: VisionTransformer, in_channels: int, normalization: Any = None) -> None:
        super().__init__(model.num_features, in_channels, normalization)
        self.model: Any = model
        self._recomputes = False
        self.class_token = model.cls_token is not None

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem, then those of each block."""
        return timm_stages(self.model)

    def sequence(self) -> list[nn.Module]:
        """Return the blocks."""
        return list(self.model.blocks)

    def checkpoint_activations(self) -> bool:
        """Recompute blocks in the backward pass."""
        self._recomputes = True
        return True

    @property
    def prefix(self) -> int:
        """Return the number of tokens (class token and registers) before the patches."""
        return int(self.model.num_prefix_tokens)

    @property
    def patch(self) -> int:
        """Return the side of a patch in pixels."""
        return int(self.model.patch_embed.patch_size[0])

    def tokens(
        self, image: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return `[B, prefix + N, width]`, class token and registers first.

        `keep` (int64 `[B, K]`) computes only those patches: `[B, prefix + K, width]`. `mask` (bool `[B, N]`) replaces
        patches by `fill` (`[width]`), the task's mask token, before positions are added.
        """
        x = self._embed(image, mask, fill)
        if keep is not None:
            patches = x[:, self.prefix :].gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, : self.prefix], patches], dim=1)
        return self.run_blocks(x)

    def embed(self, image: Tensor) -> Tensor:
        """Return what `run_blocks` takes: class token, registers and patches with their positions, `[B, prefix + N, width]`."""
        return self._embed(image, None, None)

    def run_blocks(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return the tokens after the final norm, `[B, T, width]`, of any `[B, T, width]`, such as those of images and words.

        `visible`, bool `[B, T]`, is false at tokens that no other may attend to.
        """
        mask = None if visible is None else visible[:, None, None]
        x = self.model.norm_pre(x)
        for block in self.model.blocks:
            x = self._run_block(block, x, mask)
        normed: Tensor = self.model.norm(x)
        return normed

    def layers(self, image: Tensor) -> list[Tensor]:
        """Return the tokens after each block, `[B, prefix + N, width]`, the last one after the final norm."""
        x = self.model.norm_pre(self._embed(image, None, None))
        outputs = []
        for block in self.model.blocks:
            x = self._run_block(block, x)
            outputs.append(x)
        return [*outputs[:-1], self.model.norm(x)]

    def attention(self, image: Tensor) -> Tensor:
        """Return how much the class token attends to each patch in each head of the last block, `[B, heads, h, w]`.

        Without a class token, the mean over patches. What goes to the class token and registers is left out.
        """
        x = self.model.norm_pre(self._embed(image, None, None))
        for block in self.model.blocks[:-1]:
            x = self._run_block(block, x)
        block, prefix = self.model.blocks[-1], self.prefix
        attention = block.attn
        heads = attention.num_heads
        qkv = attention.qkv(block.norm1(x)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = attention.q_norm(qkv[0]), attention.k_norm(qkv[1])
        weights = (query @ key.transpose(2, 3) * attention.scale).softmax(dim=3)
        rows = weights[:, :, :1] if self.class_token else weights[:, :, prefix:]
        maps: Tensor = rows.mean(dim=2)[:, :, prefix:].unflatten(2, self.grid(image))
        return maps

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the patch tokens on their grid, `[B, width, h, w]`."""
        patches: Tensor = self.tokens(image)[:, self.prefix :]
        grid: Tensor = patches.transpose(1, 2).unflatten(2, self.grid(image))
        return grid

    def pool(self, tokens: Tensor) -> Tensor:
        """Return features `[B, width]` of tokens, pooled by the model's own head."""
        features: Tensor = self.model.forward_head(tokens, pre_logits=True)
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`: `pool(tokens(image))`."""
        return self.pool(self.tokens(image))

    def _run_block(self, block: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs = (x,) if mask is None else (x, mask)
        if self._recomputes and torch.is_grad_enabled():
            output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            with attention_kernel(x):
                output = block(*inputs)
        return output

    def _embed(self, image: Tensor, mask: Tensor | None, fill: Tensor | None) -> Tensor:
        height, width = self.grid(image)
        x = self.model.patch_embed(self.normalize(image))  # [B, h, w, width]: dynamic_img_size keeps the grid
        if mask is not None:
            assert fill is not None, "a mask needs a fill vector"
            x = torch.where(mask.view(-1, height, width, 1), fill.to(x.dtype), x)
        embedded: Tensor = self.model._pos_embed(x) if x.dtype != torch.float64 else self._add_positions_float64(x)
        return embedded

    def _add_positions_float64(self, x: Tensor) -> Tensor:
        """Add positions to `[B, h, w, width]` in double precision, as timm does in float32."""
        model, grid = self.model, x.shape[1:3]
        prefix = 0 if model.no_embed_class else self.prefix
        positions, old_grid = model.pos_embed, tuple(model.patch_embed.grid_size)
        if old_grid != tuple(grid):
            resampled = positions[:, prefix:].transpose(1, 2).unflatten(2, old_grid)
            resampled = F.interpolate(resampled, size=grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
            positions = torch.cat([positions[:, :prefix], resampled], dim=1)
        tokens = model.cls_token, getattr(model, "dist_token", None), model.reg_token
        first = [token.expand(len(x), -1, -1) for token in tokens if token is not None]
        x = x.flatten(1, 2)
        x = torch.cat([*first, x + positions], dim=1) if model.no_embed_class else torch.cat([*first, x], dim=1) + positions
        dropped: Tensor = model.pos_drop(x)
        return dropped


class DistilledEncoder(VisionTransformerEncoder):
    """Vision transformer with a class token and a distillation token, side by side in its features (Touvron et al., 2021)."""

    provides = ("pooled", "layers", "distillation_token")  # tokens and maps are half as wide as the features

    def __init__(self, model: VisionTransformerDistilled, in_channels: int, normalization: Any = None) -> None:
        super().__init__(model, in_channels, normalization)
        self.width = 2 * model.num_features

    def pool(self, tokens: Tensor) -> Tensor:
        """Return features `[B, width]`: class token, then distillation token."""
        return tokens[:, :2].flatten(1)
