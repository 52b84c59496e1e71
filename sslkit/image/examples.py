"""Small image checkpoints with random weights, for the `example_options` of tasks that start from a checkpoint."""

from pathlib import Path

import torch

from sslkit.contract.task import DataInfo
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import describe, read_model, save_model
from sslkit.image.tokenizer import build_tokenizer


def example_checkpoint(folder: Path) -> Path:
    """Write a checkpoint of a small encoder with random weights into a folder, and return its path."""
    path = folder / "model.safetensors"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same weights in every process
            encoder = build_encoder(recipe_for("resnet_micro", 32, options={"width": "16"}))
        save_model(path, {"encoder": encoder}, {**describe(encoder), "task": "check", "size": 32, "step": 0, "data": ""})
    return path


def example_classifier(folder: Path) -> Path:
    """Write a checkpoint of a small encoder and a classifier of three classes, with random weights, and return its path."""
    path = folder / "classifier.safetensors"
    if not path.exists():
        encoder = read_model(example_checkpoint(folder)).build_encoder()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head = torch.nn.Linear(encoder.width, 3)
            torch.nn.init.normal_(head.weight, std=10)  # confident, so that there is something to learn
        description = {**describe(encoder), "task": "finetune", "size": 32, "step": 0, "data": ""}
        classes = ["first", "second", "third"]
        save_model(path, {"encoder": encoder, "head": head}, {**description, "classes": classes, "loss": "softmax"})
    return path


def example_tokenizer(folder: Path) -> Path:
    """Write a tokenizer with random weights, on a grid of 8 × 8 for 32 px, into a folder, and return its path."""
    path = folder / "tokenizer.safetensors"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = build_encoder(recipe_for("vit_micro", 32, options={"width": "32", "depth": "2"}))
            tokenizer = build_tokenizer(encoder, DataInfo(1, 32), 8, 16, 32)
            tokenizer.codebook.initialize(torch.randn(32, 16), 32)
        metadata = {**describe(encoder), "task": "check", "size": 32, "step": 0, "data": ""}
        save_model(path, {"encoder": encoder, "tokenizer": tokenizer}, metadata)
    return path
