"""`sslkit regress`: numbers from frozen features."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from sslkit import PretrainSpec, pretrain
from sslkit.evaluation.regress import fit_ridge
from sslkit.evaluation.solvers import Standardized
from sslkit.evaluation.statistics import spearman

Run = Callable[..., Any]


def test_ridge_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 7)) * rng.uniform(0.1, 9, 7) + 3
    values = features @ rng.normal(size=7) + rng.normal(size=50) + 20
    standardized = Standardized.of(torch.from_numpy(features).float(), torch.device("cpu"))
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    for penalty, ridge in zip([0.01, 1.0], fit_ridge(standardized, torch.from_numpy(values), [0.01, 1.0]), strict=True):
        expected = Ridge(alpha=penalty * 50).fit(scaled, values).predict(scaled)
        assert np.allclose(ridge(standardized), expected, rtol=1e-4)


def test_spearman_is_scipys_and_defined_for_constants() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(5, size=40).astype(float), rng.normal(size=40)
    assert spearman(first, second) == pytest.approx(float(spearmanr(first, second).statistic))
    assert spearman(np.ones(40), second) == 0.0


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a checkpoint, and a table in which a text's number is how often it says red."""
    folder = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(80):
        red = int(rng.integers(9))
        words = rng.permutation(["red"] * red + ["blue"] * (8 - red))
        rows.append((" ".join(words), f"{red / 2}", f"day {number // 4}"))
    with open(folder / "rated.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("text", "rating", "day"), *rows])
    (folder / "text.txt").write_text("\n".join(row[0] for row in rows))
    values: dict[str, Any] = {"context": 16, "unit": "word", "steps": 20, "batch_size": 16, "health_every": 0}
    encoder = {"width": "32", "depth": "1"}
    run = PretrainSpec(task="gpt", data=str(folder / "text.txt"), out=str(folder / "run"), encoder_option=encoder, **values)
    return Path(pretrain(run).checkpoint), folder / "rated.csv"


def test_numbers_are_predicted(texts: tuple[Path, Path], sslkit: Run) -> None:
    checkpoint, data = texts
    flags = ["--ckpt", checkpoint, "--data", data, "--label", "rating"]
    result = sslkit("regress", *flags, "--json").json
    assert result["protocol"] == "regress/ridge-v1"
    ours = result["rows"][0]
    spearman_metric, pearson, explained, error = ours["metrics"]
    assert spearman_metric["value"] > 0.9 and pearson["value"] > 0.9 and explained["value"] > 0.8 and error["value"] < 0.5
    assert spearman_metric["low"] < spearman_metric["value"] <= spearman_metric["high"] and spearman_metric["n"] == 16
    assert ours["fits"][0]["n_train"] == 64 and set(ours["fits"][0]["held_out"]) >= {"0.01", "1.0"}
    names = [row["model"] for row in result["rows"]]
    assert names == ["checkpoint", "random weights", "TF-IDF, ridge regression"]
    headlines = [row["metrics"][0]["value"] for row in result["rows"]]
    for row, headline in zip(result["rows"][1:], headlines[1:], strict=True):
        assert row["comparisons"]["checkpoint"]["difference"] == pytest.approx(headline - headlines[0])
    grouped = sslkit("regress", *flags, "--group", "day", "--json").json
    assert grouped["data"]["tests"][0]["n"] == 16 and grouped["data"]["train"] != result["data"]["train"]
    layers = sslkit("regress", *flags, "--layer", "all", "--no-baselines", "--json").json
    assert [row["layer"] for row in layers["rows"]] == [None] and layers["protocol"] is None  # one layer, and one row


def test_texts_that_cannot_be_read_are_left_out_of_all_rows(texts: tuple[Path, Path], tmp_path: Path, sslkit: Run) -> None:
    checkpoint, _ = texts
    for part, count in (("train", 40), ("test", 12)):
        for number in range(count):
            folder = tmp_path / "rated" / part / str(number % 4)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.txt").write_text(" ".join(["red"] * (number % 4) + ["blue"] * 4))
    (tmp_path / "rated" / "test" / "1" / "broken.txt").write_bytes(b"\xff\xfe")
    result = sslkit("regress", "--ckpt", checkpoint, "--data", tmp_path / "rated", "--json").json
    assert [row["metrics"][0]["n"] for row in result["rows"]] == [12, 12, 12]
    assert result["rows"][0]["test"].startswith("test of ") and not result["data"]["tests"][0]["seen_in_pretraining"]


def test_pairs_have_references_of_their_own(texts: tuple[Path, Path], tmp_path: Path, sslkit: Run) -> None:
    checkpoint, _ = texts
    rng = np.random.default_rng(0)
    lines = ["\ufefftext\ttext2\tscore"]
    for number in range(40):
        same = number % 2
        first = " ".join(rng.permutation(["red", "blue", '"red', "blue"]))
        lines.append(f"{first}\t{first if same else 'green blue'}\t{same + rng.uniform():.2f}")
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    flags = ["--ckpt", checkpoint, "--data", tmp_path / "pairs.tsv", "--label", "score", "--json"]
    rows = {row["model"]: row for row in sslkit("regress", *flags).json["rows"]}
    assert list(rows)[2:] == ["TF-IDF, ridge regression", "TF-IDF of the second text alone", "cosine of TF-IDF"]
    assert rows["cosine of TF-IDF"]["metrics"][0]["value"] > 0.5


def test_refusals(texts: tuple[Path, Path], tmp_path: Path, sslkit: Run) -> None:
    checkpoint, data = texts
    few = tmp_path / "few.csv"
    few.write_text("text,rating\nred,1\nblue,2\nred red,3\n")
    for flags, message in (
        (["--data", data], "--data: "),
        (["--data", data], "has no labels"),
        (["--data", data, "--label", "day"], "has the label 'day 0', which is no number"),
        (["--data", few, "--label", "rating"], "at least"),
        (["--data", data, "--label", "rating", "--test", few, "--layer", "mix"], "--layer"),
        (["--data", data, "--label", "rating", "--layer", 7], "--layer"),
    ):
        ran = sslkit("regress", "--ckpt", checkpoint, *flags)
        assert ran.code == 2 and message in ran.err, (flags, ran.out, ran.err)
