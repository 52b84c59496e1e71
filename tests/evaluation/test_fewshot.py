"""fewshot: a curve of accuracies by the number of labels, its picture, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sslkit.evaluation.knn import draw_shots
from sslkit.evaluation.session import EvaluationSession, open_session
from sslkit.specs.evaluation import FewshotSpec

Run = Callable[..., Any]


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """Return the checkpoint in a folder of its own: results are written beside it."""
    return Path(shutil.copy(trained, tmp_path))


def test_a_curve_is_that_of_scikit_learn(checkpoint: Path, digits: Path, sslkit: Run, tmp_path: Path) -> None:
    out = tmp_path / "curve.png"
    words = ["fewshot", "--ckpt", checkpoint, "--data", digits, "--shots", 8, "--shots", 2, "--seeds", 4, "--json"]
    result = sslkit(*words, "--out", out).json
    assert [row["model"] for row in result["rows"]] == ["checkpoint", "random weights", "raw pixels, 16 px"]
    row = result["rows"][0]
    assert [metric["name"] for metric in row["metrics"]] == ["mean of the curve", "2 per class", "8 per class"]
    session: EvaluationSession = open_session(FewshotSpec(ckpt=str(checkpoint), data=str(digits)))
    reader = session.reader(session.models[0], "last")
    train, (test,) = reader.training(), reader.tests()
    for metric in row["metrics"][1:]:
        shots, shares = int(metric["name"].split()[0]), []
        for seed in range(4):
            rows = draw_shots(train.labels, shots, seed, train.classes)
            scaler = StandardScaler().fit(train.features[rows].numpy())
            classifier = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8)
            classifier.fit(scaler.transform(train.features[rows].numpy()), train.labels[rows].numpy())
            shares.append(classifier.score(scaler.transform(test.features.numpy()), test.labels.numpy()))
        assert metric["value"] == pytest.approx(np.mean(shares), abs=0.021)  # one of 48 answers may differ
        assert metric["seeds"] == 4 and metric["deviation"] is not None
    assert row["metrics"][0]["value"] == pytest.approx(np.mean([metric["value"] for metric in row["metrics"][1:]]))
    with Image.open(out) as picture:
        assert picture.size == (640, 400) and len(picture.convert("RGB").getcolors(10**6) or []) > 10


def test_one_point_and_what_is_refused(checkpoint: Path, digits: Path, sslkit: Run, tmp_path: Path) -> None:
    words = ["fewshot", "--ckpt", checkpoint, "--data", digits]
    out = tmp_path / "point.png"
    assert sslkit(*words, "--shots", 1, "--seeds", 1, "--no-baselines", "--out", out).code == 0 and out.exists()
    ran = sslkit(*words)
    assert ran.code == 2 and "--shots: 50 exceeds the 16 training samples of class digit 0" in ran.err
    ran = sslkit(*words, "--shots", 0)
    assert ran.code == 2 and "--shots" in ran.err
