"""Parquet files and Hugging Face datasets on disk: the same samples, labels and errors as elsewhere."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sslkit.contract.errors import SslkitError
from sslkit.data import cache
from sslkit.data.columnar import index_columnar
from sslkit.data.locations import find_parts
from sslkit.image.options import IMAGES
from sslkit.image.source import ImageSource
from sslkit.image_text.source import read_captions
from sslkit.specs.data import DataSpec

Run = Callable[..., Any]
CLASSES = ["cat", "dog", "emu"]
datasets.disable_progress_bars()


def pictures(count: int = 12) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(count)]


def png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def dataset(count: int = 12) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(), "kind": datasets.ClassLabel(names=CLASSES), "caption": datasets.Value("string")}
    )
    columns = {
        "image": [Image.fromarray(picture) for picture in pictures(count)],
        "kind": [number % 3 for number in range(count)],
        "caption": [f"picture {number}" for number in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def save(kind: str, folder: Path) -> str:
    """Write the twelve pictures in one form and return what `--data` is."""
    if kind == "disk":
        dataset().save_to_disk(folder / "set", num_shards=3)
        return str(folder / "set")
    if kind == "parquet":
        dataset().to_parquet(folder / "set.parquet", batch_size=5)
        return str(folder / "set.parquet")
    (folder / "set").mkdir()
    for number in range(3):
        dataset().shard(3, number, contiguous=True).to_parquet(folder / "set" / f"train-{number:05}-of-00003.parquet")
    return str(folder / "set")


def read(data: str, **values: Any) -> tuple[np.ndarray, ImageSource]:
    source = ImageSource.open(DataSpec(data=data, size=16, cache="off", workers=0, **values))
    arrays, broken = source.read(np.arange(source.info.samples))
    assert not broken, broken
    return arrays["canvas"], source


@pytest.mark.parametrize("kind", ["disk", "parquet", "files"])
def test_samples_and_labels_are_those_in_the_table(kind: str, tmp_path: Path) -> None:
    data = save(kind, tmp_path)
    for _ in range(2):  # unpacked, and from the cache
        canvases, source = read(data)
        assert np.array_equal(canvases, np.stack(pictures()))
        labels = source.find_labels()
        assert labels.classes == tuple(CLASSES) and labels.values.tolist() == [0, 1, 2] * 4
    assert read_captions(data) == [f"picture {number}" for number in range(12)]
    assert source.index.fingerprint() == read(data)[1].index.fingerprint()


def test_parts(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": dataset(), "validation": dataset(3)}).save_to_disk(tmp_path / "disk")
    assert find_parts(str(tmp_path / "disk"), IMAGES) == {
        "train": str(tmp_path / "disk" / "train"),
        "validation": str(tmp_path / "disk" / "validation"),
    }
    data = save("files", tmp_path)
    dataset(3).to_parquet(Path(data) / "test-00000-of-00001.parquet")
    parts = find_parts(data, IMAGES)
    assert parts == {"train": f"{data}::train", "test": f"{data}::test"}
    assert [len(ImageSource.read_index(location, DataSpec())) for location in parts.values()] == [12, 3]


def test_evaluations_find_the_classes_and_the_test_part(tmp_path: Path, trained: Path, sslkit: Run) -> None:
    data = save("files", tmp_path)
    dataset(3).to_parquet(Path(data) / "test-00000-of-00001.parquet")
    ran = sslkit("knn", "--ckpt", trained, "--data", data, "--k", 3, "--no-baselines", "--json")
    assert ran.code == 0 and ran.json["data"]["tests"][0]["duplicates"] == 3 and ran.json["rows"][0]["metrics"][0]["n"] == 3


def write(path: Path, table: dict[str, Any]) -> str:
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    return str(path)


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
def test_plain_columns_of_bytes(kind: Any, tmp_path: Path) -> None:
    contents = pyarrow.array([png(picture) for picture in pictures()], kind)
    data = write(tmp_path / "x.parquet", {"jpg": contents, "y": ["a", "b", None] * 4, "who": [1, 2, 3, 4] * 3})
    canvases, source = read(data, label="y", group="who")
    assert np.array_equal(canvases, np.stack(pictures()))
    assert source.find_labels().values.tolist() == [0, 1, -1] * 4
    assert source.index.groups is not None and source.index.groups.tolist() == [0, 1, 2, 3] * 3


def test_cells_without_bytes_name_files_or_are_unreadable(tmp_path: Path) -> None:
    first, second, third = map(png, pictures(3))
    (tmp_path / "second.png").write_bytes(second)
    cells = [{"bytes": first, "path": "a.png"}, {"bytes": None, "path": "second.png"}, {"bytes": third, "path": None}, None]
    source = ImageSource.open(DataSpec(data=write(tmp_path / "x.parquet", {"image": cells}), size=16, cache="off"))
    arrays, broken = source.read(np.arange(4))
    assert np.array_equal(arrays["canvas"][:3], np.stack(pictures(3))) and list(broken) == [3]
    assert [source.name(row) for row in range(4)] == ["a.png", "second.png", "row 2", "row 3"]


def test_a_column_of_paths(tmp_path: Path) -> None:
    for number, picture in enumerate(pictures()):
        (tmp_path / f"{number}.png").write_bytes(png(picture))
    data = write(tmp_path / "x.parquet", {"path": [f"{number}.png" for number in range(12)], "y": [True, False] * 6})
    canvases, source = read(data, label="y")
    assert np.array_equal(canvases, np.stack(pictures())) and source.find_labels().classes == ("False", "True")


def test_several_labels(tmp_path: Path) -> None:
    data = write(tmp_path / "x.parquet", {"image": [png(p) for p in pictures(3)], "tags": [["a"], ["b", "a"], []]})
    index = ImageSource.read_index(data, DataSpec(label="tags"))
    assert index.labels is not None and index.labels.tolist() == [[1, 0], [1, 1], [0, 0]]


def test_a_changed_table_is_read_anew(tmp_path: Path) -> None:
    data = write(tmp_path / "x.parquet", {"image": [png(picture) for picture in pictures(4)]})
    read(data)
    write(tmp_path / "x.parquet", {"image": [png(255 - picture) for picture in pictures(4)]})
    assert np.array_equal(read(data)[0], 255 - np.stack(pictures(4)))


def test_a_damaged_cache_is_unpacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    data = save("parquet", tmp_path)
    read(data)
    (folder,) = (entry.folder for entry in cache.stored() if entry.folder.parent.name == "tables")
    for damage in (lambda: (folder / "samples.bin").write_bytes(b"x"), lambda: (folder / "index.npz").write_bytes(b"x")):
        damage()
        assert np.array_equal(read(data)[0], np.stack(pictures()))


def _state(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "state.json").write_text(text)

    return change


def _compress(folder: Path) -> None:
    (file,) = folder.glob("*.arrow")
    table = pyarrow.table({"image": [png(picture) for picture in pictures()]})
    with pyarrow.ipc.new_stream(str(file), table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_state("{"), "does not list the files of a dataset"),
        (_state(json.dumps({"_data_files": []})), "should list files in its folder"),
        (_state(json.dumps({"_data_files": [{"filename": "../data.arrow"}]})), "should list files in its folder"),
        (_state(json.dumps({"_data_files": [{"filename": 3}]})), "should list files in its folder"),
        (_state(json.dumps({"_data_files": [{"filename": "gone.arrow"}]})), "cannot be read: .*No such file"),
        (_state("[" * 100_000), "does not list the files of a dataset"),
        (lambda folder: next(folder.glob("*.arrow")).write_bytes(b"x" * 100), "cannot be read"),
        (_compress, "is compressed"),
    ],
)
def test_a_damaged_dataset_is_one_line(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "set")
    change(tmp_path / "set")
    with pytest.raises(SslkitError, match=f"--data: .*{message}"):
        ImageSource.read_index(str(tmp_path / "set"), DataSpec())


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        ({"x": [1, 2]}, {}, "--data: .* has no column that may hold images .name the column image; it has x"),
        ({"a": [b"x"], "b": [b"x"]}, {}, "--data: .* has several columns that may hold images .*it has a, b"),
        ({"image": pyarrow.array([], pyarrow.binary())}, {}, "--data: .* has no rows"),
        ({"image": [b"x"], "kind": ["a"]}, {"label": "kin"}, "--label: .* has no column kin .did you mean kind"),
        ({"image": [b"x"], "kind": [1.5]}, {"label": "kind"}, "--label: .* has float values there"),
        ({"image": [b"x"], "kind": [""]}, {"label": "kind"}, "--label: kind is empty in all rows"),
        ({"image": [b"x"] * 2, "who": ["a", None]}, {"group": "who"}, "--group: who is empty in row 1"),
        ({"image": [b"x" * 10_000] * 9}, {"cache_limit": 1e-6}, "--cache-limit: .* GB unpacked, more than --cache-limit"),
    ],
)
def test_tables_that_do_not_fit_are_one_line(
    table: dict[str, Any], values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SslkitError, match=message):
        ImageSource.read_index(write(tmp_path / "x.parquet", table), DataSpec(**values))


def test_classes_beyond_their_names(tmp_path: Path) -> None:
    table = dataset().data.table.set_column(1, "kind", pyarrow.array([7] + [-1] * 11))
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(SslkitError, match="has classes that are not among its 3 names"):
        ImageSource.read_index(str(tmp_path / "x.parquet"), DataSpec())


@given(st.data())
def test_damaged_bytes_are_one_line_or_a_table(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes of a real file are changed anywhere; a reader answers in our words or returns what is there."""
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    place = save(data.draw(st.sampled_from(["disk", "parquet"])), folder)
    file = next(Path(place).glob("*.arrow")) if Path(place).is_dir() else Path(place)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        index = index_columnar(place, "", DataSpec(), IMAGES)
    except SslkitError:
        return
    assert len(index) == len(index.stamps)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    data = save("parquet", tmp_path)
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SslkitError, match=r"needs pyarrow \(pip install 'sslkit\[hf\]'\)"):
        ImageSource.read_index(data, DataSpec())


