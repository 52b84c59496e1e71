"""`sslkit caption`: captions that a checkpoint writes for images, and how much the images tell it of those that are known."""

import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.encoder import Encoder
from sslkit.contract.result import Data, Metric, Result, Role, Row, TestData
from sslkit.data.columnar import has_column, is_columnar
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.data.tables import read_columns
from sslkit.engine.checkpoint import read_model
from sslkit.engine.features import extract
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.features import report_unreadable
from sslkit.evaluation.models import CHECKPOINT, weights_hash
from sslkit.evaluation.splits import check_channels, check_run_data, evaluation_size, named_data
from sslkit.evaluation.statistics import Totals, adjust_comparisons, compare_ratios, interval_of_ratio
from sslkit.files import output_path, write_atomically
from sslkit.image.source import ImageSource
from sslkit.image_text.captioner import Captioner, read_captioner
from sslkit.image_text.encoders import caption_framing
from sslkit.image_text.source import read_captions
from sslkit.image_text.specs import CaptionSpec
from sslkit.text.tokenizer import Tokenizer

OTHER_IMAGES = "other images"
_CHUNK = 256  # images for which captions are written at once
_PART = 8192  # images whose places are in memory at once


@dataclass(frozen=True)
class CaptionResult:
    """The file that was written; with known captions, `score` compares each image with another one of the data."""

    path: str
    samples: int
    different: int  # captions
    score: Result | None
    weights: str
    checkpoint: str


def caption(spec: CaptionSpec) -> CaptionResult:
    """Write a caption for each image of `--data`, as `sslkit caption` does; of data with train/ and test/, test is read.

    A table with captions also tells what the images add: the nats of each token of the known captions, beside those with
    the images shuffled. Raises SslkitError for a checkpoint that writes no captions.
    """
    started_at = time.monotonic()
    out = output_path(spec.out, ".csv")
    checkpoint = read_model(spec.ckpt)
    captioner = read_captioner(checkpoint)
    machine = choose_machine(spec.device)
    encoder = checkpoint.build_encoder(spec.encoder).to(machine.device)
    captioner.to(machine.device)
    data, from_run, spec = named_data(spec, checkpoint)
    name, location = list(find_parts(data, ImageSource.kind).items())[-1]
    index = ImageSource.read_index(location, spec)
    check_channels(index, checkpoint)
    check_run_data(data, from_run and name == "train", index.fingerprint() == checkpoint.metadata["data"])
    known = read_captions(location) if _has_captions(location) else None
    size = evaluation_size(spec, checkpoint)
    parts = [
        _caption_part(index, np.arange(start, min(start + _PART, len(index))), known, spec, encoder, captioner, machine, size)
        for start in range(0, len(index), _PART)
    ]
    written = [caption for part in parts for caption in part.written]
    rows = np.concatenate([part.rows for part in parts])
    references = None if known is None else [known[row] for row in rows]
    _save(out, index, rows, written, references)
    weights, score = weights_hash(encoder), None
    if references is not None:
        test = TestData(
            data if name == "train" else f"{name} of {data}",
            index.fingerprint(),
            len(references),
            seen_in_pretraining=index.fingerprint() == checkpoint.metadata["data"],
        )
        score = Result(
            verb="caption",
            protocol=None,
            settings={"beam": spec.beam, "size": size, "seed": spec.seed},
            checkpoint=str(spec.ckpt),
            weights=weights,
            data=Data(tests=[test]),
            rows=_score(parts, test, weights),
            notes=["An image adds the difference in nats. Shuffled, each image has the caption of another one."],
            seconds=round(time.monotonic() - started_at, 1),
        )
        append_result(checkpoint.path.parent, score.to_json())
    return CaptionResult(str(out), len(written), len(set(written)), score, weights, str(spec.ckpt))


@dataclass(frozen=True)
class _Part:
    """The captions of some images, as many as memory has room for; of known ones also what each tells of its image."""

    rows: NDArray[np.int64]  # in the data; unreadable images are missing
    written: list[str]
    nats: dict[str, NDArray[np.float64]]  # -log p of each known caption by its image, and by another one
    exact: dict[str, NDArray[np.bool_]]
    sizes: NDArray[np.float64]  # tokens of each known caption


