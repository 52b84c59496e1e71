"""`sslkit new-evaluation`: a package with an evaluation of one's own, ready to change and to publish."""

from dataclasses import dataclass

from sslkit import registry
from sslkit.contract.errors import SslkitError
from sslkit.scaffolding import check_name, new_folder, write_new_folder
from sslkit.specs.extend import NewEvaluationSpec

_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "sslkit-{dashed}"
version = "0.1.0"
description = "The evaluation {dashed} for sslkit."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["sslkit"]

[project.optional-dependencies]
dev = ["pytest"]

[project.entry-points."sslkit.evaluations"]
{dashed} = "sslkit_{name}:{title}"

[project.entry-points."sslkit.options"]
{dashed} = "sslkit_{name}_options:{title}Spec"

[tool.setuptools]
py-modules = ["sslkit_{name}", "sslkit_{name}_options"]
""",
    "sslkit_{name}_options.py": '''\
"""Options of `sslkit {dashed}`; without torch, so that `--help` stays fast."""

from typing import Literal

from pydantic import Field
from sslkit.specs.evaluation import EvaluationSpec


class {title}Spec(EvaluationSpec):
    """Options of `{dashed}`; each field is a flag."""

    protocol: Literal["{dashed}/cosine-v1"] = Field(
        default="{dashed}/cosine-v1", description="Named protocol (see `sslkit protocols`)."
    )
    shrinkage: float | None = Field(
        default=None, ge=0, le=1, description="Share of the overall mean in each centroid; by hand: no protocol id."
    )
''',
    "sslkit_{name}.py": '''\
"""An evaluation of frozen features for sslkit."""

import torch
import torch.nn.functional as F
from sslkit.contract.evaluation import Protocol
from sslkit.evaluation.session import FeatureEvaluation, Layers, Predictor, Settings, TrainingView
from torch import Tensor

from sslkit_{name}_options import {title}Spec


class {title}(FeatureEvaluation):
    """Classify by the nearest class centroid: replace this with your own measurement."""

    verb = "{dashed}"
    Options = {title}Spec
    protocols = (
        Protocol(
            "{dashed}/cosine-v1",
            "the class whose mean feature is nearest by cosine",
            {{"shrinkage": 0.0}},
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
''',
    "test_{name}.py": '''\
"""{title} classifies by the nearest class centroid."""

import numpy as np
import torch
from sslkit.evaluation.session import TrainingView
from sslkit_{name} import {title}


def test_nearest_centroid_wins() -> None:
    """Fit three well-separated classes and classify their own samples."""
    labels = torch.arange(30) % 3
    features = torch.eye(3)[labels] + 0.1 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    rows = np.arange(30)
    train = TrainingView({{"last": features}}, labels, rows, rows, ("a", "b", "c"))
    predictor = {title}().fit(train, {{"shrinkage": 0.0}}, seed=0)
    assert predictor.n_train == 30
    assert torch.equal(predictor.scores({{"last": features}}).argmax(dim=1), labels)
''',
    "README.md": """\
# {dashed}

An evaluation for [sslkit](https://pypi.org/project/sslkit/): what it measures, and where it is published.

```
pip install sslkit-{dashed}        # before it is published: pip install -e .
sslkit {dashed} --ckpt runs/rotation/model.safetensors
sslkit evaluate --ckpt runs/rotation/model.safetensors --protocol {dashed}
```

`pip install -e '.[dev]' && pytest` tests its mathematics; `sslkit protocols` lists its protocol.
""",
}


# The package sslkit_plugins is ours; the others are names that the evaluation's class would hide from its own module.
_RESERVED = frozenset({"plugins", "tensor", "layers", "predictor", "settings", "protocol", "centroids"})


@dataclass(frozen=True)
class NewEvaluationResult:
    """The package that was written."""

    name: str
    folder: str
    files: list[str]


def new_evaluation(spec: NewEvaluationSpec) -> NewEvaluationResult:
    """Write a package with a working evaluation, its test, and its entry points.

    Raises SslkitError for a name that Python or an installed evaluation has, and for a folder that exists.
    """
    name = spec.name
    check_name(name, _RESERVED, "calibration or nearest_centroid")
    dashed = name.replace("_", "-")
    if dashed in {*registry.names(registry.EVALUATIONS), *registry.names(registry.COMMANDS)}:
        raise SslkitError(f"NAME: an evaluation {dashed} is already installed", "choose another name")
    folder = new_folder(spec.out, name)
    words = {"name": name, "dashed": dashed, "title": "".join(part.capitalize() for part in name.split("_"))}
    files = {file.format(**words): text.format(**words) for file, text in _FILES.items()}
    write_new_folder(folder, files)
    return NewEvaluationResult(name, str(folder), sorted(files))
