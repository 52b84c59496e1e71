"""Exports compute what the encoder computes, and only then exist."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sslkit as public
from sslkit import ExportSpec, PretrainSpec, SslkitError, export, pretrain


def test_pt2_runs_without_sslkit_at_any_batch_size(trained: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    file = tmp_path / "deep" / "encoder.pt2"
    result = sslkit("export", "--ckpt", trained, "--out", file, "--json").json
    assert (result["path"], result["format"]) == (str(file), "pt2") and result["max_abs_diff"] < 1e-4
    program = torch.export.load(file).module()
    image = torch.rand(5, 3, 16, 16)
    assert torch.allclose(program(image), public.load(trained)(image), atol=1e-5)


def test_onnx(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    result = export(ExportSpec(ckpt=str(trained), to="onnx", out=str(tmp_path / "e.onnx")))
    assert result.max_abs_diff < 1e-4 and Path(result.path).stat().st_size > 1000


def test_timm(digits: Path, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import load_file

    settings: dict[str, Any] = {"data": str(digits), "steps": 1, "batch_size": 4, "workers": 0}
    big = pretrain(PretrainSpec(task="rotation", encoder="resnet10t", size=96, out=str(tmp_path / "big"), **settings))
    result = export(ExportSpec(ckpt=big.checkpoint, to="timm"))
    model = timm.create_model("resnet10t", num_classes=0)
    model.load_state_dict(load_file(result.path))
    assert result.max_abs_diff < 1e-4
    small = pretrain(PretrainSpec(task="rotation", encoder="resnet18", size=32, out=str(tmp_path / "small"), **settings))
    with pytest.raises(SslkitError, match="was trained with the small stem"):
        export(ExportSpec(ckpt=small.checkpoint, to="timm"))
    assert not (tmp_path / "small.timm.safetensors").exists()


def test_timm_needs_a_timm_encoder(trained: Path) -> None:
    with pytest.raises(SslkitError, match="resnet_micro is not a timm model"):
        export(ExportSpec(ckpt=str(trained), to="timm"))


def test_a_wrong_file_is_removed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    file = tmp_path / "e.pt2"
    file.write_bytes(b"an earlier export")

    def wrong(encoder: Any, checkpoint: Any, images: torch.Tensor, path: Path) -> torch.Tensor:
        path.write_bytes(b"wrong")
        return torch.zeros(7, 64)

    monkeypatch.setitem(sys.modules["sslkit.exports"]._FORMATS, "pt2", (".pt2", wrong))
    with pytest.raises(SslkitError, match="computes features that differ"):
        export(ExportSpec(ckpt=str(trained), out=str(file)))
    assert file.read_bytes() == b"an earlier export" and list(tmp_path.iterdir()) == [file]


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
