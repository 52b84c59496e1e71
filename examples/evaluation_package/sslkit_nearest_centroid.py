"""An evaluation of frozen features for sslkit."""

import torch
import torch.nn.functional as F
from sslkit.contract.evaluation import Protocol
from sslkit.evaluation.session import FeatureEvaluation, Layers, Predictor, Settings, TrainingView
from torch import Tensor

from sslkit_nearest_centroid_options import NearestCentroidSpec


class NearestCentroid(FeatureEvaluation):
    """Classify by the nearest class centroid: replace this with your own measurement."""

    verb = "nearest-centroid"
    Options = NearestCentroidSpec
    protocols = (
        Protocol(
            "nearest-centroid/cosine-v1",
            "the class whose mean feature is nearest by cosine",
            {"shrinkage": 0.0},
            deterministic=True,
        ),
    )

    def fit(self, train: TrainingView, settings: Settings, seed: int) -> Predictor:
        """Return the centroids of the classes; nothing here has access to test data."""
        features = F.normalize(train.features, dim=1)
        centroids = torch.stack([features[train.labels == label].mean(dim=0) for label in range(len(train.classes))])
        return Centroids(centroids.lerp(features.mean(dim=0), settings["shrinkage"]), len(features))


class Centroids(Predictor):
    """One centroid per class, `[classes, D]`."""

    def __init__(self, centroids: Tensor, n_train: int) -> None:
        self.centroids, self.n_train = F.normalize(centroids, dim=1), n_train

    def scores(self, layers: Layers) -> Tensor:
        """Return the cosine to each centroid, `[M, classes]`."""
        (features,) = layers.values()
        return F.normalize(features, dim=1) @ self.centroids.T
