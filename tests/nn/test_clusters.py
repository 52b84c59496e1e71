"""k-means against scikit-learn, Sinkhorn-Knopp codes against their definition, whitening."""

import pytest
import torch
import torch.nn.functional as F

from sslkit.nn import kmeans, sinkhorn, swapped_prediction, whiten
from sslkit.nn.clustering import nearest_center


def blobs(points: int = 3000, width: int = 16, clusters: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(clusters, width, generator=generator)
    return centers[torch.arange(points) % clusters] + 0.6 * torch.randn(points, width, generator=generator)


@pytest.mark.parametrize("clusters", [20, 60])
def test_inertia_is_that_of_scikit_learn(clusters: int) -> None:
    from sklearn.cluster import KMeans

    points = blobs()
    torch.manual_seed(0)
    inertia = min(kmeans(points, clusters).inertia for _ in range(3))
    reference = KMeans(clusters, n_init=3, random_state=0).fit(points.numpy()).inertia_
    assert inertia < 1.02 * reference


def test_labels_are_the_nearest_centers_and_inertia_is_their_distance() -> None:
    points = blobs(500)
    result = kmeans(points, 7)
    distance = ((points[:, None] - result.centers[None]) ** 2).sum(dim=2)
    assert torch.equal(result.labels, distance.argmin(dim=1))
    assert result.inertia == pytest.approx(float(distance.amin(dim=1).sum()), rel=1e-4)


def test_many_points_are_sampled_first() -> None:
    torch.manual_seed(0)  # 2 of 40 seeds end in a local optimum
    points = blobs(6000, clusters=4)
    result = kmeans(points, 4)  # more than 256 of each cluster
    assert result.labels.shape == (6000,) and torch.bincount(result.labels).tolist() == [1500] * 4


def test_equal_seeds_give_equal_labels() -> None:
    labels = []
    for _ in range(2):
        torch.manual_seed(3)
        labels.append(kmeans(blobs(), 30).labels)
    assert torch.equal(*labels)


def test_no_cluster_stays_empty() -> None:
    torch.manual_seed(0)
    # Nearly all points coincide; the four others are far apart.
    points = torch.cat([torch.zeros(500, 4) + 1e-4 * torch.randn(500, 4), 10 * torch.eye(4)])
    for clusters in (2, 5, 40):
        assert len(kmeans(points, clusters).labels.unique()) == clusters


def test_an_empty_cluster_takes_half_of_a_large_one() -> None:
    from sslkit.nn.clustering import _means

    torch.manual_seed(0)
    points = blobs(200, clusters=1)
    centers = torch.cat([points.mean(dim=0, keepdim=True), torch.full((1, 16), 1e3)])
    labels, _ = nearest_center(points, centers)
    assert torch.bincount(labels, minlength=2).tolist() == [200, 0]
    centers, empty = _means(points, labels, centers)
    counts = torch.bincount(nearest_center(points, centers)[0], minlength=2)
    assert empty and counts.min() > 40


def test_fewer_different_points_than_clusters() -> None:
    result = kmeans(torch.eye(3).repeat(5, 1), 6)
    assert len(result.labels) == 15 and result.inertia < 1e-3


def test_whitened_features_are_uncorrelated() -> None:
    features = blobs(2000, 12) @ torch.randn(12, 12)
    rows = whiten(features, 5)
    assert rows.shape == (2000, 5) and torch.allclose(rows.norm(dim=1), torch.ones(2000), atol=1e-5)
    centered = rows - rows.mean(dim=0)
    covariance = centered.T @ centered / len(rows)
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 0.15 * covariance.diag().min()
    assert whiten(features, 100).shape == (2000, 12)


def test_constant_features_do_not_become_noise() -> None:
    assert torch.isfinite(whiten(torch.ones(50, 8), 4)).all()
    flat = torch.cat([blobs(300, 4), torch.ones(300, 4)], dim=1)  # four of eight dimensions are constant
    assert whiten(flat, 8).shape == (300, 4)


def test_codes_use_every_column_equally() -> None:
    torch.manual_seed(0)  # of some draws, 100 iterations leave more than a hundredth of a column
    scores = F.normalize(torch.randn(64, 16), dim=1) @ F.normalize(torch.randn(8, 16), dim=1).T
    codes = sinkhorn(scores, 0.05, 3)
    assert torch.allclose(codes.sum(dim=1), torch.ones(64), atol=1e-5)
    assert torch.allclose(sinkhorn(scores, 0.05, 100).sum(dim=0), torch.full((8,), 8.0), rtol=1e-2)
    assert float(codes.sum(dim=0).std()) < float(torch.softmax(scores / 0.05, dim=1).sum(dim=0).std())


def test_codes_against_alternating_normalization() -> None:
    scores = torch.randn(6, 4, dtype=torch.float64)
    naive = torch.exp(scores / 0.3)
    for _ in range(3):
        for column in range(4):
            naive[:, column] /= naive[:, column].sum() * 4
        for row in range(6):
            naive[row] /= naive[row].sum() * 6
    assert torch.allclose(sinkhorn(scores, 0.3, 3), naive * 6)


def test_codes_do_not_overflow() -> None:
    assert torch.isfinite(sinkhorn(100 * torch.randn(8, 4), 0.001, 3)).all()


def test_swapped_prediction_against_a_loop() -> None:
    scores, codes = torch.randn(3, 4, 5), torch.softmax(torch.randn(3, 2, 5), dim=2)
    total, pairs = 0.0, 0
    for assigned in range(2):
        for view in range(4):
            if view == assigned:
                continue
            pairs += 1
            for sample in range(3):
                log_probs = torch.log_softmax(scores[sample, view] / 0.1, dim=0)
                total -= float((codes[sample, assigned] * log_probs).sum()) / 3
    assert float(swapped_prediction(scores, codes, 0.1)) == pytest.approx(total / pairs, rel=1e-5)
