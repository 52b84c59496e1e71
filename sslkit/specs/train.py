"""Specs of commands that train: pretrain, finetune, compare, demo."""

from typing import Annotated, Any, Literal

from pydantic import Field

from sslkit.contract.options import Auto, Count, Looks, Shares, Spec, Texts
from sslkit.specs.data import PART, DataSpec

FEW_STEPS, ENOUGH_STEPS = 200, 300  # of pretraining: below the first nothing is learned, from the second on something is
FEWEST_AT_ONCE = 32  # samples from which a BatchNorm gets usable statistics: `--micro-batch auto` splits no further
_SHARE = r"0(\.[0-9]+)?"  # from 0 to below 1


class TrainSpec(DataSpec):
    """Settings of a training run, shared by `pretrain` and `finetune`."""

    out: str | None = Field(default=None, description="Run folder; default: the next free one under runs/.")
    devices: Count | Auto = Field(
        default=1,
        description="Processes on this machine, each on a GPU of its own; auto: one per GPU; with --device cpu, on the CPU.",
    )
    encoder: str = Field(
        default="auto",
        description="Encoder: a name from `sslkit encoders`, any timm name, torchvision:NAME or package.module:factory.",
        json_schema_extra={"completes": "encoder"},
    )
    encoder_option: dict[str, str] = Field(
        default={},
        description="KEY=VALUE passed to the encoder's factory; norm=group replaces BatchNorm by GroupNorm; may be repeated.",
    )
    pretrained: bool = Field(default=False, description="Start from published weights of timm or torchvision (downloads them).")
    epochs: Count | Auto = Field(default="auto", description="Passes over the data; alternatives: --steps, --minutes.")
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps, instead of --epochs.")
    minutes: float | None = Field(
        default=None, gt=0, description="Training time in minutes; the number of steps is fixed after a short measurement."
    )
    micro_batch: Count | Auto = Field(
        default="auto",
        description="Samples on a device at once: less memory, same result (BatchNorm uses each micro-batch); auto: what fits.",
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field(default="adamw", description="Optimizer.")
    lr: float = Field(default=1e-3, ge=0, description="Peak learning rate.")
    lr_scale: Literal["none", "linear", "sqrt"] = Field(
        default="none",
        description="linear: --lr is for batches of 256 and multiplied by batch / 256; sqrt: by its square root.",
    )
    betas: Annotated[str, Field(pattern=rf"^{_SHARE},{_SHARE}$")] = Field(
        default="0.9,0.999", description="B1,B2: decay rates of AdamW's two moments, from 0 to below 1; MAE uses 0.9,0.95."
    )
    sgd_momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD and LARS.")
    nesterov: bool = Field(default=False, description="Nesterov momentum, for SGD and LARS.")
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay; not applied to biases and norms.")
    weight_decay_end: float | None = Field(
        default=None, ge=0, description="Final weight decay of a cosine schedule; default: constant."
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the run with linear learning-rate warm-up.")
    clip: float | None = Field(default=None, gt=0, description="Maximum gradient norm; default: no clipping.")
    clip_by: Literal["group", "parameter"] = Field(
        default="group", description="Whose gradient norm --clip limits: that of a parameter group, or of every single weight."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Autocast precision of the networks."
    )
    compile: Literal["auto", "on", "off"] = Field(default="auto", description="Compile the networks with torch.compile.")
    sync_batchnorm: Literal["auto", "on", "off"] = Field(
        default="auto", description="BatchNorm statistics over all processes; auto: on for several CUDA processes."
    )
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints; default: every epoch, at least every ten minutes."
    )
    max_broken: float = Field(default=0.1, ge=0, le=1, description="Share of unreadable samples above which a run stops.")
    activation_checkpointing: bool = Field(
        default=False,
        description="Recompute activations of a timm encoder in the backward pass: less memory, a third more time.",
    )
    log: Texts = Field(
        default=[],
        description="Additional logger: tensorboard, wandb, mlflow or an installed one; may be repeated.",
    )
    resume: bool = Field(
        default=False, description="Resume the run in --out exactly where it stopped; start a new one if there is none."
    )
    init: str | None = Field(
        default=None, description="Initial encoder weights: a .safetensors or .pth file, a folder, or hf_hub:OWNER/NAME@COMMIT."
    )
    dialect: Literal["auto", "plain", "dino", "dinov2", "mae", "moco", "lightly", "transformers-vit", "transformers-dinov2"] = (
        Field(default="auto", description="How the file of --init names its weights; auto: recognized by them.")
    )
    extend_to: int | None = Field(default=None, ge=1, description="Extend a finished run to this many epochs.")


class PretrainSpec(TrainSpec):
    """Settings of `sslkit pretrain`."""

    task: str = Field(description="Installed task (see `sslkit tasks`) or a .py file with one.")
    recipe: Literal["default", "paper"] = Field(
        default="default",
        description="default: settings for small data; paper: those of the task's authors (`sslkit tasks TASK` has both).",
    )
    health_every: Looks | Auto = Field(
        default="auto", description="Steps between feature-health checks; auto: 20, or 1% of a longer run; 0: never."
    )
    on_collapse: Literal["warn", "stop"] = Field(default="warn", description="What to do when features collapse.")
    init_part: dict[str, str] = Field(
        default={},
        description="PART=FILE: checkpoint that a part starts from; text=FILE: text tower of pairs, and its tokenizer.",
    )
    label_share: float = Field(
        default=1.0, gt=0, le=1, description="Share of each class's labels that a task with labels sees, sampled by --seed."
    )
    all_labels: bool = Field(
        default=False,
        description="Also show a task the labels of the fifth that evaluations of --data test on, if it has no test part.",
    )
    labeled_in_batch: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        default="auto",
        description="Share of labeled samples in a batch if only some have labels; auto: half, or all if no task uses others.",
    )
    keep_parts: Texts = Field(
        default=[],
        description="Part of a task to keep beside the encoder, such as head, which `adapt` needs. May be repeated.",
    )
    online_knn: bool = Field(default=False, description="Also log k-NN accuracy during training; the data needs labels.")
    shard: bool = Field(
        default=False,
        description="Divide the encoder's weights, gradients and optimizer state among processes (FSDP): less memory.",
    )
    profile: int = Field(default=0, ge=0, description="Steps to profile: print where the time goes and which flag would help.")
    options: dict[str, Any] = Field(default={}, description="Options of the task.")

    def starts(self) -> dict[str, str]:
        """Return the files of `--init-part`."""
        return self.init_part


