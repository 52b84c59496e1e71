"""Files of features with paths and labels: .npz, .npy with a table beside it, .parquet."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sslkit.extras import load_extra
from sslkit.files import write_atomically

if TYPE_CHECKING:
    from sslkit.evaluation.embed import Embeddings

_GROUP = 8192  # rows that are written at once


def write_npz(embeddings: "Embeddings", stream: BinaryIO) -> None:
    """Write the arrays `features`, `paths` and, if there are any, `labels`."""
    features, paths = embeddings.features, np.array(embeddings.names)
    if embeddings.labels is None:
        np.savez(stream, features=features, paths=paths)
    else:
        np.savez(stream, features=features, paths=paths, labels=np.array(embeddings.labels))


def write_npy(embeddings: "Embeddings", stream: BinaryIO) -> None:
    """Write the features alone, which `np.load(file, mmap_mode="r")` opens without reading them."""
    np.save(stream, embeddings.features)


def write_parquet(embeddings: "Embeddings", stream: BinaryIO) -> None:
    """Write the columns `path`, `label`, if there are any, and `features`, a list of fixed length, some rows at a time."""
    pa = load_extra("pyarrow", "hf", "a .parquet file")
    parquet = load_extra("pyarrow.parquet", "hf", "a .parquet file")
    width, labels = embeddings.features.shape[1], embeddings.labels
    fields = [("path", pa.string()), *([] if labels is None else [("label", pa.string())])]
    schema = pa.schema([*fields, ("features", pa.list_(pa.float32(), width))])
    with parquet.ParquetWriter(stream, schema) as writer:
        for start in range(0, len(embeddings.names), _GROUP):
            rows = slice(start, start + _GROUP)
            features = pa.array(np.ascontiguousarray(embeddings.features[rows]).ravel())
            columns: list[Any] = [pa.array(map(_valid, embeddings.names[rows]), pa.string())]
            columns += [] if labels is None else [pa.array(map(_valid, labels[rows]), pa.string())]
            columns.append(pa.FixedSizeListArray.from_arrays(features, width))
            writer.write_batch(pa.record_batch(columns, schema=schema))


WRITERS: dict[str, Callable[["Embeddings", BinaryIO], None]] = {
    ".npz": write_npz,
    ".npy": write_npy,
    ".parquet": write_parquet,
}


def write_embeddings(embeddings: "Embeddings", out: Path) -> Path | None:
    """Write features by the suffix of `out`; nothing is left half-written.

    Returns the table of paths and labels that is written beside an `.npy`, `features.paths.csv`, for other formats None.
    """
    write = WRITERS[out.suffix]
    if out.suffix != ".npy":
        with write_atomically(out) as stream:
            write(embeddings, stream)
        return None
    table = out.with_suffix(".paths.csv")
    with write_atomically(out) as stream, write_atomically(table) as table_stream:
        write(embeddings, stream)
        table_stream.write(_table(embeddings).encode(errors="surrogateescape"))  # names that are not UTF-8 stay as they are
    return table


def _table(embeddings: "Embeddings") -> str:
    """Return a .csv with path and, if there are any, label of each row."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    if embeddings.labels is None:
        rows.writerow(["path"])
        rows.writerows([name] for name in embeddings.names)
    else:
        rows.writerow(["path", "label"])
        rows.writerows(zip(embeddings.names, embeddings.labels, strict=True))
    return text.getvalue()


def _valid(name: str) -> str:
    """Return a name as valid UTF-8: bytes of others are replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
