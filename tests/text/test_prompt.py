"""prompt and cloze: scores against the model itself, and that what a text says often is found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit import PretrainSpec, pretrain
from sslkit.text.answers import Gap, encode_answer, encode_gap, score_continuations, score_pieces
from sslkit.text.language_model import read_language_model
from sslkit.text.prompt import _parse
from sslkit.text.tokenizer import CLS, END, MASK, SEP, Tokenizer


@pytest.fixture(scope="module")
def opinions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text in which words of one family are good and those of another bad, and a table of labeled texts."""
    folder, random = tmp_path_factory.mktemp("opinions"), np.random.default_rng(0)
    lines, rows = [], ["text\tlabel"]
    for number in range(600):
        letter, word = ("a", "good") if random.random() < 0.5 else ("b", "bad")
        text = " ".join(f"{letter}{place}" for place in random.integers(4, size=1))
        lines.append(f"{text} {word} .")
        if number < 120:
            rows.append(f"{text}\t{'positive' if word == 'good' else 'negative'}")
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "labeled.tsv").write_text("\n".join(rows))
    return folder


def trained(task: str, opinions: Path, out: Path, **settings: Any) -> Path:
    values: dict[str, Any] = {"context": 32, "batch_size": 32, "health_every": 0, "lr": 5e-3, **settings}
    options = {"width": "32", "depth": "2"}
    spec = PretrainSpec(task=task, data=str(opinions / "text.txt"), out=str(out), encoder_option=options, **values)
    return Path(pretrain(spec).checkpoint)


