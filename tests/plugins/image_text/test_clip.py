"""clip: its loss against a loop, its towers, and zero-shot classification and retrieval with them."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sslkit import DataInfo, SslkitError, load
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.image_text.retrieve import chance
from sslkit.image_text.source import ImageTextSource
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.load import load_task
from sslkit.text import tokenizer as tokens
from sslkit.text.tokenizer import Tokenizer
from tests.canvases import canvases

Run = Callable[..., Any]
TOKENIZER = Tokenizer.learn("wordpiece", lambda: ["a red square", "a blue square"] * 3, 40)
END, PAD = TOKENIZER.special(tokens.END), TOKENIZER.special(tokens.PAD)


def clip(**options: Any) -> Any:
    details = {"tokenizer": TOKENIZER.to_bytes(), "length": 8, "text_checkpoint": None}
    task_class, data = load_task("clip"), DataInfo(8, 16, 3, "image_text", details)
    parsed = task_class.Options(width=6, text_width=8, **options)
    torch.manual_seed(0)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


def pairs(task: Any, count: int = 5) -> Any:
    rows = torch.randint(20, (count, 8), generator=torch.Generator().manual_seed(0))
    rows[:, 5], rows[:, 6:] = END, PAD
    rows[3] = rows[0]  # one caption of two images
    image_id = torch.tensor([0, 1, 2, 3, 1, *range(5, 20)])[:count]  # rows 1 and 4 share an image
    image = torch.rand(count, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    return task.transform(canvases(image, tokens=rows, image_id=image_id))


def is_negative(batch: Any, i: int, j: int) -> bool:
    return not torch.equal(batch["tokens"][i], batch["tokens"][j]) and bool(batch["image_id"][i] != batch["image_id"][j])


@pytest.mark.parametrize("tower", ["cbow", "transformer"])
def test_loss_against_a_loop(tower: str) -> None:
    task = clip(text_tower=tower)
    batch = pairs(task)
    output = task.predict(batch)
    assert torch.allclose(output["image"].norm(dim=1), torch.ones(5)) and torch.allclose(
        output["text"].norm(dim=1), torch.ones(5)
    )
    scores = (output["image"] @ output["text"].T / 0.07).detach()
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j == i or is_negative(batch, i, j)]
        total += float(torch.logsumexp(scores[i, others], 0) - scores[i, i]) / 10
        total += float(torch.logsumexp(scores[others, i], 0) - scores[i, i]) / 10
    assert task.loss(output, batch).item() == pytest.approx(total, rel=1e-4)
    assert task.metrics(output, batch)["temperature"][0].item() == pytest.approx(0.07)


def test_weights_and_smoothing_against_a_loop() -> None:
    task = clip(label_smoothing=0.1, image_weight=0.75, fixed_temperature=True, temperature=0.1)
    batch = pairs(task)
    output = task.predict(batch)
    scores = (output["image"] @ output["text"].T / 0.1).detach()
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j == i or is_negative(batch, i, j)]
        for direction, weight in ((scores[i, others], 0.75), (scores[others, i], 0.25)):
            log = direction.log_softmax(0)
            total -= weight * float(0.9 * log[others.index(i)] + 0.1 * log.mean()) / 5
    assert task.loss(output, batch).item() == pytest.approx(total, rel=1e-4)
    assert not task.log_scale.requires_grad


def test_the_sigmoid_judges_every_pair() -> None:
    task = clip(loss="sigmoid")
    batch = pairs(task)
    output = task.predict(batch)
    cosine, total = (output["image"] @ output["text"].T).detach(), 0.0
    for i in range(5):
        for j in range(5):
            score = 10 * float(cosine[i, j]) - 10
            if i == j:
                total += math.log1p(math.exp(-score)) / 5
            elif is_negative(batch, i, j):
                total += math.log1p(math.exp(score)) / 5
    loss = task.loss(output, batch)
    loss.backward()
    assert loss.item() == pytest.approx(total, rel=1e-4) and float(task.bias.grad) != 0
    for wrong in ({"loss": "sigmoid", "label_smoothing": 0.1}, {"bias": -5.0}):
        with pytest.raises(SslkitError, match="has no meaning for a"):
            clip(**wrong)


def test_a_frozen_image_tower_stays_as_it_is() -> None:
    task = clip(freeze_image=True).train()
    before = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    output = task.predict(batch := pairs(task))
    task.loss(output, batch).backward()
    assert all(torch.equal(value, before[name]) for name, value in task.encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in task.encoder.parameters()) and task.head.weight.grad is not None


def test_rows_with_the_same_image_are_known(table: Path) -> None:
    lines = table.read_text().splitlines()
    doubled = table.with_name("doubled.csv")
    doubled.write_text("\n".join([lines[0], lines[1], lines[2], lines[1].replace("square", "box")]) + "\n")
    source = ImageTextSource.open(PretrainSpec(task="clip", data=str(doubled), workers=0))
    image_id = source.read(np.arange(3))[0]["image_id"]
    assert image_id[0] == image_id[2] != image_id[1]


def test_the_scale_is_clamped_at_a_hundred() -> None:
    task = clip()
    with torch.no_grad():
        task.log_scale.fill_(math.log(1000))
    batch = pairs(task)
    output = task.predict(batch)
    assert task.metrics(output, batch)["temperature"][0].item() == pytest.approx(0.01)
    task.loss(output, batch).backward()
    assert float(task.log_scale.grad.abs()) > 0  # it can still return


def test_transformers_read_in_order_and_bags_do_not() -> None:
    rows = torch.tensor([[5, 6, 7, END, PAD, PAD], [7, 6, 5, END, PAD, PAD]])
    bag, transformer = clip(text_tower="cbow").text.eval(), clip().text.eval()
    assert torch.allclose(*bag(rows)) and not torch.allclose(*transformer(rows))
    assert torch.allclose(transformer(rows), transformer.states(rows[:, :4])[:, 3], atol=1e-6)  # at the end of the caption
    assert torch.allclose(transformer(rows), transformer(rows[:, :4]), atol=1e-6)


def test_chance_is_counted() -> None:
    assert chance(10, 1, 1) == pytest.approx(0.1) and chance(10, 2, 1) == pytest.approx(0.2)
    assert chance(10, 2, 5) == pytest.approx(1 - (8 / 10) * (7 / 9) * (6 / 8) * (5 / 7) * (4 / 6)) and chance(4, 1, 10) == 1


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = Path(ImageTextSource.example(tmp_path_factory.mktemp("pairs"), 128))
    lines = file.read_text().splitlines()
    labeled = [f"{lines[0]},color", *(f"{line},{line.split()[1]}" for line in lines[1:])]
    file.write_text("\n".join(labeled) + "\n")
    return file


@pytest.fixture(scope="module")
def checkpoint(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sslkit.engine.pretrain import pretrain
    from sslkit.specs.train import PretrainSpec

    run = tmp_path_factory.mktemp("clip") / "run"
    options = {"width": 32, "text_width": 32}
    training = {"batch_size": 32, "steps": 60, "lr": 3e-3, "workers": 0}
    encoder = {"encoder": "resnet_micro", "encoder_option": {"width": "8"}}
    pretrain(PretrainSpec(task="clip", data=str(table), out=str(run), options=options, **training, **encoder))
    return run / "model.safetensors"


def test_classes_are_classified_by_their_names(checkpoint: Path, table: Path, sslkit: Run, tmp_path: Path) -> None:
    command = ["zeroshot", "--ckpt", checkpoint, "--data", table, "--label", "color"]
    templates = ["--templates", "a {} square, top left", "--templates", "a {} square, bottom right"]
    result = sslkit(*command, *templates, "--json").json
    assert [row["model"] for row in result["rows"]] == ["checkpoint", "random weights"]
    assert result["rows"][0]["metrics"][0]["value"] > 0.6 and result["protocol"] is None
    assert sslkit(*command, "--json", "--no-baselines").json["protocol"] == "zeroshot/names-v1"
    names = tmp_path / "names.txt"
    for content in ("red,red\ngreen,green\nblue,blue\nyellow,yellow\npink,pink\n", "red\nyellow\nblue\ngreen\n"):
        names.write_text(content)
        again = sslkit(*command, *templates, "--labels", names, "--json").json
        assert again["rows"][0]["metrics"] == result["rows"][0]["metrics"]
    names.write_text("azure\nleafy\ncrimson\ngolden\n")
    ran = sslkit(*command, "--labels", names)
    assert ran.code == 0 and "blue is azure, green is leafy, red is crimson, yellow is golden" in ran.err
    assert "zeroshot" in (checkpoint.parent / "results.jsonl").read_text()


def test_a_text_finds_its_images(checkpoint: Path, table: Path, sslkit: Run, tmp_path: Path) -> None:
    rows = list(csv.DictReader(table.read_text().splitlines()))
    caption, picture = rows[0]["caption"], table.parent / rows[0]["path"]
    words = ["--ckpt", checkpoint, "--data", table, "--k", 5, "--out", tmp_path / "search.png", "--json"]
    result = sslkit("search", caption, picture, *words).json["neighbors"]
    captions = {row["path"]: row["caption"] for row in rows}
    assert sum(captions[name] == caption for name, _ in result[caption]) >= 3
    assert next(iter(result)) == caption and len(result) == 2
    near = sslkit("search", caption, *words, "--approximate").json["neighbors"][caption]
    assert sum(captions[name] == caption for name, _ in near) >= 3
    assert sslkit("search", "a long text " * 40, *words).code == 0
    ran = sslkit("search", tmp_path / "missing.png", *words[:-1])
    assert ran.code == 2 and "missing.png is not a file" in ran.err


def test_captions_and_images_retrieve_each_other(checkpoint: Path, table: Path, sslkit: Run) -> None:
    result = sslkit("zeroshot", "--ckpt", checkpoint, "--data", table, "--json").json
    rows = result["rows"]
    assert [(row["model"], row["test"].rpartition(", ")[2]) for row in rows] == [
        ("checkpoint", "image to caption"), ("chance", "image to caption"),
        ("checkpoint", "caption to image"), ("chance", "caption to image"),
    ]  # fmt: skip
    for row, by_chance in zip(rows[::2], rows[1::2], strict=True):
        recalls = [metric["value"] for metric in row["metrics"]]
        assert recalls == sorted(recalls) and recalls[0] > 2 * by_chance["metrics"][0]["value"]
    assert rows[0]["metrics"][0]["n"] == 128 and rows[2]["metrics"][0]["n"] == 16
    assert all(test["seen_in_pretraining"] for test in result["data"]["tests"])
    assert "recall at 1" in sslkit("zeroshot", "--ckpt", checkpoint, "--data", table).out


def test_its_images_are_images(checkpoint: Path, table: Path, sslkit: Run, tmp_path: Path) -> None:
    result = sslkit("knn", "--ckpt", checkpoint, "--label", "color", "--json").json  # the run's own data
    assert result["rows"][0]["metrics"][0]["value"] > 0.6 and result["data"]["tests"][0]["seen_in_pretraining"]
    assert sslkit("embed", "--ckpt", checkpoint, "--data", table, "--out", tmp_path / "f.npz").code == 0
    assert sslkit("preview", "clip", "--ckpt", checkpoint, "--out", tmp_path / "p.png").code == 0
    assert sslkit("report", checkpoint.parent, "--out", tmp_path / "report.html").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--templates", "a picture"], "should hold {} once"),
        (["--label", "color", "--labels", "{missing}"], "cannot read"),
        (["--label", "color", "--labels", "{names}"], "has 2 lines for 4 classes"),
        (["--label", "color", "--labels", "{pairs}"], "has no line for class blue"),
        (["--label", "kind"], "has no column kind"),
    ],
)
def test_bad_questions_are_one_line(
    arguments: list[str], message: str, checkpoint: Path, table: Path, sslkit: Run, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "pairs.txt").write_text("red,red\ngreen,green\n")
    places = {"missing": tmp_path / "no.txt", "names": tmp_path / "names.txt", "pairs": tmp_path / "pairs.txt"}
    words = [argument.format(**places) if argument.startswith("{") and argument != "{}" else argument for argument in arguments]
    ran = sslkit("zeroshot", "--ckpt", checkpoint, "--data", table, *words)
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.code == 2 and len(errors) == 1 and message in errors[0], ran.err


def test_other_checkpoints_know_no_captions(trained: Path, table: Path, sslkit: Run) -> None:
    ran = sslkit("zeroshot", "--ckpt", trained, "--data", table)
    assert ran.code == 2 and "has no text encoder (trained with rotation)" in ran.err


def test_the_text_tower_reads_texts(checkpoint: Path, table: Path, sslkit: Run, tmp_path: Path) -> None:
    ran = sslkit("knn", "--ckpt", checkpoint, "--part", "text", "--data", table)
    assert ran.code == 2 and "has no column `text`" in ran.err
    lines = [f"a {color} square {place},{color}" for color in ("red", "blue", "green") for place in ("left", "right", "up")]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(lines * 4) + "\n")
    labeled = ["--part", "text", "--data", tmp_path / "texts.csv", "--label", "label"]
    result = sslkit("knn", "--ckpt", checkpoint, *labeled, "--json").json
    assert result["rows"][0]["metrics"][0]["value"] > 0.9
    assert sslkit("embed", "--ckpt", checkpoint, *labeled, "--out", tmp_path / "features.npz").code == 0


def test_text_towers_start_from_a_checkpoint(table: Path, sslkit: Run, tmp_path: Path) -> None:
    text = tmp_path / "captions.txt"
    text.write_text("\n".join(line.split(",")[1] for line in table.read_text().splitlines()[1:]))
    training = ["--context", 16, "--batch-size", 16, "--health-every", 0]
    encoder = ["--encoder-option", "width=16", "--encoder-option", "depth=1"]
    for task in ("bert", "rnn_lm"):
        flags = ["--data", text, *training, *(encoder if task == "bert" else []), "--steps", 3, "--out", tmp_path / task]
        assert sslkit("pretrain", task, *flags).code == 0
        file = tmp_path / task / "model.safetensors"
        images = [
            "--data",
            table,
            "--encoder",
            "resnet_micro",
            "--encoder-option",
            "width=8",
            "--batch-size",
            32,
            "--workers",
            0,
        ]
        out = tmp_path / f"{task}-clip"
        start = ["pretrain", "clip", *images, "--init-part", f"text={file}"]
        ran = sslkit(*start, "--lr", 1e-12, "--steps", 2, "--out", out)
        assert ran.code == 0, ran.err
        trained, begun = load(out / "model.safetensors", part="text"), load(file)
        assert type(trained) is type(begun)
        for name, weight in begun.state_dict().items():
            assert torch.allclose(trained.state_dict()[name], weight, atol=1e-6), name
        assert sslkit("zeroshot", "--ckpt", out / "model.safetensors", "--data", table).code == 0
        assert sslkit("pretrain", "clip", "--resume", "--out", out).code == 0
    for flags, message in (
        (["--text-depth", 3], "--text-depth: the text tower is that of --init-part"),
        (["--unit", "byte"], "--unit: byte, and captions are split by the tokenizer of --init-part"),
        (["--init-part", f"image={file}"], "names no part that a run on image_text data can start (use text=FILE)"),
        (["--init-part", f"text={out / 'model.safetensors'}"], "--init-part: "),
        (["--init-part", f"text={tmp_path / 'no.safetensors'}"], "--init-part: "),
    ):
        ran = sslkit(*start, *flags, "--steps", 1, "--out", tmp_path / "refused")
        assert ran.code == 2 and message in ran.err and not (tmp_path / "refused").exists(), ran.err


@pytest.mark.parametrize("change", ["spelling", "recipe", "length", "large", "projector", "samples"])
def test_altered_towers_are_refused(change: str, checkpoint: Path, table: Path, sslkit: Run, tmp_path: Path) -> None:
    with safe_open(checkpoint, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["sslkit"])
    if change == "spelling":
        tensors["text.spelling"][:4] = torch.tensor([255, 0, 32, 10], dtype=torch.uint8)
    elif change == "samples":
        metadata["samples"] = "audio"
    elif change in ("length", "large"):
        metadata["parts"]["text"]["recipe"]["size"] = "abc" if change == "length" else 10**11
    elif change == "recipe":
        metadata["parts"]["text"]["recipe"]["name"] = "resnet_micro"
    else:
        tensors["projector.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "altered.safetensors", {"sslkit": json.dumps(metadata)})
    command = ["knn", "--label", "color"] if change == "samples" else ["zeroshot"]
    ran = sslkit(*command, "--ckpt", tmp_path / "altered.safetensors", "--data", table)
    assert ran.code == 2 and len(ran.err.splitlines()) <= 3 and "error: " in ran.err and "Traceback" not in ran.err