def _caption_part(
    index: Index,
    rows: NDArray[np.int64],
    known: list[str] | None,
    spec: CaptionSpec,
    encoder: Encoder,
    captioner: Captioner,
    machine: Machine,
    size: int,
) -> _Part:
    """Write the captions of some images, and compare known ones with these images and with others among them."""
    tokenizer = captioner.tokenizer()
    samples = ImageSource.for_evaluation(index.subset(rows), spec, encoder, size)
    features = extract(
        encoder,
        samples,
        machine,
        spec.batch_size,
        spec.workers,
        read=lambda view: {"last": captioner.project(encoder.feature_map(view))},
    )
    report_unreadable(samples, features)
    memory, rows = features.layers["last"], rows[features.rows]
    written = _write(captioner, tokenizer, memory, spec.beam)
    if known is None:
        return _Part(rows, written, {}, {}, np.empty(0))
    encoded = tokenizer.encode([known[row] for row in rows])
    tokens = torch.from_numpy(caption_framing(tokenizer).pad(encoded, captioner.length)).long()
    normal = np.array([tokenizer.decode(ids.tolist()) for ids in encoded])
    orders = {CHECKPOINT: np.arange(len(rows)), OTHER_IMAGES: other_images([index.name(int(row)) for row in rows])}
    present = {name: order for name, order in orders.items() if order is not None}
    nats = {name: _nats(captioner, memory[torch.from_numpy(order)], tokens) for name, order in present.items()}
    exact = {name: np.array(written)[order] == normal for name, order in present.items()}
    return _Part(rows, written, nats, exact, (~captioner.is_padding(tokens)).sum(dim=1).double().numpy())


def _has_captions(location: str) -> bool:
    """Return whether a part of the data is a table with captions."""
    path = Path(location.partition("::")[0])
    if path.suffix.lower() == ".csv":
        return "caption" in read_columns(path)
    return is_columnar(path, ImageSource.kind) and has_column(str(path), location.partition("::")[2], "caption")


def _write(captioner: Captioner, tokenizer: Tokenizer, memory: Tensor, beam: int) -> list[str]:
    """Return a caption for each image, of which `memory` `[N, M, width]` are the places."""
    captions = []
    device = captioner.token.weight.device
    with show_progress("captions", len(memory)) as progress:
        for chunk in memory.split(max(1, _CHUNK // beam)):
            for row in captioner.write(chunk.to(device), beam).tolist():
                captions.append(tokenizer.decode([token for token in row if token < captioner.first_special]))
            progress.advance(len(chunk))
    return captions


def _save(out: Path, index: Index, rows: NDArray[np.int64], written: list[str], references: list[str] | None) -> None:
    """Write path and caption of each image, and the known caption where there is one."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "caption", *([] if references is None else ["known"])])
    for place, (row, caption) in enumerate(zip(rows, written, strict=True)):
        table.writerow([index.name(int(row)), caption, *([] if references is None else [references[place]])])
    with write_atomically(out) as stream:
        stream.write(text.getvalue().encode(errors="surrogateescape"))


def _score(parts: list[_Part], test: TestData, weights: str) -> list[Row]:
    """Return the nats per token of known captions and how many are written exactly, by their images and by others."""
    totals, rows, sizes = dict[str, Totals](), list[Row](), np.concatenate([part.sizes for part in parts])
    roles: dict[str, Role] = {CHECKPOINT: "checkpoint", OTHER_IMAGES: "random"}
    for name, role in roles.items():
        if not all(name in part.nats for part in parts):
            continue
        totals[name] = Totals(np.concatenate([part.nats[name] for part in parts]), sizes)
        value = float(totals[name].sums.sum() / sizes.sum())
        low, high, method = interval_of_ratio(totals[name])
        exact = float(np.concatenate([part.exact[name] for part in parts]).mean())
        metrics = [
            Metric("nats per token", value, low, high, method, n=len(sizes), higher_is_better=False, unit="other"),
            Metric("exact captions", exact, n=len(sizes)),
        ]
        comparison = compare_ratios(totals[name], totals[CHECKPOINT]) if name == OTHER_IMAGES else None
        comparisons = {} if comparison is None else {CHECKPOINT: comparison}
        rows.append(Row(name, metrics, test.name, comparisons=comparisons, weights=weights, role=role))
    return adjust_comparisons(rows)


def other_images(names: list[str]) -> NDArray[np.int64] | None:
    """Return for each row the place of a row with another image, each once; None if an image has more than half of the rows."""
    ids, counts = np.unique(names, return_inverse=True, return_counts=True)[1:]
    most = int(counts.max())
    if 2 * most > len(names):
        return None
    order = np.argsort(ids, kind="stable")
    other = np.empty_like(order)
    other[order] = np.roll(order, most)
    return other


@torch.no_grad()
def _nats(captioner: Captioner, memory: Tensor, tokens: Tensor) -> NDArray[np.float64]:
    """Return -log p of each caption, in nats."""
    device = captioner.token.weight.device
    pairs = zip(memory.split(_CHUNK), tokens.split(_CHUNK), strict=True)
    sums = [captioner.nats(image.to(device), caption.to(device)).sum(dim=1).cpu() for image, caption in pairs]
    return torch.cat(sums).double().numpy()
