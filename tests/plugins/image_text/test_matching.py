"""albef and vilt: which pairs do not match, hidden words, losses against loops, re-ranked retrieval, and labeled pairs."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslkit import DataInfo, SslkitError, read_model
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.image_text.matcher import JointMatcher, read_pair_encoder
from sslkit.image_text.source import ImageTextSource
from sslkit.image_text.task import draw_partners, mask_captions
from sslkit.tasks.load import load_task
from sslkit.text import tokenizer as tokens
from sslkit.text.masking import starts_word
from sslkit.text.tokenizer import Tokenizer
from tests.canvases import canvases

Run = Callable[..., Any]
TOKENIZER = Tokenizer.learn("wordpiece", lambda: ["a red square", "a blue triangle here"] * 3, 40)
END, PAD, MASK = (TOKENIZER.special(name) for name in (tokens.END, tokens.PAD, tokens.MASK))
WORDS = TOKENIZER.first_special


def build(name: str, text_checkpoint: str | None = None, **options: Any) -> Any:
    details = {"tokenizer": TOKENIZER.to_bytes(), "length": 8, "text_checkpoint": text_checkpoint}
    task_class, data = load_task(name), DataInfo(8, 16, 3, "image_text", details, batch_size=6)
    sizes = {"text_width": 16, "text_depth": 1, "fusion_depth": 1, "width": 8, "queue": 8} if name == "albef" else {}
    parsed = task_class.Options(**{**sizes, **options})
    torch.manual_seed(0)
    recipe = recipe_for("vit_micro", 16, 3, {"width": "16", "depth": "1"})
    return task_class(parsed, task_class.build_encoder(parsed, RecipeBuilder(recipe, data)), data)


def pairs(task: Any, count: int = 6) -> Any:
    rows = torch.randint(WORDS, (count, 8), generator=torch.Generator().manual_seed(0))
    rows[:, 5], rows[:, 6:] = END, PAD
    rows[3] = rows[0]  # one caption of two images
    image_id = torch.tensor([0, 1, 2, 3, 1, *range(5, 20)])[:count]  # rows 1 and 4 share an image
    image = torch.rand(count, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    return task.transform(canvases(image, tokens=rows, image_id=image_id))


def identity(*captions: int) -> dict[str, Tensor]:
    return {"caption": torch.tensor(captions), "image_id": torch.arange(len(captions))}


def test_partners_do_not_match() -> None:
    batch = {"caption": torch.tensor([5, 6, 5, 7]), "image_id": torch.tensor([0, 1, 2, 1])}
    partners: list[set[int]] = [set(), set(), set(), set()]
    for _ in range(60):
        for row, partner in enumerate(draw_partners(batch).tolist()):
            partners[row].add(partner)
    assert partners == [{1, 3}, {0, 2}, {1, 3}, {0, 2}]
    assert draw_partners(identity(5, 5, 5)).tolist() == [0, 1, 2]  # all match: each stays alone
    likely = torch.tensor([[100.0, 0.0, -100.0], [0.0, 100.0, 0.0], [-9.0, -200.0, 100.0]])  # a good model's, by 1/0.01
    likely[1, 2] = 60.0
    assert draw_partners(identity(1, 2, 3), likely).tolist() == [1, 2, 0]


def test_of_a_word_that_is_too_long_a_token_is_hidden() -> None:
    rows, begins = torch.zeros(1, 30, dtype=torch.int64), torch.zeros(80, dtype=torch.bool)
    rows[0, -1] = END
    masked = mask_captions(rows, begins, 0.05, "word", WORDS)
    assert masked["weight"].sum() == 1 and masked["places"].shape[1] < 29


def test_without_another_image_there_is_nothing_to_tell() -> None:
    task = build("vilt")
    rows = torch.zeros(4, 8, dtype=torch.int64)
    image = torch.rand(4, 3, 20, 20)
    batch = task.transform(canvases(image, tokens=rows, image_id=torch.arange(4)))  # all captions are equal
    assert batch["match"].tolist() == [0, 0, 0, 0] or batch["has_other"].sum() == 0
    output = task.predict(batch)
    assert task.loss(output, batch)["match"] == 0 and task.counts(batch)["match"] == 0
    assert task.metrics(output, batch)["match_accuracy"].tolist() == [0.5] * 4


def test_captions_alone_do_not_tell_what_matches() -> None:
    """Count, for captions of which one is frequent, how often the best guess by the caption is right."""
    task, right, count = build("vilt"), {}, 0
    rows = torch.zeros(40, 8, dtype=torch.int64)
    rows[32:, 0] = torch.arange(1, 9)  # four fifths have the same caption
    for seed in range(30):
        torch.manual_seed(seed)
        batch = task.transform(canvases(torch.rand(40, 3, 20, 20), tokens=rows, image_id=torch.arange(40)))
        for caption, match, real in zip(
            batch["caption"][:, 0].tolist(), batch["match"].tolist(), batch["has_other"], strict=True
        ):
            if real:
                right.setdefault(caption, [0, 0])[match] += 1
                count += 1
    assert sum(max(answers) for answers in right.values()) / count < 0.56


def test_whole_words_are_hidden_and_one_at_least() -> None:
    rows = torch.full((2, 24), PAD)
    text = [TOKENIZER.encode([caption])[0] for caption in ("a red square", "a blue triangle here")]
    for row, ids in enumerate(text):
        rows[row, : len(ids)], rows[row, len(ids)] = torch.from_numpy(ids).long(), END
    begins = starts_word(TOKENIZER)
    for seed in range(30):
        torch.manual_seed(seed)
        masked = mask_captions(rows, begins, 0.15, "word", WORDS)
        for row, ids in enumerate(text):
            word = begins[rows[row, : len(ids)]].long().cumsum(0)
            places = masked["places"][row][masked["weight"][row] > 0]
            (number,) = set(word[places].tolist())  # all of one word
            assert sorted(places.tolist()) == (word == number).nonzero()[:, 0].tolist()
            assert torch.equal(rows[row, places], masked["target"][row][masked["weight"][row] > 0])
            untouched = torch.ones(24, dtype=torch.bool).scatter(0, places, False)
            assert torch.equal(masked["tokens"][row][untouched], rows[row][untouched])


def test_vilt_against_a_loop() -> None:
    task = build("vilt").eval()
    batch = pairs(task)
    output = task.predict(batch)
    losses, counts = task.loss(output, batch), task.counts(batch)
    match, hidden, number = 0.0, 0.0, 0
    for row in range(6):
        match -= float(output["match"][row].detach().log_softmax(0)[batch["match"][row]] * batch["has_other"][row])
        for place in range(batch["target"].shape[1]):
            if batch["weight"][row, place]:
                hidden -= float(output["masked"][row, place].detach().log_softmax(0)[batch["target"][row, place]])
                number += 1
    assert losses["match"].item() == pytest.approx(match, rel=1e-5) and counts["match"] == batch["has_other"].sum()
    assert losses["masked_nats"].item() == pytest.approx(hidden, rel=1e-5) and int(counts["masked_nats"]) == number >= 6
    assert set(batch["match"].tolist()) == {0, 1}
    assert set(task.metrics(output, batch)) == {"match_accuracy", "accuracy", "image_gain"}


def test_words_and_patches_see_each_other_and_no_padding() -> None:
    task = build("vilt").eval()
    batch = pairs(task)
    places = task.head.encode_image(task.encoder, batch["image"])
    read = task.head.encode_pair(task.encoder, None, places, batch["caption"])
    assert not torch.allclose(read, task.head.encode_pair(task.encoder, None, places.roll(1, 0), batch["caption"]))
    shorter = task.head.encode_pair(task.encoder, None, places, batch["caption"][:, :6])  # all but padding
    assert torch.allclose(read[:, :6], shorter, atol=1e-5)
    alone = task.encoder.tokens(batch["image"])
    assert torch.equal(alone, task.encoder.run_blocks(task.encoder.embed(batch["image"])))


def test_albef_against_a_loop() -> None:
    task = build("albef").eval()
    task.clock.step, task.clock.steps = 100, 200  # soft targets have their full weight
    task.after_step({name: pairs(task)[name] for name in ("image_key", "text_key", "caption", "image_id")})
    batch = pairs(task)
    output = task.predict(batch)
    losses, counts = task.loss(output, batch), task.counts(batch)
    scale, share = task.log_scale.exp().item(), 0.4
    contrast = 0.0
    for query, name, other, queue in (
        (output["image"], "image", "text", task.text_queue.rows),
        (output["text"], "text", "image", task.image_queue.rows),
    ):
        for row in range(6):
            keys = [batch[f"{other}_key"][row]]
            for place in range(8):
                same = task.queue_caption[place] == batch["caption"][row] or task.queue_image[place] == batch["image_id"][row]
                keys += [] if same else [queue[place]]
            pool = torch.stack(keys)
            log_p = (scale * pool @ query[row].detach()).log_softmax(0)
            soft = (scale * pool @ batch[f"{name}_key"][row]).softmax(0)
            contrast -= float((1 - share) * log_p[0] + share * (soft * log_p).sum()) / 12
    match, number = 0.0, 0.0
    for row in range(6):
        for column, real in enumerate([1.0, *batch["has_other"][row].tolist()]):
            match -= real * float(output["match"][row, column].detach().log_softmax(0)[int(column == 0)])
            number += real
    hidden = 0.0
    text, matcher = task.text_teacher.parts[0], task.matcher_teacher.parts[0]
    for row, place in (batch["weight"] > 0).nonzero().tolist():
        log_p = output["hidden"][row, place].detach().log_softmax(0)
        soft = matcher.lm(batch["soft"][row, place], text.token.weight).detach().softmax(0)
        hidden -= float((1 - share) * log_p[batch["target"][row, place]] + share * (soft * log_p).sum())
    assert losses["contrast"].item() == pytest.approx(contrast, rel=1e-4)
    assert losses["match"].item() == pytest.approx(match, rel=1e-4) and counts["match"].item() == number
    assert losses["masked_nats"].item() == pytest.approx(hidden, rel=1e-4)
    assert 0 < counts["masked_nats"].item() == batch["weight"].sum().item()


def test_hard_pairs_are_similar_ones() -> None:
    task = build("albef").eval()
    torch.manual_seed(0)
    batches = [pairs(task) for _ in range(20)]
    cosine = batches[0]["image_key"] @ batches[0]["text_key"].T

    def similarity(batch: Any) -> float:
        rows = [batch["tokens"].tolist().index(row) for row in batch["other_tokens"].tolist()]
        assert all(batch["caption"][place] != batch["caption"][row] for row, place in enumerate(rows))
        return float(cosine[torch.arange(6), rows].mean())

    task.options = task.options.model_copy(update={"negatives": "random"})
    torch.manual_seed(0)
    uniform = [pairs(task) for _ in range(20)]
    assert np.mean([similarity(batch) for batch in batches]) > np.mean([similarity(batch) for batch in uniform])


def test_what_is_refused() -> None:
    with pytest.raises(SslkitError, match="--init-part: vilt has no text tower"):
        build("vilt", text_checkpoint="text.safetensors")
    with pytest.raises(SslkitError, match="--queue: 4 is smaller than the batch size of 6"):
        build("albef", queue=4)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(ImageTextSource.example(tmp_path_factory.mktemp("pairs"), 200))


@pytest.fixture(scope="module")
def labeled(table: Path) -> Path:
    """Write as many true as false pairs, whose captions name another color or place."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    captions = sorted({row["caption"] for row in rows})
    file = table.with_name("labeled.csv")
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "caption", "label"])
        for number, row in enumerate(rows):
            others = [caption for caption in captions if caption != row["caption"]]
            writer.writerow([row["path"], row["caption"] if number % 2 else others[number % len(others)], bool(number % 2)])
    return file


