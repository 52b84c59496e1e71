"""What is said when: TextGrid, .phn and .csv files, and what is wrong with some."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from praatio import textgrid

from sslkit.audio.alignments import Alignment, read_alignments
from sslkit.audio.source import AudioSource
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data.index import Index
from sslkit.specs.data import DataSpec

INTERVALS = [(0.1, 0.25, "a"), (0.25, 0.4, "b"), (0.5, 0.9, "a")]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    for name in ("one", "two"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.ones(8000), 8000)
    return AudioSource.read_index(str(tmp_path), DataSpec())


def intervals_of(alignment: Alignment) -> list[tuple[float, float, str]]:
    return [
        (round(float(start), 6), round(float(end), 6), label)
        for start, end, label in zip(alignment.starts, alignment.ends, alignment.labels, strict=True)
    ]


def write_grid(path: Path, *names: str) -> None:
    grid = textgrid.Textgrid()
    for name in names:
        grid.addTier(textgrid.IntervalTier(name, INTERVALS, 0, 1))
    grid.addTier(textgrid.PointTier("clicks", [(0.3, "x")], 0, 1))
    grid.save(str(path), format="short_textgrid", includeBlankSpaces=True)


def read(index: Index, pattern: str, tier: str | None = None) -> dict[int, Alignment]:
    return read_alignments(index, pattern, tier, lambda row: 8000)


@pytest.mark.parametrize("kind", ["TextGrid", "phn", "csv", "table"])
def test_all_formats_say_the_same(index: Index, tmp_path: Path, kind: str) -> None:
    pattern = str(tmp_path / "all.csv") if kind == "table" else f"{{stem}}.{kind}"
    if kind == "TextGrid":
        write_grid(tmp_path / "two.TextGrid", "phones", "words")
    elif kind == "phn":
        lines = [f"{round(start * 8000)} {round(end * 8000)} {label}" for start, end, label in INTERVALS]
        (tmp_path / "two.phn").write_text("\n".join(lines) + "\n")
    elif kind == "csv":
        lines = ["start,end,label", *(f"{start},{end},{label}" for start, end, label in reversed(INTERVALS)), "0.45,0.5,"]
        (tmp_path / "two.csv").write_text("\n".join(lines) + "\n")
    else:
        lines = ["path,start,end,label", *(f"two.wav,{start},{end},{label}" for start, end, label in INTERVALS), "x.wav,0,1,c"]
        (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    alignments = read(index, pattern)
    assert list(alignments) == [index.paths.index("two.wav")]
    (alignment,) = alignments.values()
    assert intervals_of(alignment) == INTERVALS
    moments = {0.05: None, 0.1: "a", 0.2: "a", 0.25: "b", 0.399: "b", 0.4: None, 0.45: None, 0.6: "a", 0.9: None, 2.0: None}
    assert {moment: alignment.label_at(moment) for moment in moments} == moments


def test_the_tier_is_named_unless_it_is_clear(index: Index, tmp_path: Path) -> None:
    write_grid(tmp_path / "one.TextGrid", "words", "syllables")
    with pytest.raises(SslkitError, match=r"--tier: .*one\.TextGrid has the tiers words, syllables"):
        read(index, "{stem}.TextGrid")
    assert intervals_of(next(iter(read(index, "{stem}.TextGrid", "words").values()))) == INTERVALS
    with pytest.raises(SslkitError, match=r"--tier: .* has no tier clicks of intervals .its tiers: words, syllables"):
        read(index, "{stem}.TextGrid", "clicks")
    write_grid(tmp_path / "one.TextGrid", "words")
    assert len(read(index, "{stem}.TextGrid")) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("{stem}.TextGrid", "File type = none", "one.TextGrid cannot be read"),
        ("{stem}.phn", "0 100 a\nx 200 b\n", "line 2 of .*one.phn should begin with start and end .got x 200 b"),
        ("{stem}.phn", "0\n", "line 1 of .*one.phn should begin with start and end"),
        ("{stem}.csv", "start,end\n0,1\n", "has no column `label`"),
        ("{stem}.csv", "start,end,label\n0.2,0.1,a\n", "one.csv has an interval that does not end after it begins"),
        ("{stem}.csv", "start,end,label\n0.2,nan,a\n", "one.csv has an interval that does not end after it begins"),
        ("{stem}.csv", "start,end,label\n0,0.5,a\n0.3,0.6,b\n", "one.csv has intervals that overlap"),
        ("{stem}.csv", "start,end,label\n0,0.5,\n", "label"),
        ("{stem}.csv", "start,end,label\n", "has no labels"),
        ("all.csv", "path;start;end;label\nx;0;1;a\n", "has no column `path`"),
        ("all.csv", "", "has no column `path`"),
        ("{stem}.srt", "", "is not a file of labels"),
        ("one.phn", "0 1 a", "one.phn names the same file for all recordings"),
        ("../{stem}.phn", "", "finds no file beside any recording"),
    ],
)
def test_what_is_malformed_is_named(index: Index, tmp_path: Path, name: str, content: str, message: str) -> None:
    if not name.startswith("../"):
        (tmp_path / name.replace("{stem}", "one")).write_text(content)
    with pytest.raises(SslkitError, match=f"--alignments: .*{message}"):
        read(index, str(tmp_path / name) if name == "all.csv" else name)


def test_a_recording_that_cannot_be_read_has_no_labels(index: Index, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.phn").write_text("0 4000 a\n")

    def rate(row: int) -> int:
        if row == 0:
            raise UnreadableSampleError("damaged")
        return 8000

    assert list(read_alignments(index, "{stem}.phn", None, rate)) == [1]


def test_paths_of_a_table_may_be_relative(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all.csv").write_text("path,start,end,label\none.wav,0,0.5,a\n")
    monkeypatch.chdir(tmp_path)
    assert len(read(index, "all.csv")) == 1 and len(read(index, str(tmp_path / "all.csv"))) == 1
    relative = AudioSource.read_index(".", DataSpec())
    assert len(read(relative, "all.csv")) == 1 and len(read(relative, str(tmp_path / "all.csv"))) == 1


def test_a_table_that_lists_no_recording_and_tiers_of_others_are_refused(index: Index, tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("path,start,end,label\nx.wav,0,1,a\n")
    with pytest.raises(SslkitError, match=r"--alignments: .*all\.csv lists none of the recordings"):
        read(index, str(tmp_path / "all.csv"))
    with pytest.raises(SslkitError, match=r"--tier: \{stem\}\.phn has no tiers"):
        read(index, "{stem}.phn", "phones")
