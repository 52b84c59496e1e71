"""virtex: losses against a loop, what decoders see, captions by greedy and beam search, and what the images add."""

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslkit import DataInfo, SslkitError, read_model
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.image_text.caption import other_images
from sslkit.image_text.captioner import Captioner, read_captioner
from sslkit.image_text.source import ImageTextSource
from sslkit.tasks.load import load_task
from sslkit.text import tokenizer as tokens
from sslkit.text.tokenizer import Tokenizer
from tests.canvases import canvases

Run = Callable[..., Any]
TOKENIZER = Tokenizer.learn("word", lambda: ["a red square", "a blue square here"] * 3)
END, PAD = TOKENIZER.special(tokens.END), TOKENIZER.special(tokens.PAD)
WORDS = TOKENIZER.first_special


def virtex(text_checkpoint: str | None = None, **options: Any) -> Any:
    details = {"tokenizer": TOKENIZER.to_bytes(), "length": 6, "text_checkpoint": text_checkpoint}
    task_class, data = load_task("virtex"), DataInfo(8, 16, 3, "image_text", details)
    parsed = task_class.Options(**{"width": 16, "dropout": 0.0, **options})
    torch.manual_seed(0)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


def captions(*lengths: int) -> Tensor:
    rows = torch.full((len(lengths), 6), PAD)
    for row, length in enumerate(lengths):
        rows[row, :length] = torch.randint(WORDS, (length,), generator=torch.Generator().manual_seed(row))
        rows[row, length] = END
    return rows


def batch(task: Any, *lengths: int) -> Any:
    image = torch.rand(len(lengths), 3, 20, 20, generator=torch.Generator().manual_seed(1))
    return task.transform(canvases(image, tokens=captions(*lengths)))


def test_losses_against_a_loop_over_tokens() -> None:
    task = virtex().eval()
    prepared = batch(task, 3, 1, 5)
    output = task.predict(prepared)
    losses, counts = task.loss(output, prepared), task.counts(prepared)
    for direction in ("forwards", "backwards"):
        total, count = 0.0, 0
        for row in range(3):
            words = [token for token in prepared["tokens"][row].tolist() if token < WORDS]
            words = words if direction == "forwards" else words[::-1]
            for place, token in enumerate([*words, END]):
                total -= float(output[direction][row, place].detach().log_softmax(0)[token])
                count += 1
        assert losses[direction].item() == pytest.approx(total, rel=1e-5) and int(counts[direction]) == count == 12
    gain = task.metrics(output, prepared)["image_gain"]
    assert gain.shape == (3,) and torch.isfinite(gain).all()


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
def test_tokens_are_predicted_from_those_before(direction: str) -> None:
    task = virtex().eval()
    prepared = batch(task, 5, 5)
    before = task.predict(prepared)[direction]
    changed = {**prepared, "tokens": prepared["tokens"].clone()}
    place = 2
    changed["tokens"][:, place] = (changed["tokens"][:, place] + 1) % WORDS
    after = task.predict(changed)[direction]
    read = place + 1 if direction == "forwards" else 5 - place  # the first prediction that has read the token
    assert torch.allclose(before[:, :read], after[:, :read], atol=1e-6)
    assert not torch.allclose(before[:, read], after[:, read], atol=1e-6)


def test_captions_are_reversed_by_their_length() -> None:
    captioner = virtex().head
    rows = torch.tensor([[1, 2, 3, END, PAD, PAD], [0, END, PAD, PAD, PAD, PAD]])
    assert captioner.reverse(rows).tolist() == [[3, 2, 1, END, PAD, PAD], [0, END, PAD, PAD, PAD, PAD]]
    assert torch.equal(captioner.reverse(captioner.reverse(rows)), rows)


def test_a_bag_has_a_share_for_each_token() -> None:
    task = virtex(target="bag")
    prepared = batch(task, 3, 1)
    words = set(captions(3)[0, :3].tolist())
    assert prepared["target"][0].nonzero()[:, 0].tolist() == sorted(words)
    assert prepared["target"][0].max() == pytest.approx(1 / len(words)) and "tokens" not in prepared
    output = task.predict(prepared)
    expected = -(prepared["target"] * output["bag"].log_softmax(dim=1)).sum(dim=1).mean()
    assert torch.allclose(task.loss(output, prepared), expected) and task.counts(prepared) == {}
    assert set(task.exports()) == {"encoder"} and task.metadata() == {}


