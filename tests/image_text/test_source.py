"""Captions: their tokens, and tables that have them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit.contract.errors import SslkitError
from sslkit.engine.stepper import to_device
from sslkit.image_text.source import ImageTextSource
from sslkit.specs.data import DataSpec
from sslkit.text.tokenizer import END, PAD, Tokenizer

Run = Callable[..., Any]


def test_captions_in_which_nothing_occurs_twice_are_spelled(sslkit: Run, tmp_path: Path) -> None:
    table = Path(ImageTextSource.example(tmp_path, 4))
    words = ("cat", "dog", "fox", "hen")
    table.write_text("path,caption\n" + "".join(f"{number:04}.png,{word}\n" for number, word in enumerate(words)))
    options = ["--encoder-option", "width=8", "--batch-size", 4, "--steps", 2, "--workers", 0]
    ran = sslkit("pretrain", "clip", "--data", table, "--out", tmp_path / "run", *options)
    assert ran.code == 0, ran.err
    ran = sslkit("zeroshot", "--ckpt", tmp_path / "run" / "model.safetensors")
    assert ran.code == 0, ran.err
    for flags in (["--unit", "byte", "--vocabulary", 20], ["--unit", "bpe", "--vocabulary", 20]):
        assert "--vocabulary" in sslkit("pretrain", "clip", "--data", table, *flags, "--out", tmp_path / "refused").err


def test_pairs_have_images_and_tokens(tmp_path: Path) -> None:
    pairs = ImageTextSource.open(DataSpec(data=ImageTextSource.example(tmp_path, 12), cache="off"))
    assert (pairs.info.samples, pairs.info.modality, pairs.info.size) == (12, "image_text", 32)
    arrays, broken = pairs.read(np.array([3, 1]))
    assert not broken and arrays["canvas"].shape == (2, 32, 32, 3)
    assert arrays["tokens"].shape == (2, pairs.info.details["length"])
    tokenizer = Tokenizer.from_bytes(pairs.info.details["tokenizer"])
    (ids,) = tokenizer.encode([pairs.captions[3]])
    row = arrays["tokens"][0].tolist()
    assert row[: len(ids)] == ids.tolist() and row[len(ids)] == tokenizer.special(END)
    assert set(row[len(ids) + 1 :]) <= {tokenizer.special(PAD)}
    batch = to_device({name: torch.from_numpy(array) for name, array in arrays.items()}, pairs, torch.device("cpu"))
    assert batch["mask"].dtype == torch.bool and batch["mask"][0].tolist() == [token != tokenizer.special(PAD) for token in row]
    assert batch["mask"].sum(dim=1).tolist() == [
        len(ids) + 1 for ids in tokenizer.encode([pairs.captions[3], pairs.captions[1]])
    ]
    before = pairs.fingerprint()
    table = tmp_path / "pairs" / "captions.csv"
    table.write_text(table.read_text().replace("red", "crimson").replace("blue", "azure"))
    assert ImageTextSource.open(DataSpec(data=str(table), cache="off")).fingerprint() != before


def test_captions_are_split_as_asked(tmp_path: Path) -> None:
    table = ImageTextSource.example(tmp_path, 12)
    sources = {
        unit: ImageTextSource.open(DataSpec.model_validate({"data": table, "cache": "off", "unit": unit, "context": 8}))
        for unit in ("word", "bpe", "byte")
    }
    assert [source.info.details["length"] for source in sources.values()] == [6, 8, 8]  # five words and an end
    for source in sources.values():
        tokenizer = Tokenizer.from_bytes(source.info.details["tokenizer"])
        assert (source.tokens == tokenizer.special(END)).sum(axis=1).tolist() == [1] * 12


def test_captions_without_images_are_left_out(sslkit: Run, tmp_path: Path) -> None:
    table = Path(ImageTextSource.example(tmp_path, 24))
    (table.parent / "0003.png").unlink()
    (table.parent / "0005.png").write_bytes(b"no image")
    options = ["--encoder-option", "width=8", "--batch-size", 8, "--steps", 4, "--workers", 0]
    ran = sslkit("pretrain", "clip", "--data", table, "--out", tmp_path / "run", *options)
    assert ran.code == 0, ran.err
    broken = (tmp_path / "run" / "broken.csv").read_text()
    assert "0003.png,no such file" in broken and "0005.png" in broken


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,title\na.png,x\n", "has no column caption"),
        ("path,caption\n0000.png,\n", "caption is empty in line 2"),
        ("path,caption\n0000.png,a\n0001.png,  \n", "caption is empty in line 3"),
        ("path,caption\nno.png,a\n", "none of the 1 files listed"),
        ("path,caption\n0000.png,a square\n0001.png,a square\n", "bad.csv are 'a square'"),
        ("path,caption\n", "lists no file"),
    ],
)
def test_bad_tables_are_one_line(table: str, message: str, sslkit: Run, tmp_path: Path) -> None:
    ImageTextSource.example(tmp_path, 4)
    file = tmp_path / "pairs" / "bad.csv"
    file.write_text(table)
    ran = sslkit("pretrain", "clip", "--data", file, "--out", tmp_path / "run")
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.code == 2 and len(errors) == 1 and message in errors[0], ran.err
    assert not (tmp_path / "run").exists()


def test_a_folder_has_no_captions(sslkit: Run, digits: Path, tmp_path: Path) -> None:
    ran = sslkit("pretrain", "clip", "--data", digits, "--out", tmp_path / "run")
    assert ran.code == 2 and "has no captions" in ran.err


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = ImageTextSource.example(tmp_path, 4)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SslkitError, match=r"sslkit\[text\]"):
        ImageTextSource.open(DataSpec.model_validate({"data": table, "unit": "wordpiece"}))
