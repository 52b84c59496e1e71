"""skipgram and cbow: pairs and losses against loops, the tree, the words."""

import heapq
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit import DataInfo, load
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task
from sslkit.text.word_task import softplus

COUNTS = [50, 20, 10, 8, 6, 5, 2, 1]
WORDS = [f"w{i}" for i in range(8)]


def skipgram(size: int = 16, task: str = "skipgram", **options: Any) -> Any:
    task_class = load_task(task)
    data = DataInfo(4, size, len(WORDS), "text", {"unit": "word", "words": WORDS, "counts": torch.tensor(COUNTS)})
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("word_vectors", 16, 8, {"width": "6"}), data))
    return task_class(parsed, encoder, data)


def test_rare_words_get_no_vector() -> None:
    assert skipgram().encoder.words == WORDS[:6]  # 2 and 1 are below --min-count 5
    assert skipgram(min_count=1).encoder.words == WORDS


def test_pairs_are_those_of_a_loop() -> None:
    """With windows of one word and no subsampling, pairs are all neighbors among the remaining words."""
    task = skipgram(window=1, subsample=0.0, negatives=2)
    tokens = torch.tensor([[0, 7, 1, 2, 6, 3, 0, 0]])
    batch = task.transform({"tokens": tokens})
    kept = [token for token in tokens[0].tolist() if token < 6]
    expected = sorted((a, b) for i, a in enumerate(kept) for j, b in enumerate(kept) if abs(i - j) == 1)
    words = batch["words"][0].tolist()
    pairs = [(words[center], words[neighbor]) for center, neighbor in batch["pair_mask"][0].nonzero().tolist()]
    assert sorted(pairs) == expected
    assert int(task.counts(batch)["pairs"]) == len(expected)


def test_windows_are_of_any_width_up_to_the_largest() -> None:
    task = skipgram(window=4, subsample=0.0, size=32)
    paired = task.transform({"tokens": torch.zeros(200, 32, dtype=torch.int64)})["pair_mask"].float()
    assert paired.shape[1:] == (32, 32)
    # At distance d, 1 - (d - 1)/4 of the windows reach.
    for distance, share in ((0, 0), (1, 1), (2, 0.75), (3, 0.5), (4, 0.25), (5, 0)):
        for side in (distance, -distance):
            assert float(paired.diagonal(side, 1, 2).mean()) == pytest.approx(share, abs=0.03)


def test_frequent_words_are_subsampled_and_negatives_sampled_by_count() -> None:
    task = skipgram(min_count=1, subsample=0.05, window=2, negatives=3, size=64)
    share = 50 / sum(COUNTS)
    assert float(task.keep_probability[0]) == pytest.approx(math.sqrt(0.05 / share)) and float(task.keep_probability[7]) == 1
    torch.manual_seed(0)
    counts = torch.tensor(COUNTS).double()
    tokens = torch.multinomial(counts, 400 * 64, replacement=True).view(400, 64)
    batch = task.transform({"tokens": tokens})
    # There is space for the remaining words, and hardly for more.
    rate = float((counts / counts.sum() * task.keep_probability).sum())
    assert 64 * rate < batch["words"].shape[1] < 64
    paired = (batch["pair_mask"].any(dim=2).sum() / (400 * 64)).item()
    assert paired == pytest.approx(rate, abs=0.02)
    negatives, weights = batch["negatives"], counts**0.75
    assert torch.allclose(
        torch.bincount(negatives.flatten(), minlength=8) / negatives.numel(), (weights / weights.sum()).float(), atol=0.01
    )


@pytest.mark.parametrize("kind", ["negative", "hierarchical"])
def test_loss_against_a_loop(kind: str) -> None:
    """Each of the M shared negatives of a sample counts `negatives / M` times for each pair."""
    task = skipgram(loss=kind, window=2, subsample=0.0, negatives=2).double()
    batch = task.transform({"tokens": torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0], [5, 4, 3, 2, 1, 0, 0, 1]])})
    total, pairs = 0.0, 0
    sigmoid = lambda x: 1 / (1 + math.exp(-float(x)))  # noqa: E731
    vectors, others = task.encoder.table.weight.detach(), task.head.weight.detach()
    for sample, place, near in batch["pair_mask"].nonzero().tolist():
        center = vectors[batch["words"][sample, place]]
        context = int(batch["words"][sample, near])
        pairs += 1
        if kind == "negative":
            shared = batch["negatives"][sample]
            total -= math.log(sigmoid(center @ others[context]))
            total -= 2 / len(shared) * sum(math.log(sigmoid(-center @ others[n])) for n in shared)
        else:
            path = [(n, t) for n, t in zip(task.nodes[context].tolist(), task.signs[context].tolist(), strict=True) if t]
            total -= sum(math.log(sigmoid(sign * (center @ others[node]))) for node, sign in path)
    assert int(task.counts(batch)["pairs"]) == pairs
    assert task.loss(task.predict(batch), batch)["pairs"].item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("kind", ["negative", "hierarchical"])
