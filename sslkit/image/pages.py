"""Files that hold several images: each page of them is a sample."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data.cache import cache_folder, read_arrays, store_arrays
from sslkit.data.decode import decoding, inspect_samples, silence_decoders
from sslkit.data.index import Index, with_groups
from sslkit.image.decode import open_header
from sslkit.image.formats import PAGED, DeepImage


def with_pages(index: Index, reindex: bool) -> Index:
    """Return the index with a sample for each page of files that have several; those of one file are a group.

    Numbers of pages are cached as long as the files stay the same.
    """
    paged = np.flatnonzero([_may_be_paged(path) for path in index.paths])
    if not len(paged):
        return index
    counts = np.ones(len(index), dtype=np.int64)
    counts[paged] = _count(index, paged, reindex)
    if counts.max() == 1:
        return index
    rows = np.repeat(np.arange(len(index)), counts)
    pages = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    expanded = replace(index.subset(rows), pages=pages)
    if index.groups is not None:
        return expanded
    # By their whole path: a file of the same name elsewhere is another group.
    root = index.root.resolve()
    return with_groups(expanded, [f"{root}/{index.paths[int(row)]}" for row in rows])


def _may_be_paged(path: str) -> bool:
    return path.lower().endswith(PAGED)


def _count(index: Index, rows: NDArray[np.int64], reindex: bool) -> NDArray[np.int64]:
    """Return the pages of files, one for a file that can't be read, which is reported when it is decoded."""
    file = cache_folder() / "index" / f"{index.key()}-pages.npz"
    arrays = None if reindex else read_arrays(file, "counts")
    if arrays is not None and arrays[0].shape == rows.shape:
        return arrays[0]
    counts = np.zeros(len(rows), dtype=np.int64)
    with silence_decoders(), ThreadPoolExecutor() as pool, show_progress("counting pages", len(rows)) as progress:
        for place, pages in enumerate(pool.map(lambda row: _pages(index, int(row)), rows)):
            counts[place] = pages
            progress.advance()
    if counts.all():  # what is unreadable now may be readable another time
        store_arrays(file, counts=counts)
    return counts.clip(min=1)


def _pages(index: Index, row: int) -> int:
    """Return the pages of a file, 0 if it can't be read."""
    try:
        with decoding(index, row), open_header(index, row) as image:
            return image.pages if isinstance(image, DeepImage) else int(getattr(image, "n_frames", 1))
    except UnreadableSampleError:
        return 0


def choose_channels(index: Index, option: int | Literal["auto"]) -> int:
    """Return the channels of canvases of files for a value of `--channels`.

    `auto` is 3, or, if all of some have another number (not 1), that. Raises SslkitError if none has the number that is asked.
    """
    if option in (1, 3):
        return option
    if option == "auto" and not all(map(_may_be_paged, index.paths)):
        return 3

    def look(row: int) -> int:
        with open_header(index, row) as image:
            return image.channels if isinstance(image, DeepImage) else 3

    numbers = set(inspect_samples(index, look, "image", 20))
    if option == "auto":
        return numbers.pop() if len(numbers) == 1 and numbers != {1} else 3
    if option not in numbers:
        known = " and ".join(map(str, sorted(numbers)))
        raise SslkitError(f"expected {option} channels, and images of {index.source} have {known}", flag="channels")
    return option
