"""The code that a card prints makes the input of evaluations, and the features of `sslkit embed`: it is run as it stands."""

import contextlib
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import sslkit as public
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.pretrain import pretrain
from sslkit.exporting.export import export
from sslkit.image.input_guide import input_guide
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec
from sslkit.specs.train import PretrainSpec
from sslkit.specs.use import EmbedSpec, ExportSpec

PHOTOGRAPHS = Path("/work/shared/data/cats_dogs.tar.gz")
FORMATS = ("pt2", "onnx", "timm", "hf")
CASES = [(224, (500, 375)), (224, (301, 280)), (224, (150, 233)), (32, (64, 48)), (32, (333, 250)), (96, (97, 130))]


def picture(shape: tuple[int, int], seed: int = 0) -> Image.Image:
    """Return a smooth picture of random colors."""
    coarse = np.random.default_rng(seed).integers(256, size=(20, 30, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC)


def run(code: str, folder: Path) -> dict[str, Any]:
    """Run lines of a card in a folder, from which they read files; return their variables."""
    variables: dict[str, Any] = {}
    with contextlib.chdir(folder), torch.no_grad():
        exec(code, variables)
    return variables


def card_code(card: str) -> dict[str, str]:
    """Return the code of a card by what stands before it: the libraries of each snippet, and `Loading`."""
    blocks = re.findall(r"(?:With ([^\n]+):|## (Loading))\n\n```python\n(.*?)```", card, flags=re.DOTALL)
    return {title or heading: code for title, heading, code in blocks}


def features_by_card(card: Path, folder: Path, file: Path) -> dict[str, np.ndarray]:
    """Return the features of a picture by the libraries that read it, as the card computes them."""
    code = card_code(card.read_text())
    loading = code.pop("Loading")
    shutil.copyfile(file, folder / "picture.jpg")
    features = {title: run(lines + loading, folder)["features"] for title, lines in code.items()}
    return {title: np.asarray(values)[0] for title, values in features.items()}


def check_cards(run_folder: Path, data: Path, out: Path, most: int) -> None:
    """Compare what the card of each format computes with `sslkit embed`."""
    ckpt, out = run_folder / "model.safetensors", out / "exports"
    public.embed(EmbedSpec(ckpt=str(ckpt), data=str(data), out=str(out.parent / "f.npz"), workers=0, cache="off"))
    with np.load(out.parent / "f.npz") as embedded:
        features = dict(zip(embedded["paths"].tolist(), embedded["features"], strict=True))
    for kind in FORMATS:
        result = export(ExportSpec(ckpt=str(ckpt), to=kind, out=str(out / f"e.{kind}")))
        for name in sorted(features)[:most]:
            by_title = features_by_card(Path(result.card), out, data / name)
            assert list(by_title) == ["Pillow and NumPy", "Pillow and torchvision"]
            for title, computed in by_title.items():
                expected = features[name]
                cosine = computed @ expected / np.linalg.norm(computed) / np.linalg.norm(expected)
                assert cosine >= 0.999, (kind, title, name, cosine)


@pytest.mark.parametrize(("size", "shape"), [*CASES, (32, (16, 16))])
def test_the_code_makes_the_input_of_evaluations(size: int, shape: tuple[int, int], tmp_path: Path) -> None:
    picture(shape).save(tmp_path / "picture.png")
    spec = DataSpec(cache="off", workers=0)
    index = ImageSource.read_index(str(tmp_path), spec)
    source = ImageSource.for_evaluation(index, spec, build_encoder(recipe_for("resnet_micro", size)), size)
    arrays, _ = source.read(np.array([0]))
    expected = source.view(source.prepare({name: torch.from_numpy(array) for name, array in arrays.items()}), "image")
    guide = input_guide(3, size, "auto", source.sample_details()["short_side"])
    (tmp_path / "picture.png").rename(tmp_path / "picture.jpg")
    pillow, torchvision = (run("\n".join(snippet.lines), tmp_path)["image"] for snippet in guide.snippets)
    assert pillow.shape == torchvision.shape == expected.shape and pillow.dtype == np.float32
    assert np.abs(pillow - expected.numpy()).max() <= 1.01 / 255
    assert (torchvision - expected).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_every_kind(mode: str, channels: int, tmp_path: Path) -> None:
    file = tmp_path / ("picture.jpg" if mode in ("L", "CMYK") else "picture.png")
    picture((40, 36)).convert("RGB" if mode == "LA" else mode).convert(mode).save(file)
    spec = DataSpec(cache="off", workers=0, channels=channels)
    source = ImageSource.for_evaluation(
        ImageSource.read_index(str(tmp_path), spec), spec, build_encoder(recipe_for("resnet_micro", 32, channels)), 32
    )
    arrays, _ = source.read(np.array([0]))
    expected = source.view(source.prepare({name: torch.from_numpy(array) for name, array in arrays.items()}), "image")
    file.rename(tmp_path / "picture.jpg")
    for snippet in input_guide(channels, 32, "auto", 36).snippets:
        image = torch.as_tensor(run("\n".join(snippet.lines), tmp_path)["image"])
        assert image.shape == expected.shape and (image - expected).abs().max() <= 2.01 / 255


def test_an_upright_photograph_is_read_as_it_stands(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright, file = picture((60, 40)), tmp_path / "picture.jpg"
    images = []
    for photograph, options in ((upright, {}), (upright.transpose(Image.Transpose.ROTATE_90), {"exif": exif})):
        photograph.save(file, quality=95, **options)
        for snippet in input_guide(3, 32, "auto", 40).snippets:
            images.append(torch.as_tensor(run("\n".join(snippet.lines), tmp_path)["image"]))
    assert all((image - images[0]).abs().mean() < 0.02 for image in images)


@pytest.mark.slow
def test_the_cards_of_all_formats_compute_the_features_of_embed(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    data = tmp_path / "pictures"
    data.mkdir()
    for place, shape in enumerate([(150, 120), (121, 160), (200, 200), (140, 97)] * 2):
        picture(shape, place).save(data / f"{place}.jpg", quality=95)
    settings: dict[str, Any] = {"steps": 1, "batch_size": 4, "workers": 0, "size": 80, "encoder": "resnet10t"}
    pretrain(PretrainSpec(task="rotation", data=str(data), out=str(tmp_path / "run"), **settings))
    check_cards(tmp_path / "run", data, tmp_path, most=4)


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"{PHOTOGRAPHS} is not on this machine")
def test_photographs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    data = tmp_path / "photographs"
    data.mkdir()
    with tarfile.open(PHOTOGRAPHS) as archive:
        members = [member for member in archive if member.name.endswith(".jpg")][:200:10]
        for member in members:
            content = archive.extractfile(member)
            assert content is not None
            (data / Path(member.name).name).write_bytes(content.read())
    settings: dict[str, Any] = {"steps": 1, "batch_size": 10, "workers": 0, "size": 224, "encoder": "resnet18"}
    pretrain(PretrainSpec(task="rotation", data=str(data), out=str(tmp_path / "run"), **settings))
    check_cards(tmp_path / "run", data, tmp_path, most=20)


@pytest.mark.slow
def test_card_json_and_file_state_the_same(trained: Path, tmp_path: Path) -> None:
    result = export(ExportSpec(ckpt=str(trained), out=str(tmp_path / "e.pt2"), license="cc0-1.0"))
    card, stored = Path(result.card).read_text(), {"sslkit_export.json": ""}
    torch.export.load(result.path, extra_files=stored)
    described = json.loads(stored["sslkit_export.json"])
    assert described["input"] == result.input and described["output"] == {"name": "features", "width": 64}
    assert described["license"] == "cc0-1.0" and "| license | cc0-1.0 |" in card
    assert (result.input["resize"], result.input["crop"], result.input["size"]) == (16, 16, 16)  # digits of 16 px
    assert result.input["normalization"]["inside"] is True and len(result.input["normalization"]["mean"]) == 3
    assert "the short side is resized to 16 px (bilinear, antialiased), and the middle 16 × 16 px are cut out." in card
    assert "short side to 16 px, middle 16 px, values in [0, 1]" in result.input_summary


def test_onnx_states_it_too(trained: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    result = export(ExportSpec(ckpt=str(trained), to="onnx", out=str(tmp_path / "e.onnx"), size=224))
    properties = {item.key: item.value for item in onnx.load(result.path).metadata_props}
    assert json.loads(properties["sslkit_export"])["input"] == result.input
    assert (result.input["resize"], result.input["crop"], result.input["size"]) == (16, 16, 224)


@pytest.mark.slow
def test_state_dicts_state_it_too(digits: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": str(digits), "steps": 1, "batch_size": 4, "workers": 0, "size": 80}
    big = pretrain(PretrainSpec(task="rotation", encoder="resnet10t", out=str(tmp_path / "big"), **settings))
    result = export(ExportSpec(ckpt=big.checkpoint, to="timm"))
    with safe_open(result.path, framework="pt") as file:
        assert json.loads(file.metadata()["sslkit_export"])["input"] == result.input
    assert result.input["normalization"]["inside"] is False


def test_sizes_of_the_guide() -> None:
    photographs = input_guide(3, 224, "auto", 375)
    assert (photographs.facts["resize"], photographs.facts["crop"]) == (256, 224)
    assert "whose median short side is at least 256 px" in "\n".join(photographs.text)
    old = input_guide(3, 224, "auto", None)  # of a checkpoint that does not say
    assert (old.facts["resize"], input_guide(3, 32, "auto", None).facts["resize"]) == (256, 32)
    deep = input_guide(2, 64, "0,4095", 64)
    assert "0 becomes 0 and 4095 becomes 1" in "\n".join(deep.text) and deep.facts["black_and_white"] == [0, 4095]
    assert not deep.snippets and "2 channels" in "\n".join(deep.text)
    for channels in (1, 3):
        guide = input_guide(channels, 64, "0,65535", 64)
        assert not guide.snippets and "There is no code here" in "\n".join(guide.text)
    small = "\n".join(input_guide(3, 224, "auto", 150).text)
    assert "the middle 150 × 150 px are cut out and resized to 224 × 224 px in the same way." in small
