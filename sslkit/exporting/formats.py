"""The formats: each function writes a file and returns what its reader (`read.py`) has to be told."""

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.encoders.recipe import encoder_name
from sslkit.engine.checkpoint import Checkpoint
from sslkit.image.encoders.base import ImageEncoder
from sslkit.image.encoders.torchvision import CLASSIFIERS

Settings = dict[str, Any]


class Network(nn.Module):
    """Be what is exported: images `[B, C, H, W]` in [0, 1] to features `[B, width]`, or to a classifier's logits."""

    def __init__(self, encoder: Encoder, classifier: nn.Linear | None) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def forward(self, image: Tensor) -> Tensor:
        """Return features or logits."""
        features: Tensor = self.encoder(image)
        return features if self.classifier is None else self.classifier(features)


def pt2(network: Network, checkpoint: Checkpoint, images: Tensor, shapes: dict[int, Any], path: Path) -> Settings:
    """Write torch.export's file."""
    torch.export.save(_program(network, images, shapes), path)
    return {}


def onnx(network: Network, checkpoint: Checkpoint, images: Tensor, shapes: dict[int, Any], path: Path) -> Settings:
    """Write ONNX with input `image` and output `features` or `logits`."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise SslkitError(f"onnx needs {package}", "pip install 'sslkit[onnx]'", flag="to")
    program = _program(network, images, shapes)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter warns about its own internals; what the file computes is what counts.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            (),
            path,
            input_names=["image"],
            output_names=["features" if network.classifier is None else "logits"],
            external_data=False,
            verbose=False,
        )
    return {}


def _program(network: Network, images: Tensor, shapes: dict[int, Any]) -> torch.export.ExportedProgram:
    """Return the network as a graph whose sides `shapes` may differ; raises SslkitError if it computes otherwise then."""
    try:
        program = torch.export.export(network, (images[: 2 if 0 in shapes else 1],), dynamic_shapes=(shapes,))
    except (torch._dynamo.exc.UserError, RuntimeError) as error:  # what it says of shapes and of ifs that hang on values
        said = str(error).strip().partition("\n")[0]
        hint = "leave out --dynamic-size" if 2 in shapes else "try --no-dynamic-batch"
        raise SslkitError(f"the encoder is no graph for such sizes: {said}", hint) from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # it names files of this machine, and would be written
    return program


def timm(network: Network, checkpoint: Checkpoint, images: Tensor, shapes: dict[int, Any], path: Path) -> Settings:
    """Write a state dict that `timm.create_model(NAME, num_classes=...)` loads strictly; it wants normalized images."""
    recipe, encoder = checkpoint.recipe, network.encoder
    if not isinstance(encoder, ImageEncoder) or not checkpoint.metadata.get("encoder_from", "").startswith("timm "):
        raise SslkitError(f"{encoder_name(recipe)} is not a timm model", "use --to pt2 or onnx", flag="to")
    model: Any = encoder.model
    _usual_stem(model, checkpoint, "timm")
    classes = 0 if network.classifier is None else network.classifier.out_features
    options: Settings = {"num_classes": classes, "in_chans": recipe["in_channels"], **recipe["options"]}
    if "tokens" in encoder.offers:
        options["dynamic_img_size"] = True  # any image size, as in pretraining
    return _state_dict(network, model, str(model.pretrained_cfg.get("classifier", "")), path) | {
        "name": recipe["name"],
        "options": options,
    }


def torchvision(network: Network, checkpoint: Checkpoint, images: Tensor, shapes: dict[int, Any], path: Path) -> Settings:
    """Write a state dict for torchvision's model, its classifier taken off or replaced; it wants normalized images."""
    recipe, encoder = checkpoint.recipe, network.encoder
    name = str(recipe.get("name", ""))
    if not isinstance(encoder, ImageEncoder) or not name.startswith("torchvision:"):
        raise SslkitError(f"{encoder_name(recipe)} is not a torchvision model", "use --to pt2 or onnx", flag="to")
    model: Any = encoder.model
    _usual_stem(model, checkpoint, "torchvision")
    attribute = next(what for what in CLASSIFIERS if hasattr(model, what))
    kept = getattr(model, attribute)  # norms and flattens before the classifier, which belong to the features
    return _state_dict(network, model, f"{attribute}.{len(kept)}", path) | {
        "name": name.removeprefix("torchvision:"),
        "options": recipe["options"],
        "classifier": attribute,
        "kept": [type(part).__name__ for part in kept],
        "width": encoder.width,
        "classes": 0 if network.classifier is None else network.classifier.out_features,
    }


def _usual_stem(model: nn.Module, checkpoint: Checkpoint, target: str) -> None:
    """Raise SslkitError for a network whose stem was changed for small images: the target has none like it."""
    if checkpoint.recipe["stem"] == "small" and isinstance(getattr(model, "maxpool", None), nn.Identity):
        raise SslkitError(
            f"{checkpoint.recipe['name']} was trained with a stem for small images, which {target} does not have",
            "use --to pt2 or onnx, or pretrain above 64 px",
            flag="to",
        )


def _state_dict(network: Network, model: nn.Module, classifier: str, path: Path) -> Settings:
    """Write a model's weights, with the classifier's under the name that the target has for it; return the normalization."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if network.classifier is not None:
        state |= {f"{classifier}.{name}": value for name, value in network.classifier.state_dict().items()}
    save_file(state, path)
    encoder = network.encoder
    assert isinstance(encoder, ImageEncoder)
    return {"mean": encoder.mean.flatten().tolist(), "std": encoder.std.flatten().tolist()}
