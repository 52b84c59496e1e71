"""Decoding one file: whatever a decoder raises becomes a reason, because one file must not end a run."""

import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data.index import FileChangedError, Index

T = TypeVar("T")


@contextmanager
def decoding(index: Index, row: int) -> Iterator[None]:
    """Turn anything that is raised while a sample is opened and decoded into UnreadableSampleError with a reason."""
    try:
        yield
    except (UnreadableSampleError, SslkitError):  # the latter of what is not installed
        raise
    except FileChangedError as error:
        raise UnreadableSampleError(str(error)) from error
    except FileNotFoundError as error:
        raise UnreadableSampleError("no such file") from error
    except Exception as error:  # decoders raise anything on hostile bytes
        name = index.name(row)
        reason = f"{type(error).__name__}: {error}".replace(str(index.root / name), name)
        # Pillow names the object it reads. (A function, because a name may hold what looks like a group.)
        raise UnreadableSampleError(re.sub(r"<_io\.\w+.*>", lambda match: repr(name), reason)) from error


@contextmanager
def silence_decoders() -> Iterator[None]:
    """Silence warnings of decoders: a file is either used or reported with a reason. Use around threads, not in them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def inspect_samples(index: Index, look: Callable[[int], T], called: str, count: int = 200) -> list[T]:
    """Return what `look` returns for up to `count` samples spread over the data; unreadable ones are left out.

    Raises SslkitError, with the first one's reason, if all are broken.
    """

    def attempt(row: int) -> tuple[list[T], str]:
        try:
            with decoding(index, row):
                return [look(row)], ""
        except UnreadableSampleError as reason:
            return [], str(reason)

    rows = np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(np.int64))
    with silence_decoders(), ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda row: attempt(int(row)), rows))
    known = [value for values, _ in results for value in values]
    if not known:
        raise SslkitError(
            f"none of {len(rows)} files tried in {index.source} is a readable {called}",
            f"{index.name(int(rows[0]))}: {results[0][1]}",
            flag="data",
        )
    return known
