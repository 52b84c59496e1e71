"""The specification of every command. A default stands here (or in a task's `Options`) and nowhere else.

Flags, `--help`, the tables in the docs and error messages are generated from these models. Nothing here imports torch.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

Auto = Literal["auto"]
Pixels = Annotated[int, Field(ge=8, le=4096)]
Count = Annotated[int, Field(ge=1)]
Looks = Annotated[int, Field(ge=0)]
Processes = Annotated[int, Field(ge=0, le=256)]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


# A single one may be written without brackets.
Texts = Annotated[list[str], BeforeValidator(_listed)]
Shares = Annotated[list[Annotated[float, Field(gt=0, le=1)]], BeforeValidator(_listed), Field(min_length=1)]


def flag(name: str) -> str:
    """Return the flag of a field; one of a task among several, `simclr__width`, is `--simclr.width`."""
    return "--" + name.replace("__", ".").replace("_", "-")


class Spec(BaseModel):
    """Hold validated settings that never change; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)


class TaskOptions(Spec):
    """Hold the options of one pretext task; each field becomes a flag of `sslkit pretrain TASK`."""


class DataSpec(Spec):
    """Hold what every command that reads images is told."""

    data: str | None = Field(
        default=None,
        description="Folder, .txt list, .csv with a `path` column, .npy/.npz or wds:SHARDS.tar; text: .txt or a folder of it.",
    )
    label: str | None = Field(default=None, description="Column of the CSV, or extension in shards, that holds the labels.")
    size: Pixels | Auto = Field(
        default="auto",
        description="Pixels of an image or frame, words of text, milliseconds of sound; auto: fits data or checkpoint.",
    )
    batch_size: int = Field(default=256, ge=2, description="Images per step.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything that is drawn.")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps.")
    workers: Processes | Auto = Field(default="auto", description="Processes that read and decode.")
    cache: Literal["auto", "on", "off"] = Field(default="auto", description="Keep decoded canvases in $SSLKIT_CACHE.")
    cache_limit: float = Field(default=20, gt=0, description="Gigabytes the canvas cache may take.")
    reindex: bool = Field(default=False, description="Read the data folder anew instead of trusting folder times.")


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
    steps: int | None = Field(default=None, ge=1, description="Optimisation steps, instead of --epochs.")
    minutes: float | None = Field(default=None, gt=0, description="Training time; the steps are fixed after a measurement.")
    micro_batch: int | None = Field(
        default=None, ge=1, description="Images on a device at once: less memory, same result (BatchNorm counts per piece)."
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field(default="adamw", description="Optimiser (SGD with momentum 0.9).")
    lr: float = Field(
        default=1e-3, ge=0, description="Peak learning rate for this batch size; never rescaled behind your back."
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay, not applied to biases and norms.")
    weight_decay_end: float | None = Field(
        default=None, ge=0, description="Weight decay at the end of a cosine; default: constant."
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the run in which the rate rises linearly.")
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
    log: Literal["file", "tensorboard"] = Field(
        default="file", description="file: metrics.jsonl; tensorboard: also event files in the run's folder."
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
        default="plain", description="plain: crops and flips; strong: the usual long list of regularisation as well."
    )
    loss: Literal["auto", "softmax", "sigmoid", "multi-hot"] = Field(
        default="auto",
        description="sigmoid: each class for itself; multi-hot: softmax against 1/k for k labels; auto: as the labels are.",
    )
    epochs: Count | Auto = Field(default=20, description="Passes over the data (or use --steps or --minutes).")
    batch_size: int = Field(default=64, ge=2, description="Images per optimisation step.")
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


class FeatureSpec(DataSpec):
    """Hold what all commands that take features are told: by which encoder, and where in it."""

    ckpt: str = Field(description="model.safetensors of a run.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    layer: str = Field(
        default="last",
        pattern=r"^(last|last4|all|[1-9]\d*)$",
        description="last, last4 (four side by side), all (a row each), or a number.",
    )
    pool: Literal["auto", "average", "class", "both"] = Field(
        default="auto", description="Patches, class token or both side by side; auto: as the encoder pools."
    )


class EvaluationSpec(FeatureSpec):
    """Hold what all evaluations of frozen features share: labelled data, and what to compare with."""

    test: Texts = Field(default=[], description="Test data; default: the test part of --data. May be repeated: a row each.")
    against: Texts = Field(
        default=[], description="Another checkpoint, or a pretrained NAME or NAME@SIZE of timm or torchvision; may be repeated."
    )
    baselines: bool = Field(default=True, description="Also random weights, and raw pixels or mean spectra.")


class KnnSpec(EvaluationSpec):
    """Hold what `sslkit knn` is told."""

    protocol: Literal["knn/weighted-v1", "knn/weighted200-v1", "knn/plain-v1", "knn/fewshot-v1"] = Field(
        default="knn/weighted-v1", description="See `sslkit protocols`."
    )
    k: int | None = Field(default=None, ge=1, description="Neighbours; by hand: the result carries no protocol id.")
    temperature: float | None = Field(
        default=None, gt=0, description="Temperature; by hand: the result carries no protocol id."
    )
    shots: int | None = Field(default=None, ge=1, description="Training images of each class; default: all.")
    seeds: Count | None = Field(default=None, description="Draw the shots with so many seeds: mean and spread.")


class ProbeSpec(EvaluationSpec):
    """Hold what `sslkit probe` is told."""

    protocol: Literal["probe/logreg-v1", "probe/sweep-v1", "probe/svm-v1"] = Field(
        default="probe/logreg-v1", description="See `sslkit protocols`."
    )
    c: float | None = Field(
        default=None, gt=0, description="Inverse regularisation; by hand: the result carries no protocol id."
    )
    lr: float | None = Field(
        default=None, gt=0, description="Learning rate of the sweep's heads; by hand: the result carries no protocol id."
    )
    seeds: Count | None = Field(default=None, description="Repeat with so many seeds: mean and spread.")


class RetrievalSpec(EvaluationSpec):
    """Hold what `sslkit retrieval` is told."""


class EvaluateSpec(EvaluationSpec):
    """Hold what `sslkit evaluate` is told."""

    protocol: Texts = Field(
        default=["knn", "probe", "retrieval"],
        description="Protocols, or the first part of their names; all: fine-tuning, too. May be repeated.",
    )
    seeds: Count | None = Field(default=None, description="Repeat what trains with so many seeds: mean and spread.")
    out: str | None = Field(default=None, description="Folder for the table, and the runs of fine-tuning.")
    resume: bool = Field(default=False, description="Go on with the table in --out; starts afresh if there is none.")


class ZeroshotSpec(DataSpec):
    """Hold what `sslkit zeroshot` is told."""

    ckpt: str = Field(description="model.safetensors of a run of `clip`.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    labels: str | None = Field(
        default=None, description="File with a line for each class: its name, or CLASS,NAME; default: the data's own names."
    )
    templates: Texts = Field(default=["{}"], description="Prompt with {} for the name of a class; the mean of several counts.")
    baselines: bool = Field(default=True, description="Also the same networks with random weights.")


class WordsSpec(Spec):
    """Hold what `sslkit words` is told."""

    ckpt: str = Field(description="model.safetensors of a run of `skipgram`.")
    similarity: Texts = Field(default=[], description="File of pairs: two words and a number a line. May be repeated.")
    analogies: Texts = Field(default=[], description="File of questions: four words a line, `: section`. May be repeated.")


class EmbedSpec(FeatureSpec):
    """Hold what `sslkit embed` is told."""

    out: str = Field(default="features.npz", description="File to write: features, paths, labels (if there are any).")


class PredictSpec(DataSpec):
    """Hold what `sslkit predict` is told."""

    ckpt: str = Field(description="model.safetensors of a run of `finetune`.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    out: str = Field(default="predictions.csv", description="File to write: path, class and probability.")


class MapSpec(EmbedSpec):
    """Hold what `sslkit map` is told."""

    out: str = Field(default="map.png", description="Picture to write (.png).")
    method: Literal["tsne", "pca"] = Field(default="tsne", description="How features become two numbers.")
    samples: int = Field(default=2000, ge=10, description="Images at most, drawn by --seed.")


class NeighborsSpec(DataSpec):
    """Hold what `sslkit neighbors` is told."""

    ckpt: str = Field(description="model.safetensors of a run.")
    queries: list[str] = Field(default=[], description="Words, or image files; default: eight images of the data.")
    k: int = Field(default=10, ge=1, description="How many neighbours.")
    out: str = Field(default="neighbors.png", description="Picture of the neighbours to write (.png); words have none.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")


class PreviewSpec(DataSpec):
    """Hold what `sslkit preview` is told."""

    task: str | None = Field(default=None, description="Name of an installed task or a .py file; default: the checkpoint's.")
    ckpt: str | None = Field(
        default=None, description="model.safetensors in its run folder: what the trained task says; default: what it sees."
    )
    out: str = Field(default="previews.png", description="Picture to write (.png).")
    rows: int = Field(default=8, ge=1, le=100, description="Rows of the picture at most.")
    images: int = Field(default=256, ge=2, le=2_000, description="Images drawn by --seed; clusters are filled from them.")
    encoder: str = Field(
        default="auto",
        description="A name from `sslkit encoders`, any timm name, torchvision:NAME or package.module:factory.",
        json_schema_extra={"completes": "encoder"},
    )
    encoder_option: dict[str, str] = Field(default={}, description="KEY=VALUE for the encoder's factory; may be repeated.")
    canvas: Pixels | Auto = Field(default="auto", description="Side of the stored image that views are cut from.")
    options: dict[str, Any] = Field(default={}, description="The task's own options.")


class ExportSpec(Spec):
    """Hold what `sslkit export` is told."""

    ckpt: str = Field(description="model.safetensors of a run.")
    to: Literal["pt2", "onnx", "timm", "torchvision", "word2vec"] = Field(
        default="pt2", description="torch.export's file, ONNX, a state dict of timm's or torchvision's, or word2vec's text."
    )
    out: str | None = Field(default=None, description="File to write, with a card beside it; default: beside the run folder.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    size: Pixels | Auto = Field(default="auto", description="Image size; default: that of pretraining.")
    dynamic_batch: bool = Field(default=True, description="Let pt2 and ONNX take any number of images at once.")
    dynamic_size: bool = Field(default=False, description="Let pt2 and ONNX take images of any size, if the encoder does.")


class ReportSpec(DataSpec):
    """Hold what `sslkit report` is told."""

    runs: list[str] = Field(default=[], description="Folders of runs.")
    out: str = Field(default="report.html", description="Page to write (.html); it needs no other file.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    test: Texts = Field(default=[], description="Test data of the confusion matrix; default: the test part of --data.")
    samples: int = Field(default=500, ge=10, description="Images on the map at most, drawn by --seed.")


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


class NewTaskSpec(Spec):
    """Hold what `sslkit new-task` is told."""

    name: str = Field(description="What the task is called: small letters, digits and _.")
    out: str | None = Field(default=None, description="Folder of the package; default: sslkit-NAME.")


class DemoSpec(Spec):
    """Hold what `sslkit demo` is told."""

    out: str = Field(default="demo", description="Folder for the images and the run.")
    images_only: bool = Field(default=False, description="Write the images and stop.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything that is drawn.")


def path_options(options: type[TaskOptions]) -> list[str]:
    """Return the names of a task's options that are paths: absolute in a run's spec, and in no checkpoint."""
    return [name for name, field in options.model_fields.items() if Path in (field.annotation, *get_args(field.annotation))]


# No option of a task may be called like one of these.
RUN_FLAGS = frozenset((*PretrainSpec.model_fields, *PreviewSpec.model_fields))


def limits(field: FieldInfo) -> list[Any]:
    """Return the constraints of a field; for `Annotated[int, ...] | Literal`, those of the number."""
    return [*field.metadata, *_nested_limits(field.annotation)]


def _nested_limits(annotation: Any) -> list[Any]:
    limits: list[Any] = []
    if get_origin(annotation) is Annotated:
        for extra in get_args(annotation)[1:]:
            limits += extra.metadata if isinstance(extra, FieldInfo) else [extra]
    for member in get_args(annotation):
        if not isinstance(member, FieldInfo | Ge | Le | Gt | Lt | MultipleOf):
            limits += _nested_limits(member)
    return limits


def alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union without None, annotations taken off."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if isinstance(annotation, type) or get_origin(annotation) in (Literal, dict):
        return [annotation]
    members = get_args(annotation) if get_origin(annotation) is Union or get_args(annotation) else (annotation,)
    return [kind for member in members if member is not type(None) for kind in alternatives(member)]
