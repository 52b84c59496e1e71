"""Specs of commands that train: pretrain, finetune, compare, demo."""

from typing import Any, Literal

from pydantic import Field

from sslkit.contract.options import Auto, Count, DataSpec, Looks, Pixels, Shares, Spec, Texts


class TrainSpec(DataSpec):
    """Hold what `pretrain` and `finetune` share: everything the engine needs to know."""

    out: str | None = Field(default=None, description="Folder of the run; by default the next free one under runs/.")
    encoder: str = Field(
        default="auto",
        description="A name from `sslkit encoders`, any timm name, torchvision:NAME or package.module:factory.",
        json_schema_extra={"completes": "encoder"},
    )
    encoder_option: dict[str, str] = Field(default={}, description="KEY=VALUE for the encoder's factory; may be repeated.")
    pretrained: bool = Field(default=False, description="Start from the weights timm or torchvision publish (downloads).")
    canvas: Pixels | Auto = Field(default="auto", description="Side of the stored image that views are cut from.")
    epochs: Count | Auto = Field(default="auto", description="Passes over the data (or use --steps or --minutes).")
    steps: int | None = Field(default=None, ge=1, description="Optimization steps, instead of --epochs.")
    minutes: float | None = Field(default=None, gt=0, description="Training time; the steps are fixed after a measurement.")
    micro_batch: int | None = Field(
        default=None, ge=1, description="Images on a device at once: less memory, same result (BatchNorm counts per piece)."
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field(default="adamw", description="Optimizer (SGD with momentum 0.9).")
    lr: float = Field(
        default=1e-3, ge=0, description="Peak learning rate for this batch size; never rescaled behind your back."
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay, not applied to biases and norms.")
    weight_decay_end: float | None = Field(
        default=None, ge=0, description="Weight decay at the end of a cosine; default: constant."
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the run in which the rate to_one linearly.")
    clip: float | None = Field(default=None, gt=0, description="Largest gradient norm of each parameter group.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Autocast precision of the networks."
    )
    compile: Literal["auto", "on", "off"] = Field(default="auto", description="torch.compile of the networks.")
    sync_batchnorm: Literal["auto", "on", "off"] = Field(
        default="auto", description="BatchNorm over the pieces of all processes; auto: on for several on CUDA."
    )
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints; default: each epoch, at least every ten minutes."
    )
    max_broken: float = Field(default=0.1, ge=0, le=1, description="Share of unreadable samples at which a run stops.")
    activation_checkpointing: bool = Field(
        default=False, description="Keep no activations inside the blocks of a timm encoder: less memory, a third more time."
    )
    log: str = Field(
        default="file", description="Logger of metrics besides metrics.jsonl: file (none), tensorboard or an installed one."
    )
    resume: bool = Field(default=False, description="Go on with the run in --out, exactly; starts afresh if there is none.")
    init: str | None = Field(
        default=None, description="Start from these weights (.safetensors: ours, timm's or torchvision's)."
    )
    extend_to: int | None = Field(default=None, ge=1, description="Go on from a finished run to this many epochs.")


class PretrainSpec(TrainSpec):
    """Hold what `sslkit pretrain` is told."""

    task: str = Field(description="Name of an installed task (see `sslkit tasks`) or a .py file with one.")
    health_every: Looks | Auto = Field(
        default="auto", description="Steps between looks at the features' health; auto: 20, or 1% of a longer run; 0: never."
    )
    on_collapse: Literal["warn", "stop"] = Field(default="warn", description="What to do when features collapse.")
    online_knn: bool = Field(default=False, description="Also log k-NN accuracy, if the data has labels.")
    profile: int = Field(default=0, ge=0, description="Print where the time of so many steps goes, and what may be done.")
    options: dict[str, Any] = Field(default={}, description="The task's own options.")


class FinetuneSpec(TrainSpec):
    """Hold what `sslkit finetune` is told; `--protocol` and `--recipe` have defaults of their own."""

    ckpt: str | None = Field(default=None, description="model.safetensors to start from; without it, --encoder from scratch.")
    test: Texts = Field(default=[], description="Test data; default: the test part of --data. May be repeated: a row each.")
    protocol: Literal["finetune/full-v1", "finetune/partial-v1", "finetune/fewlabel-v1"] = Field(
        default="finetune/full-v1", description="See `sslkit protocols`; a value given by hand gives a result without its id."
    )
    recipe: Literal["plain", "strong"] = Field(
        default="plain", description="plain: crops and flips; strong: the usual long list of regularization as well."
    )
    loss: Literal["auto", "softmax", "sigmoid", "multi-hot"] = Field(
        default="auto",
        description="sigmoid: each class for itself; multi-hot: softmax against 1/k for k labels; auto: as the labels are.",
    )
    epochs: Count | Auto = Field(default=20, description="Passes over the data (or use --steps or --minutes).")
    batch_size: int = Field(default=64, ge=2, description="Images per optimization step.")
    encoder_lr: float = Field(default=1.0, ge=0, description="The encoder's learning rate, as a share of the head's.")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="Each block's learning rate, as a share of the block's above it."
    )
    head_first: int = Field(default=0, ge=0, description="Epochs in which only the head learns, before the encoder does.")
    freeze_blocks: int = Field(default=0, ge=0, description="Blocks that never learn, counted from the input.")
    last_blocks: int | None = Field(default=None, ge=0, description="Only so many blocks learn, counted from the output.")
    batchnorm: Literal["train", "eval"] = Field(
        default="train", description="eval: the encoder's BatchNorm keeps the statistics it came with."
    )
    crop_scale: float = Field(default=0.6, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="Rate at which the last block is skipped, rising from 0.")
    mixup: float = Field(default=0.0, ge=0, description="Alpha of mixup; 0: none.")
    cutmix: float = Field(default=0.0, ge=0, description="Alpha of cutmix; 0: none.")
    randaugment: int = Field(default=0, ge=0, le=30, description="Magnitude of two RandAugment operations; 0: none.")
    erasing: float = Field(default=0.0, ge=0, le=1, description="Share of images that lose a random rectangle.")
    ema: float = Field(default=0.0, ge=0, lt=1, description="Momentum of averaged weights, which are kept and tested; 0: none.")
    shares: Shares = Field(default=[1.0], description="Share of each class whose labels are used; may be repeated.")
    seeds: Count = Field(default=1, description="Repeat with so many seeds: mean and spread.")
    scratch: bool = Field(default=False, description="Train the same encoder from random weights, too, by the same schedule.")


class CompareSpec(DataSpec):
    """Hold what `sslkit compare` is told."""

    tasks: str = Field(description="Names of tasks, with commas between them.", json_schema_extra={"completes": "task"})
    minutes: float = Field(default=10, gt=0, description="Training time of each.")
    batch_size: int | None = Field(  # type: ignore[assignment]  # the tasks' own, not one for all
        default=None, ge=2, description="Images per step; default: what each task prefers."
    )
    encoder: str = Field(
        default="auto",
        description="Encoder of all tasks, as in `sslkit pretrain`.",
        json_schema_extra={"completes": "encoder"},
    )
    encoder_option: dict[str, str] = Field(default={}, description="KEY=VALUE for the encoder's factory; may be repeated.")
    test: Texts = Field(default=[], description="Test data; default: the test part of --data.")
    out: str = Field(default="compare", description="Folder for the runs and report.html.")


class DemoSpec(Spec):
    """Hold what `sslkit demo` is told."""

    out: str = Field(default="demo", description="Folder for the images and the run.")
    images_only: bool = Field(default=False, description="Write the images and stop.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything that is drawn.")
