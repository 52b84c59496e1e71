"""Text as a source."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit import SslkitError
from sslkit.specs.train import PretrainSpec
from sslkit.text import corpus
from sslkit.text.passages import Passages


def opened(path: Path, **settings: Any) -> Passages:
    return Passages.open(PretrainSpec(task="skipgram", data=str(path), **{"held_out": 0.0, **settings}))


def words_of(text: Passages) -> list[str]:
    words = text.info.details["words"]
    return [words[token] for token in text.tokens if token < len(words)]


def test_words_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat, the DOG: don't; l’été_x 42\n\nthe", encoding="utf-8")
    text = opened(tmp_path / "a.txt", context=8)
    assert words_of(text) == ["the", "cat", "the", "dog", "don't", "l’été", "x", "42", "the"]
    assert text.info.details["words"][0] == "the" and text.info.details["counts"][0] == 3
    assert text.info.channels == 7 + 6 and text.info.samples == 1 and text.info.modality == "text"
    assert text.read(np.array([0]))[0]["tokens"].tolist() == [text.tokens[:8].tolist()]


@pytest.mark.parametrize("cache", ["on", "off"])
def test_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    content = " ".join(f"word{i % 7}" for i in range(500)) + "\n" + "longer" * 30
    (tmp_path / "one.txt").write_text(content)
    monkeypatch.setattr(corpus, "_CHUNK", 64)
    assert words_of(opened(tmp_path / "one.txt", cache=cache)) == content.split()


def test_a_second_opening_reads_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    for name in ("2.txt", "1.txt"):
        (tmp_path / "b" / name).write_text(f"file {name[0]} " * 10)
    first = opened(tmp_path / "b")
    assert words_of(first)[:2] == ["file", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(corpus, "_chunks", lambda file: pytest.fail("the text was read again"))
        again = opened(tmp_path / "b")
    assert words_of(again) == words_of(first) and again.fingerprint() == first.fingerprint()
    (tmp_path / "b" / "1.txt").write_text("other words")
    assert opened(tmp_path / "b").fingerprint() != first.fingerprint()


def test_workers_get_a_path_not_the_text(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("many words " * 10_000)
    text = opened(tmp_path / "c.txt")
    assert len(text.tokens) == 20_001
    data = pickle.dumps(text)
    assert len(data) < 5000
    assert torch.equal(*(torch.from_numpy(t.read(np.array([3]))[0]["tokens"]) for t in (text, pickle.loads(data))))


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00bad")
    (tmp_path / "empty.txt").write_text("  ...  ")
    (tmp_path / "none").mkdir()
    for name, message in (
        ("binary.txt", "is not UTF-8 text"),
        ("empty.txt", "has 0 tokens"),
        ("none", "no .txt file in"),
        ("nowhere.txt", "does not exist"),
    ):
        with pytest.raises(SslkitError, match=message):
            opened(tmp_path / name)


def test_damaged_and_bounded_cache(tmp_path: Path) -> None:
    from sslkit.data import cache

    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.txt").write_text("some words " * 5000)
    (tmp_path / "d" / "gone.txt").symlink_to(tmp_path / "nowhere")
    text = opened(tmp_path / "d")
    assert isinstance(text.text.tokens, Path)
    folder = text.text.tokens.parent
    assert folder in [entry.folder for entry in cache.stored()]
    for file in ("text.npz", "tokens.npy"):
        (folder / file).write_bytes(b"damaged")
        assert words_of(opened(tmp_path / "d"))[:2] == ["some", "words"]
    (folder / "tokens.npy").unlink()
    assert opened(tmp_path / "d", cache_limit=1e-5).fingerprint() == text.fingerprint()  # too large for it: in memory
    with pytest.raises(SslkitError, match="more than --cache-limit"):
        opened(tmp_path / "d", cache="on", cache_limit=1e-5)
