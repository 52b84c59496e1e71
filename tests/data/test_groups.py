"""Labels and groups from columns, shards and patterns; splits that keep groups together."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from sslkit.contract.errors import SslkitError
from sslkit.evaluation.splits import find_labeled, held_out_rows
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec

Run = Callable[..., Any]


def speakers(folder: Path) -> Path:
    """Write images called like recordings: DIGIT_SPEAKER_TAKE, three digits by five speakers, four times each."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for digit in range(3):
        for speaker in "abcde":
            for take in range(4):
                image = random.integers(80 * digit, 80 * digit + 60, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{digit}_{speaker}_{take}.png")
    return folder


def csv_of(folder: Path) -> Path:
    rows = [f"{file.name},{file.name[0]},{file.name[2]}" for file in sorted(folder.glob("*.png"))]
    (folder / "table.csv").write_text("\n".join(["path,digit,speaker", *rows]) + "\n")
    return folder / "table.csv"


def shard_of(folder: Path) -> str:
    with tarfile.open(folder / "all.tar", "w") as shard:
        for file in sorted(folder.glob("*.png")):
            digit, speaker = file.name[0].encode(), file.name[2].encode()
            for suffix, content in ((".png", file.read_bytes()), (".cls", digit), (".spk", speaker)):
                member = tarfile.TarInfo(file.stem + suffix)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return f"wds:{folder / 'all.tar'}"


@pytest.mark.parametrize("kind", ["folder", "csv", "shard"])
def test_labels_and_groups_are_the_same_wherever_they_stand(kind: str, tmp_path: Path) -> None:
    folder = speakers(tmp_path / "data")
    patterns = {"label_pattern": r"(\d)_\w_\d", "group_pattern": r"\d_(\w)_\d"}
    data, values = {
        "folder": lambda: (str(folder), patterns),
        "csv": lambda: (str(csv_of(folder)), {"label": "digit", "group": "speaker"}),
        "shard": lambda: (shard_of(folder), {"label": "cls", "group": "spk"}),
    }[kind]()
    index = ImageSource.read_index(data, DataSpec(**values))
    assert index.classes == ("0", "1", "2") and index.group_names == ("a", "b", "c", "d", "e")
    assert index.labels is not None and index.groups is not None
    assert index.labels.tolist() == np.repeat([0, 1, 2], 20).tolist()
    assert index.groups.tolist() == np.tile(np.repeat(np.arange(5), 4), 3).tolist()
    assert index.subset(np.array([5, 59])).groups.tolist() == [1, 4]  # type: ignore[union-attr]
    again = ImageSource.read_index(data, DataSpec(**values))  # from the cache
    assert again.groups is not None and again.groups.tolist() == index.groups.tolist()
    named = ImageSource.read_index(data, DataSpec(**patterns))
    assert named.labels is not None and named.labels.tolist() == index.labels.tolist()


def test_a_fifth_is_held_out_in_whole_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = speakers(tmp_path / "data")
    spec = DataSpec(data=str(folder), label_pattern="^(.)_", group_pattern="_(.)_")
    parts = find_labeled(spec, [], None, source_class=ImageSource)
    assert "test part: 1 of 5 groups of" in capsys.readouterr().err
    train, test = parts.train, parts.tests[0].index
    assert len(test) == 12 and not set(train.groups.tolist()) & set(test.groups.tolist())  # type: ignore[union-attr]
    assert parts.annotations == {"label": None, "label_pattern": "^(.)_", "group_pattern": "_(.)_"}


def test_groups_of_many_sizes_give_about_the_share_of_each_class() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 40, 60)
    groups = np.repeat(np.arange(60), sizes)
    labels = random.integers(0, 4, len(groups))
    for seed in range(5):
        kept, held_out = held_out_rows(labels, seed, tuple("abcd"), 0.2, groups)
        assert not set(groups[kept].tolist()) & set(groups[held_out].tolist())
        assert np.array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(len(groups)))
        shares = np.bincount(labels[held_out], minlength=4) / np.bincount(labels, minlength=4)
        assert (np.abs(shares - 0.2) < 0.06).all()
    again = [held_out_rows(labels, 1, tuple("abcd"), 0.2, groups)[1] for _ in range(2)]
    assert np.array_equal(*again)


