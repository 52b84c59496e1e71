"""Load a folder into timm's model, as timm does. Stand-alone: imports nothing of sslkit."""

from collections.abc import Callable
from typing import Any


def load(file: str, settings: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the model as a function of float32 arrays `[B, C, H, W]` in [0, 1]."""
    import timm
    import torch

    model: Any = timm.create_model(f"local-dir:{file}", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, -1, 1, 1) for name in ("mean", "std"))

    def run(images: Any) -> Any:
        with torch.no_grad():
            return model((torch.from_numpy(images) - mean) / std).numpy()

    return run
