"""`export --to hf` writes a folder that timm loads in another process, equal to the encoder, or refuses in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from timm.data import create_transform, resolve_data_config

import sslkit as public
from sslkit import SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import describe, read_model, save_model
from sslkit.engine.initial import load_initial
from sslkit.engine.pretrain import pretrain
from sslkit.exporting.description import describe_export, find_input_guide
from sslkit.exporting.export import build_job, export
from sslkit.image.export_hub_folder import HubFolder
from sslkit.specs.train import PretrainSpec
from sslkit.specs.use import ExportSpec

# Every architecture in one process that imports nothing of sslkit; in float64, because in float32 the memory format alone
# makes 1e-4 (mobilenetv4, features up to 33).
RELOAD = """
import json, sys
import numpy, timm, torch
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}/hf", pretrained=True).eval().double()
    samples = torch.from_numpy(numpy.load(f"{folder}/samples.npy")).double()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        numpy.save(f"{folder}/reloaded.npy", model((samples - mean) / std).numpy())
assert "sslkit" not in sys.modules
"""
ARCHITECTURES = {  # with the size of their images
    "resnet18": 96,
    "resnet26d": 96,
    "resnet50": 96,
    "resnext26ts": 96,
    "seresnet18": 96,
    "resnetv2_50": 96,
    "wide_resnet50_2": 96,
    "densenet121": 96,
    "vgg11": 96,
    "mobilenetv2_050": 96,
    "mobilenetv3_small_050": 96,
    "mobilenetv4_conv_small_050": 96,
    "efficientnet_b0": 96,
    "tf_efficientnet_lite0": 96,
    "regnetx_002": 96,
    "regnety_002": 96,
    "convnext_atto": 96,
    "convnextv2_atto": 96,
    "edgenext_xx_small": 96,
    "ghostnet_050": 96,
    "hardcorenas_a": 96,
    "repvgg_a0": 96,
    "mixer_s32_224": 224,
    "poolformer_s12": 96,
    "vit_tiny_patch16_224": 96,
    "vit_small_patch14_dinov2": 98,
    "vit_small_patch14_reg4_dinov2": 98,
    "deit_tiny_distilled_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "beit_base_patch16_224": 224,
    "tiny_vit_5m_224": 224,
    "xcit_nano_12_p16_224": 96,
}


def checkpoint(folder: Path, name: str, size: int, channels: int = 3, **options: str) -> Path:
    """Write a checkpoint with random weights and statistics that no library has."""
    torch.manual_seed(0)
    encoder: Any = build_encoder(recipe_for(name, size, channels, options))
    encoder.mean.add_(0.01)
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:  # whose statistics become those of random images: without, features hardly differ between images
        with torch.no_grad():
            encoder.train()(torch.rand(4, channels, size, size))
        encoder.eval()
    folder.mkdir(exist_ok=True)
    file = folder / "model.safetensors"
    save_model(file, {"encoder": encoder}, {**describe(encoder), "task": "none", "size": size, "step": 1, "data": ""})
    return file


def exported(folder: Path, name: str, size: int, **options: Any) -> tuple[Path, torch.Tensor]:
    """Return the folder of an export, and the encoder's features of samples that are stored beside it."""
    ckpt = checkpoint(folder, name, size, **options)
    encoder = public.load(ckpt)
    samples = torch.rand(3, encoder.in_channels, size, size)
    np.save(folder / "samples.npy", samples.numpy())
    result = export(ExportSpec(ckpt=str(ckpt), to="hf", out=str(folder / "hf"), license="MIT"))
    with torch.no_grad():
        return Path(result.path), encoder.double()(samples.double())


def reload(*folders: Path) -> list[torch.Tensor]:
    """Return what timm computes for the stored samples, in one other process."""
    subprocess.run([sys.executable, "-P", "-c", RELOAD, *map(str, folders)], check=True, capture_output=True, text=True)
    return [torch.from_numpy(np.load(folder / "reloaded.npy")) for folder in folders]


