"""The report is one file that needs nothing else, escapes names, and says what was run."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects what a page refers to, its text, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture(scope="module")
def evil(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose folder, data and class names would be markup if they were not escaped."""
    import shutil

    from sslkit.engine.pretrain import pretrain
    from sslkit.evaluation.knn import knn
    from sslkit.specs.evaluation import KnnSpec
    from sslkit.specs.train import PretrainSpec

    folder = tmp_path_factory.mktemp("evil")
    data = folder / "<b>images & more"
    for part in ("train", "test"):
        for source in sorted((digits / part).iterdir()):
            shutil.copytree(source, data / part / f"<i>{source.name}")
    run = folder / '"><script>alert(1)'
    settings: dict[str, Any] = {"encoder_option": {"width": "8"}, "batch_size": 16, "workers": 0, "size": 16}
    pretrain(PretrainSpec(task="rotation", data=str(data), out=str(run), steps=8, **settings))
    knn(KnnSpec(ckpt=str(run / "model.safetensors"), layer="all", workers=0))
    return run


def test_one_file_that_needs_nothing(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    out = tmp_path / "report.html"
    output = sslkit("report", evil, "--out", out, "--workers", 0, "--json").json
    source = out.read_text(encoding="utf-8")
    assert output["bytes"] == out.stat().st_size and output["runs"] == [str(evil)]
    page = Page()
    page.feed(source)
    assert page.open == [] and all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not re.search(r"https?://|@import|url\(", source)
    assert "<b>images" not in source and "<i>digit" not in source and "<script>alert" not in source
    assert "<b>images & more" in page.text and "<i>digit 0" in page.text
    for message in (
        "To repeat it",
        "Evaluations",
        "knn",
        "Features in two dimensions",
        "Nearest images",
        "After 8 steps",
        "random weights",
    ):
        assert message in page.text, message
    thumbnails = json.loads(re.search(r'<script type="application/json">(.*?)</script>', source)[1])  # type: ignore[index]
    assert len(thumbnails) == source.count("<circle ") == 48


def test_the_command_repeats_the_run(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    import shlex

    from sslkit.reporting.runs import RunRecord

    words = shlex.split(RunRecord.read(evil, "run", None).command)
    assert words[:3] == ["sslkit", "pretrain", "rotation"] and "--encoder-option" in words
    assert sslkit(*words[1:], "--out", tmp_path / "again").code == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (evil / "model.safetensors").read_bytes()


def test_missing_figures_have_a_reason(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    ran = sslkit("report", "--out", tmp_path / "r.html")
    assert ran.code == 2 and "no run is named" in ran.err
    ran = sslkit("report", tmp_path, "--out", tmp_path / "r.html")
    assert ran.code == 2 and "holds no run" in ran.err and not (tmp_path / "r.html").exists()
    ran = sslkit("report", evil, "--data", tmp_path / "nowhere", "--out", tmp_path / "r.html")
    assert ran.code == 0 and "No map: --data" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_tasks_compared_end_in_a_report(digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    options = ["--data", digits, "--minutes", "0.02", "--encoder-option", "width=8", "--batch-size", 16, "--workers", 0]
    output = sslkit("compare", "--tasks", "rotation,jigsaw", *options, "--size", 32, "--out", tmp_path / "c", "--json").json
    assert set(output["runs"]) == set(output["knn"]) == set(output["probe"]) == {"rotation", "jigsaw"}
    assert output["knn"][output["best"][0]] == max(output["knn"].values())
    page = (tmp_path / "c" / "report.html").read_text()
    assert "Compared" in page and page.count("<h2>") == 3 and "knn/weighted-v1" in page
    assert "Accuracy of the last layer against minutes" in page and "McNemar" in page and "No map" not in page
    lines = (tmp_path / "c" / "jigsaw" / "results.jsonl").read_text().splitlines()
    sizes = [json.loads((tmp_path / "c" / name / "spec.json").read_text())["image"]["size"] for name in output["runs"]]
    assert sizes == [32, 32]
    again = sslkit("compare", "--tasks", "rotation,jigsaw", *options, "--size", 32, "--out", tmp_path / "c", "--json").json
    assert again["knn"] == output["knn"]  # nothing was trained again, and earlier results are still there
    assert (tmp_path / "c" / "jigsaw" / "results.jsonl").read_text().splitlines()[: len(lines)] == lines
    ran = sslkit("compare", "--tasks", "rotation,jigsaw", *options, "--size", 64, "--out", tmp_path / "c")
    assert ran.code == 2 and ran.err.startswith("error: --out: ") and "was started with other values: --size 64" in ran.err


def test_what_compare_refuses_it_refuses_first(digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    options = ["--data", digits, "--minutes", "0.02", "--batch-size", 16, "--workers", 0, "--out", tmp_path / "c"]
    for tasks, more, message in [
        ("rotation", [], "--tasks: two or more different tasks are needed (got rotation)"),
        ("rotation,clusterfit", [], "--tasks: clusterfit needs options of its own: teacher"),
        ("rotation,mae", ["--encoder", "resnet_micro"], "--encoder: mae requires tokens"),
        ("rotation,nothing", [], "unknown task nothing"),
    ]:
        ran = sslkit("compare", "--tasks", tasks, *options, *more)
        assert ran.code == 2 and message in ran.err and not (tmp_path / "c").exists(), ran.err


def test_runs_with_equal_names_get_longer_names(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    import shutil

    for name in ("a", "b"):
        shutil.copytree(evil, tmp_path / name / "run")
    output = sslkit(
        "report", tmp_path / "a" / "run", tmp_path / "b" / "run", "--workers", 0, "--out", tmp_path / "r.html", "--json"
    )
    page = (tmp_path / "r.html").read_text()
    assert output.code == 0 and "<h2>a/run</h2>" in page and "<h2>b/run</h2>" in page
    ran = sslkit("report", evil, evil, "--out", tmp_path / "r.html")
    assert ran.code == 2 and "named twice" in ran.err


def test_a_fine_tuned_run_has_a_report(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    options = ["--steps", 3, "--batch-size", 16, "--workers", 0, "--no-scratch", "--out", tmp_path / "tuned"]
    assert (
        sslkit("finetune", "--ckpt", evil / "model.safetensors", "--data", evil.parent / "<b>images & more", *options).code == 0
    )
    assert sslkit("report", tmp_path / "tuned", "--workers", 0, "--out", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert "sslkit finetune --data" in page and "the classifier&#x27;s answer" in page and "pretrained by" in page


def test_results_of_other_weights_are_not_shown(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(evil, run)
    with open(run / "results.jsonl", "a") as stream:
        stream.write('{"command": "knn", "protocol": "knn/of-other-weights", "weights": "0", "rows": []}\n{"cut off\n')
        line = json.loads((evil / "results.jsonl").read_text().splitlines()[0])
        for change in ({"schema": 99, "protocol": "knn/newer"}, {"weights": "0", "protocol": "knn/of-other-weights"}):
            stream.write(json.dumps({**line, **change}) + "\n")
    assert sslkit("report", run, "--workers", 0, "--out", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert "of-other-weights" not in page and "knn/newer" not in page and "random weights" in page
