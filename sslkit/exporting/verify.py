"""Read an exported file by its own loader and run it: a program of its own, which needs nothing of sslkit.

    python read.py FORMAT FILE SETTINGS IMAGES OUT

SETTINGS is JSON, IMAGES a .npz of arrays `[N, C, H, W]` in [0, 1]; OUT gets, for each array, what the file computes of the
first image alone and of all together: `[1 + N, width]`.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Program = Callable[[Any], Any]  # of float32 arrays `[N, C, H, W]`


def pt2(file: str, settings: dict[str, Any]) -> Program:
    """Return a program of torch.export."""
    import torch

    module = torch.export.load(file).module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def onnx(file: str, settings: dict[str, Any]) -> Program:
    """Return an ONNX graph in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})[0]


def timm(file: str, settings: dict[str, Any]) -> Program:
    """Return a timm model with the weights of a state dict, all of which have to fit."""
    import timm

    return _with_weights(timm.create_model(settings["name"], **settings["options"]), file, settings)


def torchvision(file: str, settings: dict[str, Any]) -> Program:
    """Return a torchvision model with the weights of a state dict, all of which have to fit."""
    import torch
    from torchvision.models import get_model

    model = get_model(settings["name"], **settings["options"])
    parts = getattr(model, settings["classifier"]).children()
    kept = [part for part in parts if type(part).__name__ in settings["kept"]]
    classifier = [torch.nn.Linear(settings["width"], settings["classes"])] if settings["classes"] else []
    setattr(model, settings["classifier"], torch.nn.Sequential(*kept, *classifier))
    return _with_weights(model, file, settings)


def _with_weights(model: Any, file: str, settings: dict[str, Any]) -> Program:
    import torch
    from safetensors.torch import load_file

    model.load_state_dict(load_file(file))
    model.eval()
    mean, std = (torch.tensor(settings[name]).view(1, -1, 1, 1) for name in ("mean", "std"))

    def run(images: Any) -> Any:
        with torch.no_grad():
            return model((torch.from_numpy(images) - mean) / std).numpy()

    return run


def main() -> None:
    """Run the file that the arguments name."""
    kind, file, settings, images, out = sys.argv[1:]
    run = {"pt2": pt2, "onnx": onnx, "timm": timm, "torchvision": torchvision}[kind](file, json.loads(settings))
    with np.load(images) as given:
        np.savez(out, *(np.concatenate([run(array[:1]), run(array)]) for array in given.values()))


if __name__ == "__main__":
    main()
