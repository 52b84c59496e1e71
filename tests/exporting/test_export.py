"""Exports compute what the encoder computes, in a process without sslkit, and only then exist."""

import contextlib
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sslkit as public
from sslkit import SslkitError
from sslkit.contract.exporter import ExportJob, Settings
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import describe, save_model
from sslkit.engine.pretrain import pretrain
from sslkit.exporting.export import export
from sslkit.exporting.graphs import Pt2
from sslkit.specs.train import PretrainSpec
from sslkit.specs.use import ExportSpec
from sslkit.text.encoders.base import TextEncoder
from sslkit.text.encoders.word_vectors import WordVectors, encode_words
from sslkit.text.tokenizer import SPECIALS, Tokenizer


@pytest.fixture(scope="module")
def tuned(digits: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    settings: dict[str, Any] = {"steps": 3, "batch_size": 16, "workers": 0, "size": 16, "scratch": False}
    return Path(public.finetune(public.FinetuneSpec(ckpt=str(trained), data=str(digits), out=str(out), **settings)).checkpoint)


def test_pt2_runs_without_sslkit_at_any_batch_size(trained: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    file = tmp_path / "deep" / "encoder.pt2"
    result = sslkit("export", "--ckpt", trained, "--out", file, "--json").json
    assert (result["path"], result["format"]) == (str(file), "pt2")
    assert 0 <= result["mean_abs_diff"] <= result["max_abs_diff"] < 1e-4 < result["tolerance"]
    program = torch.export.load(file).module()
    image = torch.rand(5, 3, 16, 16)
    assert torch.allclose(program(image), public.load(trained)(image), atol=1e-5)


@pytest.mark.slow
def test_sizes_that_may_differ(trained: Path, tmp_path: Path) -> None:
    settings = {"ckpt": str(trained), "out": str(tmp_path / "e.pt2")}
    any_size = torch.export.load(export(ExportSpec(**settings, dynamic_size=True)).path).module()
    image = torch.rand(3, 3, 24, 40)
    assert torch.allclose(any_size(image), public.load(trained)(image), atol=1e-5)
    fixed = torch.export.load(export(ExportSpec(**settings, dynamic_batch=False)).path).module()
    assert fixed(torch.rand(1, 3, 16, 16)).shape == (1, 64)
    with pytest.raises((AssertionError, RuntimeError)):
        fixed(torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_no_path_of_this_machine_is_in_the_file(kind: Any, trained: Path, tmp_path: Path) -> None:
    import zipfile

    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    file = Path(export(ExportSpec(ckpt=str(trained), to=kind, out=str(tmp_path / f"e.{kind}"))).path)
    if kind == "pt2":
        with zipfile.ZipFile(file) as parts:
            content = b"".join(parts.read(name) for name in parts.namelist())
    else:
        content = file.read_bytes()
    for path in (Path(public.__file__).parent, Path(torch.__file__).parent.parent, trained.parent):
        assert str(path).encode() not in content


def test_a_size_that_the_encoder_does_not_take(digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    settings: dict[str, Any] = {"data": str(digits), "steps": 1, "batch_size": 4, "workers": 0, "size": 16}
    run = pretrain(PretrainSpec(task="rotation", encoder="vit_micro", out=str(tmp_path / "run"), **settings))
    ran = sslkit("export", "--ckpt", run.checkpoint, "--size", 17)
    assert ran.code == 2 and "--size" in ran.err and len(ran.err.splitlines()) == 1


@pytest.mark.slow
def test_an_encoder_of_one_size_says_so(digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    settings: dict[str, Any] = {"data": str(digits), "steps": 1, "batch_size": 4, "workers": 0, "size": 16}
    run = pretrain(PretrainSpec(task="rotation", encoder="convvit_micro", out=str(tmp_path / "run"), **settings))
    ran = sslkit("export", "--ckpt", run.checkpoint, "--dynamic-size")
    assert ran.code == 1 and "leave out --dynamic-size" in ran.err
    assert not list(tmp_path.glob("*.pt2"))


@pytest.mark.parametrize("dynamic_size", [False, True])
def test_onnx(dynamic_size: bool, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    result = export(ExportSpec(ckpt=str(trained), to="onnx", out=str(tmp_path / "e.onnx"), dynamic_size=dynamic_size))
    assert result.max_abs_diff < 1e-4 and Path(result.path).stat().st_size > 1000


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("timm", "resnet10t"),
        pytest.param("torchvision", "torchvision:shufflenet_v2_x0_5", marks=pytest.mark.slow),
    ],
)
def test_state_dicts(kind: Any, name: str, digits: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": str(digits), "steps": 1, "batch_size": 4, "workers": 0}
    big = pretrain(PretrainSpec(task="rotation", encoder=name, size=96, out=str(tmp_path / "big"), **settings))
    result = export(ExportSpec(ckpt=big.checkpoint, to=kind))
    assert result.max_abs_diff < 1e-3 and result.samples == str(digits)
    image = torch.rand(3, 3, 96, 96)
    features = _run_card(Path(result.card), image)
    assert torch.allclose(features, public.load(big.checkpoint)(image), atol=1e-3)


@pytest.mark.slow
def test_a_small_stem_fits_no_other_model(digits: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": str(digits), "steps": 1, "batch_size": 4, "workers": 0}
    for kind, name in (("timm", "resnet18"), ("torchvision", "torchvision:resnet18")):
        small = pretrain(PretrainSpec(task="rotation", encoder=name, size=32, out=str(tmp_path / kind), **settings))
        with pytest.raises(SslkitError, match="was trained with the small stem"):
            export(ExportSpec(ckpt=small.checkpoint, to=kind))
        assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_other_encoders_are_refused(kind: Any, trained: Path) -> None:
    with pytest.raises(SslkitError, match=f"resnet_micro is not a {kind} model"):
        export(ExportSpec(ckpt=str(trained), to=kind))


def test_a_fine_tuned_checkpoint_takes_its_classifier_along(
    tuned: Path, digits: Path, tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    result = sslkit("export", "--ckpt", tuned, "--out", tmp_path / "c.pt2", "--json").json
    image = torch.rand(2, 3, 16, 16)
    logits = torch.export.load(result["path"]).module()(image)
    assert logits.shape == (2, 3)
    card = Path(result["card"]).read_text()
    assert (
        "Classes, in order: digit 0, digit 1, digit 2." in card
        and "| license | not stated: fill in |" in card
        and str(tmp_path) not in card
    )
    assert torch.allclose(_run_card(Path(result["card"]), image), logits, atol=1e-5)


def test_predictions(tuned: Path, trained: Path, digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    out = tmp_path / "predictions.csv"
    result = sslkit("predict", "--ckpt", tuned, "--data", digits / "test", "--out", out, "--json", "--workers", 0).json
    assert result["samples"] == 12 and result["classes"] == 3
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 12 and set(rows[0]) == {"path", "class", "probability"}
    assert all(
        row["class"] in ("digit 0", "digit 1", "digit 2") and 1 / 3 - 1e-3 <= float(row["probability"]) <= 1 for row in rows
    )
    assert (digits / "test" / rows[0]["path"]).is_file()
    ran = sslkit("predict", "--ckpt", trained, "--data", digits, "--out", tmp_path / "no.csv")
    assert ran.code == 2 and "has no classifier: it was trained by rotation (train one: sslkit finetune" in ran.err
    assert not (tmp_path / "no.csv").exists()


def test_several_classes_are_named_where_an_image_may_have_them() -> None:
    from sslkit.engine.classifier import Classifier
    from sslkit.evaluation.predict import name_classes

    scores, head = torch.tensor([[2.0, 1.0, -3.0], [-1.0, -2.0, -3.0]]), torch.nn.Linear(1, 3)
    several, single = (name_classes(Classifier(["a", "b", "c"], head, kind, kind), scores) for kind in (True, False))
    shared = name_classes(Classifier(["a", "b", "c"], head, True), torch.tensor([[2.0, 1.8, -3.0]]))
    assert shared[0][0] == "a;b"
    assert [name for name, _ in several] == ["a;b", ""] and [name for name, _ in single] == ["a", "a"]
    assert several[0][1] == pytest.approx(float(torch.sigmoid(torch.tensor(2.0))))
    assert single[0][1] == pytest.approx(float(scores[0].softmax(dim=0)[0]))


@pytest.mark.slow
def test_a_wrong_file_is_removed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "e.pt2"
    file.write_bytes(b"an earlier export")
    write = Pt2.write

    def write_changed(self: Pt2, job: ExportJob, samples: torch.Tensor, path: Path) -> Settings:
        job.network.encoder.get_parameter("stem.weight").data.add_(0.1)  # not the weights that were to be exported
        return write(self, job, samples, path)

    monkeypatch.setattr(Pt2, "write", write_changed)
    with pytest.raises(SslkitError, match="the pt2 file computes features that differ") as raised:
        export(ExportSpec(ckpt=str(trained), out=str(file)))
    assert raised.value.exit_code == 1
    assert file.read_bytes() == b"an earlier export" and list(tmp_path.iterdir()) == [file]

    def write_unreadable(self: Pt2, job: ExportJob, samples: torch.Tensor, path: Path) -> Settings:
        path.write_bytes(b"wrong")
        return {}

    monkeypatch.setattr(Pt2, "write", write_unreadable)
    with pytest.raises(SslkitError, match="the pt2 file cannot be read back"):
        export(ExportSpec(ckpt=str(trained), out=str(file)))


@pytest.mark.slow
def test_where_it_may_not_write(trained: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path, "is a folder"),
        (trained, "the checkpoint itself"),
        (tmp_path / "file" / "e.pt2", "cannot write"),
    ):
        ran = sslkit("export", "--ckpt", trained, "--out", out)
        assert ran.code == 2 and message in ran.err and len(ran.err.splitlines()) == 1
    assert sslkit("export", "--ckpt", trained, "--json").json["path"] == f"{trained.parent}.pt2"


def test_names_of_onnx(trained: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    file = export(ExportSpec(ckpt=str(trained), to="onnx", out=str(tmp_path / "e.onnx"), dynamic_size=True)).path
    graph = onnx.load(file)
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert axes == {"image": ["batch", 3, "height", "width"], "features": ["batch", 64]}
    fixed = onnx.load(export(ExportSpec(ckpt=str(trained), to="onnx", out=str(tmp_path / "f.onnx"), dynamic_batch=False)).path)
    assert [dim.dim_value for dim in fixed.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels", "size", "options"),
    [
        ("audio_micro", 1, 500, {"width": "8", "mels": "32", "sample_rate": "8000"}),
        ("speech_micro", 1, 300, {"width": "32", "depth": "2", "channels": "16", "sample_rate": "8000"}),
        ("wavlm_micro", 1, 300, {"width": "32", "depth": "2", "channels": "16", "sample_rate": "8000"}),
        ("cpc_micro", 1, 300, {"width": "16", "sample_rate": "8000"}),
        ("pointnet_micro", 3, 64, {"width": "8"}),
        ("pointnet2_micro", 3, 64, {"width": "8", "neighbors": "4"}),
        ("point_patches_micro", 3, 64, {"width": "32", "depth": "2", "patches": "8", "patch_points": "6"}),
        ("voxel_micro", 3, 64, {"width": "8", "side": "8"}),
        ("bert_micro", 40, 64, {"width": "32", "depth": "2"}),
        ("word_vectors", 30, 8, {"width": "8"}),
        ("caption_transformer", 30, 8, {"width": "16", "depth": "1", "heads": "2"}),
    ],
)
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_encoders_of_other_modalities(
    kind: str, name: str, channels: int, size: int, options: dict[str, str], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    words = [f"w{number}" for number in range(channels - (0 if name == "word_vectors" else len(SPECIALS)))]
    spelled = encode_words(words) if name == "word_vectors" else Tokenizer("word", words).to_bytes()
    if name in ("word_vectors", "caption_transformer", "bert_micro"):
        options = {**options, "letters": str(len(spelled))}
    encoder = build_encoder(recipe_for(name, size, channels, options))
    if isinstance(encoder, TextEncoder):
        encoder.keep_tokenizer(spelled)
    elif isinstance(encoder, WordVectors):
        encoder.spell(words)
    ckpt, out = tmp_path / "model.safetensors", tmp_path / f"e.{kind}"
    save_model(ckpt, {"encoder": encoder}, {**describe(encoder), "task": "none", "size": size, "step": 1, "data": ""})
    result = export(ExportSpec(ckpt=str(ckpt), to=kind, out=str(out)))
    assert result.max_abs_diff <= result.tolerance and result.input["name"] == encoder.modality
    call = f'{{"{encoder.modality}": {encoder.modality}}}' if kind == "onnx" else f"network({encoder.modality})"
    assert call in Path(result.card).read_text()
    if kind == "onnx":
        value = onnx.load(out).graph.input[0]
        assert value.name == encoder.modality and value.type.tensor_type.shape.dim[0].dim_param == "batch"


def _run_card(card: Path, image: torch.Tensor) -> torch.Tensor:
    """Run the lines that a card gives, from its folder."""
    variables: dict[str, Any] = {"image": image}
    code = card.read_text().partition("## Loading")[2].partition("```python\n")[2].partition("```")[0]
    with contextlib.chdir(card.parent), torch.no_grad():
        exec(code, variables)
    output: torch.Tensor = variables.get("logits", variables.get("features"))
    return output
