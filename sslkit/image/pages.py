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
from sslkit.image.decode import open_image
from sslkit.image.formats import PAGED, open_deep


def with_pages(index: Index, reindex: bool) -> Index:
    """Return the index with a sample for each page of files that have several; those of one file are a group.

    Numbers of pages are cached as long as the files stay the same.
    """
    paged = np.flatnonzero([path.lower().endswith(PAGED) for path in index.paths])
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
        with decoding(index, row), index.open(row) as stream:
            deep = open_deep(stream)
            if deep is not None:
                return deep.pages
            with open_image(stream) as image:
                return int(getattr(image, "n_frames", 1))
    except UnreadableSampleError:
        return 0


def choose_channels(index: Index, option: int | Literal["auto"]) -> int:
    """Return the channels of canvases of files for a value of `--channels`.

    `auto` is 3, or, if all of some have another number (not 1), that. Raises SslkitError if none has the number that is asked.
    """
    paged = np.flatnonzero([path.lower().endswith(PAGED) for path in index.paths])
    if option in (1, 3) or (option == "auto" and len(paged) < len(index)):
        return 3 if option == "auto" else option

    def look(row: int) -> int:
        with index.open(row) as stream:
            deep = open_deep(stream)
            return 3 if deep is None else deep.channels

    numbers = set(inspect_samples(index, look, "image", 20))
    if option == "auto":
        return numbers.pop() if len(numbers) == 1 and numbers != {1} else 3
    if option not in numbers:
        known = " and ".join(map(str, sorted(numbers)))
        raise SslkitError(f"expected {option} channels, and images of {index.source} have {known}", flag="channels")
    return option