def test_names_with_zero_bytes_stay_with_their_rows(tmp_path: Path) -> None:
    cells = [{"bytes": png(picture), "path": f"{number}\0x.png"} for number, picture in enumerate(pictures())]
    data = write(tmp_path / "x.parquet", {"image": cells})
    for _ in range(2):
        canvases, source = read(data)
        assert np.array_equal(canvases, np.stack(pictures())) and source.name(3) == "3\ufffdx.png"


def test_links_as_in_a_cache_of_hugging_face(tmp_path: Path) -> None:
    data = Path(save("parquet", tmp_path))
    data.rename(tmp_path / "0123abcd")
    data.symlink_to(tmp_path / "0123abcd")
    assert np.array_equal(read(str(data))[0], np.stack(pictures()))


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.png", "a/../../outside.png"])
def test_cells_name_no_file_outside_the_tables_folder(name: str, tmp_path: Path) -> None:
    data = write(
        tmp_path / "x.parquet", {"image": [{"bytes": png(pictures(1)[0]), "path": "a.png"}, {"bytes": None, "path": name}]}
    )
    with pytest.raises(SslkitError, match=r"row 1 of .* names a file outside the table's folder"):
        ImageSource.read_index(data, DataSpec())


def test_cells_that_are_paths_only_as_pyarrow_infers_them(tmp_path: Path) -> None:
    for number, picture in enumerate(pictures(3)):
        (tmp_path / f"{number}.png").write_bytes(png(picture))
    cells = [{"bytes": None, "path": f"{number}.png"} for number in range(3)]
    assert np.array_equal(read(write(tmp_path / "x.parquet", {"image": cells}))[0], np.stack(pictures(3)))