def test_each_class_is_in_both_parts() -> None:
    labels = np.array([0] * 50 + [1] * 2)
    groups = np.array([0] * 10 + [1] * 10 + [2] * 10 + [3] * 20 + [4, 5])  # the second class in small groups of its own
    for seed in range(10):
        kept, held_out = held_out_rows(labels, seed, ("many", "few"), 0.2, groups)
        assert set(labels[kept].tolist()) == set(labels[held_out].tolist()) == {0, 1}
    with pytest.raises(SslkitError, match="--group: no group can be held out so that class few is in both parts"):
        held_out_rows(labels, 0, ("many", "few"), 0.2, np.array([0] * 25 + [1] * 25 + [2] * 2))


def test_a_group_in_two_parts_is_an_error(tmp_path: Path, trained: Path, sslkit: Run) -> None:
    train, test = speakers(tmp_path / "train"), speakers(tmp_path / "test")
    flags = ["--ckpt", trained, "--data", train, "--label-pattern", "^(.)_", "--group-pattern", "_(.)_", "--no-baselines"]
    ran = sslkit("knn", *flags, "--test", test)
    assert ran.code == 2 and "--test:" in ran.err and "shares 5 groups with the training part, such as a" in ran.err
    for file in (*train.glob("*_e_*"), *(file for file in test.glob("*.png") if "_e_" not in file.name)):
        file.unlink()
    ran = sslkit("knn", *flags, "--test", test, "--json")
    assert ran.code == 0 and json.loads(ran.out)["settings"]["group_pattern"] == "_(.)_"


def test_a_run_hands_its_patterns_on(tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    data, run = speakers(tmp_path / "data"), tmp_path / "run"
    patterns = ["--label-pattern", "^(.)_", "--group-pattern", "_(.)_"]
    ran = sslkit("pretrain", "rotation", "--data", data, *quick, *patterns, "--online-knn", "--steps", 2, "--out", run)
    assert ran.code == 0, ran.err
    ran = sslkit("probe", "--ckpt", run / "model.safetensors", "--no-baselines", "--json")
    assert ran.code == 0 and "1 of 5 groups" in ran.err
    assert json.loads(ran.out)["settings"]["label_pattern"] == "^(.)_"
    ran = sslkit("finetune", "--ckpt", run / "model.safetensors", "--steps", 1, "--batch-size", 8, "--out", tmp_path / "tuned")
    assert ran.code == 0 and "1 of 5 groups" in ran.err
    recorded = json.loads((tmp_path / "tuned" / "spec.json").read_text())
    assert (recorded["label"], recorded["label_pattern"], recorded["group_pattern"]) == (None, "^(.)_", "_(.)_")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_pattern": "(x)"}, r"--label-pattern: \(x\) finds nothing in any path of .*, such as 0_a_0.png"),
        ({"group_pattern": "([ab])_"}, r"--group-pattern: .* finds nothing in 36 of 60 paths, such as 0_c_0.png"),
        ({"label": "digit"}, "--label: .* has no columns .*--label-pattern finds them in paths"),
        ({"group": "speaker"}, "--group: .* has no columns .*--group-pattern finds them in paths"),
    ],
)
def test_what_cannot_be_found_is_one_line(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SslkitError, match=message):
        ImageSource.read_index(str(speakers(tmp_path / "data")), DataSpec(**values))


def test_one_place_only(tmp_path: Path) -> None:
    table = str(csv_of(speakers(tmp_path / "data")))
    with pytest.raises(SslkitError, match="--label-pattern: --label names them already"):
        ImageSource.read_index(table, DataSpec(label="digit", label_pattern="^(.)_"))
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(SslkitError, match=r"--group-pattern: .* is an array, whose rows have no paths"):
        ImageSource.read_index(str(tmp_path / "images.npy"), DataSpec(group_pattern="(x)"))


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "is not a regular expression"), ("x", "has 0 groups"), ("(a)(b)", "has 2")]
)
def test_patterns_have_one_group(pattern: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSpec(label_pattern=pattern)