def train(task: str, table: Path, run: Path, steps: int, **options: Any) -> Path:
    from sslkit.engine.pretrain import pretrain
    from sslkit.specs.train import PretrainSpec

    training = {"batch_size": 32, "steps": steps, "lr": 3e-3, "workers": 0}
    encoder = {"encoder": "vit_micro", "encoder_option": {"width": "32", "depth": "2", "patch": "8"}}
    pretrain(
        PretrainSpec(task=task, data=str(table), out=str(run), options={"crop_scale": 1.0, **options}, **training, **encoder)
    )
    return run / "model.safetensors"


@pytest.fixture(scope="module")
def albef(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"text_width": 32, "text_depth": 1, "fusion_depth": 1, "width": 16, "queue": 64, "mask_ratio": 0.4}
    return train("albef", table, tmp_path_factory.mktemp("albef") / "run", 60, **sizes)


@pytest.fixture(scope="module")
def vilt(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("vilt", table, tmp_path_factory.mktemp("vilt") / "run", 200, mask_ratio=0.4)


def test_pairs_are_told_apart_by_their_images(vilt: Path, labeled: Path, sslkit: Run) -> None:
    words = ["pairs", "--ckpt", vilt, "--data", labeled, "--label", "label", "--epochs", 15, "--lr", 1e-3]
    result = sslkit(*words, "--json").json
    rows = {row["model"]: row for row in result["rows"]}
    assert list(rows) == ["checkpoint", "other images", "random weights", "most frequent class"]
    accuracy = {name: row["metrics"][0]["value"] for name, row in rows.items()}
    assert accuracy["checkpoint"] > 0.75 > accuracy["most frequent class"] + 0.1
    assert rows["other images"]["comparisons"]["checkpoint"]["high"] < 0
    assert rows["checkpoint"]["fits"][0]["n_train"] == 160 and rows["checkpoint"]["metrics"][0]["n"] == 40
    assert sslkit(*words, "--json").json["rows"] == result["rows"]


def test_candidates_are_ordered_by_how_well_they_match(albef: Path, table: Path, sslkit: Run) -> None:
    result = sslkit("zeroshot", "--ckpt", albef, "--data", table, "--rerank", 1000, "--json").json
    rows = {(row["model"], row["test"].rpartition(", ")[2]): row for row in result["rows"]}
    assert result["protocol"] is None and result["settings"]["rerank"] == 1000
    assert set(rows["reranked", "image to caption"]["comparisons"]) == {"checkpoint"}
    with table.open(newline="") as stream:
        known = list(csv.DictReader(stream))
    captions = sorted({row["caption"] for row in known})
    reader = read_pair_encoder(read_model(albef), None)
    framed = torch.from_numpy(reader.framing().pad(reader.tokenizer().encode(captions), reader.length)).long()
    hits = 0
    with torch.no_grad():
        for row in known:
            pixels = np.asarray(Image.open(table.parent / row["path"]).convert("RGB"), np.float32) / 255
            place = reader.encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None])
            scores = reader.match_score(place.expand(len(captions), -1, -1), framed)
            hits += captions[int(scores.argmax())] == row["caption"]
    again = rows["reranked", "image to caption"]["metrics"][0]["value"]
    assert again == pytest.approx(hits / len(known), abs=0.011)  # ties apart
    plain = sslkit("zeroshot", "--ckpt", albef, "--data", table, "--json").json
    assert plain["protocol"] == "zeroshot/recall-v1"
    assert plain["rows"][0]["metrics"] == rows["checkpoint", "image to caption"]["metrics"]


