"""Specs of evaluations of dense features of images."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sslkit.contract.options import Count, Texts, as_list
from sslkit.specs.data import PART, DataSpec
from sslkit.specs.evaluation import EvaluationSpec

Severities = Annotated[list[Annotated[int, Field(ge=1, le=5)]], BeforeValidator(as_list), Field(min_length=1)]


class SegmentSpec(DataSpec):
    """Options of `segment`."""

    ckpt: str = Field(description="model.safetensors of a run.")
    part: str = PART
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    protocol: Literal["segment/linear-v1", "segment/knn-v1", "segment/finetuned-v1"] = Field(
        default="segment/linear-v1", description="Named protocol (see `sslkit protocols`)."
    )
    test: Texts = Field(
        default=[], description="Test images; default: the test part of --data. May be repeated: rows for each."
    )
    ignore: int = Field(default=255, ge=0, le=255, description="Number of pixels that count for nothing (11 in CamVid).")
    names: str | None = Field(default=None, description="File with a class name per line, the first for the number 0.")
    resolution: int = Field(
        default=224, ge=16, le=2048, description="Side in pixels to which whole images are stretched, rounded up to patches."
    )
    layer: str = Field(default="last", pattern=r"^(last|[1-9]\d*)$", description="last, or a number counted from the input.")
    places: Count = Field(default=50_000, description="Places of feature maps to fit on at most, as many of each image.")
    neighbors: Count = Field(default=30, description="Most similar places that vote, of knn.")
    temperature: float = Field(default=0.02, gt=0, description="Temperature of their similarities, of knn.")
    epochs: Count = Field(default=10, description="Passes over the training images, of finetuned.")
    lr: float = Field(default=5e-4, gt=0, description="Peak learning rate, of finetuned.")
    batch_size: int = Field(default=16, ge=2, description="Images at once.")
    against: Texts = Field(
        default=[],
        description="Other model to compare with: a checkpoint, or NAME or NAME@SIZE of timm or torchvision. May be repeated.",
    )
    baselines: bool = Field(
        default=True, description="Also measure random weights, color and position, and the most frequent class."
    )
    out: str | None = Field(default=None, description="PNG file for a picture of images, true and predicted masks.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class VisualizeSpec(DataSpec):
    """Settings of `sslkit visualize`."""

    ckpt: str = Field(description="model.safetensors of a run.")
    part: str = PART
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    out: str = Field(default="features.png", description="Picture to write (.png).")
    samples: Count = Field(default=8, description="Images, chosen at random by the seed.")
    fit: Count = Field(default=200, description="Images whose principal components give the colors, at most.")
    layer: str = Field(default="last", pattern=r"^(last|[1-9]\d*)$", description="last, or a number counted from the input.")
    heads: int = Field(default=6, ge=0, le=64, description="Attention heads of the last block at most, of vision transformers.")
    foreground: bool = Field(
        default=False, description="Color only what the first component sets apart from the border of images."
    )


class CorrespondSpec(DataSpec):
    """Options of `correspond`."""

    ckpt: str = Field(description="model.safetensors of a run.")
    part: str = PART
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    samples: Count = Field(default=200, description="Images, chosen at random by the seed.")
    resolution: int = Field(default=224, ge=32, le=2048, description="Side of images in pixels, rounded up to patches.")
    layer: str = Field(default="last", pattern=r"^(last|[1-9]\d*)$", description="last, or a number counted from the input.")
    strength: float = Field(default=0.2, gt=0, le=0.4, description="Share of the side by which corners move at most.")
    jitter: float = Field(default=0.3, ge=0, lt=1, description="By how much brightness and contrast change at most.")
    threshold: float = Field(default=1 / 14, gt=0, le=1, description="Share of the side within which a match is right.")
    batch_size: int = Field(default=16, ge=2, description="Images at once.")
    against: Texts = Field(
        default=[],
        description="Other model to compare with: a checkpoint, or NAME or NAME@SIZE of timm or torchvision. May be repeated.",
    )
    baselines: bool = Field(default=True, description="Also measure random weights, colors of patches, and the same place.")
    out: str | None = Field(default=None, description="PNG file for a picture of matches.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class RobustnessSpec(EvaluationSpec):
    """Options of `robustness`."""

    protocol: Literal["robustness/corruptions-v1", "robustness/shift-v1", "robustness/shape-v1", "robustness/conflicts-v1"] = (
        Field(default="robustness/corruptions-v1", description="Named protocol (see `sslkit protocols`).")
    )
    layer: str = Field(default="last", pattern=r"^(last|last4|[1-9]\d*)$", description="last, last4, or a number.")
    classifier: Literal["probe", "knn"] = Field(
        default="probe",
        description="Classifier of frozen features, fitted on clean images: probe/logreg-v1 or knn/weighted-v1.",
    )
    samples: Count = Field(default=1000, description="Test images at most, chosen by the seed; not for shift-v1.")
    corruption: Texts = Field(
        default=[], description="Corruption to measure, such as fog; default: all fifteen. May be repeated."
    )
    severity: Severities = Field(default=[1, 2, 3, 4, 5], description="Severity from 1 to 5. May be repeated.")
    shifted: Texts = Field(
        default=[], description="Other test data of the same classes, or of some of them; shift-v1 only. May be repeated."
    )
    cutoff: float = Field(
        default=8,
        gt=0,
        description="Cycles per image: coarser structure is that of one class, finer that of another; shape-v1.",
    )
    conflicts: str | None = Field(
        default=None, description="Table of pictures with columns path, shape and texture, which name classes; conflicts-v1."
    )
    out: str | None = Field(default=None, description="PNG file for a picture of corrupted or conflicting images.")


class AdaptSpec(DataSpec):
    """Options of `adapt`."""

    ckpt: str = Field(description="model.safetensors with a classifier: of `finetune`, or of a task joined with supervised.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    protocol: Literal["adapt/online-v1", "adapt/standard-v1"] = Field(
        default="adapt/online-v1", description="Named protocol (see `sslkit protocols`)."
    )
    test: str | None = Field(default=None, description="Test data; default: the test part of --data.")
    corruption: Texts = Field(
        default=[], description="Corruption of the test images, such as fog; default: all fifteen. May be repeated."
    )
    severity: int = Field(default=5, ge=1, le=5, description="Severity of the corruptions.")
    samples: int | None = Field(
        default=None, ge=2, description="Test images at most, chosen by the seed; default: 500, or 200 for standard-v1."
    )
    orders: int | None = Field(default=None, ge=1, description="Orders in which images come; default: 3, or 1 for standard-v1.")
    batch_size: int = Field(default=200, ge=2, description="Images at once, for batch statistics and TENT; online-v1 only.")
    tent_lr: float = Field(default=1e-3, ge=0, description="Learning rate of Adam, for TENT; online-v1 only.")
    lr: float = Field(default=1e-3, ge=0, description="Learning rate of SGD, for test-time training.")
    steps: int | None = Field(
        default=None, ge=1, description="Steps for each image, in test-time training; default: 1, or 10 for standard-v1."
    )
    copies: Count = Field(default=8, description="Views of an image in a step of test-time training; rotation turns each.")
    batchnorm: Literal["eval", "train"] = Field(
        default="eval", description="eval: BatchNorm keeps its statistics in test-time training; train: those of the views."
    )
    pretext: str | None = Field(default=None, description="Task of test-time training, if the checkpoint keeps several.")
    out: str | None = Field(default=None, description="PNG file for a picture of accuracies by corruption and method.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class AnomalySpec(DataSpec):
    """Options of `anomaly`."""

    ckpt: str = Field(description="model.safetensors of a run.")
    part: str = PART
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    test: str | None = Field(
        default=None, description="Images to score, in class folders if some are known; default: the test part of --data."
    )
    normal: str | None = Field(
        default=None, description="Class of normal images; default: the only class of the training part, as in MVTec AD: good."
    )
    resolution: int = Field(
        default=224, ge=16, le=2048, description="Side in pixels to which whole images are stretched, rounded up to patches."
    )
    layers: str = Field(
        default="auto",
        pattern=r"^(auto|[1-9]\d*(,[1-9]\d*)*)$",
        description="Layers that describe a place, counted from the input, with commas; auto: two in the middle.",
    )
    memory: Count = Field(default=2000, description="Patches to remember.")
    places: Count = Field(default=50_000, description="Places of normal images that these are chosen from, as many of each.")
    false_alarms: float = Field(
        default=0.01, gt=0, lt=1, description="Share of normal images above the threshold, on a held-out fifth of them."
    )
    batch_size: int = Field(default=16, ge=2, description="Images at once.")
    against: Texts = Field(
        default=[],
        description="Other model to compare with: a checkpoint, or NAME or NAME@SIZE of timm or torchvision. May be repeated.",
    )
    baselines: bool = Field(default=True, description="Also measure random weights and colors of patches.")
    out: str | None = Field(default=None, description="PNG file for heat maps of the images with the largest scores.")
    scores: str | None = Field(default=None, description="CSV file for the score of each test image.")
    export: str | None = Field(default=None, description="torch.export file (.pt2) from images to scores and maps.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")
