"""Word vectors: questions from files, and word2vec's text format as gensim reads it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import describe, save_model
from sslkit.text.encoders.word_vectors import WordVectors, encode_words

Run = Callable[..., Any]
# Royalty and gender as two of three axes.
WORDS = {
    "king": (1, 1, 0),
    "queen": (1, -1, 0),
    "man": (0, 1, 0.1),
    "woman": (0, -1, 0.1),
    "apple": (0, 0, 1),
    "naïve": (0, 0.1, 1),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    letters = len(encode_words(list(WORDS)))
    encoder = build_encoder(recipe_for("word_vectors", 16, len(WORDS), {"width": "3", "letters": str(letters)}))
    assert isinstance(encoder, WordVectors)
    encoder.spell(list(WORDS))
    with torch.no_grad():
        encoder.table.weight.copy_(torch.tensor(list(WORDS.values())))
    path = tmp_path / "model.safetensors"
    save_model(path, {"encoder": encoder}, {**describe(encoder), "task": "skipgram", "size": 16, "step": 1, "data": ""})
    return path


def test_similarities_are_correlated(checkpoint: Path, sslkit: Run, tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("word1\tword2\tscore\nKing\tman\t9\nking\twoman\t2\napple\tking\t4\nking\tpear\t1\n# no pair\n")
    row, random = sslkit("word-vectors", "--ckpt", checkpoint, "--similarity", file, "--json").json["rows"]
    spearman, skipped = row["metrics"]
    assert (spearman["name"], spearman["value"], spearman["n"]) == ("Spearman", pytest.approx(1.0), 3)
    assert (skipped["name"], skipped["value"]) == ("skipped", 1)
    assert (random["model"], random["role"], random["metrics"][0]["n"]) == ("random vectors", "random", 3)
    assert -2 <= random["comparisons"]["checkpoint"]["low"] <= random["comparisons"]["checkpoint"]["high"] <= 0.0
    file.write_text("word1\tword2\tPOS\tSimLex999\nking\tman\tN\t9\nking\twoman\tN\t2\napple\tking\tN\t4\n")
    row, _ = sslkit("word-vectors", "--ckpt", checkpoint, "--similarity", file, "--json").json["rows"]
    assert row["metrics"][0]["value"] == pytest.approx(1.0)
    file.write_text("king,man,1\nking,woman,9\napple,king,5\n")
    row, _ = sslkit("word-vectors", "--ckpt", checkpoint, "--similarity", file, "--json").json["rows"]
    assert row["metrics"][0]["value"] == pytest.approx(-1.0)


def test_analogies_are_answered(checkpoint: Path, sslkit: Run, tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text(
        ": royal\nman king woman queen\nMan woman king queen\nman king pear queen\n\n: fruit\nman king woman apple\n"
    )
    rows = sslkit("word-vectors", "--ckpt", checkpoint, "--analogies", file, "--json").json["rows"]
    assert [row["model"] for row in rows] == 3 * ["checkpoint", "random vectors"]
    metrics = [(row["test"].removeprefix(f"{file}, "), *row["metrics"]) for row in rows[::2]]
    assert [(section, accuracy["value"], accuracy["n"], skipped["value"]) for section, accuracy, skipped in metrics] == [
        ("royal", 1.0, 2, 1), ("fruit", 0.0, 1, 0), ("all", pytest.approx(2 / 3), 3, 1)
    ]  # fmt: skip
    out = sslkit("word-vectors", "--ckpt", checkpoint, "--analogies", file).out
    assert re.search(r"100\.0% \((?!100)[\d.]+ to 100\.0\)", out), out  # of so few questions it is not certain


@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [
        ("--similarity", "king man 1\nking woman\n", "line 2 of"),
        ("--similarity", "king man 1\n", "1 pair in"),
        ("--similarity", "king man 1\nking woman nan\n", "line 2 of"),
        ("--similarity", "king man nan\nking woman 1\n", "line 1 of"),
        ("--similarity", "", "is empty"),
        ("--analogies", "king man woman\n", "line 1 of"),
        ("--analogies", "pear plum cherry fig\n", "no question in"),
        ("--analogies", None, "cannot read"),
    ],
)
def test_bad_files_are_one_line(
    flag: str, content: str | None, message: str, checkpoint: Path, sslkit: Run, tmp_path: Path
) -> None:
    file = tmp_path / "file.txt"
    if content is not None:
        file.write_text(content)
    ran = sslkit("word-vectors", "--ckpt", checkpoint, flag, file)
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.code == 2 and len(errors) == 1 and message in errors[0]


def test_vectors_are_written_to_a_file(checkpoint: Path, sslkit: Run, tmp_path: Path) -> None:
    result = sslkit("embed", "--ckpt", checkpoint, "--out", tmp_path / "words.npz", "--json").json
    assert (result["samples"], result["width"], result["labels"]) == (6, 3, False)
    with np.load(tmp_path / "words.npz", allow_pickle=False) as arrays:
        assert arrays["paths"].tolist() == list(WORDS) and np.allclose(arrays["features"], list(WORDS.values()))


def test_other_checkpoints_have_no_words(trained: Path, sslkit: Run, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("a b 1\n")
    assert "has no word vectors" in sslkit("word-vectors", "--ckpt", trained, "--similarity", tmp_path / "file.txt").err
    assert "holds no word vectors" in sslkit("export", "--ckpt", trained, "--to", "word2vec").err
    assert "no benchmark is named" in sslkit("word-vectors", "--ckpt", trained).err


def test_gensim_reads_what_is_exported(checkpoint: Path, sslkit: Run, tmp_path: Path) -> None:
    keyed = pytest.importorskip("gensim.models").KeyedVectors
    result = sslkit("export", "--ckpt", checkpoint, "--to", "word2vec", "--out", tmp_path / "words.txt", "--json").json
    assert result["max_abs_diff"] == 0 and "load_word2vec_format" in Path(result["card"]).read_text()
    vectors = keyed.load_word2vec_format(result["path"])
    assert vectors.index_to_key == list(WORDS)
    assert np.array_equal(vectors.vectors, np.array(list(WORDS.values()), dtype=np.float32))
    assert vectors.most_similar(positive=["king", "woman"], negative=["man"], topn=1)[0][0] == "queen"
