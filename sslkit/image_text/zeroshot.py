"""`sslkit zeroshot`: classify images by the names of classes, or find captions of images and images of captions."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sslkit.console import say, show_progress
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Metric, Result, Row, TestData
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.data.tables import read_lines
from sslkit.encoders.build import build_encoder
from sslkit.engine.checkpoint import Checkpoint, load_strictly, read_model
from sslkit.engine.features import extract
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.run_folder import append_result
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.metrics import is_correct, score
from sslkit.evaluation.models import CHECKPOINT, RANDOM, Model
from sslkit.evaluation.notes import note_on_labels, write_notes
from sslkit.evaluation.splits import (
    annotations,
    check_channels,
    check_labeled,
    check_run_data,
    evaluation_size,
    labeled_fingerprint,
    named_data,
)
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, interval_of_mean
from sslkit.image.source import ImageSource
from sslkit.image_text.matcher import PairReader, read_pair_reader
from sslkit.image_text.source import read_captions
from sslkit.image_text.specs import ZeroshotSpec
from sslkit.text.encoders.base import Framing, TokenEncoder
from sslkit.text.tokenizer import Tokenizer

_LONGEST = 4096  # tokens of a text


_CHUNK = 1024  # texts encoded, queries compared, or pairs judged, at once
_RANKS = (1, 5, 10)  # at which recall is measured

Judge = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Towers:
    """The image and text encoders of a joint embedding space, and the tokenizer of the texts."""

    image: Model
    projector: nn.Linear
    text: Encoder
    text_projector: nn.Module
    tokenizer: Tokenizer
    frame: Framing
    length: int

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Return unit vectors of texts, `[N, D]`, on the CPU."""
        tokens = torch.from_numpy(self.frame.pad(self.tokenizer.encode(texts), self.length)).long()
        vectors = [self.text(chunk.to(self.text.device)).float().cpu() for chunk in tokens.split(_CHUNK)]
        return F.normalize(self.text_projector(torch.cat(vectors)), dim=1)

    @torch.no_grad()
    def embed_images(self, index: Index, spec: ZeroshotSpec) -> tuple[Tensor, NDArray[np.int64]]:
        """Return unit vectors of images, `[N, D]`, on the CPU, and their rows in the data."""
        model = self.image
        samples = ImageSource.for_evaluation(index, spec, model.encoder, model.size)
        features = cached_features(model, samples, "last", "auto", spec)
        return F.normalize(self.projector(features.layers["last"]), dim=1), features.rows


