"""Labels reach the tasks that need them, and no others."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit import SslkitError
from sslkit.contract.source import Labels
from sslkit.data.loader import Loader, ordered_batches
from sslkit.engine.checkpoint import read_model
from sslkit.engine.pretrain import prepare, pretrain
from sslkit.engine.run_folder import read_json_lines
from sslkit.specs.train import PretrainSpec

CLASSIFIER = """
import torch.nn.functional as F
from torch import nn
from sslkit import PretextTask

class Classifier(PretextTask):
    "Classify the samples that have a label."
    needs = ("label",)

    def build_head(self):
        return nn.Linear(self.encoder.width, len(self.data.classes))

    def transform(self, batch):
        assert set(batch) == {"canvas", "aspect", "label"}
        return {"image": batch["canvas"], "label": batch["label"]}

    def loss(self, output, batch):
        return {"loss": F.cross_entropy(output, batch["label"], ignore_index=-1, reduction="sum")}

    def counts(self, batch):
        return {"loss": (batch["label"] >= 0).sum()}

    def metrics(self, output, batch):
        return {"known": (batch["label"] >= 0).float(), "accuracy": (output.argmax(dim=1) == batch["label"]).float()}
"""

BLIND = """
from torch import nn
from sslkit import PretextTask

class Blind(PretextTask):
    "Reconstruct the brightness, and fail at the sight of a label."

    def build_head(self):
        return nn.Linear(self.encoder.width, 1)

    def before_epoch(self, run):
        assert set(run.batch(2)) == {"canvas", "aspect"} and not self.data.classes
        run.map(self.brightness)

    def brightness(self, batch):
        assert set(batch) == {"canvas", "aspect"}
        return batch["canvas"].mean(dim=(1, 2, 3))

    def transform(self, batch):
        return {"image": batch["canvas"], "target": self.brightness(batch)}

    def loss(self, output, batch):
        return (output[:, 0] - batch["target"]).square().mean()
"""


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    (tmp_path / "classifier.py").write_text(CLASSIFIER)
    (tmp_path / "blind.py").write_text(BLIND)
    return tmp_path / "classifier.py"


def spec(task: object, data: object, **values: Any) -> PretrainSpec:
    values = {"encoder_option": {"width": "8"}, "encoder": "resnet_micro", "batch_size": 16, "workers": 0, "steps": 3, **values}
    return PretrainSpec(task=str(task), data=str(data), **values)


def with_table(digits: Path, folder: Path, unknown: int) -> Path:
    """Write a table of the digits' training part without the labels of its first samples."""
    shutil.copytree(digits / "train", folder / "images")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    rows = [f"{file},{'' if place < unknown else file.parts[1]}" for place, file in enumerate(files)]
    (folder / "table.csv").write_text("\n".join(["path,label", *rows]))
    return folder / "table.csv"


def test_a_task_that_needs_labels_learns_them(classifier: Path, digits: Path, tmp_path: Path) -> None:
    pretrain(spec(classifier, digits, out=str(tmp_path / "run"), steps=40))
    lines = list(read_json_lines(tmp_path / "run" / "metrics.jsonl"))
    assert lines[-1]["known"] == 1 and lines[-1]["accuracy"] > 0.9
    assert read_model(tmp_path / "run" / "model.safetensors").metadata["labeled"] == 48


def test_an_empty_cell_is_an_unknown_label(classifier: Path, digits: Path, tmp_path: Path) -> None:
    table = with_table(digits, tmp_path, unknown=10)
    source = prepare(spec(classifier, table, label="label")).settings.source
    assert source.labels is not None and source.info.classes == ("digit 0", "digit 1", "digit 2")
    assert source.labels.values.tolist() == [-1] * 10 + [0] * 6 + [1] * 16 + [2] * 16
    (batch,) = Loader(source, 0, substitute=True)(ordered_batches(48, 48))
    assert (batch["label"] == torch.from_numpy(source.labels.values)).all() and int((batch["label"] < 0).sum()) == 10
    pretrain(spec(classifier, table, label="label", out=str(tmp_path / "run")))


def test_files_beside_class_folders_are_unlabeled(classifier: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "train", tmp_path / "images")
    (tmp_path / "images" / "digit 0" / "04.png").rename(tmp_path / "images" / "stray.png")
    labels = prepare(spec(classifier, tmp_path / "images")).settings.source.labels
    assert labels is not None and labels.values.tolist() == [0] * 15 + [1] * 16 + [2] * 16 + [-1]


