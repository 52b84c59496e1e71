"""Lists and tables give one sample per line, or an error that names the line."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sslkit import SslkitError
from sslkit.console import start_command
from sslkit.data.tables import read_lines, read_table
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CELLS = st.text(st.sampled_from(list('ab ,;"\n\r\t\u2028')), max_size=6)


def table(folder: Path, text: str) -> Path:
    file = folder / "table.csv"
    file.write_text(text, encoding="utf-8", newline="")
    return file


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = table(tmp_path, '\ufeffpath,caption\r\na.png,"a red, round ""thing"""\r\n\r\nb.png,blue\u2028sky\r\n')
    read = read_table(file)
    assert read.column("path") == ["a.png", "b.png"] and read.lines == [2, 4]
    assert read.column("caption") == ['a red, round "thing"', "blue\u2028sky"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,caption\na.png,a red, round thing\n",
            "line 2 .* has 3 cells.*header has 2 .*quote cells that contain commas",
        ),
        ("path,caption\na.png,red\nb.png\n", "line 3 .* has 1 cell, but its header has 2 .*every row needs all columns"),
        ('path,label\na.png,"red\nb.png,blue\n', "a quote in line 2 .* is never closed"),
        ('path,label\na.png,"red\nb.png,"blue\nc.png,green\n', "line 3 .* is not valid CSV: text follows a closing quote"),
        ('path,label\na.png,"red\nb.png,blue"\nc.png,green\n', "label in line 2 .* contains a line break .*stray quote"),
        ('path,label\n"a.png\nb.png",blue\nc.png,green\n', "path in line 2 .* contains a line break"),
        (f'path,label\na.png,"{"red " * 50_000}\n', "a quote in line 2 .* is never closed"),
        ("path,label,label\na.png,red,round\n", "more than one column label"),
        ("path;label\na.png;red\n", "no column `path` in line 1 .*separate cells by commas"),
        ("path,label\na.png, \n", "label is empty in line 2"),
    ],
)
def test_what_could_be_misread_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SslkitError, match=message):
        ImageSource.read_index(str(table(tmp_path, text)), DataSpec(label="label" if "label" in text else None))


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes("path\na.png\nü.png\n".encode("latin-1"))
    with pytest.raises(SslkitError, match=r"is not UTF-8 text \(line 3\)"):
        read_table(tmp_path / "table.csv")


def test_line_breaks_in_captions_are_kept_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = read_table(table(tmp_path, 'path,caption\na.png,"a red\nsquare"\nb.png,blue\n'))
    assert read.column("caption", single_line=False) == ["a red\nsquare", "blue"] and read.lines == [2, 4]
    assert "1 rows of" in capsys.readouterr().err


def test_spaces_around_labels_make_no_class(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    file = table(tmp_path, "path,kind\na.png,cat\nb.png,cat \nc.png, dog\n")
    index = ImageSource.read_index(str(file), DataSpec(label="kind"))
    assert index.classes == ("cat", "dog")


def test_a_name_may_contain_a_separator_of_unicode(tmp_path: Path) -> None:
    (tmp_path / "a\u2028b.png").write_bytes(b"")
    (tmp_path / "list.txt").write_text("a\u2028b.png\r\n\r\n", encoding="utf-8", newline="")
    assert list(ImageSource.read_index(str(tmp_path / "list.txt"), DataSpec()).paths) == ["a\u2028b.png"]


@fuzzed
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_what_csv_writes_is_read(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    with open(tmp_path / "table.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "caption"), *rows])
    assert [tuple(row) for row in read_table(tmp_path / "table.csv").rows] == rows


@fuzzed
@given(text=st.text(st.sampled_from(list('ab ,"\n\r\u2028')), max_size=40))
def test_no_line_is_lost_without_a_message(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path, f"path,caption\n{text}")
    start_command()  # or a notice of the text before would not be repeated
    try:
        read = read_table(file)
    except SslkitError as error:
        assert str(file) in str(error)
        return
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line]
    assert len(read.rows) == len(lines) or "line breaks in a cell" in capsys.readouterr().err


@fuzzed
@given(names=st.lists(st.text(st.sampled_from(list("ab /.\u2028\x0b\x1c\x85")), min_size=1, max_size=5), max_size=5))
def test_a_list_has_a_sample_for_every_line(names: list[str], tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\n".join(names), encoding="utf-8", newline="")
    assert [line for _, line in read_lines(file)] == [name for name in names if name.strip()]


def test_a_malformed_table_of_captions_ends_before_a_run(sslkit: Callable[..., Any], tmp_path: Path) -> None:
    file = table(tmp_path, "path,caption\na.png,a red, round thing\n")
    ran = sslkit("pretrain", "clip", "--data", file, "--out", tmp_path / "run")
    assert ran.code == 2 and "line 2" in ran.err and not (tmp_path / "run").exists()
