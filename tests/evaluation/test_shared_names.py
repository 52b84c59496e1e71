"""File names that tell a speaker: training and test share them."""

from pathlib import Path

import numpy as np

from sslkit.data.index import Index, with_groups, with_labels
from sslkit.evaluation.shared_names import shared_names


def index(names: list[str]) -> Index:
    listed = Index("data", Path("data"), names, np.zeros((len(names), 3), dtype=np.int64))
    return with_labels(listed, [name.partition("_")[0] for name in names])


def recordings(speakers: tuple[str, ...], numbers: range) -> list[str]:
    return [f"{digit}_{speaker}_{number}.wav" for digit in range(10) for speaker in speakers for number in numbers]


def test_speakers_in_both_parts_are_named() -> None:
    train, test = index(recordings(("ann", "bob"), range(5, 20))), index(recordings(("ann", "bob"), range(5)))
    assert shared_names(train, test) == ["ann", "bob"]
    assert shared_names(train, index(recordings(("eve",), range(5)))) == []
    assert shared_names(with_groups(train, [name.split("_")[1] for name in train.paths]), test) == []


def test_labels_numbers_and_irregular_names_are_no_speakers() -> None:
    assert shared_names(index(recordings(("ann",), range(20))), index(recordings(("ann",), range(20, 25)))) == []
    names = [f"{digit}_{number}.wav" for digit in range(10) for number in range(20)]
    assert shared_names(index(names), index(names)) == []
    assert shared_names(index([*recordings(("ann", "bob"), range(9)), "5_x.wav"]), index(names)) == []
