"""What --data accepts, and the index."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslkit.contract.errors import SslkitError
from sslkit.data.locations import find_parts
from sslkit.evaluation.splits import check_labeled
from sslkit.image.options import IMAGES
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec

Run = Callable[..., Any]


def write(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path)
    return path


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", ".hidden.png", "notes.txt"):
        path = tmp_path / name
        write(path) if path.suffix != ".txt" else path.write_text("no image")
    index = ImageSource.read_index(str(tmp_path), DataSpec())
    assert list(index.paths) == ["a.jpg", "b.png"]
    assert index.labels is None


def test_class_folders_give_labels(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/deep/2.png", "cat/1.png"):
        write(tmp_path / name)
    index = ImageSource.read_index(str(tmp_path), DataSpec())
    assert list(index.paths) == ["cat/1.png", "cat/deep/2.png", "dog/1.png"]
    assert index.classes == ("cat", "dog")
    assert index.labels is not None and index.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (["train", "test"], ["train", "test"]),
        (["train", "val"], ["train", "val"]),
        (["train", "val", "test"], ["train", "test"]),
        (["train"], ["train"]),
        (["train", "plane"], ["train"]),  # a class called train
        (["train", "test", "unlabeled"], ["train", "test"]),
        (["test", "val"], ["train"]),
    ],
)
def test_parts_of_a_folder(tmp_path: Path, folders: list[str], parts: list[str]) -> None:
    for folder in folders:
        write(tmp_path / folder / "x" / "1.png")
    locations = find_parts(str(tmp_path), IMAGES)
    assert list(locations) == parts
    split = "train" in folders and "plane" not in folders
    assert locations["train"] == str(tmp_path / "train" if split else tmp_path)


def test_links_in_a_loop(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png")
    os.symlink(tmp_path, tmp_path / "a" / "loop", target_is_directory=True)
    assert list(ImageSource.read_index(str(tmp_path), DataSpec()).paths) == ["a/1.png"]


def test_warm_start_notices_new_and_changed_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "1.png")
    assert len(ImageSource.read_index(str(tmp_path), DataSpec())) == 1
    write(tmp_path / "b" / "2.png")
    index = ImageSource.read_index(str(tmp_path), DataSpec())
    assert len(index) == 2
    folder_time = os.stat(first.parent)
    first.write_bytes(first.read_bytes() + b"more")
    os.utime(first.parent, ns=(folder_time.st_atime_ns, folder_time.st_mtime_ns))
    assert ImageSource.read_index(str(tmp_path), DataSpec()).fingerprint() != index.fingerprint()


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    from sslkit.data.cache import cache_folder

    write(tmp_path / "images" / "1.png")
    known = set((cache_folder() / "index").glob("*.npz"))
    ImageSource.read_index(str(tmp_path / "images"), DataSpec())
    (new,) = set((cache_folder() / "index").glob("*.npz")) - known
    new.write_bytes(b"PK nothing")
    assert list(ImageSource.read_index(str(tmp_path / "images"), DataSpec()).paths) == ["1.png"]


def test_an_unwritable_cache_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "images" / "1.png")
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "images" / "1.png"))
    with pytest.raises(SslkitError, match="set SSLKIT_CACHE"):
        ImageSource.read_index(str(tmp_path / "images"), DataSpec())


def test_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write(tmp_path / place / "a" / "1.png")
    first, second = (ImageSource.read_index(str(tmp_path / place), DataSpec()) for place in ("here", "there"))
    assert first.fingerprint() == second.fingerprint()
    assert first.key() != second.key()


def test_list_and_csv_are_relative_to_themselves(tmp_path: Path) -> None:
    write(tmp_path / "images" / "1.png")
    write(tmp_path / "images" / "2.png")
    (tmp_path / "list.txt").write_text("images/2.png\n\nimages/1.png\n")
    assert list(ImageSource.read_index(str(tmp_path / "list.txt"), DataSpec()).paths) == ["images/2.png", "images/1.png"]
    (tmp_path / "list.csv").write_text("kind,path\nb,images/1.png\na,images/2.png\n")
    assert ImageSource.read_index(str(tmp_path / "list.csv"), DataSpec()).labels is None
    index = ImageSource.read_index(str(tmp_path / "list.csv"), DataSpec(label="kind"))
    assert index.classes == ("a", "b")
    assert index.labels is not None and index.labels.tolist() == [1, 0]


def test_arrays(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "rgb.npy", rgb)
    np.save(tmp_path / "first.npy", rgb.transpose(0, 3, 1, 2))
    np.save(tmp_path / "gray.npy", rgb[..., 0])
    assert ImageSource.read_index(str(tmp_path / "rgb.npy"), DataSpec()).channels == 3
    assert np.array_equal(ImageSource.read_index(str(tmp_path / "first.npy"), DataSpec()).array, rgb)  # type: ignore[arg-type]
    assert ImageSource.read_index(str(tmp_path / "gray.npy"), DataSpec()).channels == 1
    np.savez(tmp_path / "parts.npz", train_images=rgb, train_labels=np.array([[0], [1], [0], [1], [1]]), test_images=rgb[:2])
    parts = find_parts(str(tmp_path / "parts.npz"), IMAGES)
    assert list(parts) == ["train", "test"]
    index = ImageSource.read_index(parts["train"], DataSpec())
    assert index.labels is not None and index.labels.tolist() == [0, 1, 0, 1, 1]
    assert ImageSource.read_index(parts["test"], DataSpec()).labels is None


AXES = {"NHWC": (0, 1, 2, 3), "NCHW": (0, 3, 1, 2)}


@pytest.mark.parametrize("layout", AXES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 11])
def test_axes_of_arrays_are_recognized_or_named(layout: str, channels: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 12, 9, channels), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images.transpose(AXES[layout]))
    named = ImageSource.read_index(str(tmp_path / "images.npy"), DataSpec(layout=layout))
    assert named.array is not None and np.array_equal(named.array, images)
    if channels <= 4:
        recognized = ImageSource.read_index(str(tmp_path / "images.npy"), DataSpec())
        assert recognized.array is not None and np.array_equal(recognized.array, images)
    else:
        with pytest.raises(SslkitError, match=r"--data: .* has shape \[5, .*use --layout NCHW or --layout NHWC"):
            ImageSource.read_index(str(tmp_path / "images.npy"), DataSpec())


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((30, 200, 11, 11), "auto", r"has shape \[30, 200, 11, 11\], and channels are the axis of 1 to 4, if there is one"),
        ((5, 3, 32, 4), "auto", "use --layout NCHW or --layout NHWC"),  # both could be channels
        ((5, 8, 8), "NCHW", r"--layout: NCHW has 4 axes, and .* has shape \[5, 8, 8\]"),
        ((5, 8, 8, 3), "NHW", "--layout: NHW has 3 axes"),
        ((5, 8), "auto", r"expected numbers, as \[N, H, W\]"),
        ((5, 2, 3, 8, 8), "auto", r"expected numbers, as \[N, H, W\]"),
        ((0, 8, 8), "auto", "expected a row per sample"),
        ((), "auto", "expected a row per sample"),
    ],
)
def test_axes_that_could_be_anything_are_refused(shape: tuple[int, ...], layout: str, message: str, tmp_path: Path) -> None:
    for name in ("images.npy", "images.npz"):
        array = np.zeros(shape, dtype=np.uint8)
        np.save(tmp_path / name, array) if name.endswith("npy") else np.savez(tmp_path / name, images=array)
        with pytest.raises(SslkitError, match=message):
            ImageSource.read_index(str(tmp_path / name), DataSpec(layout=layout))


@pytest.mark.slow
def test_a_layout_goes_from_the_run_to_its_evaluations(tmp_path: Path, sslkit: Run) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 6, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(40) % 2)
    flags = ["--data", tmp_path / "images.npz", "--workers", 0]
    small = ["--encoder", "resnet_micro", "--encoder-option", "width=8", "--batch-size", 16, "--steps", 2]
    ran = sslkit("pretrain", "rotation", *flags, *small, "--out", tmp_path / "run")
    assert ran.code == 2 and "use --layout NCHW or --layout NHWC" in ran.err
    ran = sslkit("pretrain", "rotation", *flags, *small, "--layout", "NCHW", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    checkpoint = ["--ckpt", tmp_path / "run" / "model.safetensors"]
    assert sslkit("knn", *checkpoint, "--k", 3, "--json").json["protocol"] is None  # k was set
    assert sslkit("retrieval", *checkpoint, "--json").json["protocol"] == "retrieval/map-v1"
    named = sslkit("retrieval", *checkpoint, *flags, "--layout", "NCHW", "--json").json
    assert named["protocol"] == "retrieval/map-v1"  # how an array is stored is not a setting of the protocol
    assert sslkit("embed", *checkpoint, "--out", tmp_path / "features.npz").code == 0
    assert sslkit("export", *checkpoint, "--out", tmp_path / "model.pt2").code == 0
    preview = sslkit("preview", *checkpoint, *flags[:2], "--layout", "NCHW", "--out", tmp_path / "previews.png")
    assert preview.code == 0, preview.err
    assert sslkit("embed", *checkpoint, *flags, "--out", tmp_path / "features.npz").code == 0  # the run's own data
    shutil.copy(tmp_path / "images.npz", tmp_path / "other.npz")
    others = ["--data", tmp_path / "other.npz", "--out", tmp_path / "features.npz"]
    assert sslkit("embed", *checkpoint, *others).code == 2
    tuned = ["--steps", 2, "--batch-size", 16, "--workers", 0, "--out", tmp_path / "tuned"]
    assert sslkit("finetune", *checkpoint, *tuned).code == 0
    assert sslkit("finetune", "--resume", "--out", tmp_path / "tuned").code == 0
    assert sslkit("retrieval", "--ckpt", tmp_path / "tuned" / "model.safetensors").code == 0
    ran = sslkit("pretrain", "rotation", "--resume", "--layout", "NHWC", "--out", tmp_path / "run")
    assert ran.code == 2 and "--layout NHWC (the run has NCHW)" in ran.err


def test_a_subset_keeps_names_and_labels_together(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png", "b/3.png"):
        write(tmp_path / name)
    part = ImageSource.read_index(str(tmp_path), DataSpec()).subset(np.array([2, 0]))
    assert list(part.paths) == ["b/3.png", "a/1.png"]
    assert part.labels is not None and part.labels.tolist() == [1, 0]


def files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "gone.txt").write_text("nowhere.png\n")
    (tmp_path / "no_path.csv").write_text("file,label\nx.png,1\n")
    write(tmp_path / "x.png")
    (tmp_path / "several.csv").write_text("path,label\nx.png,a;b\n")
    (tmp_path / "short.csv").write_text("label,path\n1\n")
    (tmp_path / "blank.csv").write_text("path,label\nx.png,\n")
    np.save(tmp_path / "complex.npy", np.zeros((2, 8, 8, 3), dtype=complex))
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and no more")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "names.npz", a=np.zeros(1), b=np.zeros(1))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "nothing.npz").write_bytes(b"")
    with open(tmp_path / "single.npz", "wb") as file:
        np.save(file, np.zeros(3))
    (tmp_path / "what.xyz").write_text("")


def test_several_labels_in_a_cell(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "table.csv").write_text("path,tags\na.png,red; round\nb.png,red\nc.png,square;red\n")
    index = ImageSource.read_index(str(tmp_path / "table.csv"), DataSpec(label="tags"))
    assert index.classes == ("red", "round", "square") and index.labels is not None
    assert index.labels.tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 1]]
    third = index.subset(np.array([2])).labels
    assert third is not None and third.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("empty", None, "no image in"),
        ("empty.txt", None, "lists no file"),
        ("gone.txt", None, "none of the 1 files listed"),
        ("no_path.csv", None, "has no column `path`"),
        ("several.csv", "labl", "did you mean label"),
        ("blank.csv", "label", "is empty in line 2"),
        ("short.csv", None, "line 2 of .*short.csv has 1 cell, but its header has 2"),
        ("empty", "label", "has no columns"),
        ("complex.npy", None, "expected numbers"),
        ("pickle.npy", None, "not a file of plain arrays"),
        ("zip.npy", None, "not a file of plain arrays"),
        ("names.npz", None, "has no array `images`"),
        ("cut.npz", None, "not an .npz file|not a file of plain arrays"),
        ("nothing.npz", None, "not an .npz file"),
        ("single.npz", None, "not an .npz file"),
        ("what.xyz", None, "neither folder nor list"),
        ("nowhere", None, "does not exist"),
    ],
)
def test_refusals(tmp_path: Path, name: str, label: str | None, message: str) -> None:
    files(tmp_path)
    with pytest.raises(SslkitError, match=message):
        ImageSource.read_index(find_parts(str(tmp_path / name), IMAGES)["train"], DataSpec(label=label))


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("Train", "Test"), {"train": "Train", "Test": "Test"}),
        (("training", "testing"), {"train": "training", "testing": "testing"}),
        (("train", "Validation", "notes"), {"train": "train", "Validation": "Validation"}),
        (("TRAIN", "val", "test"), {"train": "TRAIN", "test": "test"}),
        (("Training",), {"train": "Training"}),
        (("train", "cat"), {"train": ""}),
    ],
)
def test_parts_by_any_usual_name(folders: tuple[str, ...], parts: dict[str, str], tmp_path: Path) -> None:
    for folder in folders:
        write(tmp_path / folder / "1.png")
    expected = {name: str(tmp_path / folder) if folder else str(tmp_path) for name, folder in parts.items()}
    assert find_parts(str(tmp_path), IMAGES) == expected


def test_two_folders_of_one_meaning_are_refused(tmp_path: Path) -> None:
    for folder in ("train", "training", "test"):
        write(tmp_path / folder / "1.png")
    with pytest.raises(SslkitError, match=r"has train and training \(which is the training part\? rename one\)"):
        find_parts(str(tmp_path), IMAGES)


def test_parts_of_arrays_by_any_usual_name(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "parts.npz", training_images=images, Val_images=images)
    (tmp_path / "parts.npz").rename(tmp_path / "parts.NPZ")
    parts = find_parts(str(tmp_path / "parts.NPZ"), IMAGES)
    assert list(parts) == ["train", "Val"] and all(
        len(ImageSource.read_index(part, DataSpec())) == 4 for part in parts.values()
    )


def test_a_class_called_like_a_part_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("Test", "cat"):
        write(tmp_path / folder / "1.png")
    assert ImageSource.read_index(str(tmp_path), DataSpec()).classes == ("Test", "cat")
    assert "has the class Test, a name of a part" in capsys.readouterr().err


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    (tmp_path / "LIST.TXT").write_text("1.png\n")
    (tmp_path / "TABLE.CSV").write_text("path,kind\n1.png,a\n")
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8), dtype=np.uint8))
    (tmp_path / "images.npy").rename(tmp_path / "IMAGES.NPY")
    sizes = [len(ImageSource.read_index(str(tmp_path / name), DataSpec())) for name in ("LIST.TXT", "TABLE.CSV", "IMAGES.NPY")]
    assert sizes == [1, 1, 2]
    assert ImageSource.read_index(str(tmp_path / "TABLE.CSV"), DataSpec(label="kind")).classes == ("a",)


def test_a_stray_file_beside_class_folders_is_named(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "stray.png"):
        write(tmp_path / name)
    with pytest.raises(SslkitError, match=r"stray.png lies beside the class folders of .* \(move it into one\)"):
        check_labeled(ImageSource.read_index(str(tmp_path), DataSpec()), "data", several=False)


def test_one_sample_of_a_class_is_enough_beside_a_test_part(digits: Path, trained: Path, tmp_path: Path, sslkit: Any) -> None:
    for file in (*sorted(digits.glob("train/*/04.png")), *sorted(digits.glob("test/*/*.png"))):
        place = tmp_path / "data" / file.relative_to(digits)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    ran = sslkit("knn", "--ckpt", trained, "--data", tmp_path / "data", "--k", 1, "--json")
    assert ran.code == 0 and ran.json["rows"][0]["metrics"][0]["n"] == 12, ran.err
