"""NearestCentroid classifies by the nearest class centroid."""

import numpy as np
import torch
from sslkit.evaluation.session import TrainingView
from sslkit_nearest_centroid import NearestCentroid


def test_nearest_centroid_wins() -> None:
    """Fit three well-separated classes and classify their own samples."""
    labels = torch.arange(30) % 3
    features = torch.eye(3)[labels] + 0.1 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    rows = np.arange(30)
    train = TrainingView({"last": features}, labels, rows, rows, ("a", "b", "c"))
    predictor = NearestCentroid().fit(train, {"shrinkage": 0.0}, seed=0)
    assert predictor.n_train == 30
    assert torch.equal(predictor.scores({"last": features}).argmax(dim=1), labels)
