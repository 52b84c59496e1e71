"""`sslkit zeroshot`: classify images by the names of classes, or find captions of images and images of captions."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sslkit.console import say
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.encoders.build import build_encoder
from sslkit.engine.checkpoint import Checkpoint, load_strictly, read_model
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.features import cached
from sslkit.evaluation.metrics import right
from sslkit.evaluation.models import CHECKPOINT, RANDOM, Model
from sslkit.evaluation.protocols import PROTOCOLS
from sslkit.evaluation.session import Row, score
from sslkit.evaluation.splits import check_channels, check_labeled, check_own, evaluation_size, named_data
from sslkit.evaluation.statistics import Told, interval, mcnemar_of_rows
from sslkit.image.source import ImageSource
from sslkit.image_text.encoders import CaptionEncoder
from sslkit.image_text.source import read_captions
from sslkit.image_text.specs import ZeroshotSpec
from sslkit.text.byte_pairs import BytePairs

_LONGEST = 4096  # tokens of a text


_AT_ONCE = 1024  # texts, or images that are compared with all texts


@dataclass(frozen=True)
class RecallRow:
    """Hold how often what belongs together is among the 1, 5 and 10 nearest, one way; shares of 1."""

    model: str
    test: str
    layer: str | None
    recall_at_1: float
    recall_at_1_interval: tuple[float, float] | None
    recall_at_5: float
    recall_at_10: float
    p_value: float | None
    n_train: int
    n_test: int
    duplicates: int
    test_seen_in_pretraining: bool
    weights: str


@dataclass(frozen=True)
class ZeroshotResult:
    """Hold what `sslkit zeroshot --json` prints: a row for each model, or for each way of retrieval."""

    command: str
    protocol: str | None
    settings: dict[str, Any]
    checkpoint: str
    weights: str
    data: dict[str, str]
    rows: list[Row] | list[RecallRow]


@dataclass(frozen=True)
class Towers:
    """Hold the two networks that say where images and texts lie, and the tokenizer of the texts."""

    image: Model
    projector: nn.Linear
    text: CaptionEncoder
    tokenizer: BytePairs
    length: int

    @torch.no_grad()
    def places(self, texts: list[str]) -> Tensor:
        """Return unit vectors of texts, `[N, D]`, on the CPU."""
        tokens = torch.from_numpy(self.tokenizer(texts, self.length)).long()
        found = [self.text(piece.to(self.text.device)).float().cpu() for piece in tokens.split(_AT_ONCE)]
        return F.normalize(torch.cat(found), dim=1)

    @torch.no_grad()
    def seen(self, index: Index, spec: ZeroshotSpec) -> tuple[Tensor, NDArray[np.int64]]:
        """Return unit vectors of images, `[N, D]`, on the CPU, and their rows in the data."""
        model = self.image
        found = cached(model, ImageSource.for_evaluation(index, spec, model.encoder, model.size), "last", "auto", spec)
        return F.normalize(self.projector(found.layers["last"]), dim=1), found.rows


def zeroshot(spec: ZeroshotSpec) -> ZeroshotResult:
    """Evaluate a checkpoint of images and captions without any training; everything `sslkit zeroshot` does.

    Data with labels is classified: an image belongs to the class whose prompts are nearest to it, in the mean over templates
    (Radford et al., 2021, section 3.1). Of a table with captions and no `--label`, each image looks for its caption and
    each caption for its images. With train/ and test/ inside, test is read. Raises SslkitError for checkpoints
    that know no captions.
    """
    bad = next((template for template in spec.templates if template.count("{}") != 1), None)
    if bad is not None:
        raise SslkitError(f"{bad!r} should hold {{}} once", "a class's name takes its place", flag="templates")
    checkpoint = read_model(spec.ckpt)
    device = choose_device(spec.device)[0]
    towers = _towers(checkpoint, spec, device)
    data, label, own = named_data(spec, checkpoint)
    name, location = list(find_parts(data, ImageSource.kind).items())[-1]
    index = ImageSource.read_index(location, label, spec.reindex)
    check_channels(index, checkpoint)
    test = data if name == "train" else f"{name} of {data}"
    say(f"test part: {test}")
    seen = index.fingerprint() == checkpoint.metadata["data"]
    check_own(data, own and name == "train", seen)
    rows: list[Row] | list[RecallRow]
    protocol = "zeroshot/recall-v1" if index.labels is None else "zeroshot/names-v1"
    if index.labels is not None:
        check_labeled(index, "data", several=False, split=False)
        rows = _classified(spec, checkpoint, towers, index, test, seen, device)
    else:
        rows = _retrieved(spec, towers, index, read_captions(location), test, seen)
    settings = {"templates": spec.templates, "labels": spec.labels, "size": towers.image.size, "label": label}
    usual = PROTOCOLS[protocol].settings.items() <= settings.items() and spec.labels is None and not spec.data_values()
    result = ZeroshotResult(
        command="zeroshot",
        protocol=protocol if usual else None,
        settings=settings,
        checkpoint=str(spec.ckpt),
        weights=rows[0].weights,
        data={"train": index.fingerprint()},
        rows=rows,
    )
    append_result(checkpoint.path.parent, asdict(result))
    return result


def _classified(
    spec: ZeroshotSpec, checkpoint: Checkpoint, towers: Towers, index: Index, test: str, seen: bool, device: torch.device
) -> list[Row]:
    """Return a row for the checkpoint and one for random weights."""
    names = _names(spec.labels, index.classes)
    assert index.labels is not None
    rows: list[Row] = []
    own: Told | None = None
    for model in [towers, *([_towers(checkpoint, spec, device, trained=False)] if spec.baselines else [])]:
        prompts = [model.places([template.replace("{}", one) for one in names]) for template in spec.templates]
        classes = F.normalize(torch.stack(prompts).mean(dim=0), dim=1)
        images, places = model.seen(index, spec)
        scores, labels = images @ classes.T, torch.from_numpy(index.labels[places])
        told = places, right(scores, labels)
        rows.append(
            Row(
                model=model.image.name,
                test=test,
                layer=None,
                **score([scores], labels, index.classes),
                p_value=None if own is None else mcnemar_of_rows(told, own),
                n_train=0,
                n_test=len(labels),
                duplicates=0,
                test_seen_in_pretraining=seen,
                chosen=[],
                weights=model.image.weights,
            )
        )
        own = own or told
    return rows


def _retrieved(spec: ZeroshotSpec, towers: Towers, index: Index, captions: list[str], test: str, seen: bool) -> list[RecallRow]:
    """Return a row for each way, and below it what chance would reach."""
    images, places = towers.seen(index, spec)
    told = [captions[place] for place in places]
    texts = sorted(set(told))
    numbers = {text: number for number, text in enumerate(texts)}
    own = torch.tensor([numbers[text] for text in told])
    vectors = towers.places(texts)
    belongs = torch.bincount(own, minlength=len(texts))  # images of each caption
    ways = {
        "image to caption": (_hits(images, vectors, lambda rows: own[rows][:, None] == torch.arange(len(texts))), None),
        "caption to image": (_hits(vectors, images, lambda rows: rows[:, None] == own), belongs),
    }
    rows = []
    for way, (hits, relevant) in ways.items():
        pool = len(texts) if relevant is None else len(own)
        recalls = [float(hits[:, column].mean()) for column in range(3)]
        by_chance = torch.ones(len(hits), dtype=torch.int64) if relevant is None else relevant
        chances = [float(np.mean([chance(pool, int(one), k) for one in by_chance])) for k in (1, 5, 10)]
        for model, (first, fifth, tenth) in ((way, recalls), (f"chance, {way}", chances)):
            rows.append(
                RecallRow(
                    model=model,
                    test=test,
                    layer=None,
                    recall_at_1=first,
                    recall_at_1_interval=interval(hits[:, 0].double()) if model == way else None,
                    recall_at_5=fifth,
                    recall_at_10=tenth,
                    p_value=None,
                    n_train=0,
                    n_test=len(hits),
                    duplicates=0,
                    test_seen_in_pretraining=seen,
                    weights=towers.image.weights,
                )
            )
    return rows


def chance(pool: int, relevant: int, k: int) -> float:
    """Return how likely one of the relevant is among k of a pool, drawn at random."""
    return 1 - math.comb(pool - relevant, min(k, pool)) / math.comb(pool, min(k, pool))


def _hits(queries: Tensor, bank: Tensor, belong: Callable[[Tensor], Tensor]) -> Tensor:
    """Return whether one that belongs to a query is among its 1, 5 and 10 nearest, float `[M, 3]`."""
    found = []
    for rows in torch.arange(len(queries)).split(_AT_ONCE):
        order = (queries[rows] @ bank.T).topk(min(10, len(bank)), dim=1).indices
        right_ones = belong(rows).gather(1, order)
        found.append(torch.stack([right_ones[:, :k].any(dim=1) for k in (1, 5, 10)], dim=1))
    return torch.cat(found).float()


def _names(file: str | None, classes: tuple[str, ...]) -> list[str]:
    """Return what to call each class: as the data does, or as a file says, CLASS,NAME or a name a line in their order."""
    if file is None:
        return [name.replace("_", " ") for name in classes]
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise SslkitError(f"cannot read {file}: {error.strerror}", "expected a name a line", flag="labels") from error
    except UnicodeDecodeError as error:
        raise SslkitError(f"{file} is not UTF-8 text", flag="labels") from error
    if lines and all("," in line for line in lines):
        said = dict(line.split(",", 1) for line in lines)
        missing = next((name for name in classes if name not in said), None)
        if missing is not None:
            raise SslkitError(f"{file} has no line for class {missing}", did_you_mean(missing, list(said)), flag="labels")
        return [said[name].strip() for name in classes]
    if set(lines) == set(classes):
        return list(classes)
    if len(lines) != len(classes):
        wrong = f"--labels: {file} has {len(lines)} lines for {len(classes)} classes"
        raise SslkitError(wrong, "expected a name for each, or CLASS,NAME")
    pairs = ", ".join(f"{name} is {line}" for name, line in zip(classes, lines, strict=True))
    say(f"names, in the order of the classes: {pairs}")
    return lines


def _towers(checkpoint: Checkpoint, spec: ZeroshotSpec, device: torch.device, trained: bool = True) -> Towers:
    """Return both towers, with a checkpoint's weights or random ones."""
    path, parts = checkpoint.path, checkpoint.metadata.get("parts")
    recipe = parts.get("text") if isinstance(parts, dict) else None
    state, projection = checkpoint.part("text"), checkpoint.part("projector")
    if not isinstance(recipe, dict) or projection.keys() != {"weight"} or projection["weight"].dim() != 2:
        task = checkpoint.metadata["task"]
        raise SslkitError(f"{path} was trained by {task} and knows no captions", "expected a checkpoint of clip", flag="ckpt")
    encoder: Encoder = checkpoint.build_encoder(spec.encoder)
    if not trained:
        seed_stage(spec.seed, "random", 0)
        encoder = build_encoder(checkpoint.recipe, allowed=spec.encoder).eval()
    length = recipe.get("size")
    if type(length) is not int or not 3 <= length <= _LONGEST:
        raise SslkitError(f"the text tower in {path} reads {length!r} tokens", "the file was altered", flag="ckpt")
    text = build_encoder(recipe)
    out, width = projection["weight"].shape
    if not isinstance(text, CaptionEncoder) or text.width != out or width != encoder.width:
        raise SslkitError(f"the towers in {path} do not fit together", "the file was altered", flag="ckpt")
    projector = nn.Linear(width, out, bias=False)
    spelling = state.get("spelling", torch.zeros(0, dtype=torch.uint8))
    if trained:
        load_strictly(text, state, f"--ckpt: the text tower in {path}")
        load_strictly(projector, projection, f"--ckpt: the projector in {path}")
    try:
        if spelling.dtype != torch.uint8:
            raise ValueError("it is no text")
        tokenizer = BytePairs.read(spelling.numpy().tobytes())
    except ValueError as error:  # UnicodeDecodeError is one
        raise SslkitError(f"the tokenizer in {path} cannot be read: {error}", "the file was altered", flag="ckpt") from error
    if tokenizer.words != text.in_channels:
        raise SslkitError(f"the tokenizer in {path} is not that of its text tower", "the file was altered", flag="ckpt")
    size = evaluation_size(spec, checkpoint)
    model = Model(CHECKPOINT if trained else RANDOM, encoder.to(device), size)
    return Towers(model, projector.eval(), text.eval().to(device), tokenizer, length)
