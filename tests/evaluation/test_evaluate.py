"""Evaluations: honest parts, baselines beside every number, one line for what can't be evaluated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit import SslkitError
from sslkit.contract.result import Result
from sslkit.evaluation.installed import installed_evaluations, installed_protocols
from sslkit.evaluation.knn import Knn, knn, votes
from sslkit.evaluation.probe import probe
from sslkit.evaluation.retrieval import Bank, Retrieval, rank
from sslkit.evaluation.session import FeatureEvaluation, open_session
from sslkit.evaluation.splits import find_labeled, held_out_rows
from sslkit.evaluation.statistics import MCNEMAR, PAIRED, Answers, compare_answers, mcnemar_of_answers
from sslkit.image.source import ImageSource
from sslkit.specs.evaluation import KnnSpec, ProbeSpec

Run = Callable[..., Any]


def test_knn_and_probe_of_a_run(sslkit: Run, trained: Path) -> None:
    for command, chance in (("knn", 1 / 3), ("probe", 1 / 3)):
        flags = ["--k", 5] if command == "knn" else []
        ran = sslkit(command, "--ckpt", trained, "--json", *flags)
        result = ran.json
        assert {"protocol", "rows", "data", "notes", "checkpoint", "schema", "seconds"} <= set(result)
        assert [row["model"] for row in result["rows"]] == ["checkpoint", "random weights", "raw pixels, 16 px"]
        assert result["rows"][0]["fits"][0]["n_train"] == 48
        assert [(test["n"], test["seen_in_pretraining"]) for test in result["data"]["tests"]] == [(12, False)]
        assert result["protocol"] == {"knn": None, "probe": "probe/logreg-v1"}[command]
        headline = result["rows"][0]["metrics"][0]
        assert headline["name"] == "top-1" and headline["value"] > chance + 0.3 and headline["n"] == 12
        assert Result.from_json(result).to_json() == result
        assert "test part: test of" in ran.err
    lines = [json.loads(line) for line in (trained.parent / "results.jsonl").read_text().splitlines()]
    assert {line["verb"] for line in lines} == {"knn", "probe"} and len({line["weights"] for line in lines}) == 1


def test_protocol_id_only_for_untouched_settings(trained: Path) -> None:
    assert knn(KnnSpec(ckpt=str(trained))).protocol == "knn/weighted-v1"
    assert knn(KnnSpec(ckpt=str(trained), temperature=0.07)).protocol is None
    assert probe(ProbeSpec(ckpt=str(trained), c=1.0)).protocol is None


def test_evaluation_never_writes_into_the_checkpoint(trained: Path) -> None:
    before = trained.read_bytes()
    knn(KnnSpec(ckpt=str(trained), k=3))
    assert trained.read_bytes() == before


def test_features_change_nothing(trained: Path) -> None:
    session = open_session(KnnSpec(ckpt=str(trained), cache="off"))
    model = session.models[0]
    encoder = model.encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    first, second = (session.reader(model, "last").training().features for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_data_without_a_test_part_is_split_and_reported_as_pretraining_data(
    digits: Path, tmp_path: Path, sslkit: Run, quick: list[str]
) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(digits / "train", flat)
    assert sslkit("pretrain", "rotation", "--data", flat, "--out", tmp_path / "run", "--epochs", 1, *quick).code == 0
    ran = sslkit("knn", "--ckpt", tmp_path / "run" / "model.safetensors", "--k", 3, "--json")
    (test,) = ran.json["data"]["tests"]
    assert test["seen_in_pretraining"] is True and (ran.json["rows"][0]["fits"][0]["n_train"], test["n"]) == (39, 9)
    assert "The test data was part of pretraining." in ran.json["notes"]
    assert "a fifth of each class" in ran.err and "seen in pretraining" in ran.err


def test_split_is_stratified_seeded_and_disjoint() -> None:
    labels, classes = np.repeat([0, 1, 2], 16), ("a", "b", "c")
    kept, held_out = held_out_rows(labels, 1, classes, share=0.25)
    assert np.bincount(labels[held_out]).tolist() == [4, 4, 4]
    assert sorted([*kept, *held_out]) == list(range(48))
    assert np.array_equal(held_out_rows(labels, 1, classes, 0.25)[1], held_out)
    assert not np.array_equal(held_out_rows(labels, 2, classes, 0.25)[1], held_out)


def test_test_labels_count_in_the_training_classes(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "test" / "digit 2", tmp_path / "only" / "digit 2")
    shutil.copytree(digits / "test" / "digit 0", tmp_path / "only" / "digit 0")
    spec = KnnSpec(ckpt="x", data=str(digits))
    parts = find_labeled(spec, [str(tmp_path / "only")], None, source_class=ImageSource)
    labels = parts.tests[0].index.labels
    assert labels is not None and sorted(set(labels.tolist())) == [0, 2]


def test_a_moved_checkpoint_asks_for_data(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    moved = tmp_path / "model.safetensors"
    moved.write_bytes(trained.read_bytes())
    assert "--data: missing" in sslkit("knn", "--ckpt", moved).err
    assert sslkit("knn", "--ckpt", moved, "--data", digits, "--k", 3, "--json").json["data"]["tests"][0]["n"] == 12
    assert not (tmp_path / "results.jsonl").exists()


def test_changed_data_is_noticed(digits: Path, tmp_path: Path, sslkit: Run, quick: list[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    assert sslkit("pretrain", "rotation", "--data", data, "--out", tmp_path / "run", "--epochs", 1, *quick).code == 0
    next((data / "train" / "digit 0").iterdir()).unlink()
    ran = sslkit("knn", "--ckpt", tmp_path / "run" / "model.safetensors")
    assert ran.code == 2 and "has changed since the run" in ran.err


def test_the_part_of_a_test_folder_that_is_no_training_data(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    shutil.copytree(digits / "test", tmp_path / "other" / "val")
    shutil.copytree(digits / "train", tmp_path / "other" / "train")
    ran = sslkit("knn", "--ckpt", trained, "--data", digits, "--test", tmp_path / "other", "--k", 3, "--json")
    assert ran.json["data"]["tests"][0]["n"] == 12 and "test part: val of" in ran.err
    ran = sslkit("knn", "--ckpt", trained, "--data", digits, "--test", digits / "train", "--k", 3, "--json")
    assert ran.json["data"]["tests"][0]["seen_in_pretraining"] is True


def test_what_cannot_be_evaluated(trained: Path, digits: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(digits / "train" / "digit 0", flat)
    with pytest.raises(SslkitError, match="has no labels"):
        probe(ProbeSpec(ckpt=str(trained), data=str(flat)))
    with pytest.raises(SslkitError, match="has only one class"):
        shutil.copytree(digits / "train" / "digit 0", tmp_path / "one" / "digit 0")
        knn(KnnSpec(ckpt=str(trained), data=str(tmp_path / "one")))
    with pytest.raises(SslkitError, match="100 exceeds the 48 training samples"):
        knn(KnnSpec(ckpt=str(trained), k=100))
    shutil.copytree(digits / "test" / "digit 0", tmp_path / "unseen" / "letter")
    shutil.copytree(digits / "test" / "digit 0", tmp_path / "unseen" / "digit 0")
    with pytest.raises(SslkitError, match="classes that the training part lacks: letter"):
        knn(KnnSpec(ckpt=str(trained), data=str(digits), test=str(tmp_path / "unseen"), k=3))
    np.savez(tmp_path / "gray.npz", images=np.zeros((8, 16, 16), np.uint8), labels=np.arange(8) % 2)
    with pytest.raises(SslkitError, match="images have 1 channels, the encoder takes 3"):
        knn(KnnSpec(ckpt=str(trained), data=str(tmp_path / "gray.npz"), k=1))


def test_bad_labels_are_one_line_each_and_nothing_is_written(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    results = trained.parent / "results.jsonl"
    before = results.read_text() if results.exists() else ""
    shutil.copytree(digits / "test", tmp_path / "labeled")
    shutil.copytree(digits / "test" / "digit 0", tmp_path / "flat")
    lone = tmp_path / "lone"
    shutil.copytree(digits / "train", lone)
    for path in sorted((lone / "digit 1").iterdir())[1:]:
        path.unlink()
    cases = [
        (["--test", tmp_path / "flat"], "flat has no labels"),
        (["--data", lone], "class digit 1 of"),
        (["--layer", 9], "checkpoint has 4 layers (got 9) (use 1 to 4)"),
        (["--layer", "first"], "--layer: should be"),
        (["--pool", "class"], "checkpoint has no class token"),
        (["--against", "resnet_nonsense"], "unknown encoder resnet_nonsense"),
        (["--against", tmp_path / "nothing.safetensors"], "--against:"),
        (["--k", 49], "--k: 49 exceeds the 48 training samples"),
        (["--shots", 17], "--shots: 17 exceeds the 16 training samples of class digit 0"),
    ]
    for flags, message in cases:
        ran = sslkit("knn", "--ckpt", trained, *([] if "--k" in flags else ["--k", 3]), *flags)
        assert ran.code == 2 and message in ran.err and not ran.out, (flags, ran.err)
        assert len([line for line in ran.err.splitlines() if line.startswith("error")]) == 1
    assert (results.read_text() if results.exists() else "") == before


def test_features_that_are_not_numbers(trained: Path, digits: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = load_file(trained)
    tensors["encoder.stem.weight"][0] = torch.nan
    with safe_open(trained, "pt") as file:
        save_file(tensors, tmp_path / "broken.safetensors", file.metadata())
    with pytest.raises(SslkitError, match="features of checkpoint are not finite"):
        knn(KnnSpec(ckpt=str(tmp_path / "broken.safetensors"), data=str(digits), k=3))


def test_several_test_parts_are_a_row_each(trained: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "test", tmp_path / "other")
    spec = KnnSpec(ckpt=str(trained), data=str(digits), test=[str(digits / "test"), str(tmp_path / "other")], k=3)
    rows = knn(spec).rows
    assert [row.test for row in rows[:2]] == [str(digits / "test"), str(tmp_path / "other")]
    assert len(rows) == 6 and rows[0].metrics == rows[1].metrics


def test_duplicates_are_counted(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    shutil.copytree(digits / "test", tmp_path / "test")
    shutil.copy(next((digits / "train" / "digit 0").iterdir()), tmp_path / "test" / "digit 0" / "again.png")
    ran = sslkit("knn", "--ckpt", trained, "--data", digits, "--test", tmp_path / "test", "--k", 3)
    assert "1 test sample also occurs in the training set." in ran.out
    assert knn(KnnSpec(ckpt=str(trained), k=3)).data.tests[0].duplicates == 0


def test_a_second_evaluation_reads_no_image(trained: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = knn(KnnSpec(ckpt=str(trained), k=4))

    def never(self: ImageSource, rows: Any, draw: Any = None) -> Any:
        raise AssertionError("an image was read")

    monkeypatch.setattr(ImageSource, "read", never)
    assert knn(KnnSpec(ckpt=str(trained), k=4)) == first
    assert probe(ProbeSpec(ckpt=str(trained), c=1.0, baselines=False)).headline.n == 12  # another protocol, the same features
    with pytest.raises(AssertionError, match="an image was read"):
        knn(KnnSpec(ckpt=str(trained), k=4, cache="off"))


def test_layers_and_pooling(trained: Path, digits: Path) -> None:
    rows = knn(KnnSpec(ckpt=str(trained), k=3, layer="all")).rows
    assert [(row.model, row.layer) for row in rows[:4]] == [("checkpoint", str(layer)) for layer in range(1, 5)]
    assert rows[-1].layer == "last" and rows[-1].model == "raw pixels, 16 px"
    last = knn(KnnSpec(ckpt=str(trained), k=3)).rows[0]
    assert rows[3].metrics == last.metrics  # the fourth layer is the last one


def test_the_layer_is_chosen_on_a_part_of_the_training_part(trained: Path, sslkit: Run) -> None:
    result = knn(KnnSpec(ckpt=str(trained), protocol="knn/chosen-layer-v1", k=3))
    checkpoint, random, pixels = result.rows
    assert result.settings["layer"] == "auto" and pixels.layer == "last"
    assert [row.fits[0].chosen for row in result.rows] == [{"layer": row.layer} for row in result.rows]
    session = open_session(KnnSpec(ckpt=str(trained), layer="auto"), 32)
    train = session.reader(session.models[0], "all").training()
    kept, held_out = train.hold_out(0.2, 0)
    correct = {  # of neighbors by hand
        layer: (
            votes(features[kept], train.labels[kept], features[held_out], 3, 0.07, len(session.classes)).argmax(dim=1)
            == train.labels[held_out]
        ).sum()
        for layer, features in train.layers.items()
    }
    assert checkpoint.layer == max(correct, key=lambda layer: correct[layer])
    of_layer = knn(KnnSpec(ckpt=str(trained), layer=str(checkpoint.layer), k=3)).rows[0]
    assert of_layer.metrics == checkpoint.metrics  # fitted again on all of the training part
    assert checkpoint.comparisons == {} and random.comparisons and pixels.comparisons
    ran = sslkit("probe", "--ckpt", trained, "--protocol", "probe/chosen-layer-v1", "--c", 1, "--no-baselines")
    assert ran.code == 0 and "Chosen on held-out training data: layer" in ran.out
    ran = sslkit("probe", "--ckpt", trained, "--protocol", "probe/sweep-v1", "--layer", "auto")
    assert ran.code == 2 and "--layer: probe/sweep-v1 chooses among all layers itself" in ran.err
    ran = sslkit("embed", "--ckpt", trained, "--layer", "auto", "--out", trained.parent / "x.npy")
    assert ran.code == 2 and "--layer" in ran.err


def test_against_another_checkpoint(trained: Path, sslkit: Run) -> None:
    result = knn(KnnSpec(ckpt=str(trained), k=3, against=[str(trained), str(trained.parent)], baselines=False))
    assert [row.model for row in result.rows] == ["checkpoint", str(trained), str(trained.parent)]
    comparison = result.rows[1].comparisons["checkpoint"]
    assert (comparison.p_value, comparison.adjusted, comparison.method) == (1.0, 1.0, "McNemar's exact test")
    assert result.rows[1].metrics == result.rows[0].metrics


def test_protocols_are_listed(sslkit: Run) -> None:
    protocols = installed_protocols()
    listed = sslkit("protocols", "--json").json["protocols"]
    assert [protocol["id"] for protocol in listed] == list(protocols)
    assert all(name in sslkit("protocols").out for name in protocols)


def test_what_the_protocols_stand_for() -> None:
    # Another value here is another protocol: a new id, not a new default.
    corruptions = [
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "snow",
        "frost",
        "fog",
        "brightness",
        "contrast",
        "elastic",
        "pixelate",
        "jpeg",
    ]
    grid, held_out = [0.001, 0.01, 0.1, 1.0, 10.0], {"held_out": 0.2, "seeds": 1}
    words = {"c": [0.01, 0.1, 1.0], "iterations": 100, "held_out": 0.2, "layer": "last", "words": 200_000}
    heads = {"head_epochs": 20, "head_batch": 256, "head_momentum": 0.9}
    rates = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
    pinned = {name: protocol.settings for name, protocol in installed_protocols().items() if not name.startswith("finetune/")}
    assert pinned == {
        "cloze/pieces-v1": {"candidates": []},
        "propagate/masks-v1": {
            "context": 7,
            "radius": 12,
            "neighbors": 5,
            "temperature": 0.1,
            "resolution": 480,
            "layer": "last",
        },
        "prompt/mask-v1": {"calibrate": True, "shots": 0},
        "prompt/next-v1": {"calibrate": True, "shots": 0},
        "tag/words-v1": words,
        "tag/entities-v1": words,
        "frames/logreg-v1": {
            "c": [0.01, 0.1, 1.0],
            "iterations": 100,
            "held_out": 0.2,
            "max_frames": 200_000,
            "layer": "last",
        },
        "knn/weighted-v1": {"k": 20, "temperature": 0.07, "shots": None, "seeds": 1},
        "knn/weighted200-v1": {"k": 200, "temperature": 0.1, "shots": None, "seeds": 1},
        "knn/plain-v1": {"k": 20, "temperature": None, "shots": None, "seeds": 1},
        "knn/chosen-layer-v1": {"k": 20, "temperature": 0.07, "shots": None, "seeds": 1, "layer": "auto"},
        "knn/fewshot-v1": {"k": 5, "temperature": 0.07, "shots": 5, "seeds": 10},
        "probe/logreg-v1": {"c": grid, "iterations": 300, **held_out},
        "probe/chosen-layer-v1": {"c": grid, "iterations": 300, "layer": "auto", **held_out},
        "probe/sweep-v1": {"lr": rates, "layer": "all", **heads, **held_out},
        "probe/svm-v1": {"c": [0.0001, *grid[:4]], "iterations": 300, **held_out},
        "perplexity/half-window-v1": {"stride": "half of a window"},
        "pseudo-perplexity/passages-v1": {"passages": 64},
        "fewshot/curve-v1": {"shots": [1, 5, 10, 50], "seeds": 10, "c": 0.1, "iterations": 100},
        "regress/ridge-v1": {"penalty": [0.0001, *grid], "held_out": 0.2, "layer": "last", "pool": "auto"},
        "tag/finetuned-words-v1": {"epochs": 5, "lr": 5e-4, "words": 200_000},
        "tag/finetuned-entities-v1": {"epochs": 5, "lr": 5e-4, "words": 200_000},
        "ladder/fewlabel-v1": {"shares": [0.01, 0.1], "seeds": 3, "steps": 1000, "batch_size": 64},
        "retrieval/map-v1": {},
        "verify/eer-v1": {"samples": 500},
        "zeroshot/names-v1": {"templates": ["{}"]},
        "zeroshot/recall-v1": {"rerank": 0},
        "pairs/finetuned-v1": {"epochs": 10, "lr": 5e-4, "batch_size": 32},
        "correspond/warp-v1": {
            "samples": 200,
            "resolution": 224,
            "layer": "last",
            "strength": 0.2,
            "jitter": 0.3,
            "threshold": 1 / 14,
        },
        "adapt/online-v1": {
            "corruption": corruptions,
            "severity": 5,
            "samples": 500,
            "orders": 3,
            "batch_size": 200,
            "tent_lr": 1e-3,
            "lr": 1e-3,
            "steps": 1,
            "copies": 8,
            "batchnorm": "eval",
        },
        "adapt/standard-v1": {
            "corruption": corruptions,
            "severity": 5,
            "samples": 200,
            "orders": 1,
            "lr": 1e-3,
            "steps": 10,
            "copies": 8,
            "batchnorm": "eval",
        },
        "anomaly/patches-v1": {
            "resolution": 224,
            "layers": "auto",
            "memory": 2000,
            "places": 50_000,
            "false_alarms": 0.01,
        },
        "robustness/corruptions-v1": {
            "classifier": "probe",
            "samples": 1000,
            "corruption": corruptions,
            "severity": [1, 2, 3, 4, 5],
            "layer": "last",
            "pool": "auto",
        },
        "robustness/shift-v1": {"classifier": "probe", "layer": "last", "pool": "auto"},
        "robustness/shape-v1": {"classifier": "probe", "samples": 1000, "cutoff": 8.0, "layer": "last", "pool": "auto"},
        "robustness/conflicts-v1": {"classifier": "probe", "layer": "last", "pool": "auto"},
        "segment/linear-v1": {
            "c": [0.001, 0.01, 0.1, 1.0],
            "iterations": 100,
            "held_out": 0.2,
            "resolution": 224,
            "layer": "last",
            "places": 50_000,
        },
        "segment/knn-v1": {"neighbors": 30, "temperature": 0.02, "resolution": 224, "layer": "last", "places": 50_000},
        "segment/finetuned-v1": {"epochs": 10, "lr": 5e-4, "batch_size": 16, "resolution": 224, "layer": "last"},
        "word-vectors/benchmarks-v1": {},
        "word-vectors/translation-v1": {},
    }


def test_evaluate_makes_one_table(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    out = tmp_path / "table"
    ran = sslkit(
        "evaluate", "--ckpt", trained, "--out", out, "--protocol", "knn/fewshot-v1", "--protocol", "retrieval", "--json"
    )
    assert [result["protocol"] for result in ran.json["results"]] == ["knn/fewshot-v1", "retrieval/map-v1"]
    text = (out / "table.md").read_text()
    assert text.count("| knn/fewshot-v1 |") == 3 and text.count("| retrieval/map-v1 |") == 3
    frozen = sslkit("evaluate", "--ckpt", trained, "--protocol", "knn", "--no-baselines")
    assert frozen.code == 0 and "knn/weighted200-v1: not possible: --k: 200 exceeds the 48 training samples" in frozen.out
    assert "knn/weighted-v1" in frozen.out and "random weights" not in frozen.out
    alone = sslkit("evaluate", "--ckpt", trained, "--protocol", "knn/weighted200-v1")
    assert alone.code == 2 and "200 exceeds the 48 training samples" in alone.err
    again = sslkit("evaluate", "--ckpt", trained, "--out", out)
    assert again.code == 2 and "already exists" in again.err
    assert "did you mean knn/plain-v1?" in sslkit("evaluate", "--ckpt", trained, "--protocol", "knn/plain").err
    assert "--out: missing" in sslkit("evaluate", "--ckpt", trained, "--protocol", "finetune").err


def test_images_that_cannot_be_read_are_left_out_of_a_comparison(trained: Path, digits: Path, tmp_path: Path) -> None:
    from sslkit.data import cache

    test = tmp_path / "test"
    shutil.copytree(digits / "test", test)
    spec = {"ckpt": str(trained), "data": str(digits), "test": [str(test)], "k": 3, "baselines": False}
    assert knn(KnnSpec(**spec)).headline.n == 12  # which is in the cache now
    folders = {entry.folder for entry in cache.stored() if entry.folder.parent.name == "canvases"}
    (test / "digit 1" / "00.png").write_bytes(b"no image")
    for folder in folders:
        shutil.rmtree(folder)
    other = tmp_path / "other.safetensors"
    other.write_bytes(trained.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
        short = knn(KnnSpec(**spec, against=[str(other)]))
    assert short.headline.n == 11 and short.rows[1].comparisons["checkpoint"].p_value == 1.0


def test_the_pvalue_pairs_images_by_their_rows() -> None:
    first = Answers(np.arange(8), torch.tensor([1, 1, 1, 1, 1, 1, 0, 1]).double())
    second = Answers(np.array([0, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 0, 0, 0, 0, 0, 1]).double())  # row 1 is missing
    assert mcnemar_of_answers(first, second) == pytest.approx(2 / 2**5)
    comparison = compare_answers(first, second)
    assert (comparison.p_value, comparison.method) == (pytest.approx(2 / 2**5), MCNEMAR)
    assert comparison.difference == pytest.approx(5 / 7)


def test_paired_differences_have_the_interval_of_their_resamples() -> None:
    rng = np.random.default_rng(1)
    rows = np.arange(300)
    for first, second, method in [
        (rng.random(300) < 0.6, rng.random(300) < 0.5, MCNEMAR),
        (rng.random(300), rng.random(300), PAIRED),  # average precisions, or means over seeds
    ]:
        answers = [Answers(rows, torch.from_numpy(values).double()) for values in (first, second)]
        comparison = compare_answers(*answers)
        differences = first.astype(float) - second.astype(float)
        means = [differences[rng.integers(300, size=300)].mean() for _ in range(4000)]
        assert comparison.method == method and comparison.difference == pytest.approx(differences.mean())
        assert (comparison.low, comparison.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.01)
    same = compare_answers(answers[0], answers[0])
    assert (same.difference, same.p_value) == (0, 1) and same.low == pytest.approx(-0.0122, abs=1e-3) == -(same.high or 0)


def test_rows_say_what_they_are_and_how_far_from_the_checkpoint(trained: Path, sslkit: Run) -> None:
    for verb in ("knn", "retrieval"):
        rows = sslkit(verb, "--ckpt", trained, *(["--k", 3] if verb == "knn" else []), "--json").json["rows"]
        assert [row["role"] for row in rows] == ["checkpoint", "random", "baseline"]
        values = [row["metrics"][0]["value"] for row in rows]
        for row, value in zip(rows[1:], values[1:], strict=True):
            comparison = row["comparisons"]["checkpoint"]
            assert comparison["difference"] == pytest.approx(value - values[0])
            assert comparison["low"] <= comparison["difference"] <= comparison["high"]


def test_what_decides_a_number_is_in_the_result(trained: Path, digits: Path, tmp_path: Path) -> None:
    table = ["path,label,other"]
    for path in sorted((digits / "train").rglob("*.png")):
        table.append(f"{path},{path.parent.name},{'abc'[len(table) % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(table) + "\n")
    spec = {"ckpt": str(trained), "data": str(tmp_path / "labels.csv"), "k": 3, "baselines": False}
    first, second = (knn(KnnSpec(**spec, label=label)) for label in ("label", "other"))
    assert first.data.train != second.data.train
    assert first.data.tests[0].fingerprint != second.data.tests[0].fingerprint
    assert (first.settings["label"], first.settings["size"], first.settings["seed"]) == ("label", 16, 0)


def test_pooling_through_the_command(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    from sslkit.engine.pretrain import pretrain
    from sslkit.specs.train import PretrainSpec

    options = {"width": "32", "depth": "2", "heads": "2"}
    out = str(tmp_path / "vit")
    spec = PretrainSpec(task="rotation", data=str(digits), out=out, encoder="vit_micro", encoder_option=options, size=16)
    ckpt = pretrain(spec.model_copy(update={"batch_size": 16, "workers": 0, "steps": 1, "lr": 0.01})).checkpoint
    rows = sslkit("knn", "--ckpt", ckpt, "--k", 3, "--pool", "both", "--against", trained, "--json").json["rows"]
    assert [row["model"] for row in rows] == ["checkpoint", "random weights", "raw pixels, 16 px", str(trained)]
    ran = sslkit("knn", "--ckpt", ckpt, "--k", 3, "--layer", "last4")
    assert ran.code == 2 and "checkpoint has 2 layers (got last4)" in ran.err


def test_several_data_sets_have_a_mean(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    checkpoint = shutil.copy(trained, tmp_path)
    second, out = tmp_path / "second", tmp_path / "table"
    shutil.copytree(digits / "train", second)
    words = ["evaluate", "--ckpt", checkpoint, "--data", digits, "--data", second, "--protocol", "knn/weighted-v1"]
    (result,) = sslkit(*words, "--out", out, "--json").json["results"]
    tests = [row["test"] for row in result["rows"]]
    assert tests == [f"{digits}: test of {digits}"] * 3 + [f"{second}: a fifth of {second}"] * 3 + ["mean of 2 data sets"] * 3
    for first, other, mean in zip(result["rows"][:3], result["rows"][3:6], result["rows"][6:], strict=True):
        values, low, high = ([row["metrics"][0][end] for row in (first, other)] for end in ("value", "low", "high"))
        metric = mean["metrics"][0]
        assert mean["model"] == first["model"] == other["model"] and metric["value"] == pytest.approx(np.mean(values))
        halves = [(end - start) / 2 for start, end in zip(low, high, strict=True)]
        assert metric["high"] - metric["value"] == pytest.approx(np.hypot(*halves) / 2)
        assert metric["n"] == sum(row["metrics"][0]["n"] for row in (first, other))
    single = sslkit("knn", "--ckpt", checkpoint, "--data", second, "--json").json["rows"]
    assert [row["metrics"] for row in single] == [row["metrics"] for row in result["rows"][3:6]]
    assert "mean of 2 data sets" in (out / "table.md").read_text()
    (again,) = sslkit(*words, "--out", out, "--resume", "--json").json["results"]
    assert again["rows"] == result["rows"]
    ran = sslkit(*words, "--test", second)
    assert ran.code == 2 and "--test: 2 data sets" in ran.err
    ran = sslkit(*words[:-2], "--data", second)
    assert ran.code == 2 and "is named twice" in ran.err


def test_a_picture_is_no_training(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    words = ["evaluate", "--ckpt", shutil.copy(trained, tmp_path), "--data", digits, "--protocol", "robustness/shape-v1"]
    assert sslkit(*words).code == 0


def test_settings_of_another_protocol_are_refused(trained: Path, sslkit: Run) -> None:
    ran = sslkit("probe", "--ckpt", trained, "--lr", 0.5)
    assert ran.code == 2 and "--lr: probe/logreg-v1 has no such setting" in ran.err
    ran = sslkit("probe", "--ckpt", trained, "--protocol", "probe/sweep-v1", "--c", 1)
    assert ran.code == 2 and "--c: probe/sweep-v1 has no such setting" in ran.err
    assert "does not depend on the seed" in sslkit("knn", "--ckpt", trained, "--k", 3, "--seeds", 2).err
    swept = sslkit("probe", "--ckpt", trained, "--protocol", "probe/sweep-v1", "--seeds", 2, "--json").json
    assert swept["protocol"] == "probe/sweep-v1" and swept["settings"]["layer"] == "all"
    row = swept["rows"][0]
    assert row["metrics"][0]["deviation"] is not None and set(row["fits"][0]["held_out"]) == set("1234")


def test_channels_and_places_of_test_parts(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    np.savez(tmp_path / "gray.npz", images=np.zeros((6, 16, 16), np.uint8), labels=np.array(["digit 0", "digit 1"] * 3))
    ran = sslkit("knn", "--ckpt", trained, "--k", 3, "--test", tmp_path / "gray.npz")
    assert ran.code == 2 and "--test: samples of" in ran.err and "have 1 channels" in ran.err
    assert "--test: nowhere does not exist" in sslkit("knn", "--ckpt", trained, "--k", 3, "--test", "nowhere").err


def test_retrieval_against_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(30, 4, generator=generator), torch.randn(5, 4, generator=generator)
    labels, test_labels = torch.arange(30) % 3, torch.tensor([0, 1, 2, 0, 1])
    ranked = rank(Bank(train, labels, torch.device("cpu")), test, test_labels)
    for query, label, (precision, first, ten) in zip(test, test_labels, ranked, strict=True):
        order = sorted(range(30), key=lambda row: -float(torch.cosine_similarity(query, train[row], dim=0)))
        relevant = [bool(labels[row] == label) for row in order]
        precisions = [sum(relevant[: place + 1]) / (place + 1) for place in range(30) if relevant[place]]
        assert precision == pytest.approx(sum(precisions) / len(precisions))
        assert first == float(relevant[0]) and ten == pytest.approx(sum(relevant[:10]) / 10)


def test_retrieval_with_ties_does_not_depend_on_the_order_of_rows() -> None:
    from sklearn.metrics import average_precision_score

    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(7, 16, generator=generator)  # so that every sample has many of the same features
    places = torch.randint(7, (150,), generator=generator)
    labels, test_labels = torch.randint(3, (150,), generator=generator), torch.tensor([0, 1, 2, 0])
    features, cpu = kinds[places], torch.device("cpu")
    ranked = rank(Bank(features, labels, cpu), kinds[:4], test_labels)
    order = torch.randperm(150, generator=generator)
    assert torch.equal(rank(Bank(features[order], labels[order], cpu), kinds[:4], test_labels), ranked)
    similar = torch.nn.functional.cosine_similarity(kinds[:4, None], kinds[None], dim=2)[:, places].numpy()
    expected = [average_precision_score(labels == label, row) for label, row in zip(test_labels, similar, strict=True)]
    assert ranked[:, 0].tolist() == pytest.approx(expected)


def test_an_interrupted_evaluation_ends_and_keeps_its_table(
    trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run
) -> None:
    from sslkit.contract.errors import RunInterruptedError

    def stop(self: FeatureEvaluation, spec: Any) -> None:
        raise RunInterruptedError("stopped", 2)

    monkeypatch.setattr(Retrieval, "run", stop)
    protocols = ["--protocol", "knn/plain-v1", "--protocol", "retrieval"]
    ran = sslkit("evaluate", "--ckpt", trained, *protocols, "--out", tmp_path / "out")
    assert ran.code == 130 and "| knn/plain-v1 |" in (tmp_path / "out" / "table.md").read_text()
    monkeypatch.undo()
    monkeypatch.setattr(Knn, "run", stop)  # it is not called again
    flags = ["--ckpt", trained, *protocols, "--out", tmp_path / "out", "--resume"]
    ran = sslkit("evaluate", *flags)
    assert ran.code == 0 and "knn/plain-v1" in ran.out and "retrieval/map-v1" in ran.out
    assert (tmp_path / "out" / "table.md").read_text().count("| checkpoint |") == 2
    ran = sslkit("evaluate", *flags, "--seed", 5, "--no-baselines")
    assert ran.code == 2 and "was made with other seed, baselines" in ran.err


def test_ctrl_c_is_a_line(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run) -> None:
    def press(self: Knn, *arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Knn, "run", press)
    ran = sslkit("knn", "--ckpt", trained)
    assert (ran.code, ran.err) == (130, "error: interrupted\n")
    ran = sslkit("evaluate", "--ckpt", trained, "--out", tmp_path / "table")
    assert (
        ran.code == 130
        and f"stopped during knn/weighted-v1 (continue with: sslkit evaluate --resume --out {tmp_path}" in ran.err
    )


def test_a_table_without_labels_lists_its_columns(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    images = sorted((digits / "train").rglob("*.png"))[:20]
    (tmp_path / "list.csv").write_text("path,kind\n" + "".join(f"{image},{image.parent.name}\n" for image in images))
    ran = sslkit("knn", "--ckpt", trained, "--data", tmp_path / "list.csv")
    assert ran.code == 2 and "has no labels (name a column with --label; columns: path, kind)" in ran.err


def test_no_test_sample_is_read_before_fit_returned(trained: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    for_evaluation, fit = ImageSource.for_evaluation.__func__, Knn.fit  # type: ignore[attr-defined]

    def opened(cls: type[ImageSource], index: Any, *arguments: Any) -> Any:
        events.append(f"open {len(index)}")
        return for_evaluation(cls, index, *arguments)

    def fitted(self: Knn, *arguments: Any) -> Any:
        predictor = fit(self, *arguments)
        events.append("fitted")
        return predictor

    monkeypatch.setattr(ImageSource, "for_evaluation", classmethod(opened))
    monkeypatch.setattr(Knn, "fit", fitted)
    knn(KnnSpec(ckpt=str(trained), k=3, layer="all", baselines=False))
    assert events == ["open 48", *["fitted"] * 4, "open 12"]


def test_every_installed_evaluation_has_a_torch_free_spec() -> None:
    from importlib.metadata import entry_points

    options = {point.name: point.load() for point in entry_points(group="sslkit.options")}
    evaluations = installed_evaluations()
    assert {"knn", "probe", "retrieval", "zeroshot", "word-vectors", "finetune", "evaluate"} <= set(evaluations)
    for name, evaluation in evaluations.items():
        assert options[name] is evaluation.Options
        assert all(protocol.verb == name for protocol in evaluation.protocols)


def test_notes_and_details(trained: Path, sslkit: Run) -> None:
    ran = sslkit("knn", "--ckpt", trained, "--k", 3)
    assert "48 training and 12 test samples." in ran.out and "random weights" in ran.out
    assert "Pretrained for only 12 steps, too few to learn much; 300 take about" in ran.out
    longer = next(line for line in ran.out.splitlines() if line.startswith("next: sslkit pretrain"))
    assert longer.startswith("next: sslkit pretrain rotation --data ") and longer.endswith("--steps 300")
    assert "McNemar" not in ran.out
    ran = sslkit("knn", "--ckpt", trained, "--k", 3, "--details")
    assert "random weights against checkpoint" in ran.out and "Holm-adjusted" in ran.out


def test_a_class_without_readable_samples_is_named(
    trained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test"
    shutil.copytree(digits / "test", test)
    for file in (test / "digit 1").iterdir():
        file.write_bytes(b"no image")
    result = knn(KnnSpec(ckpt=str(trained), data=str(digits), test=[str(test)], k=3, baselines=False))
    assert result.headline.n == 8
    printed = capsys.readouterr().err
    problem = "none of its 4 images in this part can be read (digit 1/00.png, "
    assert f"class digit 1 is missing from the figures: {problem}" in printed