def test_the_loss_of_cbow_against_a_loop(kind: str) -> None:
    """Of the M shared negatives, those that are another word count `negatives` times together."""
    task = skipgram(task="cbow", loss=kind, window=2, subsample=0.0, negatives=2).double()
    batch = task.transform(
        {"tokens": torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0], [5, 4, 3, 2, 1, 0, 0, 1], [7, 7, 7, 3, 7, 7, 6, 6]])}
    )
    total, count = 0.0, 0
    sigmoid = lambda x: 1 / (1 + math.exp(-float(x)))  # noqa: E731
    vectors, others = task.encoder.table.weight.detach(), task.head.weight.detach()
    sampled = batch["negatives"].tolist() if kind == "negative" else [[], [], []]
    for words, pairs, negatives in zip(batch["words"].tolist(), batch["pair_mask"], sampled, strict=True):
        for place, word in enumerate(words):
            near = [words[other] for other in pairs[place].nonzero()[:, 0].tolist()]
            if not near:
                continue
            count += 1
            mean = sum(vectors[other] for other in near) / len(near)
            if kind == "negative":
                shared = [other for other in negatives if other != word]
                total -= math.log(sigmoid(mean @ others[word]))
                total -= 2 / len(shared) * sum(math.log(sigmoid(-mean @ others[other])) for other in shared)
            else:
                path = [(n, t) for n, t in zip(task.nodes[word].tolist(), task.signs[word].tolist(), strict=True) if t]
                total -= sum(math.log(sigmoid(sign * (mean @ others[node]))) for node, sign in path)
    assert int(task.counts(batch)["words"]) == count and count < 24  # the only word of a row has no neighbor
    assert task.loss(task.predict(batch), batch)["words"].item() == pytest.approx(total, rel=1e-9)


def test_the_tree_is_huffmans() -> None:
    task = skipgram(loss="hierarchical", min_count=1)
    lengths = (task.signs != 0).sum(dim=1).tolist()
    heap, cost = list(COUNTS), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        heapq.heappush(heap, together := heapq.heappop(heap) + heapq.heappop(heap))
        cost += together
    assert sum(count * length for count, length in zip(COUNTS, lengths, strict=True)) == cost
    assert sum(2.0**-length for length in lengths) == 1  # a full binary tree
    # Probabilities of all words, given any center, add up to 1.
    scores = torch.randn(len(WORDS) - 1, dtype=torch.double)
    probabilities = (torch.sigmoid(task.signs * scores[task.nodes]).log() * (task.signs != 0)).sum(dim=1).exp()
    assert float(probabilities.sum()) == pytest.approx(1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    from sslkit.text.passages import Passages

    return Path(Passages.example(tmp_path, 16))


@pytest.mark.parametrize("kind", ["negative", "hierarchical"])
@pytest.mark.parametrize("task", ["skipgram", "cbow"])
def test_words_of_a_family_are_neighbors(sslkit: Callable[..., Any], text: Path, tmp_path: Path, task: str, kind: str) -> None:
    run = tmp_path / "run"
    options = ["--loss", kind, "--subsample", 0, "--epochs", 40, "--context", 32, "--encoder-option", "width=16", "--lr", 0.05]
    result = sslkit("pretrain", task, "--data", text, "--out", run, *options, "--json").json
    encoder = load(str(result["checkpoint"]))
    assert len(encoder.words) == 40
    result = sslkit("search", "--ckpt", run / "model.safetensors", "a0", "B3", "--k", 8, "--json").json
    for word, near in result["neighbors"].items():
        assert all(other[0] == word[0].lower() for other, _ in near), (word, near)
    ran = sslkit("search", "--ckpt", run / "model.safetensors", "a0", "--k", 1)
    assert ran.code == 0 and ran.out.startswith("a0 ")
    unknown = sslkit("search", "--ckpt", run / "model.safetensors", "a00", "zebra")
    assert (
        unknown.code == 2
        and "a00 is not among the 40 words (did you mean a0" in unknown.err
        and "zebra is not among the 40 words" in unknown.err
    )
    refused = sslkit("knn", "--ckpt", run / "model.safetensors")
    assert refused.code == 2 and "text.txt is running text, without labels" in refused.err


def test_refusals(sslkit: Callable[..., Any], text: Path, trained: Path) -> None:
    for flags, message in (
        (["--min-count", 10**6], "--min-count: 1000000 leaves 0 of 40 words"),
        (["--encoder", "resnet_micro"], "--encoder: a table of word vectors is needed (got resnet_micro)"),
        (["--context", 4000], "--context: 4000 tokens in a passage"),
        (["--label", "x"], "--label: "),
        (["--group-pattern", "(x)"], "is text, which has no labels or groups"),
        (["--loss", "softmax"], "--loss: should be negative or hierarchical (got softmax)"),
    ):
        ran = sslkit("pretrain", "skipgram", "--data", text, "--batch-size", 16, *flags)
        assert ran.code == 2 and message in ran.err, ran.err
    ran = sslkit("search", "--ckpt", trained, "king")
    assert ran.code == 2 and "king is not a file (rotation was trained on images)" in ran.err


def test_softplus_is_torchs() -> None:
    scores = torch.linspace(-40, 120, 1000, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-6)):
        values = scores.to(dtype).requires_grad_()
        ours, theirs = softplus(values), torch.nn.functional.softplus(values)
        assert torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance)
        gradients = [torch.autograd.grad(each.sum(), values)[0] for each in (ours, theirs)]
        assert torch.allclose(*gradients, atol=tolerance, rtol=tolerance)