def test_a_folder_that_timm_loads(tmp_path: Path) -> None:
    folder, features = exported(tmp_path, "resnet10t", 80)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    (reloaded,) = reload(tmp_path)
    assert (reloaded - features).abs().max() <= 1e-5
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "resnet10t" and config["num_classes"] == 0
    trained = config["pretrained_cfg"]
    assert trained["mean"] == pytest.approx([0.495, 0.466, 0.416]) and trained["input_size"] == [3, 80, 80]
    assert config["sslkit_export"]["input"]["resize"] == 91
    data = resolve_data_config({}, pretrained_cfg=trained)
    resize, crop = create_transform(**data).transforms[:2]
    assert resize.size == 91 and "bilinear" in str(resize) and tuple(crop.size) == (80, 80)
    front, card = (folder / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    values = yaml.safe_load(front)
    assert values["license"] == "mit" and values["library_name"] == "timm" and "timm" in values["tags"]
    assert 'timm.create_model("local-dir:hf", pretrained=True)' in card and str(tmp_path) not in card
    started: Any = build_encoder(recipe_for("resnet10t", 80))
    load_initial(started, str(folder))
    with torch.no_grad():
        again = started.eval()(torch.from_numpy(np.load(tmp_path / "samples.npy")))
    assert (again - features).abs().max() <= 1e-5


@pytest.mark.slow
def test_a_second_export_takes_the_place_of_the_first(tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    folder, _ = exported(tmp_path, "test_resnet", 80)
    before = (folder / "model.safetensors").read_bytes()
    ckpt = checkpoint(tmp_path / "other", "test_resnet", 80, channels=1)
    assert sslkit("export", "--ckpt", ckpt, "--to", "hf", "--out", folder).code == 0
    assert (folder / "model.safetensors").read_bytes() != before
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"] == [1, 80, 80]
    (folder / "notes.txt").write_text("mine")
    ran = sslkit("export", "--ckpt", ckpt, "--to", "hf", "--out", folder)
    assert ran.code == 2 and "holds notes.txt, which is not of an export (name a new folder)" in ran.err
    ran = sslkit("export", "--ckpt", ckpt, "--to", "hf", "--out", folder / "notes.txt")
    assert ran.code == 2 and "is a file (name a folder)" in ran.err


@pytest.mark.slow
def test_a_classifier_goes_along(digits: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": str(digits), "steps": 1, "batch_size": 8, "workers": 0, "size": 80}
    tuned = public.finetune(public.FinetuneSpec(encoder="test_resnet", out=str(tmp_path / "run"), **settings))
    result = export(ExportSpec(ckpt=str(tuned.checkpoint), to="hf", out=str(tmp_path / "hf")))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["num_classes"] == 3 and config["label_names"] == ["digit 0", "digit 1", "digit 2"]
    assert result.output == {"name": "logits", "width": 3} and result.max_abs_diff < 1e-4


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("resnet_micro", 32, {}, "resnet_micro is not a timm model (use --to pt2 or onnx)"),
        ("resnet18", 32, {}, "resnet18 was trained with the small stem, which timm does not have (use --to pt2 or onnx, or"),
        ("resnet10t", 80, {"norm": "group"}, "was trained with norm=group, which timm does not have (use --to pt2 or onnx)"),
    ],
)
def test_others_are_refused(
    name: str, size: int, options: dict[str, str], message: str, tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    file = checkpoint(tmp_path, name, size, **options)
    ran = sslkit("export", "--ckpt", file, "--to", "hf", "--out", tmp_path / "hf")
    assert ran.code == 2 and message in ran.err and len(ran.err.splitlines()) == 1
    assert not (tmp_path / "hf").exists()


def test_a_model_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslkit.image import export_hub_folder

    def options(job: Any, encoder: Any) -> dict[str, Any]:
        return {"num_classes": 0, "in_chans": 3, "stem_width": 16}

    monkeypatch.setattr(export_hub_folder, "model_options", options)
    with pytest.raises(SslkitError, match=r"does not rebuild resnet10t as it was trained \(use --to onnx or pt2\)"):
        export(ExportSpec(ckpt=str(checkpoint(tmp_path, "resnet10t", 80)), to="hf"))


@pytest.mark.slow
def test_a_folder_that_computes_something_else_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = HubFolder.write

    def write_changed(self: HubFolder, job: Any, samples: Any, path: Path) -> Any:
        job.network.encoder.model.conv1[0].weight.data.mul_(1.5)
        job.network.encoder.mean.add_(0.3)
        return write(self, job, samples, path)

    monkeypatch.setattr(HubFolder, "write", write_changed)
    with pytest.raises(SslkitError, match="the hf file computes features that differ"):
        export(ExportSpec(ckpt=str(checkpoint(tmp_path / "run", "resnet10t", 80)), to="hf", out=str(tmp_path / "hf")))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
def test_thirty_stock_architectures(tmp_path: Path) -> None:
    assert len(ARCHITECTURES) >= 30
    expected = {}
    for name, size in ARCHITECTURES.items():
        # Without the reading back of each, which takes a process.
        ckpt, exporter = read_model(checkpoint(tmp_path / name, name, size)), HubFolder()
        job = build_job(ExportSpec(ckpt=str(ckpt.path), to="hf"), ckpt, exporter)
        job = replace(job, description=describe_export(job, exporter, find_input_guide(job, ckpt)))
        samples = torch.rand(3, 3, size, size)
        np.save(tmp_path / name / "samples.npy", samples.numpy())
        exporter.write(job, samples, tmp_path / name / "hf")
        with torch.no_grad():
            expected[name] = job.network.double()(samples.double())
    reloaded = reload(*(tmp_path / name for name in ARCHITECTURES))
    differences = {
        name: float((computed - expected[name]).abs().max()) for name, computed in zip(ARCHITECTURES, reloaded, strict=True)
    }
    assert max(differences.values()) <= 1e-5, {name: value for name, value in differences.items() if not value <= 1e-5}


@pytest.mark.slow
def test_a_run_says_how_it_is_loaded(digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    settings: dict[str, Any] = {"data": str(digits), "steps": 1, "batch_size": 4, "workers": 0, "size": 80}
    run = pretrain(PretrainSpec(task="rotation", encoder="test_resnet", out=str(tmp_path / "run"), **settings))
    ran = sslkit("export", "--ckpt", run.checkpoint, "--to", "hf")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0].split() == ["path", str(tmp_path / "run-hf")]
    assert (tmp_path / "run-hf" / "README.md").is_file() and "verified" in ran.out