class FinetuneSpec(TrainSpec):
    """Settings of `sslkit finetune`; `--protocol` and `--recipe` bring defaults of their own."""

    ckpt: str | None = Field(
        default=None, description="Checkpoint to start from (model.safetensors); default: train --encoder from scratch."
    )
    part: str = PART
    test: Texts = Field(default=[], description="Test data; default: the test part of --data. May be repeated.")
    protocol: Literal["finetune/full-v1", "finetune/partial-v1", "finetune/fewlabel-v1"] = Field(
        default="finetune/full-v1",
        description="Named protocol (see `sslkit protocols`); a result with other settings carries no protocol id.",
    )
    recipe: Literal["plain", "strong"] = Field(
        default="plain",
        description="plain: crops and flips; strong: also mixup, cutmix, RandAugment, erasing, EMA and layer decay.",
    )
    loss: Literal["auto", "softmax", "sigmoid", "multi-hot"] = Field(
        default="auto",
        description="sigmoid: independent classes; multi-hot: softmax, target 1/k; auto: softmax, or sigmoid if multi-label.",
    )
    teacher: str | None = Field(
        default=None, description="Classifier of the same classes to learn from as well: model.safetensors; images only."
    )
    distill: Literal["hard", "soft", "token"] = Field(
        default="hard",
        description="hard: the teacher's likeliest class; soft: its probabilities; token: hard, by DeiT's distillation token.",
    )
    teacher_weight: Annotated[float, Field(ge=0, le=1)] | Auto = Field(
        default="auto", description="Weight of the teacher in the loss, the labels' is the rest; auto: 0.5, or 0.1 if soft."
    )
    teacher_temperature: float = Field(default=3.0, gt=0, description="Temperature of both softmaxes with --distill soft.")
    epochs: Count | Auto = Field(default=20, description="Passes over the data; alternatives: --steps, --minutes.")
    batch_size: int = Field(default=64, ge=2, description="Samples per step.")
    encoder_lr: float = Field(default=1.0, ge=0, description="Learning rate of the encoder relative to the head's.")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="Learning rate of each block relative to the next deeper one."
    )
    projector_layers: int = Field(
        default=0, ge=0, description="First layers of the pretraining projector that stay between encoder and classifier."
    )
    head_first: int = Field(default=0, ge=0, description="Epochs of head-only training before the encoder is trained.")
    freeze_blocks: int = Field(default=0, ge=0, description="Number of frozen blocks, counted from the input.")
    last_blocks: int | None = Field(
        default=None, ge=0, description="Number of trained blocks, counted from the output; default: all."
    )
    batchnorm: Literal["train", "eval"] = Field(
        default="train", description="eval: the encoder's BatchNorm keeps its running statistics."
    )
    crop_scale: float = Field(default=0.6, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Label smoothing: share of the target spread over all classes."
    )
    drop_path: float = Field(
        default=0.0, ge=0, lt=1, description="Stochastic-depth rate of the last block, rising linearly from 0."
    )
    mixup: float = Field(default=0.0, ge=0, description="Mixup alpha; 0: off.")
    cutmix: float = Field(default=0.0, ge=0, description="CutMix alpha; 0: off.")
    randaugment: int = Field(default=0, ge=0, le=30, description="RandAugment magnitude (2 operations); 0: off.")
    erasing: float = Field(default=0.0, ge=0, le=1, description="Probability of random erasing.")
    ema: float = Field(default=0.0, ge=0, lt=1, description="Decay of the weight EMA, which is then kept and tested; 0: off.")
    shares: Shares = Field(default=[1.0], description="Share of the labels of each class; may be repeated.")
    seeds: Count = Field(default=1, description="Number of seeds; mean and standard deviation are reported.")
    scratch: bool | None = Field(
        default=None,
        description="Also train the same encoder from random weights; default: only if fine-tuning took at most one minute.",
    )
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class CompareSpec(DataSpec):
    """Settings of `sslkit compare`."""

    tasks: str = Field(description="Task names, separated by commas.", json_schema_extra={"completes": "task"})
    minutes: float = Field(default=10, gt=0, description="Training time per task in minutes.")
    batch_size: int | None = Field(  # type: ignore[assignment]  # the tasks' own, not one for all
        default=None, ge=2, description="Samples per step; default: each task's own."
    )
    encoder: str = Field(
        default="auto",
        description="Encoder of all tasks, as in `sslkit pretrain`.",
        json_schema_extra={"completes": "encoder"},
    )
    encoder_option: dict[str, str] = Field(
        default={},
        description="KEY=VALUE passed to the encoder's factory; norm=group replaces BatchNorm by GroupNorm; may be repeated.",
    )
    test: Texts = Field(default=[], description="Test data; default: the test part of --data.")
    out: str = Field(default="compare", description="Folder for the runs and report.html.")


class DemoSpec(Spec):
    """Settings of `sslkit demo`."""

    out: str = Field(default="demo", description="Folder for the images and the run.")
    images_only: bool = Field(default=False, description="Write the images and stop.")
    steps: int = Field(default=500, ge=1, description="Steps of pretraining.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Random seed.")
