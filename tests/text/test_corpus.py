"""Documents, sentences, and what is held out."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslkit import SslkitError
from sslkit.text import corpus as module
from sslkit.text.corpus import Corpus, Piece, text_files


def open_texts(folder: Path, texts: list[str], documents: Any = "file", held_out: float = 0.0) -> Corpus:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_bytes(text.encode())
    return Corpus.open(text_files(folder), documents, held_out)


def documents_of(corpus: Corpus, part: Any = "train") -> list[str]:
    documents, new = [], True
    for piece in corpus.pieces(part):
        if new:
            documents.append("")
        documents[-1] += piece.text
        new = piece.ends
    return documents


@given(st.text(alphabet='ab .!?"\n)', max_size=40))
def test_sentences_add_up_to_the_text(text: str) -> None:
    assert "".join(Piece(text, True).sentences) == text


def test_sentences_end_at_stops_and_lines() -> None:
    text = 'He left. "Why?" she asked.\nNobody knew... it was 3.5 miles\n'
    assert Piece(text, True).sentences == ["He left.", ' "Why?"', " she asked.\n", "Nobody knew...", " it was 3.5 miles\n"]


@pytest.mark.parametrize("chunk", [7, 2**22])
def test_documents_are_files_or_lie_between_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    texts = ["one\ntwo\n\nthree \n \n\nfour", "five\r\n\r\nsix\n"]
    assert documents_of(open_texts(tmp_path, texts)) == texts
    by_line = open_texts(tmp_path, texts, "blank-line")
    assert [document.strip() for document in documents_of(by_line)] == ["one\ntwo", "three", "four", "five", "six"]
    assert "".join(documents_of(by_line)) == "".join(texts)


def test_whole_documents_are_held_out_if_one_begins_there(tmp_path: Path) -> None:
    corpus = open_texts(tmp_path / "files", ["x" * 50, "y" * 40, "z" * 10], held_out=0.2)
    assert documents_of(corpus) == ["x" * 50, "y" * 40] and documents_of(corpus, "held-out") == ["z" * 10]
    lines = open_texts(tmp_path / "lines", ["a" * 50 + "\n\n" + "b" * 30 + "\n\n", "c" * 16], "blank-line", 0.5)
    assert [text.strip("\n") for text in documents_of(lines, "held-out")][:2] == ["b" * 30, "c" * 16]


def test_the_end_of_a_single_document_is_held_out_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "é" * 50  # two bytes each
    for chunk in (7, 2**22):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        corpus = open_texts(tmp_path, [text], held_out=0.1)
        assert "".join(documents_of(corpus)) == "é" * 45 and "".join(documents_of(corpus, "held-out")) == "é" * 5
        odd = open_texts(tmp_path, [text], held_out=0.11)  # would tear a letter
        assert "".join(documents_of(odd)) + "".join(documents_of(odd, "held-out")) == text


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(SslkitError, match="is not UTF-8 text"):
        list(Corpus.open(text_files(tmp_path), "file", 0.0).pieces("train"))
    with pytest.raises(SslkitError, match="does not exist"):
        text_files(tmp_path / "nowhere")