@pytest.mark.parametrize("order", ["classifier.py+blind.py", "blind.py+classifier.py"])
def test_a_sibling_does_not_see_them(classifier: Path, digits: Path, tmp_path: Path, order: str) -> None:
    joint = "+".join(str(tmp_path / name) for name in order.split("+"))
    pretrain(spec(joint, digits, out=str(tmp_path / "run")))
    assert "classifier.accuracy" in next(iter(read_json_lines(tmp_path / "run" / "metrics.jsonl")))


def test_a_task_without_the_need_gets_neither_labels_nor_index(classifier: Path, digits: Path, tmp_path: Path) -> None:
    job = prepare(spec(tmp_path / "blind.py", digits))
    assert job.settings.source.labels is None and job.settings.source.info.classes == ()
    pretrain(spec(tmp_path / "blind.py", digits, out=str(tmp_path / "run")))
    assert "labeled" not in read_model(tmp_path / "run" / "model.safetensors").metadata


def test_a_resume_notices_other_labels(classifier: Path, digits: Path, tmp_path: Path) -> None:
    table = with_table(digits, tmp_path, unknown=4)
    pretrain(spec(classifier, table, label="label", out=str(tmp_path / "run")))
    table.write_text(table.read_text().replace(",digit 1", ",digit 2", 1))
    with pytest.raises(SslkitError, match="is no longer the data of the run"):
        pretrain(PretrainSpec(task=str(classifier), out=str(tmp_path / "run"), extend_to=2))


