"""sparse_coding: codes against scikit-learn and the conditions of the lasso, and a dictionary that is found again."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import sparse_encode
from torch import Tensor

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.nn.sparse import fista, largest_eigenvalue, soft_threshold
from sslkit.tasks.load import load_task


def build(atoms: int = 16, patch: int = 4, **options: Any) -> Any:
    task_class, data = load_task("sparse_coding"), DataInfo(64, 16, 1)
    parsed = task_class.Options(**options)
    recipe = recipe_for("sparse_patches", 16, 1, {"atoms": str(atoms), "patch": str(patch)})
    torch.manual_seed(0)
    return task_class(parsed, task_class.build_encoder(parsed, RecipeBuilder(recipe, data)), data)


class Images:
    """A run with images of a few straight edges."""

    def __init__(self) -> None:
        self.forgotten: list[Any] = []

    def batch(self, count: int, select: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(64, 1, 4, 4, generator=generator).round()
        image = F.interpolate(coarse, size=16) + 0.05 * torch.randn(64, 1, 16, 16, generator=generator)
        return select({"canvas": image.clamp(0, 1), "aspect": torch.ones(64)})

    def reset_optimizer_state(self, module: Any) -> None:
        self.forgotten.append(module)


def objective(signals: Tensor, code: Tensor, atoms: Tensor, sparsity: float) -> Tensor:
    return (signals - code @ atoms).square().sum(dim=1) / 2 + sparsity * code.abs().sum(dim=1)


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 1.0])
def test_codes_are_those_of_the_lasso(sparsity: float) -> None:
    torch.manual_seed(0)
    atoms = F.normalize(torch.randn(24, 12, dtype=torch.float64), dim=1)
    signals = torch.randn(40, 12, dtype=torch.float64)
    code = fista(signals, atoms, sparsity, 3000)
    slope = (signals - code @ atoms) @ atoms.T
    assert slope.abs().max() <= sparsity + 1e-5
    active = code != 0
    assert torch.allclose(slope[active], sparsity * code.sign()[active], atol=1e-5) and 0 < active.double().mean() < 0.7
    reference = torch.from_numpy(
        sparse_encode(signals.numpy(), atoms.numpy(), algorithm="lasso_cd", alpha=sparsity, max_iter=20_000)
    )
    ours, theirs = objective(signals, code, atoms, sparsity), objective(signals, reference, atoms, sparsity)
    assert (ours <= theirs + 1e-5).all()
    short = objective(signals, fista(signals, atoms, sparsity, 50), atoms, sparsity)
    assert float(short.mean() / ours.mean()) < 1.01


def test_power_iteration_and_thresholds() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(30, 10, dtype=torch.float64)
    exact = torch.linalg.eigvalsh(matrix.T @ matrix)[-1]
    assert 0.97 * exact < largest_eigenvalue(matrix.T @ matrix) <= exact * 1.0001
    assert soft_threshold(torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0]), 1.0).tolist() == [-1, 0, 0, 0, 1]


def test_a_planted_dictionary_is_found_again() -> None:
    task = build(atoms=12, sparsity=0.1, iterations=60)
    planted = F.normalize(torch.randn(12, 16, generator=torch.Generator().manual_seed(5)), dim=1)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(1)
    for _ in range(500):
        used = (torch.rand(512, 12, generator=generator) < 0.15) * torch.randn(512, 12, generator=generator)
        batch = {"patch": (used @ planted)[:, None]}
        optimizer.zero_grad()
        sum(task.loss(task.predict(batch), batch).values()).backward()
        optimizer.step()
    cosine = (task.encoder.atoms().detach() @ planted.T).abs()
    assert (cosine.max(dim=0).values > 0.95).sum() >= 11


def test_only_the_dictionary_has_a_gradient_and_atoms_length_one() -> None:
    task = build()
    task.before_epoch(Images())
    assert torch.allclose(task.encoder.atoms().norm(dim=1), torch.ones(16))
    batch = task.transform(Images().batch(64, lambda batch: batch))
    assert batch["patch"].shape == (64, 16, 16)
    output = task.predict(batch)
    assert not output["code"].requires_grad
    terms = task.loss(output, batch)
    expected = objective(
        batch["patch"].flatten(0, 1), output["code"].flatten(0, 1), task.encoder.atoms(), task.options.sparsity
    )
    assert torch.allclose(sum(terms.values()), expected.mean())
    sum(terms.values()).backward()
    assert task.encoder.dictionary.grad.abs().sum() > 0
    metrics = task.metrics(output, batch)
    assert float(metrics["active"].mean()) < 0.6 and float(metrics["error_share"].detach().mean()) < 0.8
    assert task.preview(batch, output).shape[:2] == (64, 3)


def test_patches_are_whitened() -> None:
    task = build()
    task.before_epoch(Images())
    patches = task.transform(Images().batch(64, lambda batch: batch))["patch"].flatten(0, 1)
    variance = patches.var(dim=0)
    assert abs(float(patches.mean())) < 0.05 and float(variance.mean()) > 0.4
    covariance = torch.from_numpy(np.cov(patches.T.numpy()))
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 0.4 * float(covariance.diagonal().mean())


def test_atoms_without_use_begin_anew() -> None:
    task, run = build(), Images()
    task.before_epoch(run)
    task.clock.epoch = 1
    before = task.encoder.dictionary.detach().clone()
    task.before_epoch(run)
    assert torch.equal(task.encoder.dictionary, before) and not run.forgotten
    task.usage[[3, 7]] = 0
    task.before_epoch(run)
    changed = (task.encoder.dictionary != before).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == [3, 7] and run.forgotten == [task.encoder] and (task.usage > 0.5).all()


def test_features_are_thresholded_similarities_in_quadrants() -> None:
    task = build()
    task.before_epoch(Images())
    encoder, image = task.encoder, torch.rand(2, 1, 16, 16)
    features = encoder.feature_map(image)
    assert features.shape == (2, 32, 13, 13)
    patch = encoder.whiten(image[1, :, 5:9, 2:6].reshape(1, 16))
    similar = (patch @ encoder.atoms().T)[0]
    expected = torch.cat([similar - encoder.threshold, -similar - encoder.threshold]).clamp(min=0)
    assert torch.allclose(features[1, :, 5, 2], expected, atol=1e-4)
    assert encoder(image).shape == (2, 128) == (2, encoder.width)
    with pytest.raises(SslkitError, match=r"--encoder-option: patch of sparse_patches should be 2 to the size, 16 px .got 20"):
        build(patch=20)