def test_beam_search_finds_the_likeliest_caption() -> None:
    torch.manual_seed(0)
    captioner = Captioner(8, 3 + len(tokens.SPECIALS), 3, 16, 1, 2, False, 0.0, 0).eval()
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.normal_(std=0.5)
    memory, end = torch.randn(2, 4, 16), captioner.first_special + tokens.END
    pad = captioner.first_special + tokens.PAD
    endings = [[*words, end] for length in range(3) for words in itertools.product(range(3), repeat=length)]
    every = [*endings, *map(list, itertools.product(range(3), repeat=3))]
    rows = torch.tensor([row + [pad] * (3 - len(row)) for row in every])
    written = captioner.write(memory, beam=len(every))
    for image in range(2):
        repeated = memory[image : image + 1].expand(len(rows), -1, -1)
        logits = captioner(repeated, captioner.shift(rows))
        logits[..., captioner.first_special : end] = float("-inf")  # which no caption has
        nats = -logits.log_softmax(dim=2).gather(2, rows[..., None])[..., 0].masked_fill(rows == pad, 0)
        best = (nats.sum(dim=1) / (rows != pad).sum(dim=1)).argmin()
        assert written[image].tolist() == rows[best].tolist()
    greedy = captioner.write(memory)
    first = captioner(memory, captioner.shift(greedy))[:, 0]
    first[:, captioner.first_special : end] = float("-inf")
    assert torch.equal(greedy[:, 0], first.argmax(dim=1))


def test_another_image_is_another_one_even_with_several_captions() -> None:
    names = ["a"] * 5 + ["b"] * 2 + ["c"] * 5
    order = other_images(names)
    assert order is not None and sorted(order) == list(range(12))
    assert all(names[place] != name for place, name in zip(order, names, strict=True))
    assert other_images(["a"] * 3 + ["b"]) is None


def test_what_is_refused() -> None:
    with pytest.raises(SslkitError, match="--heads: 3 does not divide the width of 16"):
        virtex(heads=3)
    with pytest.raises(SslkitError, match="--init-part: virtex has no text tower"):
        virtex(text_checkpoint="text.safetensors")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(ImageTextSource.example(tmp_path_factory.mktemp("pairs"), 160))


@pytest.fixture(scope="module")
def checkpoint(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sslkit.engine.pretrain import pretrain
    from sslkit.specs.train import PretrainSpec

    run = tmp_path_factory.mktemp("virtex") / "run"
    training = {"batch_size": 32, "steps": 250, "lr": 3e-3, "workers": 0, "unit": "word"}
    encoder = {"encoder": "resnet_micro", "encoder_option": {"width": "8"}}
    options = {"width": 32, "crop_scale": 0.9}
    pretrain(PretrainSpec(task="virtex", data=str(table), out=str(run), options=options, **training, **encoder))
    return run / "model.safetensors"


def test_squares_are_described(checkpoint: Path, table: Path, sslkit: Run, tmp_path: Path) -> None:
    for beam in (1, 3):
        out = tmp_path / f"{beam}.csv"
        result = sslkit("caption", "--ckpt", checkpoint, "--data", table, "--beam", beam, "--out", out, "--json").json
        with out.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        right = np.mean([row["caption"] == row["known"].replace(",", "") for row in rows])
        checkpoint_row, other = result["score"]["rows"]
        assert right > 0.9 and checkpoint_row["metrics"][1]["value"] == pytest.approx(right)
        assert other["metrics"][0]["value"] > checkpoint_row["metrics"][0]["value"] + 0.3
        assert other["comparisons"]["checkpoint"]["low"] > 0 and other["metrics"][1]["value"] < 0.5
        assert result["different"] == len({row["caption"] for row in rows}) <= 20
    assert "nats per token" in sslkit("caption", "--ckpt", checkpoint, "--data", table, "--out", tmp_path / "again.csv").out


def test_many_images_are_captioned_in_parts(
    checkpoint: Path, table: Path, sslkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["caption", "--ckpt", checkpoint, "--data", table, "--out"]
    whole = sslkit(*words, tmp_path / "whole.csv", "--json").json["score"]["rows"]
    monkeypatch.setattr("sslkit.image_text.caption._PART", 48)  # four parts, of which the last is smaller
    parts = sslkit(*words, tmp_path / "parts.csv", "--json").json["score"]["rows"]
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "parts.csv").read_text()
    assert parts[0]["metrics"][0]["value"] == pytest.approx(whole[0]["metrics"][0]["value"], rel=1e-5)
    assert parts[1]["metrics"][0]["n"] == 160 and parts[1]["comparisons"]["checkpoint"]["low"] > 0


def test_images_without_captions_get_one(checkpoint: Path, table: Path, sslkit: Run, tmp_path: Path) -> None:
    result = sslkit("caption", "--ckpt", checkpoint, "--data", table.parent, "--out", tmp_path / "out.csv", "--json").json
    assert result["score"] is None and result["samples"] == 160
    assert (tmp_path / "out.csv").read_text().startswith("path,caption\n")


def test_checkpoints_that_write_nothing(checkpoint: Path, trained: Path, table: Path, sslkit: Run, tmp_path: Path) -> None:
    ran = sslkit("caption", "--ckpt", trained, "--data", table, "--out", tmp_path / "out.csv")
    assert ran.code == 2 and "writes no captions: it was trained by rotation" in ran.err
    assert not (tmp_path / "out.csv").exists()
    assert read_captioner(read_model(checkpoint)).tokenizer().unit == "word"
    assert sslkit("knn", "--ckpt", checkpoint, "--data", table, "--label", "caption", "--no-baselines").code == 0