def test_a_trained_task_is_previewed(classifier: Path, digits: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    pretrain(spec(classifier, digits, out=str(tmp_path / "run")))
    ran = sslkit("preview", "--ckpt", tmp_path / "run" / "model.safetensors", "--out", tmp_path / "previews.png")
    assert ran.code == 0, ran.err


def test_a_task_may_pass_on_what_it_got(tmp_path: Path) -> None:
    from sslkit.testing import check_task

    assertion, passing = '        assert set(batch) == {"canvas", "aspect"}\n', 'return {**batch, "target"'
    text = BLIND.replace(assertion, "").replace('return {"image": batch["image"], "target"', passing)
    (tmp_path / "passing.py").write_text(text)
    failed = [verdict.promise for verdict in check_task(str(tmp_path / "passing.py")) if not verdict.passed]
    assert not any("labels" in promise for promise in failed), failed


@pytest.mark.parametrize(
    ("table", "label", "message"),
    [
        ("path\n{}\n{}\n", None, "--data: .* has no labels, and classifier needs them .use class subfolders"),
        ("path,label\n{},red;round\n{},red\n", "label", "--label: .* has several labels per sample, and classifier needs"),
        ("path,label\n{},\n{},\n", "label", "--label: label is empty in line 2"),
    ],
)
def test_missing_labels_are_one_line(
    classifier: Path, digits: Path, tmp_path: Path, table: str, label: str | None, message: str
) -> None:
    files = sorted((digits / "train").rglob("*.png"))[:2]
    (tmp_path / "table.csv").write_text(table.format(*files))
    with pytest.raises(SslkitError, match=message):
        prepare(spec(classifier, tmp_path / "table.csv", label=label, batch_size=2))


def test_text_has_none(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("one two three four five six seven eight nine ten\n" * 200)
    (tmp_path / "wordy.py").write_text(CLASSIFIER.replace("    needs", '    modality = "text"\n    needs'))
    with pytest.raises(SslkitError, match="--data: passages have no labels, and wordy needs them"):
        prepare(PretrainSpec(task=str(tmp_path / "wordy.py"), data=str(tmp_path / "words.txt"), batch_size=2))


def test_an_evaluation_needs_all_labels_and_says_which_one_is_missing(
    trained: Path, digits: Path, tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    table = with_table(digits, tmp_path, unknown=1)
    ran = sslkit("knn", "--ckpt", trained, "--data", table, "--label", "label")
    assert ran.code == 2 and "images/digit" in ran.err
    assert f"has no label in {table} (an evaluation needs all labels)" in ran.err


def test_a_table_of_results_says_that_labels_were_used(
    classifier: Path, digits: Path, tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    pretrain(spec(classifier, digits, out=str(tmp_path / "run")))
    ran = sslkit("knn", "--ckpt", tmp_path / "run" / "model.safetensors")
    assert "pretrained with 48 labels of 3 classes" in ran.out + ran.err


def test_the_hash_of_labels_covers_classes_and_values() -> None:
    import numpy as np

    values = np.array([0, 1, -1])
    prints = {Labels(values, ("a", "b")).fingerprint(), Labels(values, ("a", "c")).fingerprint()}
    assert len(prints | {Labels(values[::-1].copy(), ("a", "b")).fingerprint()}) == 3


def test_a_share_of_the_labels_is_that_of_an_evaluation(classifier: Path, digits: Path) -> None:
    from sslkit.evaluation.splits import held_out_rows

    job = prepare(spec(classifier, digits, label_share=0.25, seed=3))
    labels, everything = job.settings.source.labels, prepare(spec(classifier, digits)).settings.source.labels
    assert labels is not None and everything is not None and everything.known.all()
    rows = held_out_rows(everything.values, 3, labels.classes, 0.25)[1]
    assert labels.known.nonzero()[0].tolist() == rows.tolist() and len(rows) == 12
    assert (labels.values[rows] == everything.values[rows]).all()


def test_labels_of_the_fifth_that_evaluations_test_on_are_hidden(
    classifier: Path, digits: Path, tmp_path: Path, sslkit: Callable[..., Any]
) -> None:
    from sslkit.evaluation.knn import knn
    from sslkit.specs.evaluation import KnnSpec

    one_part = digits / "train"
    job = prepare(spec(classifier, one_part, seed=1))
    labels = job.settings.source.labels
    assert labels is not None and labels.known.sum() == 39  # a fifth of 16 is 3
    assert job.settings.spec.labeled_in_batch == 1.0
    pretrain(spec(classifier, one_part, seed=1, out=str(tmp_path / "run")))
    checkpoint = str(tmp_path / "run" / "model.safetensors")
    result = knn(KnnSpec(ckpt=checkpoint, seed=1, k=5, workers=0, baselines=False))
    assert result.data.tests[0].n == 9 and result.rows[0].n_train == 39
    with pytest.raises(SslkitError, match=r"--seed: 0 holds out samples whose labels .* was trained on .use --seed 1, that"):
        knn(KnnSpec(ckpt=checkpoint, k=5, workers=0))
    pretrain(spec(classifier, one_part, all_labels=True, out=str(tmp_path / "all")))
    with pytest.raises(SslkitError, match=r"--seed: 0 holds out samples .* was trained on .name a --test part"):
        knn(KnnSpec(ckpt=str(tmp_path / "all" / "model.safetensors"), k=5, workers=0))


def test_a_batch_has_the_requested_labeled_samples(classifier: Path, digits: Path, tmp_path: Path) -> None:
    joint = f"{tmp_path / 'blind.py'}+{classifier}"
    for share, expected in (("auto", 0.5), (0.25, 0.25)):
        out = str(tmp_path / f"run {share}")
        pretrain(spec(joint, digits, label_share=0.25, labeled_in_batch=share, steps=3, out=out))
        known = [line["classifier.known"] for line in read_json_lines(Path(out) / "metrics.jsonl")]
        assert known == [expected] * len(known) and known
    alone = spec(classifier, digits, label_share=0.25, steps=3, out=str(tmp_path / "alone"))
    pretrain(alone)
    assert [line["known"] for line in read_json_lines(tmp_path / "alone" / "metrics.jsonl")][-1] == 1


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("blind.py", {"label_share": 0.5}, r"--label-share: blind uses no labels .leave it out, or train jointly"),
        ("blind.py", {"labeled_in_batch": 0.5}, "--labeled-in-batch: blind uses no labels"),
        ("classifier.py", {"data": "one"}, "--data: .* has only one class .digit 0., and classifier needs two or more"),
    ],
)
def test_settings_of_labels_that_make_no_sense(
    classifier: Path, digits: Path, tmp_path: Path, task: str, values: dict[str, Any], message: str
) -> None:
    shutil.copytree(digits / "train" / "digit 0", tmp_path / "one" / "digit 0")
    data = tmp_path / values.pop("data") if "data" in values else digits
    with pytest.raises(SslkitError, match=message):
        prepare(spec(tmp_path / task, data, **values))