def test_a_reader_is_what_was_trained(vilt: Path, albef: Path) -> None:
    for file in (vilt, albef):
        reader = read_pair_encoder(read_model(file), None)
        random = read_pair_encoder(read_model(file), None, seed=0)
        assert reader.tokenizer().to_bytes() == random.tokenizer().to_bytes()
        image, text = (
            torch.rand(2, 3, 32, 32),
            torch.from_numpy(reader.framing().pad(reader.tokenizer().encode(["a", "b"]), reader.length)),
        )
        assert reader.match_score(reader.encode_image(image), text.long()).shape == (2,)
        changed = [name for name, value in reader.named_parameters() if not torch.equal(value, random.get_parameter(name))]
        assert len(changed) > 10
    assert isinstance(read_pair_encoder(read_model(vilt), None).matcher, JointMatcher)


def test_a_text_tower_is_trained_on_pairs_too(albef: Path, labeled: Path, sslkit: Run) -> None:
    words = [
        "pairs",
        "--ckpt",
        albef,
        "--data",
        labeled,
        "--test",
        labeled,
        "--label",
        "label",
        "--epochs",
        1,
        "--no-baselines",
    ]
    result = sslkit(*words, "--json").json
    assert [row["model"] for row in result["rows"]] == ["checkpoint", "other images"]
    assert result["rows"][0]["metrics"][0]["n"] == 200 and result["protocol"] is None


def test_what_commands_refuse(vilt: Path, trained: Path, table: Path, labeled: Path, sslkit: Run) -> None:
    ran = sslkit("pairs", "--ckpt", trained, "--data", labeled, "--label", "label")
    assert ran.code == 2 and "does not read images and captions together: it was trained by rotation" in ran.err
    ran = sslkit("pairs", "--ckpt", vilt, "--data", table)
    assert ran.code == 2 and "has no labels" in ran.err
    ran = sslkit("zeroshot", "--ckpt", vilt, "--data", table)
    assert ran.code == 2 and "zeroshot needs a checkpoint of clip or albef" in ran.err
    ran = sslkit("pairs", "--ckpt", vilt, "--data", labeled, "--label", "label", "--lr", "1e30")
    assert ran.code == 2 and "--lr" in ran.err
