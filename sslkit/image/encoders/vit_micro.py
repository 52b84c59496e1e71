"""A vision transformer that trains on a laptop CPU."""

from typing import Any

from sslkit.image.encoders.timm import DistilledEncoder, VisionTransformerEncoder


def vit_micro(
    in_channels: int = 3,
    size: int = 32,
    patch: int = 4,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    distilled: bool = False,
) -> VisionTransformerEncoder:
    """Vision transformer with patch 4, width 128, depth 4, 4 heads: trains on a laptop CPU, has tokens."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    settings: dict[str, Any] = {
        "img_size": size // patch * patch,
        "patch_size": patch,
        "in_chans": in_channels,
        "num_classes": 0,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "dynamic_img_size": True,
    }
    if distilled:
        return DistilledEncoder(VisionTransformerDistilled(**settings), in_channels)
    return VisionTransformerEncoder(VisionTransformer(**settings, global_pool="avg", fc_norm=False), in_channels)
