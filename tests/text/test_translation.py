"""Word translation: the map, CSLS, and `word-vectors --translate-to`."""

from collections.abc import Callable
from math import cos, radians, sin
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.checkpoint import describe, save_model
from sslkit.text.encoders.word_vectors import WordVectors, encode_words
from sslkit.text.translation import Dictionary, normalize, orthogonal_map, ranks_of_translations

Run = Callable[..., Any]


def save_words(path: Path, words: list[str], vectors: torch.Tensor) -> Path:
    letters = str(len(encode_words(words)))
    options = {"width": str(vectors.shape[1]), "letters": letters}
    encoder = build_encoder(recipe_for("word_vectors", 16, len(words), options))
    assert isinstance(encoder, WordVectors)
    encoder.spell(words)
    with torch.no_grad():
        encoder.table.weight.copy_(vectors)
    path.parent.mkdir()
    save_model(path, {"encoder": encoder}, {**describe(encoder), "task": "skipgram", "size": 16, "step": 1, "data": ""})
    return path


@pytest.fixture
def languages(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return two checkpoints, one a rotation of the other, and a dictionary."""
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(60, 5, generator=generator)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    order = torch.randperm(60, generator=generator)
    source = save_words(tmp_path / "a" / "model.safetensors", [f"a{i}" for i in range(60)], vectors)
    target = save_words(tmp_path / "b" / "model.safetensors", [f"b{int(i)}" for i in order], (vectors @ rotation)[order])
    dictionary = tmp_path / "dictionary.txt"
    dictionary.write_text("".join(f"A{i} b{i}\n" for i in range(60)) + "a3 b9\nnone b1\n")
    return source, target, dictionary


def test_the_map_is_recovered_and_orthogonal() -> None:
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    recovered = orthogonal_map(source, source @ rotation)
    assert torch.allclose(recovered, rotation, atol=1e-10)
    noisy = orthogonal_map(source, source @ rotation + 0.1 * torch.randn(40, 6, generator=generator, dtype=torch.float64))
    assert torch.allclose(noisy @ noisy.T, torch.eye(6, dtype=torch.float64), atol=1e-10)
    unit = normalize(torch.randn(40, 6, generator=generator) + 3)
    assert torch.allclose(unit.norm(dim=1), torch.ones(40, dtype=torch.float64)) and unit.mean(dim=0).norm() < 0.2


def test_csls_is_that_of_the_paper_and_avoids_hubs() -> None:
    generator = torch.Generator().manual_seed(2)
    source = F.normalize(torch.randn(30, 4, generator=generator, dtype=torch.float64), dim=1)
    target = F.normalize(torch.randn(25, 4, generator=generator, dtype=torch.float64), dim=1)
    test = Dictionary({3: {7}, 11: {0, 20}}, 0)
    ranks = ranks_of_translations(source, target, test, csls=True).tolist()
    for word, rank in zip(test.translations, ranks, strict=True):
        scores = []
        for y in range(25):
            near_y = sorted((float(source[i] @ target[y]) for i in range(30)), reverse=True)[:10]
            near_x = sorted((float(source[word] @ target[i]) for i in range(25)), reverse=True)[:10]
            scores.append(2 * float(source[word] @ target[y]) - sum(near_y) / 10 - sum(near_x) / 10)
        best = max(scores[y] for y in test.translations[word])
        assert rank == sum(score >= best - 1e-12 for score in scores)
    # Between two words lies a target that is nearer to both than their translations are.
    angles = {"words": [0.0, 40.0], "targets": [-25.0, 65.0, 20.0]}
    words, targets = (torch.tensor([[cos(radians(at)), sin(radians(at))] for at in each]) for each in angles.values())
    both = Dictionary({0: {0}, 1: {1}}, 0)
    assert ranks_of_translations(words, targets, both, csls=False).tolist() == [2, 2]
    assert ranks_of_translations(words, targets, both, csls=True).tolist() == [1, 1]


def test_words_are_translated(languages: tuple[Path, Path, Path], sslkit: Run) -> None:
    source, target, dictionary = languages
    flags = ["--ckpt", source, "--translate-to", target, "--dictionary", dictionary]
    result = sslkit("word-vectors", *flags, "--json").json
    assert result["protocol"] == "word-vectors/translation-v1"
    ours, cosine, random = result["rows"]
    assert [metric["name"] for metric in ours["metrics"]] == ["P@1", "P@5", "P@10", "skipped"]
    assert (ours["metrics"][0]["value"], ours["metrics"][0]["n"]) == (1.0, 12) and ours["metrics"][-1]["value"] == 1
    assert cosine["metrics"][0]["value"] == 1.0 and random["metrics"][0]["value"] < 0.5
    other = sslkit("word-vectors", *flags, "--seed", 1, "--json").json
    assert other["data"]["train"] != result["data"]["train"] and other["settings"]["seed"] == 1
    test = dictionary.parent / "test.txt"
    test.write_text("a1 b1\na2 b5\n")
    result = sslkit("word-vectors", *flags, "--test-dictionary", test, "--json").json
    assert result["rows"][0]["metrics"][0]["value"] == 0.5
    assert any("2 words of" in note and "took no part in fitting" in note for note in result["notes"])
    test.write_text("x1 b1\n")
    ran = sslkit("word-vectors", *flags, "--test-dictionary", test)
    assert ran.code == 2 and f"--test-dictionary: 0 pairs of {test}" in ran.err, ran.err


def test_refusals(languages: tuple[Path, Path, Path], tmp_path: Path, sslkit: Run) -> None:
    source, target, _ = languages
    few, torn = tmp_path / "few.txt", tmp_path / "torn.txt"
    few.write_text("a1 b1\na2 b2\na3 b3\n")
    torn.write_text("a1 b1\na2\n")
    wide = save_words(tmp_path / "wide" / "model.safetensors", ["a1", "b2"], torch.randn(2, 7))
    for flags, message in (
        (["--translate-to", source], "--translate-to: "),
        (["--translate-to", wide], "vectors of 7 numbers, the checkpoint of 5"),
        (["--translate-to", target], "--dictionary: 0 pairs of words spelled alike in"),
        (["--translate-to", target, "--dictionary", few], "to fit on, have vectors (at least 5 are needed)"),
        (["--translate-to", target, "--dictionary", torn], "--dictionary: line 2 of"),
        (["--translate-to", target, "--test-dictionary", few], "--dictionary: missing"),
        (["--translate-to", target, "--similarity", few], "--translate-to: is a result of its own"),
        (["--dictionary", few, "--similarity", few], "--dictionary: belongs to --translate-to"),
    ):
        ran = sslkit("word-vectors", "--ckpt", source, *flags)
        assert ran.code == 2 and message in ran.err, (flags, ran.err)
