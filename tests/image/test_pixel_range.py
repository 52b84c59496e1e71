"""Pixels of more than 8 bits: nothing nearly black, nothing shifted; the rule is printed, recorded and used again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sslkit import SslkitError
from sslkit.contract.errors import UnreadableSampleError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import read_model
from sslkit.image.pixel_range import PixelRange, choose_range
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec

Run = Callable[..., Any]
DIGITS = (load_digits().images[:60] * 255 / 16).round()  # [60, 8, 8], 0 to 255


def save(folder: Path, images: np.ndarray, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}{suffix}")
    return folder


def canvases(data: Path, **options: Any) -> tuple[np.ndarray, str | None]:
    """Return canvases in levels of 0 to 255, not rounded where they have 16 bits, and the range that was chosen."""
    source = ImageSource.open(DataSpec(data=str(data), size=8, canvas=8, cache="off", workers=0, **options))
    arrays, broken = source.read(np.arange(source.info.samples))
    assert not broken, broken
    deep = "range" in source.resolved or options.get("range", "auto") != "auto"
    assert arrays["canvas"].dtype == (np.uint16 if deep else np.uint8)
    return arrays["canvas"] / (257 if deep else 1), source.resolved.get("range", (None, ""))[0]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_12_bits_in_16_look_like_8(suffix: str, tmp_path: Path) -> None:
    twelve = (DIGITS * 4095 / 255).round().astype(np.uint16)
    if suffix == ".npy":
        np.save(tmp_path / "images.npy", twelve)
    data = tmp_path / "images.npy" if suffix == ".npy" else save(tmp_path / "deep", twelve, suffix)
    expected, no_range = canvases(save(tmp_path / "plain", DIGITS.astype(np.uint8)))
    images, chosen = canvases(data)
    assert no_range is None and chosen == "0,4095"
    assert np.abs(images - expected[..., : images.shape[3]]).max() < 0.05  # 12 bits are kept


@pytest.mark.parametrize("suffix", [".png", ".pgm", ".npy"])
def test_16_bits_keep_their_range(suffix: str, tmp_path: Path) -> None:
    deep = (DIGITS * 257).astype(np.uint16)
    if suffix == ".npy":
        np.save(tmp_path / "images.npy", deep)
    data = tmp_path / "images.npy" if suffix == ".npy" else save(tmp_path / "deep", deep, suffix)
    images, chosen = canvases(data)
    assert chosen == "0,65535" and np.array_equal(images[..., 0], DIGITS)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_signed_and_float_pixels_are_scaled_by_percentiles(dtype: type, suffix: str, tmp_path: Path) -> None:
    values = (DIGITS * 10 - 1000).astype(dtype)
    if suffix == ".npy":
        np.save(tmp_path / "images.npy", values)
    data = tmp_path / "images.npy" if suffix == ".npy" else save(tmp_path / "deep", values, suffix)
    images, chosen = canvases(data)
    assert chosen is not None and PixelRange.read(chosen).low == -1000 and 1500 < PixelRange.read(chosen).high <= 1550
    assert np.abs(images[..., 0] - DIGITS).max() <= 3
    with pytest.raises(SslkitError, match=r"--range: the pixels of .* are (float32|int32) \(name LOW,HIGH, or data\)"):
        canvases(data, range="dtype")


def test_a_named_range_cuts_off(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.array([[[0, 1000], [2000, 9000]]] * 4, dtype=np.uint16))
    source = ImageSource.open(DataSpec(data=str(tmp_path / "images.npy"), canvas=8, range="1000,2000", cache="off"))
    assert source.canvases.form.scale == PixelRange(1000, 2000)
    assert PixelRange(1000, 2000)(np.array([0, 1000, 1500, 2000, 9000])).tolist() == [0, 0, 32768, 65535, 65535]
    with pytest.raises(UnreadableSampleError, match="NaN or infinite"):
        PixelRange(0, 1)(np.array([0.5, np.nan]))


def test_a_test_part_of_more_bits_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", DIGITS.astype(np.uint8))
    np.save(tmp_path / "deep.npy", (DIGITS * 257).astype(np.uint16))
    train = ImageSource.open(DataSpec(data=str(tmp_path / "plain.npy"), canvas=8, size=8, cache="off"))
    index = ImageSource.read_index(str(tmp_path / "deep.npy"), DataSpec())
    encoder = build_encoder(recipe_for("resnet_micro", 8, 1))
    test = ImageSource.for_evaluation(index, DataSpec(cache="off"), encoder, 8, train)
    assert np.array_equal(test.read(np.arange(60))[0]["canvas"][..., 0], DIGITS * 257)


def test_dtype_and_data_are_what_they_say(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", (DIGITS * 16).astype(np.uint16))
    index = ImageSource.read_index(str(tmp_path / "images.npy"), DataSpec())
    assert choose_range(index, "dtype")[0] == PixelRange(0, 65535)
    by_data, reason = choose_range(index, "data")
    assert by_data == PixelRange(0, 4080) and "percentile of 60 samples" in reason


def test_eight_bits_among_others_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "mixed", DIGITS[:4].astype(np.uint8))
    Image.fromarray((DIGITS[4] * 16).astype(np.uint16)).save(tmp_path / "mixed" / "deep.png")
    images, chosen = canvases(tmp_path / "mixed")
    assert chosen == "0,4080" and np.array_equal(images[:4, ..., 0], DIGITS[:4])


def test_gray_stays_one_channel_if_asked(tmp_path: Path) -> None:
    data = save(tmp_path / "gray", DIGITS.astype(np.uint8))
    assert canvases(data)[0].shape[3] == 3 and canvases(data, channels=1)[0].shape[3] == 1
    assert np.array_equal(canvases(data, channels=1)[0][..., 0], DIGITS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64, np.int16])
def test_arrays_of_many_channels(dtype: type, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 200, (6, 8, 8, 12)).astype(dtype)
    np.save(tmp_path / "images.npy", images)
    read, _ = canvases(tmp_path / "images.npy", layout="NHWC")
    assert read.shape == images.shape and read.max() > 190
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8, 65), dtype=dtype))
    with pytest.raises(SslkitError, match="has 65 channels"):
        canvases(tmp_path / "images.npy", layout="NHWC")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--range", "5,5"], "--range: 5,5: LOW should be below HIGH"),
        (["--range", "high"], "--range"),
        (["--range", "dtype,data"], "--range"),
        (["--channels", "2"], "--channels: expected 2 channels, and images of"),
        (["--channels", "65"], "--channels"),
        (["--range", "0,1e999"], "--range"),
        (["--dialect", "moco", "--batch-size", "16"], "--dialect: it describes the file of --init, and there is none"),
    ],
)
def test_wrong_options_are_one_line(flags: list[str], message: str, digits: Path, sslkit: Run) -> None:
    ran = sslkit("pretrain", "rotation", "--data", digits, *flags)
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize("rule", ["data", "dtype", "auto", "0,3000"])
def test_the_same_command_resumes(rule: str, tmp_path: Path, sslkit: Run) -> None:
    np.save(tmp_path / "images.npy", (DIGITS * 16).astype(np.uint16))
    flags = ["--data", tmp_path / "images.npy", "--range", rule, "--batch-size", 16, "--steps", 2, "--workers", 0]
    flags += ["--encoder-option", "width=8", "--out", tmp_path / "run"]
    assert sslkit("pretrain", "rotation", *flags).code == 0
    ran = sslkit("pretrain", "rotation", *flags, "--resume")
    assert ran.code == 0, ran.err
    other = sslkit("pretrain", "rotation", *flags, "--range", "0,17", "--resume")
    assert other.code == 2 and "--range 0,17 (the run has" in other.err


def test_models_that_read_pixels_differently_are_not_compared(tmp_path: Path, sslkit: Run) -> None:
    labels, small = (
        load_digits().target[:60] % 2,
        ["--encoder-option", "width=8", "--batch-size", 16, "--steps", 2, "--workers", 0],
    )
    np.savez(tmp_path / "images.npz", images=(DIGITS * 16).astype(np.uint16), labels=labels)
    for name, values in (("first", "0,4080"), ("second", "0,9000"), ("third", "0,4080")):
        flags = ["--data", tmp_path / "images.npz", "--range", values, "--out", tmp_path / name]
        assert sslkit("pretrain", "rotation", *flags, *small).code == 0
    ckpt = ["--ckpt", tmp_path / "first" / "model.safetensors"]
    assert sslkit("retrieval", *ckpt, "--against", tmp_path / "third").code == 0
    ran = sslkit("retrieval", *ckpt, "--against", tmp_path / "second")
    assert ran.code == 2 and "was trained with --range 0,9000, the checkpoint with 0,4080" in ran.err


@pytest.mark.slow
def test_gray_arrays_and_gray_files_go_together(tmp_path: Path, sslkit: Run) -> None:
    labels = load_digits().target[:60] % 2
    np.savez(tmp_path / "gray.npz", images=DIGITS.astype(np.uint8), labels=labels)
    for label in (0, 1):
        save(tmp_path / "files" / str(label), DIGITS[labels == label].astype(np.uint8))
    small = ["--encoder-option", "width=8", "--batch-size", 16, "--steps", 2, "--workers", 0]
    for name, data, flags in (("array", "gray.npz", []), ("folder", "files", ["--channels", 1])):
        ran = sslkit("pretrain", "rotation", "--data", tmp_path / data, *flags, *small, "--out", tmp_path / name)
        assert ran.code == 0, ran.err
        for other in ("gray.npz", "files"):
            ckpt = tmp_path / name / "model.safetensors"
            result = sslkit("retrieval", "--ckpt", ckpt, "--data", tmp_path / other, "--json").json
            assert result["protocol"] == "retrieval/map-v1"
    rgb = np.stack([DIGITS.astype(np.uint8)] * 3, axis=-1)
    np.savez(tmp_path / "rgb.npz", images=rgb, labels=labels)
    ran = sslkit("retrieval", "--ckpt", tmp_path / "folder" / "model.safetensors", "--data", tmp_path / "rgb.npz")
    assert ran.code == 2 and "has 3 channels" in ran.err


@pytest.mark.parametrize("values", [{"range": "x"}, {"range": "5,1"}, {"channels": 70}, {"layout": [1]}])
def test_altered_settings_of_a_checkpoint_are_one_line(
    values: dict[str, Any], trained: Path, digits: Path, tmp_path: Path, sslkit: Run
) -> None:
    from safetensors.torch import load_file, save_file

    metadata = read_model(trained).metadata
    metadata["spec"]["image"] |= values
    save_file(load_file(trained), tmp_path / "model.safetensors", {"sslkit": json.dumps(metadata)})
    ran = sslkit("knn", "--ckpt", tmp_path / "model.safetensors", "--data", digits)
    if "layout" in values:  # of other data it is not used
        assert ran.code == 0
    else:
        assert ran.code == 2 and "the file was altered" in ran.err and "Traceback" not in ran.err


def test_ranges_round_trip() -> None:
    for low, high in ((0.1, 0.3), (-1.7e9, 1.7e9 + 0.123), (1e-7, 2e-7), (0.0, 4095.0)):
        assert PixelRange.read(str(PixelRange(low, high))) == PixelRange(low, high)
        assert DataSpec(range=str(PixelRange(low, high)))


def test_pixels_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.full((4, 8, 8), 0.5))
    with pytest.raises(SslkitError, match=r"--range: the pixels of 4 samples of .* are all 0.5 \(name LOW,HIGH\)"):
        canvases(tmp_path / "images.npy")


@pytest.mark.slow
def test_the_range_is_recorded_and_used_again(tmp_path: Path, sslkit: Run) -> None:
    labels = load_digits().target[:60] % 2
    for name, factor in (("train", 16), ("test", 4)):  # the test part alone would have another range
        for number, (image, label) in enumerate(zip(DIGITS, labels, strict=True)):
            folder = tmp_path / "data" / name / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * factor).astype(np.uint16)).save(folder / f"{number}.png")
    small = ["--encoder", "resnet_micro", "--encoder-option", "width=8", "--batch-size", 16, "--steps", 2, "--workers", 0]
    options = ["--channels", 1, "--data", tmp_path / "data"]
    ran = sslkit("pretrain", "rotation", *options, *small, "--out", tmp_path / "run")
    assert ran.code == 0 and "0,4080: 0 to the 99.9th percentile of 60 samples" in ran.err, ran.err
    checkpoint = read_model(tmp_path / "run" / "model.safetensors")
    assert checkpoint.metadata["spec"]["image"] == {
        "channels": 1,
        "range": "0,4080",
        "size": 32,
        "canvas": 8,
        "layout": "auto",
    }
    assert checkpoint.channels == 1
    ckpt = ["--ckpt", checkpoint.path]
    assert sslkit("knn", *ckpt, "--k", 3, "--json").code == 0
    dark = sslkit("embed", *ckpt, "--data", tmp_path / "data" / "test", "--out", tmp_path / "dark.npz")
    assert dark.code == 0, dark.err
    bright = ["--data", tmp_path / "data" / "test", "--range", "data", "--out", tmp_path / "bright.npz"]
    assert sslkit("embed", *ckpt, *bright).code == 0
    features = [np.load(tmp_path / name)["features"] for name in ("dark.npz", "bright.npz")]
    assert not np.allclose(*features)
    out = tmp_path / "tuned"
    tuned = sslkit("finetune", *ckpt, "--steps", 2, "--batch-size", 16, "--workers", 0, "--out", out, "--json")
    assert tuned.code == 0, tuned.err
    assert json.loads((out / "spec.json").read_text())["image"]["range"] == "0,4080"
    again = sslkit("finetune", "--resume", "--out", out, "--json")
    settings = [{**result.json["settings"], "epochs": None} for result in (tuned, again)]
    assert settings[0] == settings[1] and "range" not in settings[0]
    tuned_ckpt = ["--ckpt", out / "model.safetensors", "--data", tmp_path / "data" / "test"]
    assert sslkit("predict", *tuned_ckpt, "--out", tmp_path / "p.csv").code == 0
    near = ["--k", 2, "--data", tmp_path / "data" / "test", "--out", tmp_path / "near.png"]
    assert sslkit("search", tmp_path / "data" / "test" / "0" / "0.png", *ckpt, *near).code == 0
    resumed = sslkit("pretrain", "rotation", "--resume", "--extend-to", 2, "--out", tmp_path / "run")
    assert resumed.code == 0, resumed.err
