"""Charts are inline SVG that says in words what it shows, with ticks at round numbers and every name escaped."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslkit.contract.result import Metric
from sslkit.engine.curves import describe_curves
from sslkit.reporting.charts import Axes, Series, interval_chart, line_chart, scatter_chart
from sslkit.reporting.scales import Scale, fit_scale, moving_average, number_text
from sslkit.reporting.training_charts import plan_charts
from sslkit.reporting.verdict import Bar, bar_chart


def parse(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


@given(st.floats(-1e3, 1e3), st.floats(1e-4, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_inside(low: float, span: float, most: int) -> None:
    high = low + span
    ticks = Scale(low, high, 0, 1).ticks(most)
    assert 1 <= len(ticks) <= most + 1 and ticks == sorted(set(ticks))
    assert all(low - span * 1e-6 <= tick <= high + span * 1e-6 for tick in ticks)


def test_logarithmic_ticks_are_powers_of_ten() -> None:
    assert Scale(0.008, 12, 0, 1, log=True).ticks(6) == pytest.approx([0.01, 0.1, 1, 10])
    assert Scale(1, 9, 0, 1, log=True).ticks(6) == [1, 2, 5]
    assert len(Scale(1e-30, 1e30, 0, 1, log=True).ticks(6)) <= 7


def test_scales_hold_all_values() -> None:
    for values in ([0.0], [5.0, 5.0], [-1.0, 3.0], [0.2, 0.9]):
        scale = fit_scale(values, 100, 0)
        assert all(0 <= scale.place(value) <= 100 for value in values)
    assert fit_scale([0.01, 0.9], 100, 0).low == 0  # a share below zero would be none
    assert fit_scale([1.0, 1000.0], 100, 0, log=True).place(1.0) < 100


@pytest.mark.parametrize(
    ("value", "share", "text"),
    [(0, False, "0"), (1234, False, "1,234"), (35_000, False, "35k"), (2.5e6, False, "2.5M"), (6e-5, False, "6e-5"),
     (0.0123, False, "0.0123"), (0.25, True, "25%"), (0.9731, True, "97.3%"), (1, True, "100%"), (-3.14159, False, "-3.14")],
)  # fmt: skip
def test_numbers_as_people_read_them(value: float, share: bool, text: str) -> None:
    assert number_text(value, share) == text


def test_moving_average_keeps_length_ends_and_constants() -> None:
    assert moving_average([3.0] * 50) == pytest.approx([3.0] * 50)
    values = [float(number % 7) for number in range(200)]
    smooth = moving_average(values)
    assert len(smooth) == 200 and smooth[0] == values[0] and smooth[-1] == values[-1]
    assert smooth[100] == pytest.approx(sum(values[95:106]) / 11)


def test_a_line_chart_says_what_it_shows() -> None:
    axes = Axes("Accuracy <b>", unit="of rotations", share=True, levels={"chance": 0.25})
    chart = line_chart([Series("a & b", [1, 2, 3], [0.2, 0.5, 0.75])], axes)
    root = parse(chart)
    svg = root.find("svg")
    assert svg is not None and svg.findtext("title") == "Accuracy <b>"
    assert svg.findtext("desc") == "a & b: 20% at step 1, 75% at step 3."
    assert "chance 25%" in [element.text for element in svg.iter("text")] and root.findtext(".//output") == "75%"
    assert len(svg.findall("polyline")) == 1
    noisy = parse(line_chart([Series("x", list(range(100)), [math.sin(n) for n in range(100)])], Axes("x")))
    assert [line.get("class") for line in noisy.iter("polyline")] == ["raw c0", "line c0"]


def test_losses_that_span_decades_have_a_logarithmic_scale() -> None:
    falling, flat = Series("a", [1, 2, 3], [1000.0, 10.0, 1.0]), Series("b", [1, 2, 3], [3.0, 2.0, 1.0])
    assert "log scale" in line_chart([falling], Axes("Loss", may_log=True))
    assert "log scale" not in line_chart([falling], Axes("Rate")) + line_chart([falling, flat], Axes("Loss", may_log=True))


def test_other_charts_name_their_points() -> None:
    scatter = parse(scatter_chart({"knn": [(1.0, 0.5, "<i>run")], "probe": [(1.0, 0.7, "run")]}, Axes("x", x_label="minutes")))
    assert "<i>run" in [element.text for element in scatter.iter("text")] and len(list(scatter.iter("circle"))) == 2
    layers = parse(interval_chart({"knn": [(0, 0.5, 0.4, 0.6), (1, 0.6, 0.5, 0.7)]}, Axes("x", x_label="layer")))
    assert len(list(layers.iter("circle"))) == 2


def test_terms_of_the_loss_share_its_chart() -> None:
    names = ["local", "infomax.uniformity", "critic_accuracy", "loss"]
    charts = plan_charts(describe_curves(names, {}, ["local", "infomax.uniformity"]))
    assert [list(chart.names.items()) for chart in charts] == [
        [("loss", "Loss"), ("local", "Local"), ("infomax.uniformity", "Infomax: uniformity")],
        [("critic_accuracy", "Critic accuracy")],
    ]
    assert charts[0].axes.unit == ""
    assert list(describe_curves(["loss", "class"], {}, ["class"])) == ["loss"]  # the only term repeats the loss
    assert list(describe_curves(["loss"], {}, ["loss"])) == ["loss"]


def test_training_charts_by_group() -> None:
    names = [
        "loss",
        "simclr.loss",
        "rotation.accuracy",
        "extra",
        "lr",
        "memory",
        "rankme",
        "uniformity",
        "epoch",
        "seconds",
        "step",
    ]
    charts = plan_charts(describe_curves(names, {"rotation.accuracy": 0.25}))
    assert [list(chart.names) for chart in charts if chart.main] == [
        ["loss", "simclr.loss"],
        ["rotation.accuracy"],
        ["extra"],
        ["rankme"],
    ]
    assert {name for chart in charts for name in chart.names} == set(names) - {"epoch", "seconds", "step"}
    lines = [{"step": 0, "memory": 2_500_000_000, "rotation.accuracy": 0.3}, {"step": 1, "memory": None, "loss": True}]
    memory = next(chart for chart in charts if "memory" in chart.names)
    assert memory.axes.unit == "GB" and ">2.5<" in memory.draw(lines)
    assert charts[0].draw(lines) == "" and "chance 25%" in charts[1].draw(lines)


def test_bars_have_whiskers_and_chance() -> None:
    bars = [Bar("this <checkpoint>", Metric("top-1", 0.8, low=0.7, high=0.9), main=True), Bar("random", Metric("top-1", 0.5))]
    root = parse(bar_chart(bars, "knn & more", chance=0.1))
    assert [span.get("style") for span in root.iter("span") if span.get("class") == "spread"] == ["left:70.00%;width:20.00%"]
    assert [span.get("style") for span in root.iter("span") if span.get("class") == "fill"] == ["width:80.00%", "width:50.00%"]
    assert "dashed: chance, 10.0%" in "".join(root.itertext()) and "70.0 to 90.0" in "".join(root.itertext())
    worse = bar_chart([Bar("a", Metric("perplexity", 120.0, unit="other", higher_is_better=False))], "text")
    assert "lower is better" in worse and bar_chart([Bar("a", Metric("correlation", -0.2, unit="correlation"))], "text") == ""