def test_the_unpacked_training_part_stays_while_the_test_part_is_unpacked(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run
) -> None:
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    data = save("files", tmp_path)
    dataset(3).to_parquet(Path(data) / "test-00000-of-00001.parquet")
    limit = 12.5 * len(png(pictures(1)[0])) / 1e9  # enough for each part, not for both
    flags = ["--ckpt", trained, "--k", 3, "--no-baselines", "--cache", "off", "--cache-limit", f"{limit:.9f}"]
    ran = sslkit("knn", *flags, "--data", data)
    assert ran.code == 0, ran.err


def test_repeated_values_do_not_exceed_the_limit_unnoticed(tmp_path: Path) -> None:
    data = write(tmp_path / "x.parquet", {"image": [png(pictures(1)[0]) * 20] * 200})
    with pytest.raises(SslkitError, match=r"--cache-limit: .* GB unpacked, more than"):
        ImageSource.read_index(data, DataSpec(cache_limit=3e-4))


def test_images_beside_a_table_are_images(tmp_path: Path) -> None:
    for number, picture in enumerate(pictures(3)):
        (tmp_path / f"{number}.png").write_bytes(png(picture))
    write(tmp_path / "metadata.parquet", {"blob": [b"x"]})
    assert len(ImageSource.read_index(str(tmp_path), DataSpec())) == 3


def test_where_tables_lie_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "repo").mkdir()
    place = Path(save("files", tmp_path / "repo"))
    with pytest.raises(SslkitError, match=r"no image in .*parquet files are in .*/repo/set: name that"):
        ImageSource.read_index(str(tmp_path / "repo"), DataSpec())
    next(place.glob("*.parquet")).unlink()
    ImageSource.read_index(str(place), DataSpec())
    assert "note: 2 of 3 files train-*.parquet are there" in capsys.readouterr().err
    write(place / "train-00009-of-00003.parquet", {"other": [b"x"]})
    with pytest.raises(SslkitError, match=r"train-00009-of-00003\.parquet has no column image, unlike train-0000"):
        ImageSource.read_index(str(place), DataSpec())


def test_a_column_of_the_right_name_and_another_type(tmp_path: Path) -> None:
    for values, message in ((["a.png"], "holds string .*call a column of paths path"), ([[1, 2]], "holds list")):
        with pytest.raises(SslkitError, match=f"the column image of .* {message}"):
            ImageSource.read_index(write(tmp_path / "x.parquet", {"image": values}), DataSpec())
