"""`sslkit tag`: features of words, scores against loops, and that what a word means in its sentence is found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score, precision_score, recall_score

from sslkit import PretrainSpec, build_encoder, pretrain
from sslkit.encoders.recipe import recipe_for
from sslkit.evaluation.positions import layer_reader
from sslkit.text.encoders.base import TextEncoder
from sslkit.text.labeled_words import LabeledWords
from sslkit.text.tag_scores import most_frequent, score_entities, score_words
from sslkit.text.tokenizer import Tokenizer
from sslkit.text.word_features import word_features

TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]


def labeled(sentences: list[tuple[list[str], list[str]]], entities: bool = False) -> LabeledWords:
    return LabeledWords("some", sentences, entities)


def test_long_sentences_are_divided_and_never_cut() -> None:
    tokenizer = Tokenizer.learn("wordpiece", lambda: ["ab abc abcd b c d"] * 3, 20)
    content = tokenizer.to_bytes()
    options = {"width": "16", "depth": "2", "letters": str(len(content))}
    encoder = build_encoder(recipe_for("bert_micro", 10, tokenizer.size, options)).eval()
    assert isinstance(encoder, TextEncoder)
    encoder.keep_tokenizer(content)
    words = ["ab", "dcba", "b", "abc", "\u200b", "abcdabcdabcdabcd", "c", "ab"]
    read = layer_reader(encoder, "it", "all")
    features = word_features(encoder, labeled([(words, ["O"] * 8), (["b"], ["O"])]), 10, read)
    assert list(features) == ["1", "2"] and features["2"].shape == (9, 16)
    lengths = [max(1, len(ids)) for ids in tokenizer.encode(words)]
    frame, expected, row = encoder.framing(), [], list[int]()
    for place in range(8):  # words are added while there is room for them
        if row and sum(lengths[each] for each in row) + lengths[place] > 8:
            row = []
        row.append(place)
        ids, starts = tokenizer.encode_words([words[each] for each in row])
        if place == 7 or sum(lengths[each] for each in row) + lengths[place + 1] > 8:
            states = encoder.states(torch.from_numpy(frame([ids], 10)).long()[None])[0]
            expected += [states[1 + start] for start in starts]
    assert len(row) < 8 and torch.allclose(features["2"][:8], torch.stack(expected), atol=1e-6)


def test_scores_of_words() -> None:
    test = labeled([(["A", "b", "c"], ["X", "Y", "Y"]), (["d"], ["X"])])
    score = score_words(test, [["X", "X", "Y"], ["Y"]], training_words={"a", "c"})
    assert [(metric.name, metric.value, metric.n) for metric in score.metrics] == [
        ("accuracy", 0.5, 4),
        ("unseen words", 0.0, 2),
    ]
    assert score.by_class == {"X": 0.5, "Y": 0.5} and score.totals.sums.tolist() == [2, 0]
    train = labeled([(["the", "The", "run", "run", "cat"], ["DET", "DET", "V", "N", "N"]), (["the"], ["X"]), (["a"], ["N"])])
    assert most_frequent(train, labeled([(["THE", "cat", "zebra"], ["DET", "N", "N"])])) == [["DET", "N", "N"]]


def test_scores_of_entities_are_seqevals() -> None:
    random = np.random.default_rng(0)
    truth, guess = ([[str(tag) for tag in random.choice(TAGS, size=9)] for _ in range(50)] for _ in range(2))
    score = score_entities(labeled([(["w"] * 9, tags) for tags in truth], entities=True), guess)
    expected = [f1_score(truth, guess), precision_score(truth, guess), recall_score(truth, guess)]
    assert [metric.value for metric in score.metrics] == pytest.approx(expected)
    by_type = f1_score(truth, guess, average=None)
    assert list(score.by_class.values()) == pytest.approx(list(by_type)) and list(score.by_class) == ["X", "Y"]
    low, high = score.metrics[0].low, score.metrics[0].high
    assert low is not None and high is not None and low < expected[0] < high
    nothing = score_entities(labeled([(["w"], ["O"])], entities=True), [["O"]])
    assert [metric.value for metric in nothing.metrics] == [0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text, and labels in it, in which a word is a noun after "the" and a verb after "to"."""
    folder, random = tmp_path_factory.mktemp("contexts"), np.random.default_rng(0)
    lines, sentences = [], []
    for _ in range(400):
        words, labels = [], []
        for _ in range(4):
            marker = "the" if random.random() < 0.5 else "to"
            words += [marker, f"w{random.integers(6)}"]
            labels += ["X", "NOUN" if marker == "the" else "VERB"]
        lines.append(" ".join(words))
        sentences.append("\n".join(f"{word} {label}" for word, label in zip(words, labels, strict=True)))
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "train.conll").write_text("\n\n".join(sentences[:150]))
    (folder / "test.conll").write_text("\n\n".join(sentences[150:200]))
    return folder


