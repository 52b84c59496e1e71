"""icmlm: concepts of captions, the one that is hidden, losses against loops, a text tower that stays as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.image_text.encoders import caption_framing
from sslkit.tasks.load import load_task
from sslkit.text import tokenizer as tokens
from sslkit.text.tokenizer import Tokenizer
from tests.canvases import canvases

CAPTIONS = ["a red square", "a blue square", "the redder triangle", "a red triangle", "of the blue", "is a"]
TOKENIZER = Tokenizer.learn("wordpiece", lambda: CAPTIONS, 40)
MASK = TOKENIZER.special(tokens.MASK)


def framed() -> Tensor:
    return torch.from_numpy(caption_framing(TOKENIZER).pad(TOKENIZER.encode(CAPTIONS), 20)).long()


def icmlm(**options: Any) -> Any:
    details = {"tokenizer": TOKENIZER.to_bytes(), "length": 20, "text_checkpoint": None, "captions": framed().int().numpy()}
    task_class, data = load_task("icmlm"), DataInfo(6, 16, 3, "image_text", details, batch_size=6)
    parsed = task_class.Options(**{"text_width": 16, "text_depth": 1, "min_count": 2, **options})
    torch.manual_seed(0)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


def prepared(task: Any) -> Any:
    return task.transform(canvases(torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(1)), tokens=framed()))


def test_concepts_are_frequent_words_with_a_meaning() -> None:
    assert set(icmlm().names) == {"red", "blue", "square", "triangle"}
    assert set(icmlm(min_count=1).names) == {"red", "blue", "square", "triangle", "redder"}
    assert len(icmlm(concepts=2).names) == 2


def test_stop_words_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("the\nRed\n")
    assert set(icmlm(stop_words=str(file)).names) == {"a", "blue", "square", "triangle"}


def test_one_concept_is_hidden_with_all_its_tokens() -> None:
    task, hidden_of = icmlm(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        batch = prepared(task)
        for row, caption in enumerate(CAPTIONS):
            hidden = task.names[batch["concept"][row]]
            if row == 5:  # "is a"
                assert batch["weight"][row] == 0 and torch.equal(batch["tokens"][row], framed()[row])
                continue
            ids = torch.from_numpy(TOKENIZER.encode([hidden])[0]).long()
            start = int(batch["place"][row])
            assert torch.equal(framed()[row, start : start + len(ids)], ids) and hidden in caption.split()
            expected = framed()[row].clone()
            expected[start : start + len(ids)] = MASK
            assert torch.equal(batch["tokens"][row], expected) and batch["weight"][row] == 1
            assert {task.names[place] for place in batch["tags"][row].nonzero()[:, 0]} == set(caption.split()) & set(task.names)
            hidden_of.add((row, hidden))
    assert {(0, "red"), (0, "square"), (1, "blue"), (1, "square"), (3, "red"), (3, "triangle")} <= hidden_of


@pytest.mark.parametrize("fusion", ["transformer", "attention"])
def test_losses_against_a_loop(fusion: str) -> None:
    task = icmlm(fusion=fusion, tag_weight=0.5).eval()
    batch = prepared(task)
    output = task.predict(batch)
    losses, counts = task.loss(output, batch), task.counts(batch)
    nats, tags = 0.0, 0.0
    for row in range(6):
        if batch["weight"][row]:
            nats -= float(output["concept"][row].detach().log_softmax(0)[batch["concept"][row]])
        for place, target in enumerate(batch["tags"][row].tolist()):
            p = float(output["tags"][row, place].detach().double().sigmoid())
            tags -= float(torch.tensor(p if target else 1 - p).log()) / batch["tags"].numel()
    assert losses["concept_nats"].item() == pytest.approx(nats, rel=1e-5) and counts["concept_nats"].item() == 5
    assert losses["tags"].item() == pytest.approx(0.5 * tags, rel=1e-5)
    other = task.predict({**batch, "image": batch["image"].roll(1, 0)})["concept"]
    assert not torch.allclose(output["concept"], other)
    gain = task.metrics(output, batch)["image_gain"]
    assert gain.shape == (6,) and gain[5] == 0 and gain[:5].abs().max() > 0


def test_byte_pairs_are_words_wherever_they_stand() -> None:
    text = ["cat dog", "dog cat", "Dog here", "a cat and Dog"]
    tokenizer = Tokenizer.learn("bpe", lambda: text * 20, 300)
    captions = torch.from_numpy(caption_framing(tokenizer).pad(tokenizer.encode(text), 8)).long()
    details = {"tokenizer": tokenizer.to_bytes(), "length": 8, "text_checkpoint": None, "captions": captions.int().numpy()}
    task_class, data = load_task("icmlm"), DataInfo(4, 16, 3, "image_text", details, batch_size=4)
    parsed = task_class.Options(text_width=16, text_depth=1, min_count=2)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    task = task_class(parsed, encoder, data)
    assert set(task.names) == {"cat", "dog"}
    word, concept = task._concepts(captions)
    assert [len(set(row[:-1].tolist())) >= 2 for row in word] == [True] * 4
    assert [{task.names[place] for place in row.tolist() if place >= 0} for row in concept] == [
        {"cat", "dog"},
        {"cat", "dog"},
        {"dog"},
        {"cat", "dog"},
    ]


def test_a_concept_is_hidden_wherever_it_stands() -> None:
    task = icmlm()
    twice = torch.from_numpy(caption_framing(TOKENIZER).pad(TOKENIZER.encode(["red square red triangle"] * 6), 20)).long()
    red = int(TOKENIZER.encode(["red"])[0][0])
    for seed in range(10):
        torch.manual_seed(seed)
        batch = task.transform(canvases(torch.rand(6, 3, 20, 20), tokens=twice))
        for row in range(6):
            if task.names[batch["concept"][row]] == "red":
                assert red not in batch["tokens"][row].tolist()


def test_chance_is_the_best_constant_guess() -> None:
    task, hits, count = icmlm(), torch.zeros(4), 0
    for seed in range(300):
        torch.manual_seed(seed)
        batch = prepared(task)
        known = batch["concept"][batch["weight"] > 0]
        hits += torch.bincount(known, minlength=4)
        count += len(known)
    assert task.chance()["accuracy"] == pytest.approx(float(hits.max()) / count, abs=0.03)


def test_without_tags_the_image_is_asked_for_nothing_else() -> None:
    task = icmlm(tag_weight=0.0)
    assert "tags" not in task.head and set(task.loss(task.predict(prepared(task)), prepared(task))) == {"concept_nats"}


def test_what_is_refused() -> None:
    with pytest.raises(SslkitError, match="--freeze-text: a text tower of random weights"):
        icmlm(freeze_text=True)
    with pytest.raises(SslkitError, match="--min-count: 0 words occur in at least 7 captions"):
        icmlm(min_count=7)
    with pytest.raises(SslkitError, match="--unit: bytes are no words"):
        byte = Tokenizer.learn("byte", lambda: CAPTIONS)
        details = {"tokenizer": byte.to_bytes(), "length": 20, "text_checkpoint": None, "captions": framed().int().numpy()}
        task_class, data = load_task("icmlm"), DataInfo(6, 16, 3, "image_text", details, batch_size=6)
        build = RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data)
        task_class(task_class.Options(text_width=16), task_class.build_encoder(task_class.Options(), build), data)
    with pytest.raises(SslkitError, match="--stop-words"):
        icmlm(stop_words="missing.txt")
