"""A result in a notebook: the headline, the table and the notes, escaped, in the notebook's own colors."""

import re
from dataclasses import replace

from sslkit import Data, Metric, Result, Results, Row

RESULT = Result(
    verb="knn",
    protocol="knn/weighted-v1",
    settings={},
    checkpoint="runs/<b>/model.safetensors",
    weights="123abc",
    data=Data(),
    rows=[
        Row("checkpoint", [Metric("top-1", 0.5, 0.4, 0.6, n=1200), Metric("top-5", 0.9)]),
        Row("random <weights>", [Metric("top-1", 0.25)]),
    ],
    notes=["5 < 6 & more"],
)


def cells(page: str) -> list[list[str]]:
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall("<tr>(.*?)</tr>", page)]


def test_a_result_is_a_table_with_headline_and_notes() -> None:
    page = RESULT._repr_html_()
    assert "knn/weighted-v1: top-1 50.0% (40.0 to 60.0) on 1,200 samples" in page
    assert cells(page) == [
        ["model", "top-1 (95% interval)", "top-5"],
        ["checkpoint", "50.0% (40.0 to 60.0)", "90.0%"],
        ["random &lt;weights&gt;", "25.0%", ""],
    ]
    assert "<p" in page and "5 &lt; 6 &amp; more" in page and "runs/&lt;b&gt;/model.safetensors" in page
    assert "<b>" not in page


def test_colors_are_those_of_the_notebook() -> None:
    colors = re.findall(r"(?:color|background)\s*:\s*([^;\"]+)", RESULT._repr_html_())
    assert set(colors) == {"inherit", "transparent"}


def test_columns_for_test_parts_and_layers_where_they_differ() -> None:
    rows = [replace(RESULT.rows[0], test=test, layer=layer) for test in ("a", "b") for layer in ("1", "last")]
    page = replace(RESULT, rows=rows)._repr_html_()
    assert cells(page)[0][:3] == ["model", "test", "layer"] and cells(page)[1][:3] == ["checkpoint", "a", "1"]


def test_results_of_several_protocols_follow_each_other() -> None:
    page = Results("runs/x", [RESULT, replace(RESULT, protocol="knn/other-v1")], {"probe/v1": "no <labels>"})._repr_html_()
    assert page.index("knn/weighted-v1") < page.index("knn/other-v1") < page.index("probe/v1: not possible: no &lt;labels&gt;")
