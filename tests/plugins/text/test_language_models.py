"""Language models, causal and masked: what is predicted, losses against loops, and that patterns are learned."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit import DataInfo, SslkitError, load
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task
from sslkit.text.masking import frame_passages, mask_tokens, starts_word
from sslkit.text.tokenizer import CLS, MASK, PAD, SEP, SPECIALS, Tokenizer

WORDS = [f"w{number}" for number in range(20)]
TOKENIZER = Tokenizer("word", WORDS)
ENCODERS = {"gpt": "gpt_micro", "rnn_lm": "rnn_text", "bert": "bert_micro", "electra": "bert_micro"}
ENCODERS |= {"elmo": "elmo_text", "neural_lm": "feedforward_text"}


def built(name: str, size: int = 12, documents: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    task_class = load_task(name)
    counts = torch.tensor([*range(20, 0, -1), *(0 for _ in SPECIALS)])
    details = {"unit": "word", "tokenizer": TOKENIZER.to_bytes(), "counts": counts, "documents": documents, "words": WORDS}
    data, parsed = DataInfo(8, size, TOKENIZER.size, "text", details), task_class.Options(**options)
    recipe = recipe_for(ENCODERS[name], size, TOKENIZER.size, {"width": "16"} | ({} if name == "neural_lm" else {"depth": "1"}))
    return task_class(parsed, task_class.build_encoder(parsed, RecipeBuilder(recipe, data, "text")), data)


def passages(count: int = 4, size: int = 12) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    starts = torch.zeros(count, size, dtype=torch.bool)
    starts[:, ::3] = True
    document = torch.arange(count)[:, None].expand(count, size) // 2
    return {
        "tokens": torch.randint(20, (count, size)),
        "previous": torch.randint(20, (count,)),
        "starts_sentence": starts,
        "document": document,
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt", "rnn_lm", "neural_lm"])
def test_each_token_is_predicted_from_those_before_it(name: str) -> None:
    task, batch = built(name).double().eval(), passages()
    inputs = task.transform(batch)
    assert torch.equal(inputs["target"], batch["tokens"])
    assert torch.equal(inputs["tokens"][:, 1:], batch["tokens"][:, :-1]) and torch.equal(
        inputs["tokens"][:, 0], batch["previous"]
    )
    output = task.predict(inputs)
    total = 0.0
    for row in range(4):
        for place in range(12):
            scores = [float(score) for score in output[row, place]]
            total -= scores[int(batch["tokens"][row, place])] - math.log(sum(map(math.exp, scores)))
    assert float(task.loss(output, inputs)) == pytest.approx(total / 48, rel=1e-9)
    assert total / 48 == pytest.approx(math.log(TOKENIZER.size), abs=0.2)  # nothing is known at the start


def test_logits_are_products_with_the_input_vectors() -> None:
    task, batch = built("gpt").double(), passages()
    states = task.encoder.states(task.transform(batch)["tokens"])
    assert torch.allclose(task.predict(task.transform(batch)), states @ task.encoder.token.weight.T)
    assert task.exports()["lm"].state_dict() == {} and task.metadata()["language_model"]["predicts"] == "next"


def test_output_vectors_of_its_own() -> None:
    task, batch = built("neural_lm").double(), passages()
    states = task.encoder.states(task.transform(batch)["tokens"])
    head = task.exports()["lm"]
    assert head.state_dict().keys() == {"output", "bias"}
    assert torch.allclose(task.predict(task.transform(batch)), states @ head.output.T + head.bias)
    words, vectors = task.encoder.vocabulary()
    assert words == WORDS and vectors.shape == (20, 64)


@torch.no_grad()
def test_elmo_predicts_in_both_directions() -> None:
    task, batch = built("elmo").double().eval(), passages()
    inputs = task.transform(batch)
    rows = torch.cat([batch["previous"][:, None], batch["tokens"]], dim=1)
    output = task.predict(inputs)
    vectors, total = task.encoder.token.weight, {"next": 0.0, "previous": 0.0}
    for row in rows:
        before = task.encoder.states_before(row[None])[-1][0] @ vectors.T
        after = task.encoder.states_after(row[None])[-1][0] @ vectors.T
        for place in range(12):
            total["next"] -= float(before[place].log_softmax(0)[row[place + 1]])
            total["previous"] -= float(after[place + 1].log_softmax(0)[row[place]])
    losses = task.loss(output, inputs)
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(
        {name: value / 48 for name, value in total.items()}, rel=1e-9
    )
    assert task.metadata()["language_model"]["predicts"] == "both"


@torch.no_grad()
def test_electra_detects_what_the_generator_replaced() -> None:
    task = built("electra", mask_ratio=0.3).double().eval()
    batch = task.transform(passages(count=3000))
    output = task.predict(batch)
    inputs, places = batch["tokens"], batch["places"]
    logits = task.generator(inputs, places, task.encoder.token.weight)
    assert torch.equal(output["tokens"], logits)
    # Tokens are drawn from the generator's distribution, and one that equals the original is not replaced.
    expected = 1 - logits.softmax(dim=2).gather(2, batch["target"][..., None]).mean()
    replaced = output["is_replaced"].gather(1, places)
    assert float(replaced.mean()) == pytest.approx(float(expected), abs=0.02)
    assert output["is_replaced"].sum() == replaced.sum()  # nowhere else
    losses, counts = task.loss(output, batch), task.counts(batch)
    nats = -logits.log_softmax(dim=2).gather(2, batch["target"][..., None]).sum()
    assert float(losses["masked_nats"]) == pytest.approx(float(nats), rel=1e-9) and counts["masked_nats"] == 3000 * 4
    probability = output["replaced"].sigmoid()
    answers = torch.where(output["is_replaced"] > 0, probability, 1 - probability)
    assert float(losses["replaced"]) == pytest.approx(50 * float(-answers.log().mean()), rel=1e-9)
    certain = {**batch, "uniform": torch.zeros_like(batch["uniform"])}  # the first token that has any probability
    sampled = task.predict(certain)["is_replaced"].gather(1, places)
    assert torch.equal(sampled, (batch["target"] != 0).double())


def test_chance_is_that_of_the_frequencies() -> None:
    levels = built("gpt").chance()
    assert levels == {"accuracy": pytest.approx(20 / 210)}  # words lose spaces: there are no bits per byte
    probabilities = [count / 210 for count in range(20, 0, -1)]
    assert built("bert").chance()["masked_nats"] == pytest.approx(-sum(p * math.log(p) for p in probabilities), rel=1e-6)


def test_bert_frames_passages_and_loses_only_what_has_no_room() -> None:
    batch = passages()
    framed = frame_passages(batch["tokens"], 20)
    assert framed[:, 0].eq(20 + CLS).all() and framed[:, -1].eq(20 + SEP).all()
    assert torch.equal(framed[:, 1:-1], batch["tokens"][:, :10])


@pytest.mark.parametrize("pairs", ["next", "order"])
def test_bert_builds_pairs(pairs: str) -> None:
    task, batch = built("bert", pairs=pairs), passages(count=64)
    batch["document"] = torch.arange(64)[:, None].expand(64, 12)
    rows, other = task._pair(batch)
    assert 0.3 < float(other.float().mean()) < 0.7
    for row, (tokens, is_other) in enumerate(zip(rows.tolist(), other.tolist(), strict=True)):
        assert tokens[0] == 20 + CLS and tokens.count(20 + SEP) == 2
        end = [place for place, token in enumerate(tokens) if token == 20 + SEP]
        first, second = tokens[1 : end[0]], tokens[end[0] + 1 : end[1]]
        assert set(tokens[end[1] + 1 :]) <= {20 + PAD}
        text = batch["tokens"][row].tolist()
        split = 3 if abs(3 - 4) <= abs(6 - 4) else 6  # the beginning of a sentence that is nearest to the middle
        parts = [text[:split], text[split:9]]
        if pairs == "order":
            assert [first, second] == (parts[::-1] if is_other else parts)
        elif is_other:
            assert first == parts[0] and second == batch["tokens"][row - 1].tolist()[split:9]
        else:
            assert [first, second] == parts


def test_a_segment_of_the_same_document_is_no_other_one() -> None:
    batch = passages(count=32)
    batch["document"] = torch.zeros(32, 12, dtype=torch.int64)
    assert not built("bert", pairs="next")._pair(batch)[1].any()
    with pytest.raises(SslkitError, match="cannot be learned from a single document"):
        built("bert", variant="bert", documents=1)


@torch.no_grad()
def test_bert_loss_against_a_loop() -> None:
    task = built("bert", pairs="order", mask_ratio=0.3).double()
    batch = task.transform(passages())
    output = task.predict(batch)
    terms, counts = task.loss(output, batch), task.counts(batch)
    total, count = 0.0, 0
    for row in range(4):
        for place in range(4):
            if batch["weight"][row, place]:
                scores = [float(score) for score in output["tokens"][row, place]]
                total -= scores[int(batch["target"][row, place])] - math.log(sum(map(math.exp, scores)))
                count += 1
    assert float(terms["masked_nats"]) == pytest.approx(total, rel=1e-9) and int(counts["masked_nats"]) == count
    pair = [float(-output["pair"][row].log_softmax(0)[batch["other"][row]]) for row in range(4)]
    assert float(terms["pair"]) == pytest.approx(sum(pair) / 4, rel=1e-9)


def test_masks_are_as_many_and_of_these_kinds() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(1000, (2000, 40))
    tokens[:, 0], tokens[:, 30:] = 1000 + CLS, 1000 + PAD
    masked = mask_tokens(tokens, torch.ones(1006, dtype=torch.bool), 6, "token", 1000)
    assert masked["weight"].min() == 1 and masked["places"].shape == (2000, 6)
    assert int(masked["places"].min()) == 1 and int(masked["places"].max()) == 29
    assert all(len(set(places)) == 6 for places in masked["places"].tolist())
    assert torch.equal(masked["target"], tokens.gather(1, masked["places"]))
    hidden = masked["tokens"].gather(1, masked["places"])
    assert float((hidden == 1000 + MASK).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float((hidden == masked["target"]).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert not ((hidden >= 1000) & (hidden != 1000 + MASK)).any()
    others = torch.ones_like(tokens, dtype=torch.bool).scatter(1, masked["places"], False)
    assert torch.equal(masked["tokens"][others], tokens[others])


def test_places_that_a_row_lacks_have_no_weight() -> None:
    tokens = torch.full((3, 8), 20 + PAD)
    tokens[:, :2] = 5
    masked = mask_tokens(tokens, torch.ones(26, dtype=torch.bool), 4, "token", 20)
    assert masked["weight"].sum(dim=1).tolist() == [2, 2, 2] and (masked["tokens"][:, 2:] == 20 + PAD).all()


def test_words_are_masked_whole_and_spans_in_a_row() -> None:
    torch.manual_seed(0)
    starts = torch.arange(46) % 2 == 0  # even ids begin a word, odd ones go on
    tokens = torch.tensor([[0, 1, 3, 2, 4, 5, 6, 7, 9, 8]]).repeat(300, 1)
    words = [[0, 1, 2], [3], [4, 5], [6, 7, 8], [9]]
    for masked in (mask_tokens(tokens, starts, 4, "word", 40),):
        for places, weight in zip(masked["places"].tolist(), masked["weight"].tolist(), strict=True):
            chosen = {place for place, counts in zip(places, weight, strict=True) if counts}
            assert all(chosen.issuperset(word) or chosen.isdisjoint(word) for word in words) and chosen
    long = torch.randint(40, (400, 100))
    places = mask_tokens(long, starts, 20, "span", 40)["places"].sort(dim=1).values
    single = mask_tokens(long, starts, 20, "token", 40)["places"].sort(dim=1).values
    assert (places.diff(dim=1) == 1).float().mean() > 2 * (single.diff(dim=1) == 1).float().mean()


def test_pieces_that_begin_a_word() -> None:
    text = ["the cats were unbelievable. The cat was 3.5 feet\n"] * 4
    pieces = Tokenizer.learn("wordpiece", lambda: text, 60)
    begins = starts_word(pieces)
    assert [bool(begins[token]) for token in pieces.encode(["unbelievable cat"])[0]].count(True) == 2
    bpe = Tokenizer.learn("bpe", lambda: text, 290)
    ids = bpe.encode(["the cats.\nno"])[0].tolist()
    assert [bpe.piece(token) for token in ids if starts_word(bpe)[token]][-3:] == [" cats", ".", "\n"]


@pytest.fixture(scope="module")
def cycle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text in which each word follows from the one before; passages begin anywhere in the cycle."""
    file = tmp_path_factory.mktemp("text") / "cycle.txt"
    file.write_text(" ".join(f"a{number % 5}" for number in range(16000)))
    return file


