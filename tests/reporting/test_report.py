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


def words(file: Path) -> str:
    """Return the text of a page, words with one space between them."""
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return " ".join(page.text.split())


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
    assert page.open == [] and all(reference.startswith("data:") for reference in page.references)
    assert not re.search(r"https?://|@import|url\(", source)
    assert "<b>images" not in source and "<i>digit" not in source and "<script>alert" not in source
    assert "<b>images & more" in page.text and "<i>digit 0" in page.text
    order = [
        "this checkpoint",  # the verdict's bars
        "What was trained",
        " parameters",
        "Loss",
        "After 8 steps",
        "Nearest neighbors",
        "Map of the features",
        "All evaluations",
        "Confusion matrix",
        "Command to reproduce this run",
    ]
    places = [page.text.find(message) for message in order]
    assert -1 not in places and places == sorted(places), list(zip(order, places, strict=True))
    assert page.text.index("random weights") < page.text.index("raw pixels") < places[1]
    verdict = json.loads((evil / "results.jsonl").read_text().splitlines()[-1])["findings"][0]["text"]
    assert page.text.index(verdict) < places[0] and "Left out" not in page.text and "extended" not in page.text
    assert source.count("<circle ") >= source.count("data-tile=") == 48


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
    assert ran.code == 0 and "Left out" in (page := (tmp_path / "r.html").read_text())
    assert "Samples, map and neighbors: --data" in page and "<h2>Training</h2>" in page


