"""Speakers and cameras that file names tell: what training and test share although it is no label."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from sslkit.console import say_once
from sslkit.data.index import Index

_SEPARATORS = re.compile(r"[_\-. /]+")
_MOST = 0.05  # of the files: with more values a part of the names is a number


def shared_names(train: Index, test: Index) -> list[str]:
    """Return values of a part of the file names that training and test share, such as speakers; none if there is no such part.

    Names are divided at `_`, `-`, dots, spaces and folders. Numbers do not count, nor does a part that follows from the label.
    """
    several = train.labels is not None and train.labels.ndim != 1
    if train.groups is not None or several or not train.paths or not test.paths:
        return []
    labels = [] if train.labels is None else train.labels.tolist()
    columns, others = _columns(train.paths), _columns(test.paths)
    if columns is None or others is None or len(columns) != len(others):
        return []
    for ours, theirs in zip(columns, others, strict=True):
        values = set(ours)
        by_label = bool(labels) and len(set(zip(ours, labels, strict=True))) == len(set(labels))
        if by_label or not 2 <= len(values) <= max(2, _MOST * len(ours)) or any(value.isdigit() for value in values):
            continue
        shared = values & set(theirs)
        if sum(value in shared for value in theirs) > len(theirs) / 2:
            return sorted(shared)
    return []


def note_shared_names(train: Index, test: Index) -> None:
    """Print what file names of training and test share, if that may be a speaker or a camera."""
    shared = shared_names(train, test)
    if shared:
        names = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        say_once(
            f"note: file names of training and test share {names}: if these are speakers, the figures tell nothing about "
            "others (--group-pattern keeps them apart where a part is held out)"
        )


def _columns(paths: Sequence[str]) -> list[tuple[str, ...]] | None:
    """Return the parts of file names, column by column, None if names do not all have as many."""
    parts = [tuple(_SEPARATORS.split(str(PurePosixPath(path).with_suffix("")))) for path in paths]
    return list(zip(*parts, strict=True)) if len({len(each) for each in parts}) == 1 else None
