"""`--init` from folders and from the Hub: safetensors only, at a commit that is recorded; a local server stands for the Hub."""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from sslkit import SslkitError
from sslkit.contract.encoder import Encoder
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.hub import HubAddress, hide_credentials, hub_errors
from sslkit.engine.initial import load_initial, resolve_start
from tests.hub_server import COMMIT, Hub, serve_hub, use_hub

Run = Callable[..., Any]
MEAN, STD = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
CONFIG = {"architecture": "resnet10t", "pretrained_cfg": {"mean": MEAN, "std": STD}}


def encoder(name: str = "resnet10t") -> Encoder:
    return build_encoder(recipe_for(name, 96))


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def published() -> dict[str, bytes]:
    weights = state(encoder().model) | {"fc.weight": torch.ones(3, 512), "fc.bias": torch.ones(3)}
    return {"model.safetensors": save(weights), "config.json": json.dumps(CONFIG).encode()}


@pytest.fixture
def hub(published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub({"them/net": dict(published), "them/pickle": {"pytorch_model.bin": b"1"}}) as server:
        use_hub(monkeypatch, server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def equals_published(loaded: Any, published: dict[str, bytes]) -> bool:
    from safetensors.torch import load

    expected = load(published["model.safetensors"])
    same = all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    return (
        same
        and torch.allclose(loaded.mean.flatten(), torch.tensor(MEAN))
        and torch.allclose(loaded.std.flatten(), torch.tensor(STD))
    )


def test_a_folder_brings_weights_and_normalization(
    published: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in published.items():
        (tmp_path / name).write_bytes(content)
    loaded = encoder()
    load_initial(loaded, str(tmp_path))
    assert equals_published(loaded, published)
    printed = capsys.readouterr().err
    assert "left out: head (2 tensors)" in printed and "normalized as config.json says: mean [0.5, 0.4, 0.3]" in printed


def test_of_another_architecture_the_config_names_the_encoder(published: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in published.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SslkitError, match=r"does not match the encoder.*\(config.json says: --encoder resnet10t\)"):
        load_initial(encoder("resnet18"), str(tmp_path))


@pytest.mark.parametrize("config", [b"{", b"[]", b'{"a": ' + b"[" * 100_000, b" " * 2_000_000])
def test_a_config_that_is_none(config: bytes, published: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(published["model.safetensors"])
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(SslkitError, match=r"--init: .*config.json (cannot be read|is not a JSON object)"):
        load_initial(encoder(), str(tmp_path))


def test_a_pickle_in_a_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"conv1.weight": 1}, protocol=2))
    with pytest.raises(SslkitError, match=r"--init: .*model.safetensors"):
        load_initial(encoder(), str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    torch.save(state(encoder().model), tmp_path / "pytorch_model.bin")
    with pytest.raises(SslkitError, match=r"--init: .*model.safetensors is not a file"):
        load_initial(encoder(), str(tmp_path))


def test_the_hub_at_a_commit(hub: Hub, published: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    start = resolve_start("hf_hub:them/net")
    assert start == f"hf_hub:them/net@{COMMIT}"
    loaded = encoder()
    load_initial(loaded, start)
    assert equals_published(loaded, published)
    assert f"downloading model.safetensors of {start}: " in capsys.readouterr().err
    hub.requests.clear()
    load_initial(encoder(), start)  # a commit does not change: nothing is asked again
    assert resolve_start(start) == start and not hub.requests


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("hf_hub:net", r"--init: hf_hub:net is not a Hub address \(expected hf_hub:OWNER/NAME@COMMIT\)"),
        ("hf_hub:them/../net", "is not a Hub address"),
        ("hf_hub:them/none", r"--init: them/none not found on the Hub, or no access \(.*hf auth login\)"),
        ("hf_hub:them/net@v2", "--init: them/net has no revision v2"),
        ("hf_hub:them/pickle", r"--init: hf_hub:them/pickle@a+ has no model.safetensors \(nothing else is read from the Hub\)"),
    ],
)
def test_what_the_hub_does_not_have(init: str, message: str, hub: Hub) -> None:
    with pytest.raises(SslkitError, match=message) as raised:
        load_initial(encoder(), resolve_start(init))
    assert len(str(raised.value).splitlines()) == 1


def test_a_repository_without_a_config_is_read_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    del hub.repositories["them/net"]["config.json"]
    start = f"hf_hub:them/net@{COMMIT}"
    load_initial(encoder(), start)
    hub.requests.clear()
    load_initial(encoder(), start)
    assert not hub.requests
    use_hub(monkeypatch, "http://127.0.0.1:9")
    load_initial(encoder(), start)


@pytest.mark.parametrize(
    "config", [{"std": [10**400] * 3}, {"std": [1e-300] * 3}, {"std": [1e300] * 3}, {"mean": [10**400] * 3}]
)
def test_statistics_that_float32_cannot_hold_are_left_out(
    config: dict[str, list[float]], published: dict[str, bytes], tmp_path: Path
) -> None:
    trained = {"pretrained_cfg": {"mean": MEAN, "std": STD, **config}}
    (tmp_path / "model.safetensors").write_bytes(published["model.safetensors"])
    (tmp_path / "config.json").write_text(json.dumps(trained))
    loaded: Any = encoder()
    mean, std = loaded.mean.clone(), loaded.std.clone()
    load_initial(loaded, str(tmp_path))
    assert torch.equal(loaded.mean, mean) and torch.equal(loaded.std, std)


def test_credentials_of_an_address_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "for url: https://marie:secret@mirror.org/api/models/them/net"
    assert hide_credentials(text) == "for url: https://mirror.org/api/models/them/net"
    with pytest.raises(SslkitError) as raised, hub_errors(HubAddress("them/net", "main")):
        raise OSError(text)
    assert "secret" not in str(raised.value)


def test_a_file_that_claims_to_be_too_large_is_not_downloaded(hub: Hub) -> None:
    hub.sizes["model.safetensors"] = 2**40
    with pytest.raises(SslkitError, match="is 1,024 GB; the limit is 32 GB"):
        load_initial(encoder(), f"hf_hub:them/net@{COMMIT}")
    assert not any(request.startswith("GET /them") for request in hub.requests)


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    use_hub(monkeypatch, "http://127.0.0.1:9")
    for init in ("hf_hub:them/net", f"hf_hub:them/net@{COMMIT}"):
        with pytest.raises(SslkitError, match="--init: them/net cannot be reached: ") as raised:
            load_initial(encoder(), resolve_start(init))
        assert len(str(raised.value).splitlines()) == 1


def test_a_run_records_the_commit(hub: Hub, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    flags = ["--data", digits, "--encoder", "resnet10t", "--size", 96, "--batch-size", 8, "--workers", 0, "--steps", 1]
    ran = sslkit("pretrain", "rotation", *flags, "--init", "hf_hub:them/net", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    start = f"hf_hub:them/net@{COMMIT}"
    assert json.loads((tmp_path / "run" / "spec.json").read_text())["init"] == start
    from sslkit import read_model

    metadata = read_model(tmp_path / "run" / "model.safetensors").metadata
    assert metadata["spec"]["init"] == start and metadata["normalization"][0]["mean"] == pytest.approx(MEAN)
