"""Changes of point clouds: what a camera sees, random parts, and what stays as it was."""

import torch

from sslkit.points.transforms import choose_points, flip, in_random_cuboid, jitter, outside_random_ball, scale, visible_points


def cloud(samples: int = 3, count: int = 200) -> torch.Tensor:
    points = torch.rand(samples, count, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    points[..., 3] = torch.arange(float(count))  # names the point
    return points


def test_a_camera_sees_half_of_a_ball() -> None:
    torch.manual_seed(0)
    direction = torch.randn(8, 4000, 3)
    points = 0.9 * direction / direction.norm(dim=2, keepdim=True)
    visible = visible_points(points)
    share = visible.float().mean(dim=1)
    assert share.min() > 0.3 and share.max() < 0.5  # at the rim a surface is steeper than a depth map can tell
    middle = torch.stack([each[mask].mean(dim=0) for each, mask in zip(points, visible, strict=True)])
    facing = (points * (middle / middle.norm(dim=1, keepdim=True))[:, None]).sum(dim=2)  # the camera is where they point
    assert visible[facing > 0.6].float().mean() > 0.95 and visible[facing < -0.3].float().mean() < 0.05


def test_random_parts_have_their_share_of_the_usable_points() -> None:
    torch.manual_seed(1)
    points = cloud()
    usable = torch.rand(3, 200) < 0.5
    part = in_random_cuboid(points, usable, 0.5)
    share = part.sum(dim=1) / usable.sum(dim=1)
    assert not (part & ~usable).any() and (share >= 0.5).all() and (share <= 1).all()
    rest = outside_random_ball(points, usable, 0.25)
    removed = usable & ~rest
    assert not (rest & ~usable).any() and torch.equal(removed.sum(dim=1), (0.25 * usable.sum(dim=1)).long())
    for each, gone in zip(points[..., :3], removed, strict=True):  # what is removed lies together
        assert (each[gone] - each[gone].mean(dim=0)).norm(dim=1).max() < 0.8


def test_points_are_chosen_once_if_there_are_enough() -> None:
    torch.manual_seed(2)
    points, usable = cloud(2), torch.zeros(2, 200, dtype=torch.bool)
    usable[0, :50], usable[1, 100:110] = True, True
    chosen = choose_points(points, usable, 40)[..., 3].long()
    assert len(set(chosen[0].tolist())) == 40 and chosen[0].max() < 50
    assert set(chosen[1].tolist()) == set(range(100, 110))


def test_values_beside_coordinates_stay() -> None:
    torch.manual_seed(3)
    points = cloud()
    for changed in (flip(points), scale(points), jitter(points)):
        assert torch.equal(changed[..., 3], points[..., 3])
    factors = (scale(points, 0.5, 2.0)[..., :3] / points[..., :3]).flatten(1)
    assert torch.allclose(factors, factors[:, :1].expand_as(factors)) and factors[:, 0].unique().numel() == 3
    flipped = torch.cat([flip(points) for _ in range(20)])
    assert torch.equal(flipped[..., :3].abs(), points[..., :3].abs().repeat(20, 1, 1))
    assert (
        torch.equal(flipped[..., 2], points[..., 2].repeat(20, 1)) and (flipped[..., 0] != points[..., 0].repeat(20, 1)).any()
    )
