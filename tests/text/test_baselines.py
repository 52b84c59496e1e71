"""Counts and compressors that language models are compared with."""

import math
import zlib

import numpy as np
import pytest

from sslkit.text.baselines import TokenCounts, compressed_bits

TEXT = np.array([0, 1, 2, 0, 1, 3, 0, 1, 2], dtype=np.int32)


def test_counts_do_not_depend_on_pieces() -> None:
    whole = TokenCounts.of([TEXT], 5)
    parts = TokenCounts.of([TEXT[:2], TEXT[2:3], TEXT[3:]], 5)
    for name in ("tokens", "pairs", "pair_counts"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    assert dict(zip(whole.pairs.tolist(), whole.pair_counts.tolist(), strict=True)) == {1: 3, 7: 2, 8: 1, 10: 1, 15: 1}


def test_counts_give_probabilities() -> None:
    counts, ids = TokenCounts.of([TEXT], 5), np.arange(5, dtype=np.int32)
    unigram = np.exp(-counts.unigram(ids))
    assert unigram.sum() == pytest.approx(1) and unigram[0] == pytest.approx(4 / 14)
    for previous in range(5):
        bigram = np.exp(-counts.bigram(np.full(5, previous, dtype=np.int32), ids))
        assert bigram.sum() == pytest.approx(1), previous
    # After 1: 2 twice and 3 once of three; 0.75 of each kind goes to the frequencies.
    after = np.exp(-counts.bigram(np.full(5, 1, dtype=np.int32), ids))
    assert after[2] == pytest.approx(1.25 / 3 + 0.5 * 3 / 14) and after[4] == pytest.approx(0.5 / 14)
    assert np.exp(-counts.bigram(np.full(5, 4, dtype=np.int32), ids)) == pytest.approx(unigram)  # never seen


def test_compressors_count_what_the_test_text_adds() -> None:
    history, text = b"the cat sat on the mat. " * 20, b"the cat sat on the mat. "
    bits = compressed_bits("zlib -9", history, text)
    assert bits == 8 * (len(zlib.compress(history + text, 9)) - len(zlib.compress(history, 9)))
    assert bits < compressed_bits("zlib -9", b"", text) and math.isfinite(bits)
