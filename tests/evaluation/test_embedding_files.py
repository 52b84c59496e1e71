"""Files of features: every format holds the same, and docs/embeddings.md opens them."""

import csv
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslkit.evaluation.embed import Embeddings
from sslkit.evaluation.embedding_files import write_embeddings

Run = Callable[..., Any]
PAGE = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    features = np.random.default_rng(0).normal(size=(20_000, 6)).astype(np.float32)
    return Embeddings(features, [f"a, b/{row}.png" for row in range(20_000)], [str(row % 3) for row in range(20_000)], "w")


def test_every_format_holds_the_same(embeddings: Embeddings, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="pip install 'sslkit[hf]'")
    assert write_embeddings(embeddings, tmp_path / "x.npz") is None
    table = write_embeddings(embeddings, tmp_path / "x.npy")
    assert write_embeddings(embeddings, tmp_path / "x.parquet") is None
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays["paths"].tolist() == embeddings.names and arrays["labels"].tolist() == embeddings.labels
    assert np.array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), embeddings.features)
    assert table == tmp_path / "x.paths.csv"
    with open(table, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == embeddings.names and [row["label"] for row in rows] == embeddings.labels
    file = pyarrow.ParquetFile(tmp_path / "x.parquet")
    assert file.schema_arrow.names == ["path", "label", "features"] and file.num_row_groups == 3
    columns = file.read()
    assert columns["path"].to_pylist() == embeddings.names and columns["label"].to_pylist() == embeddings.labels
    features = columns["features"].combine_chunks().flatten().to_numpy().reshape(-1, 6)
    assert features.dtype == np.float32 and np.array_equal(features, embeddings.features)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_failure_leaves_nothing_behind(suffix: str, embeddings: Embeddings, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'sslkit[hf]'")
    broken = replace(embeddings, labels=["fewer", "than", "rows"])  # noticed after the first rows are written
    with pytest.raises(ValueError):
        write_embeddings(broken, tmp_path / f"x{suffix}")
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="pip install 'sslkit[hf]'")
    name = b"\xff.png".decode(errors="surrogateescape")
    embeddings = Embeddings(np.zeros((1, 2), np.float32), [name], None, "w")
    write_embeddings(embeddings, tmp_path / "x.parquet")
    assert pyarrow.read_table(tmp_path / "x.parquet")["path"].to_pylist() == ["\ufffd.png"]
    write_embeddings(replace(embeddings, labels=[name]), tmp_path / "labeled.parquet")
    assert pyarrow.read_table(tmp_path / "labeled.parquet")["label"].to_pylist() == ["\ufffd.png"]
    table = write_embeddings(embeddings, tmp_path / "x.npy")
    assert table is not None and table.read_bytes() == b"path\n\xff.png\n"


def test_a_missing_pyarrow_is_named_before_the_work(
    trained: Path, tmp_path: Path, sslkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = sslkit("embed", "--ckpt", trained, "--out", tmp_path / "x.parquet")
    assert ran.code == 2 and "a .parquet file needs pyarrow (pip install 'sslkit[hf]')" in ran.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("package", "title"), [("faiss", "FAISS"), ("pandas", "pandas")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SWIG's types
def test_the_page_opens_them(
    package: str, title: str, trained: Path, digits: Path, tmp_path: Path, sslkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    pytest.importorskip("pyarrow", reason="pip install 'sslkit[hf]'")
    monkeypatch.chdir(tmp_path)
    for suffix in ("npy", "parquet"):
        ran = sslkit("embed", "--ckpt", trained, "--data", digits, "--out", f"features.{suffix}")
        assert ran.code == 0, ran.err
    (code,) = re.findall(rf"## {title}\n.*?```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["features"].shape == (48, 64)
    if package == "faiss":
        assert names["rows"].shape == (5, 10) and names["rows"][:, 0].tolist() == [0, 1, 2, 3, 4]
