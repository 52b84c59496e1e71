"""Encoders of points: the order of points does not matter, and no cloud sees another."""

import pytest
import torch

from sslkit import SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.points.encoders.voxels import occupied

SMALL = {
    "pointnet_micro": {"width": "8"},
    "pointnet2_micro": {"width": "8", "neighbors": "4"},
    "point_patches_micro": {"width": "32", "depth": "2", "patches": "8", "patch_points": "6"},
    "voxel_micro": {"width": "8", "side": "8"},
}


@pytest.mark.parametrize("name", SMALL)
def test_the_order_of_points_does_not_matter(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(recipe_for(name, 64, 4, SMALL[name]))
    points = torch.rand(3, 64, 4) * 2 - 1
    order = torch.randperm(64)
    features = encoder(points)
    assert features.shape == (3, encoder.width)
    assert torch.allclose(encoder(points[:, order]), features, atol=1e-5)
    assert torch.allclose(encoder(points[1:2]), features[1:2], atol=1e-5)  # in training mode: no batch statistics
    if name.startswith("pointnet"):
        tokens = encoder.tokens(points)
        assert tokens.shape == (3, 64, encoder.width)
        assert torch.allclose(encoder.tokens(points[:, order]), tokens[:, order], atol=1e-5)
    assert {id(each) for stage in encoder.stages() for each in stage} == {id(each) for each in encoder.parameters()}


def test_patches_that_are_kept_see_no_other() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(recipe_for("point_patches_micro", 64, 3, SMALL["point_patches_micro"]))
    points = torch.rand(2, 64, 3) * 2 - 1
    centers, patches = encoder.cut(points)
    assert centers.shape == (2, 8, 3) and patches.shape == (2, 8, 6, 3)
    assert torch.equal(patches[:, :, 0], torch.zeros(2, 8, 3))  # the nearest point of a center is the center
    keep = torch.tensor([[0, 3, 5], [1, 2, 7]])
    kept = encoder.tokens(points, keep=keep)
    alone = encoder.encode(centers[:, :3], patches[:, :3])
    assert kept.shape == (2, 3, 32) and alone.shape == (2, 3, 32)
    assert torch.allclose(encoder.encode(centers[1:, [1, 2, 7]], patches[1:, [1, 2, 7]]), kept[1:], atol=1e-5)
    assert not torch.allclose(encoder.tokens(points)[0, [0, 3, 5]], kept[0], atol=1e-3)


def test_cells_with_points() -> None:
    grid = occupied(torch.tensor([[[-1.0, -1.0, -1.0], [0.9, 0.1, 2.0]]]), 2)
    assert grid.sum() == 2 and grid[0, 0, 0, 0] == 1 and grid[0, 1, 1, 1] == 1


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("pointnet_micro", {"width": "6"}, "width of pointnet_micro should be a multiple of 4 (got 6)"),
        ("pointnet2_micro", {"neighbors": "65"}, "neighbors should be 2 to 64"),
        ("point_patches_micro", {"patches": "65"}, "patches should be 2 to 64, the number of points (got 65)"),
        ("voxel_micro", {"side": "4"}, "side should be 8 to 128 cells (got 4)"),
    ],
)
def test_options_that_do_not_fit(name: str, option: dict[str, str], message: str) -> None:
    with pytest.raises(SslkitError, match=message.replace("(", r"\(").replace(")", r"\)")):
        build_encoder(recipe_for(name, 64, 3, option))