def test_commands_are_quoted(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    import shlex
    import shutil

    run = tmp_path / "my run"
    shutil.copytree(evil, run)
    (run / "results.jsonl").unlink()
    assert sslkit("report", run, "--workers", 0, "--out", tmp_path / "r.html").code == 0
    assert shlex.join(["sslkit", "knn", "--ckpt", str(run / "model.safetensors")]) in words(tmp_path / "r.html")


def test_data_of_one_sample(evil: Path, digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    import shutil

    (tmp_path / "one").mkdir()
    shutil.copy(next(digits.rglob("*.png")), tmp_path / "one")
    ran = sslkit("report", evil, "--data", tmp_path / "one", "--workers", 0, "--out", tmp_path / "r.html")
    assert ran.code == 0 and "Neighbors: fewer than 2 samples." in words(tmp_path / "r.html")


@pytest.mark.slow
def test_tasks_compared_end_in_a_report(
    digits: Path, tmp_path: Path, sslkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sslkit").mkdir()  # such as a checkout: not the package
    monkeypatch.chdir(tmp_path)
    options = ["--data", digits, "--minutes", "0.02", "--encoder-option", "width=8", "--batch-size", 16, "--workers", 0]
    output = sslkit("compare", "--tasks", "rotation,jigsaw", *options, "--size", 32, "--out", tmp_path / "c", "--json").json
    assert set(output["runs"]) == set(output["knn"]) == set(output["probe"]) == {"rotation", "jigsaw"}
    assert output["knn"][output["best"][0]] == max(output["knn"].values())
    page = (tmp_path / "c" / "report.html").read_text()
    assert page.count('<h2 class="run">') == 2 and "knn/weighted-v1" in page and "Left out" not in page
    assert "Accuracy of the last layer against time" in page and "McNemar" in page
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
    assert output.code == 0 and '<h2 class="run">a/run</h2>' in page and '<h2 class="run">b/run</h2>' in page
    ran = sslkit("report", evil, evil, "--out", tmp_path / "r.html")
    assert ran.code == 2 and "named twice" in ran.err


def test_a_fine_tuned_run_has_a_report(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    options = ["--steps", 3, "--batch-size", 16, "--workers", 0, "--no-scratch", "--out", tmp_path / "tuned"]
    assert (
        sslkit("finetune", "--ckpt", evil / "model.safetensors", "--data", evil.parent / "<b>images & more", *options).code == 0
    )
    assert sslkit("report", tmp_path / "tuned", "--workers", 0, "--out", tmp_path / "r.html").code == 0
    page = words(tmp_path / "r.html")
    assert "sslkit finetune --data" in page and "the classifier's answer" in page and "finetune after rotation" in page


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


def test_a_file_beside_the_previews_is_left_out(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(evil, run)
    shutil.copy(run / "previews" / "step-8.png", run / "previews" / "step-8 copy.png")
    assert sslkit("report", run, "--data", tmp_path / "nowhere", "--out", tmp_path / "r.html").code == 0
    assert (tmp_path / "r.html").read_text().count("<figcaption>After 8 steps") == 1


def test_the_newest_evaluation_speaks_first(evil: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(evil, run)
    line = json.loads((evil / "results.jsonl").read_text().splitlines()[0])
    findings = [{"rule": "helped", "text": "All is <well>.", "command": "sslkit probe --ckpt 'a & b'"}]
    with open(run / "results.jsonl", "a") as stream:
        stream.write(json.dumps({**line, "protocol": "new/one-v1", "findings": findings}) + "\n")
        stream.write(json.dumps({**line, "protocol": None, "findings": []}) + "\n")
        stream.write(json.dumps({**line, "protocol": "new/one-v1", "findings": findings}) + "\n")
    assert sslkit("report", run, "--workers", 0, "--out", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert '<div class="verdict good"><p>All is &lt;well&gt;.</p>' in page and "--ckpt &#x27;a &amp; b&#x27;</span>" in page
    assert page.index("new/one-v1: top-1") < page.index("knn, custom settings: top-1") < page.index("What was trained")


def test_a_run_without_an_evaluation(digits: Path, tmp_path: Path, sslkit: Callable[..., Any], quick: list[str]) -> None:
    run = tmp_path / "run"
    assert sslkit("pretrain", "rotation", "--data", digits, "--out", run, "--epochs", 2, *quick).code == 0
    assert sslkit("report", run, "--workers", 0, "--out", tmp_path / "r.html").code == 0
    page = words(tmp_path / "r.html")
    assert "Not evaluated yet. In 6 steps the loss" in page and f"sslkit knn --ckpt {run / 'model.safetensors'}" in page
    assert "(chance 25%)" in page and " chance 25% " in page
    assert "up to where it was extended" not in page
    assert json.loads((run / "training.json").read_text())["steps"] == 6
    assert sslkit("pretrain", "rotation", "--out", run, "--extend-to", 3).code == 0
    assert json.loads((run / "training.json").read_text())["steps"] == 9
    assert sslkit("report", run, "--workers", 0, "--out", tmp_path / "r.html").code == 0
    assert "up to where it was extended" in (tmp_path / "r.html").read_text()


def test_words_have_a_map_and_neighbors_of_their_own(tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    families = [" ".join(f"{family}{(number * step) % 17}" for number in range(400)) for family in "ab" for step in range(1, 9)]
    (tmp_path / "text.txt").write_text("\n".join(families))
    run = tmp_path / "run"
    training = ["--out", run, "--batch-size", 16, "--steps", 3]
    assert sslkit("pretrain", "skipgram", "--data", tmp_path / "text.txt", *training).code == 0
    assert sslkit("report", run, "--workers", 0, "--out", tmp_path / "r.html").code == 0
    page = Page()
    page.feed((tmp_path / "r.html").read_text())
    assert "most frequent words" in page.text and "nearest words" in page.text and "a1" in page.text
    assert "No map" not in page.text and "Left out" not in page.text and page.open == []


def test_only_map_needs_matplotlib(
    evil: Path, tmp_path: Path, sslkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert sslkit("report", evil, "--workers", 0, "--out", tmp_path / "r.html").code == 0
    ran = sslkit("map", "--ckpt", evil / "model.safetensors", "--workers", 0, "--out", tmp_path / "map.png")
    assert ran.code == 2 and ran.err == "error: sslkit map needs matplotlib (pip install 'sslkit[plots]')\n"
    monkeypatch.undo()
    assert sslkit("map", "--ckpt", evil / "model.safetensors", "--workers", 0, "--out", tmp_path / "map.png").code == 0
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
