"""Texts in tables and class folders, as evaluations read them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit import KnnSpec, PretrainSpec, SslkitError, build_encoder, pretrain
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import read_model
from sslkit.text.encoders.base import Framing, TextEncoder
from sslkit.text.source import TextSource
from sslkit.text.tokenizer import CLS, PAD, SEP, UNKNOWN, Tokenizer

WORDS = [f"{letter}{number}" for letter in "ab" for number in range(6)]
TOKENIZER = Tokenizer("word", WORDS)


def built(name: str) -> TextEncoder:
    content = TOKENIZER.to_bytes()
    options = {"width": "16", "letters": str(len(content))}
    encoder = build_encoder(recipe_for(name, 8, TOKENIZER.size, options)).eval()
    assert isinstance(encoder, TextEncoder)
    encoder.keep_tokenizer(content)
    return encoder


def opened(path: Path, name: str = "bert_micro", size: int = 8, **settings: Any) -> TextSource:
    spec = KnnSpec(ckpt="none", data=str(path), **settings)
    return TextSource.for_evaluation(TextSource.read_index(str(path), spec), spec, built(name), size)


def rows_of(source: TextSource) -> list[list[int]]:
    arrays, broken = source.read(np.arange(len(source.index)))
    assert not broken
    return arrays["tokens"].tolist()


def test_a_table_of_texts(tmp_path: Path) -> None:
    table = tmp_path / "some.tsv"
    table.write_text('\ufefftext\tlabel\ta "column"\na0 "b1\tx\t1\na2 zz\ty\t2\n', encoding="utf-8")
    source = opened(table, label="label")
    pad, unknown, cls, sep = (TOKENIZER.special(name) for name in (PAD, UNKNOWN, CLS, SEP))
    assert rows_of(source) == [[cls, 0, 7, sep, *[pad] * 4], [cls, 2, unknown, sep, *[pad] * 4]]  # quotes mean nothing
    assert source.index.classes == ("x", "y") and source.name(1) == "some.tsv:3"
    assert rows_of(opened(table, "gpt_micro"))[0] == [0, 7, *[pad] * 6]
    quoted = tmp_path / "some.csv"
    quoted.write_text('text,label\n"a0, ""b1""\nb2",x\na1,y\n')
    assert rows_of(opened(quoted, "gpt_micro", label="label"))[0][:3] == [0, 7, 8]
    fingerprints = {opened(file, label="label").fingerprint() for file in (table, quoted)}
    table.write_text("text\tlabel\na0\tx\na1\ty\n")
    assert len(fingerprints | {opened(table, label="label").fingerprint()}) == 3


def test_pairs_are_one_row_and_lose_the_end_of_the_longer_text(tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    table.write_text("text\ttext2\tlabel\na0 a1\tb0\tx\na0 a1 a2 a3 a4 a5\tb0 b1\ty\na0\tb0 b1 b2 b3 b4\tx\n")
    cls, sep, pad = (TOKENIZER.special(name) for name in (CLS, SEP, PAD))
    assert rows_of(opened(table, label="label")) == [
        [cls, 0, 1, sep, 6, sep, pad, pad],
        [cls, 0, 1, 2, sep, 6, 7, sep],
        [cls, 0, sep, 6, 7, 8, 9, sep],
    ]


def test_frames_never_exceed_the_context() -> None:
    frame = Framing(99, (90,), (91,))
    for lengths in ([0], [3], [9], [0, 0], [9, 0], [0, 9], [9, 9], [4, 2], [2, 4], [3, 3]):
        for size in range(5, 12):
            texts = [np.arange(length, dtype=np.int32) for length in lengths]
            row = frame(texts, size).tolist()
            assert len(row) <= size and row.count(91) == len(lengths) and row[0] == 90
            if sum(lengths) > size - 1 - len(lengths):
                assert len(row) == size  # no room is left


def test_class_folders_of_texts(tmp_path: Path) -> None:
    for name, text in (("pos/1.txt", "a0 a1"), ("pos/2.txt", "a2"), ("neg/1.txt", "b0"), ("neg/2.txt", "b1\n\nb2")):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    source = opened(tmp_path, "gpt_micro")
    assert source.index.classes == ("neg", "pos") and [row[0] for row in rows_of(source)] == [6, 7, 0, 2]
    (tmp_path / "neg" / "1.txt").write_bytes(b"\xff\xfe")
    assert list(opened(tmp_path).read(np.arange(4))[1]) == [0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence\tlabel\na\tx\n", "has no column `text` in line 1"),
        ("text\tlabel\na\tx\textra\n", "line 2 of .* has 3 cells, but its header has 2 \\(remove the tab\\)"),
        ("text\tlabel\n", "lists no sample"),
        ("text\tlabel\na\0b\tx\n", "line 2 of .* contains a NUL character"),
        ("text\tlabel\n\tx\n", "text is empty in line 2"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "some.tsv").write_text(content)
    with pytest.raises(SslkitError, match=message):
        opened(tmp_path / "some.tsv", label="label")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with running text, and a table that asks which family of words a text is of."""
    folder = tmp_path_factory.mktemp("families")
    Path(TextSource.example(folder, 16))
    random = np.random.default_rng(0)
    lines = ["text\tlabel"]
    for row in range(120):
        letter = "ab"[row % 2]
        lines.append(" ".join(f"{letter}{number}" for number in random.integers(20, size=6)) + f"\t{letter}")
    (folder / "labeled.tsv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("task", ["skipgram", "gpt", "bert"])
def test_frozen_features_of_texts(task: str, families: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    out, batch = tmp_path / "run", {"batch_size": 8, "health_every": 0}
    unit = {} if task == "skipgram" else {"unit": "word"}
    pretrain(PretrainSpec(task=task, data=str(families / "text.txt"), out=str(out), steps=60, context=32, **batch, **unit))
    table = ["--ckpt", out / "model.safetensors", "--data", families / "labeled.tsv", "--label", "label"]
    for verb in ("knn", "probe"):
        result = sslkit(verb, *table, "--json").json
        rows = {row["model"]: row["metrics"][0]["value"] for row in result["rows"]}
        assert list(rows) == ["checkpoint", "random weights", "TF-IDF, logistic regression", "most frequent class"]
        assert rows["checkpoint"] > 0.8 and rows["TF-IDF, logistic regression"] > 0.9, rows
        assert rows["most frequent class"] == 0.5
    embedded = sslkit("embed", *table, "--out", tmp_path / "features.npz").code
    with np.load(tmp_path / "features.npz") as saved:
        assert embedded == 0 and len(saved["features"]) == 120 and saved["paths"][0] == "labeled.tsv:2"


@pytest.fixture(scope="module")
def bert(families: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a masked language model of the families."""
    out, data = tmp_path_factory.mktemp("runs") / "bert", str(families / "text.txt")
    spec = PretrainSpec(task="bert", data=data, out=str(out), steps=60, context=32, batch_size=8, health_every=0, unit="word")
    return Path(pretrain(spec).checkpoint)


def test_fine_tuning_on_texts(bert: Path, families: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    labeled = ["--data", families / "labeled.tsv", "--label", "label"]
    start = ["finetune", "--ckpt", bert, *labeled, "--out", tmp_path / "tuned", "--batch-size", "16"]
    result = sslkit(*start, "--steps", "60", "--lr", "3e-3", "--scratch", "--json").json
    rows = {row["model"]: row["metrics"][0]["value"] for row in result["rows"]}
    assert list(rows) == ["fine-tuned", "from scratch", "TF-IDF, logistic regression", "most frequent class"]
    assert rows["fine-tuned"] == 1.0 > rows["most frequent class"], rows
    assert all(row["comparisons"].keys() == {"fine-tuned"} for row in result["rows"][1:])
    tuned = tmp_path / "tuned" / "model.safetensors"
    assert sslkit("predict", "--ckpt", tuned, "--data", families / "labeled.tsv", "--out", tmp_path / "p.csv").code == 0
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert [line.rsplit(",", 1)[0] for line in lines[:3]] == ["path,class", "labeled.tsv:2,a", "labeled.tsv:3,b"]
    for flags, message in (
        (["--mixup", "0.5"], "--mixup: it is for images, and this is text data"),
        (["--recipe", "strong"], "--recipe: it is for images"),
        (["--label", "none"], "--label: "),
        (["--unit", "byte"], "--unit: the encoder splits text into word (got byte)"),
    ):
        ran = sslkit(*start[:-4], "--out", tmp_path / "other", *flags)
        assert ran.code == 2 and message in ran.err and not (tmp_path / "other").exists(), ran.err


def test_an_export_comes_with_its_tokenizer(bert: Path, families: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    from tokenizers import Tokenizer as Library

    path = tmp_path / "bert.pt2"
    result = sslkit("export", "--ckpt", bert, "--to", "pt2", "--out", path, "--json").json
    assert result["input"]["frame"] == "<cls> text <sep>" and result["input"]["unit"] == "word"
    card = Path(result["card"]).read_text()
    assert 'Tokenizer.from_file("bert.pt2.tokenizer.json")' in card
    library = Library.from_file(str(tmp_path / "bert.pt2.tokenizer.json"))
    ids = torch.tensor([library.encode("a1 zz B2.").ids])
    checkpoint = read_model(bert)
    encoder = checkpoint.build_encoder()
    assert isinstance(encoder, TextEncoder) and ids.shape == (1, 32)
    expected = encoder.framing()(encoder.tokenizer().encode(["a1 zz B2."]), 32)
    assert ids[0, : len(expected)].tolist() == expected.tolist()
    with torch.no_grad():
        features = torch.export.load(path).module()(ids)
        assert torch.allclose(features, encoder(torch.from_numpy(expected).long()[None]), atol=1e-5)


def test_the_second_text_of_pairs_is_a_baseline(families: Path, tmp_path: Path, sslkit: Callable[..., Any], bert: Path) -> None:
    lines = ["text\ttext2\tlabel"]
    random = np.random.default_rng(0)
    for row in range(120):
        letter = "ab"[row % 2]
        first = " ".join(f"{'ab'[int(random.integers(2))]}{number}" for number in random.integers(20, size=4))
        lines.append(f"{first}\t" + " ".join(f"{letter}{number}" for number in random.integers(20, size=6)) + f"\t{letter}")
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    result = sslkit("knn", "--ckpt", bert, "--data", tmp_path / "pairs.tsv", "--label", "label", "--json").json
    rows = {row["model"]: row["metrics"][0]["value"] for row in result["rows"]}
    assert list(rows)[2:] == ["TF-IDF, logistic regression", "TF-IDF of the second text alone", "most frequent class"]
    assert rows["TF-IDF of the second text alone"] > 0.9