@pytest.fixture(scope="module")
def masked(opinions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("bert", opinions, tmp_path_factory.mktemp("runs") / "bert", unit="word", steps=250)


@pytest.fixture(scope="module")
def causal(opinions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("gpt", opinions, tmp_path_factory.mktemp("runs") / "gpt", unit="bpe", vocabulary=300, steps=300)


@torch.no_grad()
def test_scores_are_those_of_the_model(masked: Path, causal: Path) -> None:
    model = read_language_model(str(masked), "encoder", "masked")
    tokenizer = model.tokenizer
    gaps = [encode_gap(tokenizer, "a1 it was ", " ."), encode_gap(tokenizer, "b1 b2 b3 it was ", "")]
    for gap, scores in zip(gaps, score_pieces(model, gaps), strict=True):
        special = {name: tokenizer.special(name) for name in (CLS, MASK, SEP)}
        ids = [special[CLS], *gap.before, special[MASK], *gap.after, special[SEP]]
        state = model.encoder.states(torch.tensor([ids]))[0, 1 + len(gap.before)]
        expected = model.logits(state)[: tokenizer.first_special].log_softmax(dim=0)
        assert torch.allclose(scores, expected, atol=1e-5)
    model = read_language_model(str(causal), "encoder", "next")
    tokenizer = model.tokenizer
    contexts = tokenizer.encode(["a1 a2 it was", "b3"])
    answers = [encode_answer(tokenizer, answer) for answer in ("good", "unheard of")]
    scores = score_continuations(model, contexts, answers)
    for row, context in enumerate(contexts):
        for column, answer in enumerate(answers):
            ids = torch.tensor([tokenizer.special(END), *context, *answer])
            nats = model.logits(model.encoder.next_states(ids[None, :-1])[0]).log_softmax(dim=1)
            expected = sum(float(nats[place, ids[place + 1]]) for place in range(len(context), len(ids) - 1))
            assert float(scores[row, column]) == pytest.approx(expected, abs=1e-4)
    assert isinstance(gaps[0], Gap)


def test_blanks_of_a_pattern_belong_to_what_follows_them() -> None:
    tokenizer = Tokenizer.learn("bpe", lambda: ["Review: great film It was good ."] * 4, 290)
    pattern = _parse("Review: {} It was [MASK] .", "masked")
    first, between, after, ids = pattern.encode(tokenizer, "great")
    whole = tokenizer.encode(["Review: great It was good ."])[0]
    assert np.concatenate([first, ids, between, encode_answer(tokenizer, "good"), after]).tolist() == whole.tolist()
    pattern = _parse("It was [MASK] : {}", "masked")
    first, between, after, ids = pattern.encode(tokenizer, "great film")
    whole = tokenizer.encode(["It was good : great film"])[0]
    assert np.concatenate([first, encode_answer(tokenizer, "good"), between, ids, after]).tolist() == whole.tolist()


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_texts_are_classified_by_what_is_said_of_them(
    kind: str, opinions: Path, sslkit: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(kind)
    start = ["prompt", "--ckpt", checkpoint, "--data", opinions / "labeled.tsv", "--label", "label"]
    words = ["--verbalizer", "positive=good", "--verbalizer", "negative=bad", "--pattern", "{} [MASK] ."]
    result = sslkit(*start, *words, "--json").json
    accuracies = {row["model"]: row["metrics"][0]["value"] for row in result["rows"]}
    assert list(accuracies) == ["checkpoint", "random weights", "TF-IDF, logistic regression", "most frequent class"]
    assert accuracies["checkpoint"] > 0.9 > accuracies["random weights"], accuracies
    assert result["protocol"] == ("prompt/mask-v1" if kind == "masked" else "prompt/next-v1")
    shots = sslkit(*start, *words, "--shots", "1", "--pattern", "{} [MASK]", "--json").json
    assert shots["rows"][0]["metrics"][0]["value"] > 0.5 and shots["rows"][0]["fits"][0]["n_train"] == 2
    assert shots["protocol"] is None and shots["settings"]["pattern"] == ["{} [MASK] .", "{} [MASK]"]
    for flags, message in (
        (["--pattern", "it was [MASK]"], "--pattern: 'it was [MASK]' should hold {} and [MASK] once each"),
        (["--verbalizer", "neutral=fair"], "--verbalizer: there is no class neutral (classes are negative, positive)"),
        (["--shots", "60"], "--shots: class "),
        (["--context", "16"], "--context: the model reads 32 tokens"),
        (["--shots", "20"], "--pattern: 32 tokens leave "),
    ):
        refused = sslkit(*start, *words, *flags)
        assert refused.code == 2 and message in refused.err, refused.err


def test_words_that_are_no_pieces(masked: Path, causal: Path, opinions: Path, sslkit: Callable[..., Any]) -> None:
    start = ["--data", opinions / "labeled.tsv", "--label", "label"]
    ran = sslkit("prompt", "--ckpt", masked, *start)
    assert ran.code == 2 and "--verbalizer: negative is no piece of the tokenizer" in ran.err
    ran = sslkit("prompt", "--ckpt", causal, *start, "--pattern", "[MASK] is {}")
    assert ran.code == 2 and "a causal model needs the answer at the end" in ran.err
    assert sslkit("prompt", "--ckpt", causal, *start, "--no-calibrate").code == 0  # names of several pieces


def test_missing_words_are_ranked(masked: Path, causal: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    file = tmp_path / "cloze.tsv"
    file.write_text("a1 [MASK] .\tgood\nb1 [MASK] .\tbad\nb1 [MASK]\tterrible\n")
    result = sslkit("cloze", "--ckpt", masked, "--test", file, "--json").json
    trained, random = (row["metrics"] for row in result["rows"])
    assert [metric["value"] for metric in trained] == [1.0, 1.0, 1.0] and trained[0]["n"] == 2
    assert random[2]["value"] < 1 and result["protocol"] == "cloze/pieces-v1" and "1 line skipped" in result["notes"][0]
    chosen = sslkit("cloze", "--ckpt", masked, "--test", file, "--candidates", "good", "--candidates", "bad", "--json").json
    assert chosen["settings"]["pieces"] == 2 and chosen["rows"][1]["metrics"][1]["value"] == 1.0
    file.write_text("a1 it was [MASK] . good\n")
    for arguments, message in (
        (["--ckpt", masked, "--test", file], "line 1 of"),
        (["--ckpt", masked], "--test: missing"),
        (["--ckpt", causal, "--test", file], "--ckpt: "),
        (["--ckpt", masked, "--test", tmp_path / "none.tsv"], "cannot read"),
    ):
        refused = sslkit("cloze", *arguments)
        assert refused.code == 2 and message in refused.err, refused.err
