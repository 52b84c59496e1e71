"""Read a state dict into timm's or torchvision's model. Stand-alone: imports nothing of sslkit."""

from collections.abc import Callable
from typing import Any


def load(file: str, settings: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the model as a function of float32 arrays `[B, C, H, W]` in [0, 1]; every weight has to fit."""
    import torch
    from safetensors.torch import load_file

    model = {"timm": _timm_model, "torchvision": _torchvision_model}[settings["library"]](settings)
    model.load_state_dict(load_file(file))
    model.eval()
    mean, std = (torch.tensor(settings[name]).view(1, -1, 1, 1) for name in ("mean", "std"))

    def run(images: Any) -> Any:
        with torch.no_grad():
            return model((torch.from_numpy(images) - mean) / std).numpy()

    return run


def _timm_model(settings: dict[str, Any]) -> Any:
    import timm

    return timm.create_model(settings["name"], **settings["options"])


def _torchvision_model(settings: dict[str, Any]) -> Any:
    import torch
    from torchvision.models import get_model

    model = get_model(settings["name"], **settings["options"])
    parts = getattr(model, settings["classifier"]).children()
    kept = [part for part in parts if type(part).__name__ in settings["kept"]]
    classifier = [torch.nn.Linear(settings["width"], settings["classes"])] if settings["classes"] else []
    setattr(model, settings["classifier"], torch.nn.Sequential(*kept, *classifier))
    return model
