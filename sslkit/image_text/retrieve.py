"""Retrieval by a joint embedding space: captions of images and images of captions, and candidates reranked as pairs."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.result import Metric, Row
from sslkit.data.index import Index
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.features import extract
from sslkit.engine.precision import Machine
from sslkit.evaluation.models import CHECKPOINT
from sslkit.evaluation.statistics import Answers, compare_answers, interval_of_mean
from sslkit.image.source import ImageSource
from sslkit.image_text.matcher import PairEncoder, read_pair_encoder
from sslkit.image_text.specs import ZeroshotSpec
from sslkit.image_text.towers import Towers

_CHUNK = 1024  # queries compared, or pairs judged, at once
_RANKS = (1, 5, 10)  # at which recall is measured

Judge = Callable[[Tensor, Tensor], Tensor]


def retrieve(
    spec: ZeroshotSpec,
    checkpoint: Checkpoint,
    towers: Towers,
    index: Index,
    captions: list[str],
    test: str,
    machine: Machine,
) -> list[Row]:
    """Return a row for each direction, below it that of candidates reranked, if asked for, and of random ranking."""
    reader = read_pair_encoder(checkpoint, spec.encoder).to(machine.device) if spec.rerank else None
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
            again = _rerank(order, judge, by_image=direction.startswith("image"))
            reordered = query_groups[:, None] == bank_groups[again]
            answers = (Answers(np.arange(len(each)), each[:, 0].double()) for each in (reordered, matches))
            comparisons = {CHECKPOINT: compare_answers(*answers)}
            rows.append(Row("reranked", _recalls(reordered), name, comparisons=comparisons, weights=weights, role="other"))
        by_chance = [float(np.mean([chance(len(bank_groups), int(number), k) for number in relevant])) for k in _RANKS]
        metrics = [_recall(k, value, len(matches)) for k, value in zip(_RANKS, by_chance, strict=True)]
        rows.append(Row("chance", metrics, test=name, weights=weights, role="random"))
    return rows


def _recalls(matches: Tensor) -> list[Metric]:
    """Return recall at 1, with its interval, 5 and 10, of which of each query's candidates `[M, K]` match it, best first."""
    best, *others = (_recall(k, float(matches[:, :k].any(dim=1).float().mean()), len(matches)) for k in _RANKS)
    low, high, method = interval_of_mean(matches[:, 0].double())
    return [replace(best, low=low, high=high, interval_method=method), *others]


def _recall(k: int, value: float, queries: int) -> Metric:
    """Return recall at k as a metric without an interval."""
    return Metric(f"recall at {k}", value, n=queries, unit_of_n="queries")


def _judge(
    reader: PairEncoder,
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
        return {"last": reader.encode_image(view)}

    seen_places = extract(reader.encoder, samples, machine, spec.batch_size, spec.workers, read=look).layers["last"]
    tokens = torch.from_numpy(towers.frame.pad(towers.tokenizer.encode(texts), reader.length)).long()

    def judge(image: Tensor, text: Tensor) -> Tensor:
        return reader.match_score(seen_places[image].to(machine.device), tokens[text].to(machine.device)).cpu()

    return judge


@torch.no_grad()
def _rerank(order: Tensor, judge: Judge, by_image: bool) -> Tensor:
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
    """Return the places of the items nearest to each query by cosine, best first, `[M, K]`: ten, or `most`."""
    count = min(most or max(_RANKS), len(bank))
    return torch.cat([(rows @ bank.T).topk(count, dim=1).indices for rows in queries.split(_CHUNK)])
