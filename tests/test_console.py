"""The line of progress: what stays on a narrow terminal, and what is printed where there is none."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from sslkit import console
from sslkit.console import ProgressReporter, show_progress
from sslkit.engine.curves import describe_curves, describe_metrics, read_curves, read_loss_terms, read_steps

TEXTS = ("loss 1.386", "accuracy 31% (chance 25%)", "1,234 images/s", "waiting for data 3%")


def line(width: int, title: str = "training", texts: tuple[str, ...] = TEXTS) -> tuple[str, int, str]:
    progress = ProgressReporter(title, 10_000, done=1233)
    progress.advance(1, *texts, left="12 min 30 s left")
    return progress.fit(width)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132, 200])
def test_counter_and_time_left_are_always_there_and_the_line_fits(width: int) -> None:
    title, bar, rest = line(width)
    assert title == "training" and rest.startswith("1234/10000  12 min 30 s left")
    assert len(title) + 1 + bar + bool(bar) + len(rest) <= width
    assert bar == 0 or bar >= 8


def test_of_the_texts_the_last_give_way_first() -> None:
    assert line(80)[2].endswith("loss 1.386  accuracy 31% (chance 25%)")
    assert line(70)[2].endswith("left  loss 1.386")
    assert line(200) == ("training", 40, "1234/10000  12 min 30 s left  " + "  ".join(TEXTS))


def test_a_long_title_is_cut_before_the_counter() -> None:
    title, bar, rest = line(40, title="training the head on layer 12")
    assert title == "training t…" and bar == 0 and rest == "1234/10000  12 min 30 s left"


def test_the_bar_is_drawn_in_proportion() -> None:
    progress = ProgressReporter("features", 4)
    progress.advance(1, left="")
    (text,) = progress.__rich_console__(console.stderr, console.stderr.options.update(width=60))
    assert cell_len(text.plain) <= 60 and text.plain.startswith("features ━━━━━━━━━━")
    (complete,) = [span for span in text.spans if span.style == "bar.complete"]
    assert complete.end - complete.start == 10


def test_the_time_left_is_measured_from_what_was_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    progress = ProgressReporter("reading", 200, done=100, on_terminal=True)
    now = 10.0
    progress.advance(10)
    assert progress.left == "1 min 30 s left"
    unknown = ProgressReporter("indexing", None, on_terminal=True)
    unknown.advance(10)
    assert unknown.left == "" and unknown.fit(80) == ("indexing", 0, "10")


def test_without_a_terminal_there_is_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with show_progress("training", 3) as progress:
        for moment in (5.0, 11.0, 22.0):
            now = moment
            progress.advance(1, "loss 1.386", "accuracy 31% (chance 25%)")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training 2/3  6 s left  loss 1.386  accuracy 31% (chance 25%)",
        "training 3/3  loss 1.386  accuracy 31% (chance 25%)",
    ]


def test_metrics_are_named_with_unit_and_chance(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"chance": {"rotation.accuracy": 0.25}}')
    curves = read_curves(tmp_path, ["loss", "rotation.accuracy", "color_accuracy", "step", "alarms"])
    assert list(curves) == ["loss", "rotation.accuracy", "color_accuracy"]
    assert curves["rotation.accuracy"].title == "rotation: accuracy" and curves["rotation.accuracy"].unit == "share"
    assert curves["color_accuracy"].title == "color accuracy" and curves["color_accuracy"].text(0.5) == "50%"
    assert describe_metrics({"rotation.accuracy": 0.314}, {"rotation.accuracy": 0.25}) == [
        "rotation: accuracy 31% (chance 25%)"
    ]
    assert describe_curves(["accuracy"], {"accuracy": 1 / 4097})["accuracy"].text(0.02) == "2.0% (chance 0.024%)"
    titles = {
        "bound_nats": ("bound", "nats"),
        "psnr_db": ("psnr", "dB"),
        "error_share": ("error share", "share"),
        "nats": ("nats", "nats"),
    }
    curves = describe_curves(titles)
    assert {name: (curve.title, curve.unit) for name, curve in curves.items()} == titles
    assert curves["bound_nats"].text(1.234) == "1.23 nats" and {curve.group for curve in curves.values()} == {"task"}
    assert describe_curves(["teacher_entropy"], {})["teacher_entropy"].text(2.345) == "2.35 nats"


@pytest.mark.parametrize("content", ["", "[]", '{"chance": {"accuracy": "high"}}', '{"chance": [1]}', "{"])
def test_chance_levels_that_cannot_be_read_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(content)
    assert read_curves(tmp_path, ["accuracy"])["accuracy"].chance is None
    assert read_loss_terms(tmp_path) == [] and read_steps(tmp_path) is None


def test_the_end_of_a_run_has_the_metric_and_its_chance(
    digits: Path, quick: list[str], tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    flags = ["--data", digits, *quick, "--steps", 3]
    ran = sslkit("pretrain", "rotation", *flags, "--out", tmp_path / "run")
    assert re.search(r"^accuracy +\d+% \(chance 25%\)$", ran.out, flags=re.MULTILINE), ran.out
    values = sslkit("pretrain", "simclr+rotation", *flags, "--out", tmp_path / "joint", "--json").json
    assert values["chance"] == {"simclr.accuracy": 1 / 16, "rotation.accuracy": 0.25}
    assert values["metrics"].keys() == values["chance"].keys()
    again = sslkit("pretrain", "simclr+rotation", "--resume", "--out", tmp_path / "joint", "--json").json
    assert again["metrics"] == values["metrics"]
