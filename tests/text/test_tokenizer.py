"""Tokenizers: what they keep of text, and what a checkpoint keeps of them."""

import json
import subprocess
import sys
from typing import Any
from unicodedata import category

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslkit.text.tokenizer import CLS, END, MASK, PAD, SPECIALS, UNKNOWN, Tokenizer

TEXTS = ["The cat sat on the mat.", "The dog’s bed, don't you see?\n  Two blanks.", "unbelievable cats believe"] * 3


def learned(unit: Any, vocabulary: int | None = None) -> Tokenizer:
    return Tokenizer.learn(unit, lambda: TEXTS, vocabulary)


@pytest.mark.parametrize("unit", ["byte", "bpe"])
@given(text=st.text())
def test_nothing_is_lost(unit: Any, text: str) -> None:
    text = text.encode(errors="ignore").decode()  # a lone surrogate is no text
    tokenizer = BPE if unit == "bpe" else BYTE
    assert tokenizer.lossless and tokenizer.decode(tokenizer.encode([text])[0].tolist()) == text


BPE, BYTE = learned("bpe", 300), learned("byte")


def test_bytes_are_their_own_ids() -> None:
    assert BYTE.encode(["aé"])[0].tolist() == [97, 195, 169] and BYTE.size == 256 + len(SPECIALS)
    assert BYTE.special(PAD) == 256 and BYTE.special(END) == 261
    assert BYTE.decode([97, 261, 98]) == "a<end>b"


def test_words_are_numbered_by_frequency() -> None:
    words = learned("word")
    assert words.pieces[0] == "the" and words.encode(["THE cat's bed"])[0].tolist()[0] == 0
    assert words.decode(words.encode(["The DOG’S bed!"])[0].tolist()) == "the dog’s bed"
    few = learned("word", 2)
    assert few.size == 2 + len(SPECIALS) and few.encode(["the zebra"])[0].tolist() == [0, few.special(UNKNOWN)]


def test_wordpiece_splits_words_it_has_not_seen() -> None:
    pieces = learned("wordpiece", 60)
    ids = pieces.encode(["unbelievable"])[0]
    assert len(ids) > 1 and pieces.decode(ids.tolist()) == "unbelievable"
    assert pieces.encode(["€"])[0].tolist() == [pieces.special(UNKNOWN)] and not pieces.lossless


@pytest.mark.parametrize("unit", ["word", "wordpiece", "bpe", "byte"])
def test_what_is_kept_makes_the_same_tokenizer(unit: Any) -> None:
    tokenizer = learned(unit)
    again = Tokenizer.from_bytes(tokenizer.to_bytes())
    assert again.size == tokenizer.size and again.to_bytes() == tokenizer.to_bytes()
    assert [ids.tolist() for ids in again.encode(TEXTS)] == [ids.tolist() for ids in tokenizer.encode(TEXTS)]
    assert tokenizer.special(CLS) < tokenizer.special(MASK) < tokenizer.size


@pytest.mark.parametrize("unit", ["wordpiece", "bpe"])
def test_every_process_learns_the_same(unit: str) -> None:
    code = (
        "import sys; from sslkit.text.tokenizer import Tokenizer; from hashlib import md5;"
        f"texts = {TEXTS!r}; print(md5(Tokenizer.learn({unit!r}, lambda: texts, 300).to_bytes()).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert len({run.stdout for run in runs}) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"unit": "letter", "pieces": []}',
        b'{"unit": "bpe", "pieces": ["a b c"]}',
        b'{"unit": "bpe", "pieces": ["qq zz"]}',
        b'{"unit": "word", "pieces": ["a", "a"]}',
        b'{"unit": "word", "pieces": [1]}',
        b'{"unit": "byte", "pieces": ["a"]}',
        json.dumps({"unit": "word", "pieces": ["a"], "normalizer": "(a+)+"}).encode(),
    ],
)
def test_other_content_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        Tokenizer.from_bytes(content)


@pytest.mark.parametrize("unit", ["word", "wordpiece", "bpe", "byte"])
def test_words_of_a_sentence_know_their_first_piece(unit: Any) -> None:
    tokenizer = learned(unit, 300 if unit == "bpe" else None)
    ids, starts = tokenizer.encode_words(["The", "cat", "\x00", "unbelievable"])
    assert len(starts) == 4 and starts[0] == 0 and np.all(np.diff(starts) >= 1) and starts[-1] < len(ids)
    if unit in ("word", "wordpiece"):
        assert ids[starts[2]] == tokenizer.special(UNKNOWN)


@pytest.mark.parametrize("unit", ["word", "wordpiece", "bpe", "byte"])
@given(text=st.text())
def test_the_library_splits_text_as_we_do(unit: Any, text: str) -> None:
    # Letters of a later Unicode than Python's are others to the library, and Python writes a final sigma in its own way.
    text = "".join(letter for letter in text if category(letter) not in ("Cs", "Cn") and letter not in "_Σ")
    assert LIBRARIES[unit].encode(text).ids == OURS[unit].encode([text])[0].tolist()


OURS = {unit: learned(unit, 300) for unit in ("word", "wordpiece", "bpe", "byte")}
LIBRARIES = {unit: tokenizer.to_library() for unit, tokenizer in OURS.items()}
