"""Export formats are entry points: another package's is listed, run, verified and described like ours."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit import SslkitError, registry
from sslkit.contract.exporter import Exporter
from sslkit.exporting import verify
from sslkit.exporting.export import load_exporter
from sslkit.specs.use import ExportSpec

EXPORTER = '''
from pathlib import Path
import torch
from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import Exporter

class MeanColor(Exporter):
    """Convolution weights as a torch pickle of tensors.

    More.
    """
    suffix = ".weights.pt"
    reader = Path(__file__).with_name("mean_reader.py")
    normalizes = True
    modalities = ("image",)

    def check(self, job):
        if job.classes:
            raise SslkitError("the format holds no classifier", flag="to")

    def batches(self, job):
        return [torch.full((3, 3, job.size, job.size), 0.5)], "gray images"

    def write(self, job, samples, path):
        with torch.no_grad():
            torch.save({"gray": job.network(samples[:1])}, path)
        return {"scale": 1.0}

    def loading(self, name, settings, output):
        return ["import torch", f'{output} = torch.load("{name}")["gray"]']
'''
READER = """
import sys
import torch

def load(file, settings):
    assert "sslkit" not in sys.modules
    gray = torch.load(file)["gray"] * settings["scale"]
    return lambda images: gray.expand(len(images), -1).numpy()
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package with one export format on the path, as an installer would; return its folder."""
    site = tmp_path / "site"
    metadata = site / "mean_color-1.2.dist-info"
    metadata.mkdir(parents=True)
    (site / "mean_color.py").write_text(EXPORTER)
    (site / "mean_reader.py").write_text(READER)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mean_color\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[sslkit.exporters]\nmean-color = mean_color:MeanColor\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "mean_color", raising=False)
    return site


def test_ours_are_entry_points_with_a_summary_and_a_reader() -> None:
    ours = [entry for entry in registry.entries(registry.EXPORTERS) if entry.package == "sslkit"]
    assert [entry.name for entry in ours] == ["hf", "onnx", "pt2", "timm", "torchvision", "word2vec"]
    for entry in ours:
        exporter = load_exporter(entry.name)
        assert entry.summary and exporter.suffix.startswith("-" if exporter.files else ".")
        source = exporter.reader.read_text()
        assert "def load(" in source and "import sslkit" not in source and "from sslkit" not in source


def test_another_package_adds_a_format(installed: Path, trained: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    entry = registry.find(registry.EXPORTERS, "mean-color")
    assert (entry.package, entry.summary) == ("mean_color", "Convolution weights as a torch pickle of tensors.")
    result = sslkit("export", "--ckpt", trained, "--to", "mean-color", "--out", tmp_path / "e.pt", "--json").json
    assert result["format"] == "mean-color" and result["samples"] == "gray images"
    assert result["max_abs_diff"] <= result["tolerance"]
    assert torch.load(result["path"])["gray"].shape == (1, 64)
    card = Path(result["card"]).read_text()
    assert 'features = torch.load("e.pt")["gray"]' in card and "not yet normalized: that is inside" in card


def test_a_format_whose_reader_computes_something_else_leaves_no_file(
    installed: Path, trained: Path, tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    (installed / "mean_reader.py").write_text(READER.replace('settings["scale"]', "1.1"))
    out = tmp_path / "out" / "e.pt"
    ran = sslkit("export", "--ckpt", trained, "--to", "mean-color", "--out", out)
    assert ran.code == 1 and "the mean-color file computes features that differ" in ran.err
    assert not list(out.parent.iterdir())


def test_an_unknown_format_is_one_line_before_any_work(sslkit: Callable[..., Any]) -> None:
    ran = sslkit("export", "--ckpt", "missing.safetensors", "--to", "onxx")
    assert ran.code == 2
    assert ran.err.strip() == "error: --to: unknown export format, did you mean onnx? (got onxx)"


def test_an_entry_that_is_no_exporter(installed: Path) -> None:
    (installed / "mean_color.py").write_text("MeanColor = 3\n")
    with pytest.raises(SslkitError, match="has to be an Exporter class"):
        load_exporter("mean-color")


def test_a_format_of_another_modality_is_refused(
    installed: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Callable[..., Any]
) -> None:
    monkeypatch.setattr(type(load_exporter("mean-color")), "modalities", ("audio",))
    ran = sslkit("export", "--ckpt", trained, "--to", "mean-color")
    assert ran.code == 2 and ran.err.startswith("error: --to: mean-color takes encoders of audio data")


def test_every_method_without_a_default_names_the_class() -> None:
    class Empty(Exporter):
        """Nothing."""

    nothing: Any = None
    for call in (lambda: Empty().write(nothing, nothing, nothing), lambda: Empty().loading("", {}, "")):
        with pytest.raises(TypeError, match="Empty does not define"):
            call()


def test_the_verifying_program_imports_nothing_of_ours() -> None:
    code = f"import runpy, sys; runpy.run_path({verify.__file__!r}); print('sslkit' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_default_format_is_installed() -> None:
    assert ExportSpec(ckpt="x").to == "pt2"
