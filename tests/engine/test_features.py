"""Features: one pass in order, in the machine's precision, the same compiled or not; content is hashed beside it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit.contract.encoder import Encoder
from sslkit.data.cache import cache_folder
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine import features
from sslkit.engine.features import contents, extract, map_samples
from sslkit.engine.parallel import ALONE
from sslkit.engine.precision import Machine, choose_machine
from sslkit.evaluation import features as cached
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.models import Model
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec

CPU = choose_machine("cpu")


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return build_encoder(recipe_for("resnet_micro", 16, options={"width": "8"}))


@pytest.fixture
def source(digits: Path, encoder: Encoder) -> ImageSource:
    spec = DataSpec(workers=0)
    return ImageSource.for_evaluation(ImageSource.read_index(str(digits / "train"), spec), spec, encoder, 16)


def by_hand(encoder: Encoder, source: ImageSource) -> torch.Tensor:
    arrays, _ = source.read(np.arange(source.info.samples))
    batch = source.prepare({name: torch.from_numpy(array) for name, array in arrays.items()})
    with torch.no_grad():
        return encoder.eval()(source.view(batch, "image"))


def test_features_in_order_whatever_the_batches(encoder: Encoder, source: ImageSource) -> None:
    expected = by_hand(encoder, source)
    encoder.train()
    for batch_size in (48, 20, 7):
        extracted = extract(encoder, source, CPU, batch_size)
        torch.testing.assert_close(extracted.layers["last"], expected)
        assert extracted.rows.tolist() == list(range(48)) and len(extracted.hashes) == 0
    assert encoder.training
    mapped = map_samples(lambda batch: batch["canvas"].mean(dim=(1, 2, 3)), source, CPU, 7)
    assert mapped.shape == (48,) and mapped.unique().numel() > 40


def test_content_is_hashed_by_sample(encoder: Encoder, source: ImageSource) -> None:
    arrays, _ = source.read(np.arange(48))
    expected = [
        blake2b(b"".join(arrays[name][row].tobytes() for name in sorted(arrays)), digest_size=8).digest() for row in range(48)
    ]
    hashes = extract(encoder, source, CPU, 20, hashed=True).hashes
    assert [value.tobytes() for value in hashes] == expected
    assert np.array_equal(contents(source, 13, 0, ALONE), hashes)


def test_half_precision_computes_and_widens(encoder: Encoder, source: ImageSource) -> None:
    half = extract(encoder, source, replace(CPU, autocast_dtype=torch.bfloat16)).layers["last"]
    expected = by_hand(encoder, source)
    assert half.dtype == torch.float32 and not torch.equal(half, expected)
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.05)


def test_compiled_where_it_pays(encoder: Encoder, source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []

    def compile_as_it_is(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def compiled(view: torch.Tensor) -> Any:
            shapes.append(len(view))
            return function(view)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_as_it_is)
    machine = replace(CPU, compile=True)
    expected = extract(encoder, source, machine, 20).layers["last"]
    assert shapes == []  # few samples
    monkeypatch.setattr(features, "_COMPILED", 48)
    assert torch.equal(extract(encoder, source, machine, 20).layers["last"], expected)
    assert shapes == [20, 20]  # the last batch has another shape


@pytest.mark.slow
def test_compiled_features_are_the_eager_ones(encoder: Encoder, source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_COMPILED", 48)
    compiled = extract(encoder, source, replace(CPU, compile=True), 24).layers["last"]
    torch.testing.assert_close(compiled, by_hand(encoder, source), rtol=1e-4, atol=1e-5)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def test_cached_features_differ_by_precision(
    empty_cache: Path, digits: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(workers=0, device="cpu")
    samples = ImageSource.for_evaluation(ImageSource.read_index(str(digits / "train"), spec), spec, encoder, 16)
    model = Model("checkpoint", encoder, 16)

    def compute(machine: Machine) -> torch.Tensor:
        monkeypatch.setattr(cached, "choose_machine", lambda device: machine)
        return cached_features(model, samples, "last", "auto", spec).layers["last"]

    single, half = compute(CPU), compute(replace(CPU, autocast_dtype=torch.bfloat16))
    assert not torch.equal(single, half) and len(list((cache_folder() / "features").iterdir())) == 2
    monkeypatch.setattr(cached, "extract", None)  # from here on, nothing is computed
    assert torch.equal(compute(CPU), single) and torch.equal(compute(replace(CPU, autocast_dtype=torch.bfloat16)), half)
