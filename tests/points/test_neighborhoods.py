"""Points spread over a cloud and their neighbors, against loops."""

import torch

from sslkit.points.neighborhoods import farthest_points, interpolate, nearest_points, take


def cloud(seed: int, count: int = 40) -> torch.Tensor:
    return torch.rand(2, count, 3, generator=torch.Generator().manual_seed(seed))


def test_farthest_points_against_a_loop() -> None:
    points = cloud(0)
    rows = farthest_points(points, 7)
    for each, chosen in zip(points, rows.tolist(), strict=True):
        expected = [int((each - each.mean(dim=0)).norm(dim=1).argmax())]
        while len(expected) < 7:
            distance = torch.stack([(each - each[row]).norm(dim=1) for row in expected]).amin(dim=0)
            expected.append(int(distance.argmax()))
        assert chosen == expected


def test_nearest_points_begin_with_the_center_itself() -> None:
    points = cloud(1)
    centers = take(points, torch.tensor([[3, 8], [0, 39]]))
    rows = nearest_points(centers, points, 5)
    assert rows[:, :, 0].tolist() == [[3, 8], [0, 39]]
    for each, center, chosen in zip(points, centers, rows, strict=True):
        for middle, around in zip(center, chosen, strict=True):
            distance = (each - middle).norm(dim=1)
            assert set(around.tolist()) == set(distance.argsort()[:5].tolist())


def test_interpolation_weighs_three_centers_by_inverse_squared_distance() -> None:
    points, centers = cloud(2, 6), cloud(3, 5)
    values = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(4))
    result = interpolate(points, centers, values)
    for sample in range(2):
        for place in range(6):
            distance = (centers[sample] - points[sample, place]).square().sum(dim=1)
            three = distance.argsort()[:3]
            weights = 1 / distance[three]
            expected = (values[sample, three] * (weights / weights.sum())[:, None]).sum(dim=0)
            assert torch.allclose(result[sample, place], expected, atol=1e-5)
    assert torch.allclose(interpolate(centers, centers, values), values, atol=1e-4)