@pytest.mark.parametrize(
    ("name", "depth", "flags"),
    [
        ("gpt", 1, ["--lr", 5e-3, "--steps", 100]),
        ("rnn_lm", 1, ["--lr", 1e-2, "--steps", 150]),
        ("neural_lm", 0, ["--lr", 1e-2, "--steps", 100]),
        ("elmo", 1, ["--lr", 1e-2, "--steps", 150]),
        ("bert", 2, ["--lr", 5e-3, "--steps", 300, "--mask-ratio", 0.2]),
        ("electra", 2, ["--lr", 5e-3, "--steps", 300, "--mask-ratio", 0.2, "--generator-heads", 4]),
    ],
)
def test_a_cycle_is_learned(
    name: str, depth: int, flags: list[Any], cycle: Path, sslkit: Callable[..., Any], tmp_path: Path
) -> None:
    flags += ["--unit", "word", "--context", 16, "--encoder-option", "width=32"]
    flags += ["--encoder-option", f"depth={depth}"] if depth else []
    flags += ["--batch-size", 32, "--health-every", 0, "--out", tmp_path / "run"]
    ran = sslkit("pretrain", name, "--data", cycle, *flags, "--json")
    assert ran.json["metrics"]["generator_accuracy" if name == "electra" else "accuracy"] > 0.95, ran.json
    encoder: Any = load(tmp_path / "run" / "model.safetensors")
    assert encoder.tokenizer().pieces == [f"a{number}" for number in range(5)]
