"""The notebook runs from top to bottom, and shows what it promises."""

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient and ipykernel, of the extra dev, run the notebook")
nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel, of the extra dev, run the notebook")
pytest.importorskip("ipykernel", reason="nbclient and ipykernel, of the extra dev, run the notebook")

NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the notebook client's own libraries
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SSLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(os.environ, "IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    results = [output["data"] for output in outputs(notebook) if output["output_type"] == "execute_result"]
    assert sum("image/png" in data for data in results) == 3
    tables = [data["text/html"] for data in results if "text/html" in data]
    assert len(tables) == 1 and "random weights" in tables[0] and "top-1" in tables[0]


def test_the_notebook_is_kept_without_outputs() -> None:
    assert not outputs(nbformat.read(NOTEBOOK, as_version=4))
