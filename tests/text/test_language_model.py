"""perplexity, generate and fill-mask on small models of a text with a pattern."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit import GenerateSpec, PretrainSpec, load, pretrain
from sslkit.text.generate import choose_tokens
from sslkit.text.held_out import TestText
from sslkit.text.language_model import read_language_model
from sslkit.text.perplexity import token_losses
from sslkit.text.pseudo_perplexity import masked_nats, passages
from sslkit.text.tokenizer import CLS, END, MASK, SEP

WORDS = ["red", "green", "blue", "black"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return documents in which colors follow each other in a cycle."""
    folder = tmp_path_factory.mktemp("colors")
    for number in range(20):
        words = [WORDS[(number + place) % 4] for place in range(1200)]
        (folder / f"{number:02}.txt").write_text(" ".join(words) + ".\n")
    return folder


def trained(task: str, text: Path, out: Path, **settings: Any) -> Path:
    values: dict[str, Any] = {"context": 16, "batch_size": 32, "health_every": 0, "lr": 5e-3, "steps": 120, **settings}
    options = {"width": "32", "depth": "1"}
    return Path(pretrain(PretrainSpec(task=task, data=str(text), out=str(out), encoder_option=options, **values)).checkpoint)


@pytest.fixture(scope="module")
def causal(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a language model of words."""
    return trained("gpt", text, tmp_path_factory.mktemp("runs") / "gpt", unit="bpe", vocabulary=280, held_out=0.1)


@pytest.fixture(scope="module")
def masked(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a masked language model of words."""
    out = tmp_path_factory.mktemp("runs") / "bert"
    return trained("bert", text, out, unit="wordpiece", steps=250, options={"mask_ratio": 0.25})


def test_perplexity_of_what_was_held_out(causal: Path, sslkit: Callable[..., Any]) -> None:
    ran = sslkit("perplexity", "--ckpt", causal)
    assert ran.code == 0, ran.err
    assert "the last 10.0% of" in ran.out and "token counts" in ran.out and "xz -9e" in ran.out
    result = sslkit("perplexity", "--ckpt", causal, "--json").json
    rows = {row["model"]: {metric["name"]: metric for metric in row["metrics"]} for row in result["rows"]}
    ours = rows["checkpoint"]["bits per byte"]
    assert ours["value"] < rows["token counts"]["bits per byte"]["value"] < rows["random weights"]["bits per byte"]["value"]
    assert ours["low"] < ours["value"] < ours["high"] and ours["n"] == rows["xz -9e"]["bits per byte"]["n"]
    nats = ours["value"] * math.log(2) * ours["n"]
    for name in ("perplexity per token", "perplexity per word"):
        assert rows["checkpoint"][name]["value"] == pytest.approx(math.exp(nats / rows["checkpoint"][name]["n"]), rel=1e-6)
    assert result["protocol"] == "perplexity/half-window-v1" and rows["checkpoint"]["perplexity per word"]["n"] == 2400


def test_perplexity_of_named_texts(causal: Path, text: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    random = np.random.default_rng(0)
    files = [tmp_path / "other.txt", tmp_path / "third.txt"]
    for file in files:
        file.write_text(" ".join(random.permutation(WORDS * 30).tolist()))
    start = ["perplexity", "--ckpt", causal, "--no-baselines"]
    tests = [word for file in files for word in ("--test", file)]
    result = sslkit(*start, *tests, "--stride", 4, "--json").json
    assert [row["test"] for row in result["rows"]] == list(map(str, files))
    assert result["protocol"] is None and result["settings"]["stride"] == 4
    ran = sslkit(*start, *tests, "--stride", 17)
    assert ran.code == 2 and "--stride: 17 is more than a window of 16 tokens" in ran.err
    ran = sslkit(*start, "--test", text / "03.txt")
    assert ran.code == 2 and "stands in the text that checkpoint was trained on" in ran.err, ran.err


def test_models_are_compared_on_the_same_blocks_of_text(
    causal: Path, text: Path, tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    of_bytes = trained("gpt", text, tmp_path / "bytes", unit="byte", held_out=0.1, steps=20)
    result = sslkit("perplexity", "--ckpt", causal, "--against", of_bytes, "--json").json
    rows = {row["model"]: row for row in result["rows"]}
    other = rows[str(of_bytes)]
    values = {name: rows[name]["metrics"][0]["value"] for name in ("checkpoint", str(of_bytes))}
    comparison = other["comparisons"]["checkpoint"]
    assert f"{of_bytes}: worse than the checkpoint, +" in result["notes"][-1]
    assert comparison["difference"] == pytest.approx(values[str(of_bytes)] - values["checkpoint"]) and comparison["low"] > 0
    assert other["metrics"][0]["n"] == rows["checkpoint"]["metrics"][0]["n"]  # bytes
    assert other["metrics"][1]["n"] > rows["checkpoint"]["metrics"][1]["n"]  # tokens


def test_texts_that_cannot_be_compared_are_refused(
    causal: Path, text: Path, tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    words = trained("gpt", text, tmp_path / "words", unit="word", held_out=0.1, steps=2)
    ran = sslkit("perplexity", "--ckpt", causal, "--against", words)
    assert ran.code == 2 and "--against: " in ran.err and "compare models of bytes" in ran.err, ran.err
    reads_more = trained("gpt", text, tmp_path / "more", unit="byte", held_out=0.01, steps=2)
    ran = sslkit("perplexity", "--ckpt", causal, "--against", reads_more)
    assert ran.code == 2 and "on a part of the text that it is tested on" in ran.err, ran.err
    (tmp_path / "new.txt").write_text("black red red blue " * 4)
    ran = sslkit("perplexity", "--ckpt", causal, "--test", tmp_path / "new.txt", "--against", reads_more)
    assert ran.code == 0, ran.err
    ran = sslkit("perplexity", "--ckpt", reads_more, "--held-out", 0.2)
    assert ran.code == 2 and "--held-out: " in ran.err, ran.err


def test_a_text_that_has_changed_is_refused(tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    file = tmp_path / "text.txt"
    file.write_text("red green blue black " * 200)
    checkpoint = trained("gpt", file, tmp_path / "run", unit="byte", steps=2)
    assert sslkit("perplexity", "--ckpt", checkpoint).code == 0
    file.write_text("red green blue brown " * 200)  # as long
    ran = sslkit("perplexity", "--ckpt", checkpoint)
    assert ran.code == 2 and "has changed since the run" in ran.err, ran.err
    assert sslkit("perplexity", "--ckpt", checkpoint, "--data", file).code == 0
    ran = sslkit("generate", "red", "--ckpt", checkpoint, "--length", 5)
    assert ran.code == 0 and "has changed since the run" in ran.err and "copied from" not in ran.out, ran.err


def test_every_token_is_counted_once_with_enough_before_it(causal: Path) -> None:
    model = read_language_model(str(causal), "encoder", "next")
    tokens = np.array([5, 9, 200, 7, 7, 31, 250, 3, 3, 90, 12], dtype=np.int32)
    text = TestText(tokens, np.ones(11, dtype=np.bool_))
    nats = token_losses(model, text, 4, 2)
    for place in range(11):
        start = 0 if place < 4 else 2 * ((place - 2) // 2)  # windows of four begin at 0, 2, 4, ...; their last two count
        start = 7 if place == 10 else start  # the last window ends with the text
        before = [text.previous[at] for at in range(start, place + 1)]
        with torch.no_grad():
            logits = model.logits(model.encoder.states(torch.tensor([before]).long()))[0, -1].double()
        assert nats[place] == pytest.approx(float(-logits.log_softmax(0)[tokens[place]]), abs=1e-5), place
    assert text.previous[0] == tokens[-1] and model.tokenizer.size == model.encoder.in_channels


def test_pseudo_perplexity_masks_each_token_alone(masked: Path, sslkit: Callable[..., Any]) -> None:
    model = read_language_model(str(masked), "encoder", "masked")
    special = model.tokenizer.special
    tokens = np.array([0, 3, 1, 2, 0, special(END), 1, 2, 3], dtype=np.int32)
    text = TestText(tokens, tokens != special(END))
    places = passages(9, 5, 2)
    assert places.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]] and len(passages(9, 5, 1)) == 1
    assert passages(3, 5, 4).tolist() == [[0, 1, 2]]
    nats = masked_nats(model, text, places)
    for number, passage in enumerate(places):
        for at, place in enumerate(passage):
            row = [special(CLS), *tokens[passage].tolist(), special(SEP)]
            row[at + 1] = special(MASK)
            with torch.no_grad():
                logits = model.logits(model.encoder.states(torch.tensor([row])))[0, at + 1, : model.tokenizer.first_special]
            expected = 0.0 if not text.counted[place] else float(-logits.double().log_softmax(0)[tokens[place]])
            assert nats[number, at] == pytest.approx(expected, abs=1e-5)
    ran = sslkit("pseudo-perplexity", "--ckpt", masked)
    assert ran.code == 0 and "pseudo-perplexity/passages-v1" in ran.out and "token counts" in ran.out, ran.out + ran.err
    result = sslkit("pseudo-perplexity", "--ckpt", masked, "--passages", 3, "--json").json
    rows = {row["model"]: row["metrics"] for row in result["rows"]}
    assert rows["checkpoint"][0]["value"] < rows["token counts"][0]["value"] < rows["random weights"][0]["value"]
    assert rows["checkpoint"][1]["value"] == pytest.approx(math.exp(rows["checkpoint"][0]["value"]))
    assert result["protocol"] is None


def test_short_texts_and_last_chunks_of_one_token_are_masked(masked: Path) -> None:
    model = read_language_model(str(masked), "encoder", "masked")
    for length in (1, 3):
        tokens = np.arange(length, dtype=np.int32) % 4
        text = TestText(tokens, np.ones(length, dtype=np.bool_))
        whole = masked_nats(model, text, passages(length, 14, 64))
        assert whole.shape == (1, length) and (whole > 0).all()


def test_of_few_blocks_no_interval_is_claimed(causal: Path, masked: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    for verb, checkpoint in (("perplexity", causal), ("pseudo-perplexity", masked)):
        for content in ("red", "red blue red green black " * 20):
            (tmp_path / "short.txt").write_text(content)
            result = sslkit(verb, "--ckpt", checkpoint, "--test", tmp_path / "short.txt", "--json").json
            headline = result["rows"][0]["metrics"][0]
            assert headline["low"] is None and not any(row["comparisons"] for row in result["rows"])


def test_other_data_than_the_checkpoints_is_checked(causal: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    other = tmp_path / "other.txt"
    other.write_text("red black blue green " * 300)
    reads_all = trained("gpt", other, tmp_path / "all", unit="byte", held_out=0.0, steps=2)
    ran = sslkit("perplexity", "--ckpt", causal, "--data", other, "--against", reads_all)
    assert ran.code == 2 and "--against: " in ran.err and "--held-out 0.0" in ran.err, ran.err
    assert sslkit("perplexity", "--ckpt", causal, "--data", other, "--held-out", 0.2, "--no-baselines").code == 0
    parts = tmp_path / "parts"
    for part in ("train", "test"):
        (parts / part).mkdir(parents=True)
        (parts / part / "a.txt").write_text("red black blue green " * 300)
    reads_less = trained("gpt", parts, tmp_path / "less", unit="byte", held_out=0.2, steps=2)
    flags = ["--data", parts, "--against", reads_less, "--held-out", 0.3, "--no-baselines"]
    assert sslkit("perplexity", "--ckpt", reads_less, *flags).code == 0  # the test part, of which nobody has read anything


def test_generation_goes_on_and_tells_what_it_copies(causal: Path, sslkit: Callable[..., Any]) -> None:
    first = sslkit("generate", "red green", "--ckpt", causal, "--temperature", 0, "--length", 40)
    assert first.code == 0 and first.out.startswith("red green blue black red green blue"), first.out + first.err
    flags = ["--ckpt", causal, "--count", 3, "--length", 30, "--temperature", 5, "--json"]
    result, again = (sslkit("generate", "red green", *flags).json for _ in range(2))
    assert result == again and len(result["texts"]) == 3
    other = sslkit("generate", "red green", *flags, "--seed", 1).json
    assert other["texts"] != result["texts"]
    greedy = sslkit("generate", "red", "--ckpt", causal, "--temperature", 0, "--length", 60, "--json").json
    assert greedy["copied"]["4"] > 0.8 and greedy["distinct"]["1"] < 0.5


def test_tokens_are_chosen_among_the_likeliest() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.3, 0.2])
    scores = probabilities.log().repeat(4000, 1)

    def shares(temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> torch.Tensor:
        chosen = choose_tokens(scores, temperature, top_k, top_p, torch.Generator().manual_seed(0))
        return torch.bincount(chosen, minlength=4) / 4000

    assert torch.allclose(shares(), probabilities, atol=0.03)
    assert torch.allclose(shares(top_k=2), torch.tensor([0, 4 / 7, 3 / 7, 0]), atol=0.03)
    assert torch.allclose(shares(top_p=0.69), torch.tensor([0, 4 / 7, 3 / 7, 0]), atol=0.03)  # the fewest that have it
    assert torch.allclose(shares(top_p=0.71), torch.tensor([0, 4, 3, 2]) / 9, atol=0.03)
    assert torch.allclose(shares(temperature=0.5), probabilities**2 / 0.3, atol=0.03)
    for settings in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}):
        assert shares(**settings)[1] == 1  # type: ignore[arg-type]


def test_masks_are_filled(masked: Path, sslkit: Callable[..., Any]) -> None:
    ran = sslkit("fill-mask", "green blue black red [MASK] blue black red green", "--ckpt", masked)
    assert ran.code == 0 and ran.out.split()[1] == "green", ran.out + ran.err
    flags = ["--candidates", "red", "--candidates", "blue", "--json"]
    answers = sslkit("fill-mask", "green blue black red [MASK] blue black", "--ckpt", masked, *flags).json["answers"]
    assert {answer["piece"] for answer in answers} == {"red", "blue"}
    assert answers[0]["probability"] >= answers[1]["probability"] and "[MASK]" not in answers[0]["text"]


def test_refusals(causal: Path, masked: Path, trained_words: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    (tmp_path / "empty.txt").write_text("")
    for arguments, message in (
        (["perplexity", "--ckpt", masked], "--ckpt: "),
        (["perplexity", "--ckpt", masked], "predicts masked tokens (expected a checkpoint of gpt, rnn_lm, neural_lm or elmo)"),
        (["pseudo-perplexity", "--ckpt", causal], "predicts next tokens (expected a checkpoint of bert)"),
        (["perplexity", "--ckpt", trained_words], "has no language-model head"),
        (["perplexity", "--ckpt", causal, "--test", tmp_path / "empty.txt"], "--test: "),
        (["perplexity", "--ckpt", causal, "--size", 32], "--size"),
        (["generate", "x", "--ckpt", masked], "predicts masked tokens"),
        (["generate", "x", "--ckpt", causal, "--top-p", 0], "--top-p"),
        (["fill-mask", "no mask", "--ckpt", masked], "TEXT: the text has 0 [MASK], expected one"),
        (["fill-mask", "a [MASK]", "--ckpt", causal], "predicts next tokens (expected a checkpoint of bert)"),
        (["fill-mask", "a [MASK]", "--ckpt", masked, "--candidates", "zebra€"], "--candidates: zebra€ is"),
        (["fill-mask", "red " * 40 + "[MASK]", "--ckpt", masked], "the model takes 16 (shorten it)"),
    ):
        ran = sslkit(*arguments)
        assert ran.code == 2 and message in ran.err, (arguments, ran.out, ran.err)


@pytest.fixture(scope="module")
def trained_words(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return word vectors, which predict no tokens."""
    spec = PretrainSpec(
        task="skipgram", data=str(text), out=str(tmp_path_factory.mktemp("runs") / "words"), steps=2, context=16
    )
    return Path(pretrain(spec).checkpoint)


def test_specs_stand_in_the_public_interface(causal: Path) -> None:
    import sslkit as package

    result = package.generate(GenerateSpec(ckpt=str(causal), prompt="blue", length=3, temperature=0))
    assert result.texts[0].startswith("blue") and load(causal).modality == "text"
