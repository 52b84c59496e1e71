"""MAE: visible patches, targets, and the options of the paper's ablations."""

from typing import Any

import pytest
import torch

from sslkit import DataInfo, SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.transforms import patchify
from sslkit.tasks.load import load_task
from tests.canvases import canvases


class Measured:
    """Provides images as a run does."""

    def batch(self, count: int) -> dict[str, torch.Tensor]:
        return canvases(torch.rand(min(count, 40), 3, 36, 36, generator=torch.Generator().manual_seed(0)))


def mae(**options: Any) -> Any:
    task_class = load_task("mae")
    encoder = build_encoder(recipe_for("vit_micro", 32, options={"width": "32", "depth": "2"}))
    task = task_class(task_class.Options(**options), encoder, DataInfo(64, 32))
    task.before_epoch(Measured())
    return task


def batch_of(task: Any) -> Any:
    return task.transform(canvases(torch.rand(3, 3, 36, 36)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": "block", "mask_ratio": 0.5},
        {"sampling": "grid"},
        {"mask_tokens_in": "encoder"},
        {"target": "pixels", "augmentation": "none"},
        {"target": "pca", "components": 6, "augmentation": "crop"},
        {"target": "tokens", "codes": 20, "augmentation": "color"},
        {"decoder_depth": 1, "decoder_width": 32},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    task = mae(**options)
    batch = batch_of(task)
    num_masked = round(64 * options.get("mask_ratio", 0.75))
    assert batch["image"].shape == (3, 3, 32, 32)
    assert batch["visible"].shape == (3, 64 - num_masked) and batch["masked"].shape == (3, num_masked)
    for visible, masked in zip(batch["visible"], batch["masked"], strict=True):
        assert sorted([*visible.tolist(), *masked.tolist()]) == list(range(64))
    output = task.predict(batch)
    assert output.shape[:2] == (3, num_masked)
    task.loss(output, batch).backward()
    assert all(p.grad is not None for p in task.head.parameters())


def test_masked_pixels_do_not_leak() -> None:
    task = mae().eval()
    batch = batch_of(task)
    changed = batch["image"].clone()
    for place in batch["masked"][0].tolist():
        row, column = divmod(place, 8)
        changed[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.5
    assert torch.equal(task.predict({**batch, "image": changed}), task.predict(batch))


def test_the_loss_is_on_masked_patches_normalized_separately() -> None:
    task = mae(augmentation="none")
    batch = batch_of(task)
    total = 0.0
    output = task.predict(batch).detach()
    for sample, places in enumerate(batch["masked"].tolist()):
        for number, place in enumerate(places):
            row, column = divmod(place, 8)
            patch = batch["image"][sample, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            expected = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total += float((output[sample, number] - expected).square().mean())
    assert float(task.loss(output, batch)) == pytest.approx(total / (3 * 48), rel=1e-4)


def test_components_are_those_of_the_data() -> None:
    task = mae(target="pca", components=48)
    patches = patchify(Measured().batch(40)["canvas"][..., 2:34, 2:34], 4).flatten(0, 1)
    back = task._target(patches[None])[0] @ task.axes.T + task.mean_patch  # all 48 components lose nothing
    assert torch.allclose(back, patches, atol=1e-4)
    variances = task._target(patches[None])[0].var(dim=0)
    assert (variances[:-1] >= variances[1:] - 1e-5).all()


def test_decoder_fits_the_encoder() -> None:
    assert mae().head.embed.out_features == 64 and len(mae().head.blocks) == 2


def test_refusals() -> None:
    with pytest.raises(SslkitError, match=r"--mask-ratio: 0.5 conflicts with --sampling grid"):
        mae(sampling="grid", mask_ratio=0.5)
    with pytest.raises(SslkitError, match=r"--components: 49 exceeds the 48 values of a patch"):
        mae(target="pca", components=49)
    with pytest.raises(SslkitError, match=r"--codes: 5000 exceeds the 2560 patches"):
        mae(target="tokens", codes=5000)

    task_class = load_task("mae")
    encoder = build_encoder(recipe_for("vit_micro", 32, options={"patch": "32", "width": "32"}))
    with pytest.raises(SslkitError, match="single patch of the encoder"):
        task_class(task_class.Options(), encoder, DataInfo(8, 32))
