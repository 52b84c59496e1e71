"""What one file's decoder says: whatever it raises becomes a reason, because one file must not end a run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sslkit.data.index import Changed, Index


class Broken(Exception):
    """Say why a sample can't be used."""


@contextmanager
def decoding(index: Index, row: int) -> Iterator[None]:
    """Turn anything that is raised while a sample is opened and decoded into Broken with a reason."""
    try:
        yield
    except Broken:
        raise
    except Changed as error:
        raise Broken(str(error)) from error
    except FileNotFoundError as error:
        raise Broken("no such file") from error
    except Exception as error:  # decoders raise anything on hostile bytes
        name = index.name(row)
        said = f"{type(error).__name__}: {error}".replace(str(index.root / name), name)
        # Pillow names the object it reads. (A function, because a name may hold what looks like a group.)
        raise Broken(re.sub(r"<_io\.\w+.*>", lambda match: repr(name), said)) from error
