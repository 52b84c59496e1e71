"""The formats: each function writes a file, reads it back by its own loader and returns what that computes."""

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslkit.encoders import Encoder, ImageEncoder, name_of
from sslkit.engine.checkpoint import Checkpoint
from sslkit.errors import SslkitError


def pt2(encoder: Encoder, checkpoint: Checkpoint, images: Tensor, path: Path) -> Tensor:
    """Write torch.export's file, with any batch size."""
    program = torch.export.export(encoder, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    output: Tensor = torch.export.load(path).module()(images)
    return output.detach()


def onnx(encoder: Encoder, checkpoint: Checkpoint, images: Tensor, path: Path) -> Tensor:
    """Write ONNX with input `image` and output `features`, with any batch size."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise SslkitError(f"--to onnx needs {package}", "pip install 'sslkit[onnx]'")
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter warns about its own internals; the numbers below are what counts.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (images[:2],),
            path,
            input_names=["image"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {"image": images.numpy()})
    return torch.from_numpy(np.asarray(features))


def timm(encoder: Encoder, checkpoint: Checkpoint, images: Tensor, path: Path) -> Tensor:
    """Write a state dict that `timm.create_model(NAME, num_classes=0)` loads strictly; it wants normalised images."""
    recipe = checkpoint.recipe
    if not isinstance(encoder, ImageEncoder) or not checkpoint.metadata.get("encoder_from", "").startswith("timm "):
        raise SslkitError(f"--to timm: {name_of(recipe)} is not a timm model", "use --to pt2 or onnx")
    import timm

    save_file({name: value.contiguous() for name, value in encoder.model.state_dict().items()}, path)  # type: ignore
    settings: dict[str, Any] = (
        {"dynamic_img_size": True} if "tokens" in encoder.offers else {}
    )  # any image size, as in pretraining
    model = timm.create_model(recipe["name"], num_classes=0, in_chans=recipe["in_channels"], **settings, **recipe["options"])
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise SslkitError(
            f"--to timm: {recipe['name']} was trained with the {recipe['stem']} stem, which timm's does not have",
            "use --to pt2 or onnx, or pretrain above 64 px",
        ) from error
    with torch.no_grad():
        output: Tensor = model.eval()((images - encoder.mean) / encoder.std)
    return output