class Zeroshot(Evaluation):
    """Classify images by the names of classes, or match images and captions, with a checkpoint of clip."""

    verb = "zeroshot"
    Options = ZeroshotSpec
    labels = "pair"
    modalities = ("image_text",)
    protocols = (
        Protocol(
            "zeroshot/names-v1",
            "the class whose name is nearest by cosine, in the joint space of images and captions (Radford et al., 2021)",
            {"templates": ["{}"]},
        ),
        Protocol(
            "zeroshot/recall-v1",
            "recall at 1, 5 and 10 of captions by images and of images by captions, by cosine",
            {"rerank": 0},
        ),
    )

    def run(self, spec: ZeroshotSpec) -> Result:
        """Evaluate a checkpoint of images and captions without any training.

        Labeled data is classified: an image belongs to the class whose prompts are nearest to it, averaged over templates
        (Radford et al., 2021, section 3.1). In a table with captions and without `--label`, each image retrieves its caption
        and each caption its images. Of data with train/ and test/, test is read. Raises SslkitError for checkpoints without
        a text encoder.
        """
        started_at = time.monotonic()
        bad = next((template for template in spec.templates if template.count("{}") != 1), None)
        if bad is not None:
            raise SslkitError(f"{bad!r} should hold {{}} once", "it stands for the class name", flag="templates")
        checkpoint = read_model(spec.ckpt)
        machine = choose_machine(spec.device)
        device = machine.device
        towers = _load_towers(checkpoint, spec, device)
        by_hand = bool(spec.sample_values())
        data, from_run, spec = named_data(spec, checkpoint)
        name, location = list(find_parts(data, ImageSource.kind).items())[-1]
        index = ImageSource.read_index(location, spec)
        check_channels(index, checkpoint)
        test = data if name == "train" else f"{name} of {data}"
        say(f"test part: {test}")
        pretrained = index.fingerprint() == checkpoint.metadata["data"]
        check_run_data(data, from_run and name == "train", pretrained)
        if index.labels is not None and spec.rerank:
            raise SslkitError("classes are no captions", "leave it out, or --label", flag="rerank")
        if index.labels is not None:
            check_labeled(index, "data", several=False, split=False)
            rows = _classify(spec, checkpoint, towers, index, test, device)
        else:
            rows = _retrieve(spec, checkpoint, towers, index, read_captions(location), test, machine)
        protocol = self.find_protocol("zeroshot/recall-v1" if index.labels is None else "zeroshot/names-v1")
        settings = {"templates": spec.templates, "labels": spec.labels, "size": towers.image.size, **annotations(spec)}
        if index.labels is None:
            settings["rerank"] = spec.rerank
        unchanged = protocol.settings.items() <= settings.items() and spec.labels is None and not by_hand
        fingerprint = index.fingerprint() if index.labels is None else labeled_fingerprint(index)
        sizes = {row.test: row.headline.n for row in rows}
        tests = [TestData(name, fingerprint, n, seen_in_pretraining=pretrained) for name, n in sizes.items()]
        rows = adjust_comparisons(rows)
        result = Result(
            verb=self.verb,
            protocol=protocol.id if unchanged else None,
            settings=settings,
            checkpoint=str(spec.ckpt),
            weights=rows[0].weights,
            data=Data(tests=tests),
            rows=rows,
            notes=[*write_notes(rows, Data(tests=tests)), *note_on_labels(checkpoint.metadata)],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def zeroshot(spec: ZeroshotSpec) -> Result:
    """Evaluate a checkpoint of images and captions without any training, as `sslkit zeroshot` does."""
    return Zeroshot().run(spec)


def _classify(
    spec: ZeroshotSpec, checkpoint: Checkpoint, towers: Towers, index: Index, test: str, device: torch.device
) -> list[Row]:
    """Return a row for the checkpoint and one for random weights."""
    names = _class_names(spec.labels, index.classes)
    assert index.labels is not None
    rows: list[Row] = []
    outcomes = CheckpointOutcomes[Answers](compare_answers)
    for model in [towers, *([_load_towers(checkpoint, spec, device, trained=False)] if spec.baselines else [])]:
        prompts = [model.embed_texts([template.replace("{}", name) for name in names]) for template in spec.templates]
        classes = F.normalize(torch.stack(prompts).mean(dim=0), dim=1)
        images, places = model.embed_images(index, spec)
        scores, labels = images @ classes.T, torch.from_numpy(index.labels[places])
        answers = Answers(places, is_correct(scores, labels))
        metrics, by_class = score([scores], labels, index.classes)
        comparisons = outcomes.compare(model.image.role, 0, None, answers)
        rows.append(
            Row(
                model.image.name,
                metrics,
                test=test,
                by_class=by_class,
                comparisons=comparisons,
                weights=model.image.weights,
                role=model.image.role,
            )
        )
    return rows


def _retrieve(
    spec: ZeroshotSpec,
    checkpoint: Checkpoint,
    towers: Towers,
    index: Index,
    captions: list[str],
    test: str,
    machine: Machine,
) -> list[Row]:
    """Return a row for each direction, below it that of candidates ordered again, if asked for, and of random ranking."""
    reader = read_pair_reader(checkpoint, spec.encoder).to(machine.device) if spec.rerank else None
    images, places = towers.embed_images(index, spec)
    image_captions = [captions[place] for place in places]
    texts = sorted(set(image_captions))
    numbers = {text: number for number, text in enumerate(texts)}
    targets = torch.tensor([numbers[text] for text in image_captions])
    vectors = towers.embed_texts(texts)
    images_by_caption = torch.bincount(targets, minlength=len(texts))
    own_text = torch.arange(len(texts))
    orders = {
        "image to caption": (_rank(images, vectors, spec.rerank), targets, own_text, torch.ones_like(targets)),
        "caption to image": (_rank(vectors, images, spec.rerank), own_text, targets, images_by_caption),
    }
    rows, weights = list[Row](), towers.image.weights
    judge = None if reader is None else _judge(reader, spec, index, places, texts, towers, machine)
    for direction, (order, query_groups, bank_groups, relevant) in orders.items():
        name, matches = f"{test}, {direction}", query_groups[:, None] == bank_groups[order]
        rows.append(Row(CHECKPOINT, _recalls(matches), test=name, weights=weights))
        if judge is not None:
            again = _order_again(order, judge, by_image=direction.startswith("image"))
            reordered = query_groups[:, None] == bank_groups[again]
            answers = (Answers(np.arange(len(each)), each[:, 0].double()) for each in (reordered, matches))
            comparisons = {CHECKPOINT: compare_answers(*answers)}
            rows.append(Row("ordered again", _recalls(reordered), name, comparisons=comparisons, weights=weights, role="other"))
        by_chance = [
            replace(metric, value=float(np.mean([chance(len(bank_groups), int(number), k) for number in relevant])), low=None)
            for metric, k in zip(_recalls(matches), _RANKS, strict=True)
        ]
        rows.append(Row("chance", by_chance, test=name, weights=weights, role="random"))
    return rows


def _recalls(matches: Tensor) -> list[Metric]:
    """Return recall at 1, with its interval, 5 and 10, of which of each query's candidates `[M, K]` match it, best first."""
    metrics = []
    for k in _RANKS:
        hits = matches[:, :k].any(dim=1)
        recall = Metric(f"recall at {k}", float(hits.float().mean()), n=len(hits), unit_of_n="queries")
        low, high, method = interval_of_mean(hits.double()) if k == 1 else (None, None, None)
        metrics.append(replace(recall, low=low, high=high, interval_method=method))
    return metrics


def _judge(
    reader: PairReader,
    spec: ZeroshotSpec,
    index: Index,
    rows: NDArray[np.int64],
    texts: list[str],
    towers: Towers,
    machine: Machine,
) -> Judge:
    """Return a function that tells by how much images `[B]` and texts `[B]`, by their places, match."""
    samples = ImageSource.for_evaluation(index.subset(rows), spec, reader.encoder, towers.image.size)

    def look(view: Tensor) -> dict[str, Tensor]:
        return {"last": reader.look(view)}

    seen_places = extract(reader.encoder, samples, machine, spec.batch_size, spec.workers, read=look).layers["last"]
    tokens = torch.from_numpy(towers.frame.pad(towers.tokenizer.encode(texts), reader.length)).long()

    def judge(image: Tensor, text: Tensor) -> Tensor:
        return reader.judge(seen_places[image].to(machine.device), tokens[text].to(machine.device)).cpu()

    return judge


@torch.no_grad()
def _order_again(order: Tensor, judge: Judge, by_image: bool) -> Tensor:
    """Return each query's candidates `[M, K]` by how well they match it, best first."""
    again = torch.empty_like(order)
    with show_progress("matches of candidates", len(order)) as progress:
        for rows in torch.arange(len(order)).split(max(1, _CHUNK // order.shape[1])):
            query, candidate = rows.repeat_interleave(order.shape[1]), order[rows].flatten()
            scores = judge(query, candidate) if by_image else judge(candidate, query)
            best = scores.view(len(rows), -1).argsort(dim=1, descending=True, stable=True)
            again[rows] = order[rows].gather(1, best)
            progress.advance(len(rows))
    return again


def chance(pool: int, relevant: int, k: int) -> float:
    """Return the probability that at least one relevant item is among k drawn at random from a pool."""
    return 1 - math.comb(pool - relevant, min(k, pool)) / math.comb(pool, min(k, pool))


def _rank(queries: Tensor, bank: Tensor, most: int) -> Tensor:
    """Return the places of the items nearest to each query by cosine, best first, `[M, K]`: `most`, and ten at least."""
    count = min(max(most, *_RANKS), len(bank))
    return torch.cat([(rows @ bank.T).topk(count, dim=1).indices for rows in queries.split(_CHUNK)])


def _class_names(file: str | None, classes: tuple[str, ...]) -> list[str]:
    """Return the name of each class: the data's, or a file's, with CLASS,NAME or a name per line in class order."""
    if file is None:
        return [name.replace("_", " ") for name in classes]
    lines = [line.strip() for _, line in read_lines(Path(file), "labels")]
    if lines and all("," in line for line in lines):
        names = dict(line.split(",", 1) for line in lines)
        missing = next((name for name in classes if name not in names), None)
        if missing is not None:
            raise SslkitError(f"{file} has no line for class {missing}", did_you_mean(missing, list(names)), flag="labels")
        return [names[name].strip() for name in classes]
    if set(lines) == set(classes):
        return list(classes)
    if len(lines) != len(classes):
        raise SslkitError(
            f"{file} has {len(lines)} lines for {len(classes)} classes", "write a name per class, or CLASS,NAME", flag="labels"
        )
    pairs = ", ".join(f"{name} is {line}" for name, line in zip(classes, lines, strict=True))
    say(f"class names: {pairs}")
    return lines


def _load_towers(checkpoint: Checkpoint, spec: ZeroshotSpec, device: torch.device, trained: bool = True) -> Towers:
    """Return both towers, with a checkpoint's weights or random ones."""
    path = checkpoint.path
    recipe = checkpoint.metadata.get("parts", {}).get("text", {}).get("recipe")
    if not isinstance(recipe, dict) or not checkpoint.part("projector"):
        task = checkpoint.metadata["task"]
        raise SslkitError(
            f"{path} has no text encoder (trained with {task})", "zeroshot needs a checkpoint of clip or albef", flag="ckpt"
        )
    length = recipe.get("size")
    if type(length) is not int or not 1 <= length <= _LONGEST:
        problem = f"the text tower in {path} has an input length of {length!r} tokens"
        raise SslkitError(problem, "the file was altered", flag="ckpt")
    encoder: Encoder = checkpoint.build_encoder(spec.encoder)
    text = checkpoint.with_part("text").build_encoder(spec.encoder)
    if not isinstance(text, TokenEncoder):
        raise SslkitError(f"the text tower in {path} is no encoder of text", "the file was altered", flag="ckpt")
    tokenizer, frame = text.tokenizer(), text.framing()
    if not trained:
        seed_stage(spec.seed, "random", 0)
        encoder = build_encoder(checkpoint.recipe, allowed=spec.encoder).eval()
        text = build_encoder(recipe, allowed=spec.encoder).eval()
    image_projector, text_projector = (
        _load_projector(checkpoint, name, tower.width, trained)
        for name, tower in (("projector", encoder), ("text_projector", text))
    )
    if image_projector.out_features != text_projector.out_features:
        raise SslkitError(f"the towers in {path} do not fit together", "the file was altered", flag="ckpt")
    size = evaluation_size(spec, checkpoint)
    encoder = encoder.to(device)
    model = Model(CHECKPOINT, encoder, size, "checkpoint") if trained else Model(RANDOM, encoder, size, "random")
    return Towers(model, image_projector, text.to(device), text_projector, tokenizer, frame, length)


def _load_projector(checkpoint: Checkpoint, name: str, width: int, trained: bool) -> nn.Linear:
    """Return the projector of a tower of this width, with the checkpoint's weights or random ones."""
    state = checkpoint.part(name)
    weight = state.get("weight")
    if weight is None or weight.dim() != 2 or weight.shape[1] != width:
        raise SslkitError(f"the towers in {checkpoint.path} do not fit together", "the file was altered", flag="ckpt")
    projector = nn.Linear(width, len(weight), bias=False)
    if trained:
        load_strictly(projector, state, f"--ckpt: the {name} in {checkpoint.path}")
    return projector.eval()