@pytest.fixture(scope="module")
def tagger(contexts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a language model of the text in both directions."""
    out = tmp_path_factory.mktemp("runs") / "elmo"
    values = {"batch_size": 16, "context": 16, "lr": 1e-2, "health_every": 0}
    spec = PretrainSpec(task="elmo", data=str(contexts / "text.txt"), out=str(out), steps=20, unit="word", **values)
    return Path(pretrain(spec).checkpoint)


def test_words_are_labeled_by_their_context(contexts: Path, tagger: Path, sslkit: Callable[..., Any]) -> None:
    start = ["tag", "--ckpt", tagger, "--data", contexts]
    result = sslkit(*start, "--layer", "all", "--json").json
    accuracies = {(row["model"], row["layer"]): row["metrics"][0]["value"] for row in result["rows"]}
    assert len(accuracies) == 7 and accuracies["most frequent label per word", None] == pytest.approx(0.75, abs=0.05)
    assert accuracies["checkpoint", "1"] == pytest.approx(0.75, abs=0.05)  # vectors of words alone
    assert accuracies["checkpoint", "2"] > 0.98 and accuracies["checkpoint", "3"] > 0.98
    assert result["protocol"] is None and result["data"]["tests"][0]["n"] == 400
    mixed = sslkit(*start, "--layer", "mix", "--json").json["rows"][0]
    weights = mixed["fits"][0]["chosen"]["layer weights"]
    assert mixed["metrics"][0]["value"] > 0.98 and len(weights) == 3 and sum(weights) == pytest.approx(1, abs=0.01)
    ran = sslkit(*start, "--words", "100")
    assert ran.code == 0 and "of 1,200." in ran.out and "Fitted on" in ran.out
    (contexts / "own.conll").write_text((contexts / "train.conll").read_text())
    ran = sslkit(*start[:3], "--data", contexts / "own.conll")
    assert "a fifth of the sentences" in ran.err and "tag/words-v1" in ran.out
    (contexts / "strange.conll").write_text("the ODD\nw1 NOUN\n\nto X\nw2 VERB\n")
    ran = sslkit(*start[:3], "--data", contexts / "train.conll", "--test", contexts / "strange.conll")
    assert ran.code == 0 and "1 word with a label that training lacks (ODD)" in ran.out, ran.out + ran.err
    for flags, message in (
        (["--layer", "4"], "--layer: checkpoint has 3 layers (got 4)"),
        (["--pool", "class"], "--pool: words are labeled one by one"),
        (["--label", "upos"], "has one label per word, in its last column"),
    ):
        refused = sslkit(*start, *flags)
        assert refused.code == 2 and message in refused.err, refused.err


def test_encoders_are_fine_tuned_on_words(contexts: Path, tagger: Path, sslkit: Callable[..., Any]) -> None:
    start = ["tag", "--ckpt", tagger, "--data", contexts, "--finetune"]
    flags = ["--epochs", 10, "--lr", 1e-2, "--json"]
    first, again = (sslkit(*start, *flags).json["rows"] for _ in range(2))
    assert [row["model"] for row in first] == ["checkpoint", "random weights", "most frequent label per word"]
    assert first[0]["metrics"][0]["value"] > 0.98 and first[0]["metrics"] == again[0]["metrics"]
    assert first[0]["weights"] != first[1]["weights"] and first[0]["fits"][0]["n_train"] == 1200
    ran = sslkit(*start, "--no-baselines", "--words", "200000")
    assert "tag/finetuned-words-v1" in ran.out and not list(tagger.parent.glob("*finetune*")), ran.out + ran.err
    for wrong, message in (
        ([*start, "--layer", "all"], "--layer: belongs to frozen tokens"),
        ([*start[:-1], "--epochs", 3], "--epochs: belongs to --finetune"),
    ):
        refused = sslkit(*wrong)
        assert refused.code == 2 and message in refused.err, refused.err


def test_other_checkpoints_have_no_words_to_label(trained: Path, contexts: Path, sslkit: Callable[..., Any]) -> None:
    ran = sslkit("tag", "--ckpt", trained, "--data", contexts)
    assert ran.code == 2 and "--ckpt: " in ran.err


def test_files_that_are_too_small_or_of_another_scheme(
    contexts: Path, tmp_path: Path, sslkit: Callable[..., Any], tagger: Path
) -> None:
    two = tmp_path / "two.conll"
    two.write_text("a X\nb Y\n\nc X\n")
    (tmp_path / "train.conll").write_text("a X\nb Y\n")
    (tmp_path / "test.conll").write_text("a X\n")
    mixed = tmp_path / "bioes.conll"
    mixed.write_text("a B-X\nb E-X\nc S-Y\n")
    words = tmp_path / "words.conll"
    words.write_text("a X\nb Y\n\nc X\n\nd Y\n")
    entities = tmp_path / "entities.conll"
    entities.write_text("a B-X\n")  # without a word outside of entities
    for flags, message in (
        (["--data", two], "--data: "),
        (["--data", tmp_path], "has one sentence (at least two are needed)"),
        (["--data", mixed], "has labels such as E-X beside B- and I- (use IOB1 or IOB2)"),
        (["--data", words, "--test", entities], "--test: only one of"),
        (["--data", words, "--group", "x"], "--group: files of labeled words have no"),
    ):
        refused = sslkit("tag", "--ckpt", tagger, *flags)
        assert refused.code == 2 and message in refused.err, refused.err


def test_words_without_a_vector_are_labeled_too(contexts: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    out = tmp_path / "run"
    pretrain(PretrainSpec(task="skipgram", data=str(contexts / "text.txt"), out=str(out), steps=2, batch_size=4, context=32))
    unknown = tmp_path / "unknown.conll"
    unknown.write_text("\n\n".join("\n".join(f"z{place} {'XY'[place % 2]}" for place in range(30)) for _ in range(5)))
    ran = sslkit("tag", "--ckpt", out / "model.safetensors", "--data", unknown)
    assert ran.code == 0 and "most frequent label per word" in ran.out, ran.err


def test_more_tokens_than_positions_are_refused(contexts: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    out = tmp_path / "run"
    spec = PretrainSpec(task="gpt", data=str(contexts / "text.txt"), out=str(out), steps=2, batch_size=4, context=16)
    pretrain(spec)
    (tmp_path / "labeled.tsv").write_text("text\tlabel\n" + "the w1\tx\nto w2\ty\n" * 8)
    for verb, data in (("tag", contexts), ("knn", tmp_path / "labeled.tsv"), ("finetune", tmp_path / "labeled.tsv")):
        flags = ["--ckpt", out / "model.safetensors", "--data", data, "--context", "64"]
        labels = [] if verb == "tag" else ["--label", "label"]
        refused = sslkit(verb, *flags, *labels, *(["--out", tmp_path / "f"] if verb == "finetune" else []))
        assert refused.code == 2 and "--context: 64 tokens exceed the 16 that the encoder takes" in refused.err, refused.err
