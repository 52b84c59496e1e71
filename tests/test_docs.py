"""README and docs are true: commands run, generated parts are up to date, examples work."""

import re
import runpy
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sslkit as public
from sslkit.registry import load_modality
from sslkit.testing import check_task

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MKDOCS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def blocks(text: str) -> list[list[str]]:
    """Return the lines of each sh block."""
    return [block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)]


def keep_few(images: Path) -> None:
    """Delete all but a few images of each class."""
    for part, number in (("train", 26), ("test", 4)):
        for folder in (images / part).iterdir():
            for file in sorted(folder.iterdir())[number:]:
                file.unlink()


def test_readme_commands(sslkit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The same commands, for less time.
    shorter = {"--minutes 1": "--steps 2", "--shares 0.05": "--shares 0.2 --epochs 1 --seeds 1"}
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    set_up, *rest = blocks(README)
    assert len(set_up) == 2  # .ci/run runs these
    for line in (line for block in rest for line in block):
        for flags, fewer in shorter.items():
            line = re.sub(rf"{flags}\b", fewer, line)
        words = shlex.split(line, comments=True)
        assert words[0] == "sslkit"
        ran = sslkit(*words[1:])
        assert ran.code == 0, f"{line}: {ran.err}"
        if words[1] == "demo":
            keep_few(tmp_path / "digits" / "images")


@pytest.mark.slow
def test_commands_of_the_page_on_evaluation(
    sslkit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sslkit("demo", "--images-only", "--out", "digits").code == 0
    keep_few(tmp_path / "digits" / "images")
    assert sslkit("pretrain", "rotation", "--data", "digits/images", "--steps", 20).code == 0
    for line in (line for block in blocks((ROOT / "docs" / "evaluating.md").read_text(encoding="utf-8")) for line in block):
        ran = sslkit(*shlex.split(line, comments=True)[1:])
        assert ran.code == 0, f"{line}: {ran.err}"


@pytest.mark.slow
def test_commands_of_the_page_on_classics(sslkit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sslkit("demo", "--images-only", "--out", "digits").code == 0
    keep_few(tmp_path / "digits" / "images")
    for line in (line for block in blocks((ROOT / "docs" / "classics.md").read_text(encoding="utf-8")) for line in block):
        ran = sslkit(*shlex.split(re.sub(r"--epochs \d+", "--epochs 2", line))[1:])
        assert ran.code == 0, f"{line}: {ran.err}"


@pytest.mark.slow
def test_commands_of_the_page_on_pixels(sslkit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "scenes" / kind).mkdir(parents=True)
    for number in range(20):
        pixels, mask = random.integers(0, 90, (48, 64, 3), dtype=np.uint8), np.zeros((48, 64), dtype=np.uint8)
        top, left = random.integers(0, 24), random.integers(0, 40)
        pixels[top : top + 24, left : left + 24] += 160
        mask[top : top + 24, left : left + 24] = 1
        Image.fromarray(pixels).save(tmp_path / "scenes" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "scenes" / "masks" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks((ROOT / "docs" / "dense.md").read_text())
    for command in commands:
        words = shlex.split(command.replace("--steps 20", "--steps 20 --batch-size 16"))[1:]
        assert sslkit(*words).code == 0, command
    assert (tmp_path / "scenes.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["anomaly.md", "choosing-samples.md", "robustness.md"])
def test_commands_of_pages_on_digits(
    page: str, sslkit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert page != "choosing-samples.md" or sslkit("demo", "--images-only", "--out", "digits").code == 0
    for line in (line for block in blocks((ROOT / "docs" / page).read_text()) for line in block):
        ran = sslkit(*shlex.split(line)[1:])
        assert ran.code == 0, f"{line}: {ran.err}"


@pytest.mark.slow
def test_commands_of_the_page_on_labels(sslkit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sslkit("demo", "--images-only", "--out", "digits").code == 0
    keep_few(tmp_path / "digits" / "images")
    for line in (line for block in blocks((ROOT / "docs" / "labels.md").read_text(encoding="utf-8")) for line in block):
        line = re.sub(r"--epochs \d+|--minutes \d+", "--epochs 1", line)
        line = line.replace("--steps 300", "--steps 3 --seeds 2").replace("--batch-size 32", "--batch-size 4")
        ran = sslkit(*shlex.split(line)[1:])
        assert ran.code == 0, f"{line}: {ran.err}"


def write_texts(folder: Path) -> None:
    """Write the files that the page on text names."""
    random = np.random.default_rng(0)
    nouns, adjectives = ("film", "story", "music", "ending"), ("good", "fine", "clever", "bad", "dull", "long")
    sentences = [(noun, adjective) for noun in nouns for adjective in adjectives]
    for name, count in (("reviews", 24), ("others", 4)):
        (folder / name).mkdir()
        for number in range(count):
            chosen = [sentences[place] for place in random.integers(len(sentences), size=30)]
            text = " ".join(f"the {noun} is {adjective}." for noun, adjective in chosen)
            (folder / name / f"{number}.txt").write_text(text)
    positive = {adjective: "ny"[place < 3] for place, adjective in enumerate(adjectives)}
    files = {
        "labeled.tsv": ["text\tlabel", *(f"the {noun} is {word}\t{positive[word]}" for noun, word in sentences)],
        "rated.csv": ["text,rating", *(f"the {noun} is {word},{len(word)}.5" for noun, word in sentences)],
        "words.conll": [f"the DET\n{noun} NOUN\nis VERB\n{word} ADJ\n" for noun, word in sentences],
        "pairs.tsv": ["film\tstory\t8", "film\tbad\t1", "good\tfine\t9"],
        "questions.txt": [": words", "good bad film story"],
        "cloze.tsv": ["the film is [MASK]\tgood", "the story is [MASK]\tbad"],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")


def write_masks(clips: Path, masks: Path) -> None:
    """Write masks of the white squares that move in the example clips."""
    for file in clips.rglob("*.png"):
        place = masks / file.relative_to(clips)
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as frame:
            frame.convert("L").point(lambda value: int(value == 255)).save(place)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["audio", "video", "audio-video", "image-text", "text", "points"])
def test_pages_beyond_images(page: str, sslkit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    modality = page.replace("-", "_")
    made = load_modality(modality).example_data(tmp_path, 96)
    if page in ("audio", "video", "audio-video", "points"):  # two kinds, and a part that is held out
        for number, sample in enumerate(sorted(Path(made).iterdir())):
            place = tmp_path / "sorted" / ("test" if number % 3 == 0 else "train") / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            sample.rename(place / sample.name)
        Path(made).rmdir()
        (tmp_path / "sorted").rename(made)
    if page == "audio":
        for number, file in enumerate(sorted(Path(made).rglob("*.wav"))):
            file.with_suffix(".csv").write_text(f"start,end,label\n0,{0.3 + number % 5 / 10},before\n0.8,1,after\n")
    if page == "image-text":
        head, *lines = Path(made).read_text().splitlines()
        Path(made).write_text("\n".join([f"{head},color", *(f"{line},{line.split()[1]}" for line in lines)]) + "\n")
        labeled = [f"{line},{number % 2}" for number, line in enumerate(lines)]
        Path(made).with_name("labeled.csv").write_text("\n".join([f"{head},label", *labeled]) + "\n")
    if page == "text":
        write_texts(tmp_path)
    if page == "video":
        write_masks(Path(made) / "test", tmp_path / "masks")
    for line in (
        line for block in blocks((ROOT / "docs" / "modalities" / f"{page}.md").read_text(encoding="utf-8")) for line in block
    ):
        words = shlex.split(re.sub(r"--minutes \d\b", "--minutes 0.02 --batch-size 16", line))
        ran = sslkit(*words[1:])
        assert ran.code == 0, f"{line}: {ran.err}"


@pytest.mark.slow
def test_the_tutorial_from_start_to_end(sslkit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (line for block in blocks((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")) for line in block):
        words = shlex.split(re.sub(r"--minutes 1\b", "--minutes 0.02", line))
        ran = sslkit(*words[1:])
        assert ran.code == 0, f"{line}: {ran.err}"
        if words[1] == "demo":
            keep_few(tmp_path / "digits" / "images")
    assert (tmp_path / "report.html").stat().st_size > 100_000 and (tmp_path / "predictions.csv").exists()


def test_generated_parts_are_up_to_date() -> None:
    outdated = runpy.run_path(str(ROOT / "docs" / "generate.py"))["outdated"]
    assert outdated(check=True) == [], "run python docs/generate.py"


def test_arguments_without_a_flag_are_not_listed_as_flags() -> None:
    sections = {part.partition("\n")[0]: part for part in (ROOT / "docs" / "flags.md").read_text().split("\n## ")}
    for command, names in {"watch": ["run"], "push": ["source", "repository"], "search": ["queries"]}.items():
        section = sections[f"sslkit {command}"]
        assert all(f"| `{name.upper()}` |" in section and f"--{name}`" not in section for name in names)


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    pytest.importorskip("mkdocs", reason="the site needs pip install 'sslkit[docs]'")
    return runpy.run_path(str(ROOT / "docs" / "site_pages.py"))


def test_links_out_of_docs_lead_to_pages_of_the_site(site: dict[str, Any]) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"), meta={})
    text = "[a](../benchmarks/speed.md#crops) [b](../examples/tilt.py) [c](tutorial.md#x) [d](https://a.b/c.md) [e](#f)"
    rewritten = site["on_page_markdown"](text, page, None, None)
    links = ["benchmarks/speed.md#crops", "examples/tilt.py.md", "tutorial.md#x", "https://a.b/c.md", "#f"]
    assert re.findall(r"\(([^)]+)\)", rewritten) == links
    page.file.src_uri = "examples/sensors/README.md"
    rewritten = site["on_page_markdown"]("[a](../../docs/adding-a-modality.md)", page, None, None)
    assert rewritten == "[a](../../adding-a-modality.md)"
    added = {site["site_path"](path) for path in site["linked_files"]()}
    assert {"CHANGELOG.md", "benchmarks/speed.md", "examples/tilt.py.md"} <= added


def test_every_command_has_a_page_with_its_flags(site: dict[str, Any]) -> None:
    pages = {verb.name: site["command_page"](verb) for verb in site["own_verbs"]() if verb.name in ("knn", "tasks", "report")}
    assert "`--ckpt`" in pages["knn"] and "## Image data" in pages["knn"] and pages["tasks"].startswith("# sslkit tasks\n")
    assert "sslkit report [RUNS" in pages["report"]


def test_the_reference_has_every_public_name(site: dict[str, Any]) -> None:
    pages = dict(site["reference_pages"]())
    text = "\n".join(pages.values())
    assert [name for name in public.__all__ if f"heading: {name}\n" not in text] == []
    assert "| `batch_size` |" in pages["specs"]
    assert {f"reference/{name}.md" for name in pages} == set(re.findall(r"reference/\w+\.md", MKDOCS))


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r"^ +- (?:\w+: )?([\w/-]+\.md)$", MKDOCS, flags=re.MULTILINE))
    assert {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} == {
        name for name in listed if (ROOT / "docs" / name).exists()
    }


def test_every_extra_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == set(project["optional-dependencies"])


def test_example_task_keeps_the_contract() -> None:
    assert not [verdict for verdict in check_task(str(ROOT / "examples" / "tilt.py")) if not verdict.passed]


def test_example_spec(sslkit: Callable[..., Any], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = sslkit(
        "pretrain", "--spec", ROOT / "examples" / "run.toml", "--data", digits, "--batch-size", 16, "--dry-run", "--json"
    )
    assert ran.json["color_strength"] == {"value": 0.5, "source": str(ROOT / "examples" / "run.toml")}


def test_example_from_python(
    sslkit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = sslkit("demo", "--images-only")
    assert ran.code == 0 and "sslkit pretrain rotation --data demo/images" in ran.out
    keep_few(tmp_path / "demo" / "images")
    runpy.run_path(str(ROOT / "examples" / "from_python.py"))["main"]("demo/images", 0.02)
    assert "features (2, 128)" in capsys.readouterr().out


@pytest.mark.slow
def test_demo(sslkit: Callable[..., Any], tmp_path: Path) -> None:
    result = sslkit("demo", "--out", tmp_path / "demo", "--json").json
    assert all(Path(result[name]).exists() for name in ("images", "run", "checkpoint", "export"))
    # Pretraining wins over everything that it is compared with, and no intervals overlap.
    baselines = ["random weights", "raw pixels, 16 px"], ["from scratch, 5% of the labels"]
    for table, others in zip(result["results"], baselines, strict=True):
        first, *rest = table["rows"]
        assert [row["model"] for row in rest] == others
        assert all(first["metrics"][0]["low"] > row["metrics"][0]["high"] for row in rest)
    again = sslkit("demo", "--out", tmp_path / "demo")
    assert again.code == 2 and "is there already" in again.err
