"""Images with captions: SigLIP's loss beside the softmax at two batch sizes, and what captions teach an image encoder.

    tar -xzf emoji.tar.gz -C DATA && tar -xzf nlvr.tar.gz -C DATA
    python benchmarks/image_text.py --data DATA --runs RUNS      # writes benchmarks/image_text.json

Emoji are trained on as one vendor draws them, and tested as another one does; of NLVR's drawings, those whose sentence is true.
Losses and batch sizes see the same number of pairs. A run that is there goes on; `--models` chooses among rows.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from commands import logged, provenance, row_of, sslkit
from PIL import Image

PAIRS = 48_000  # that every model of clip sees
SQUARE = 112  # pixels of a side of NLVR's drawings
SIZES = {"emoji": ["--size", 64], "drawings": ["--size", SQUARE, "--crop-scale", 1]}
MODELS = {
    f"clip {loss} {batch} {data}": (data, ["clip", "--loss", loss, "--batch-size", batch, "--steps", PAIRS // batch])
    for data in ("emoji", "drawings")
    for loss in ("softmax", "sigmoid")
    for batch in (64, 512)
} | {
    "virtex": ("emoji", ["virtex", "--steps", 1500]),
    "virtex bag": ("emoji", ["virtex", "--steps", 1500, "--target", "bag"]),
    "icmlm": ("emoji", ["icmlm", "--steps", 1500, "--min-count", 3]),
    "albef": ("emoji", ["albef", "--steps", 1000, "--encoder-option", "patch=8"]),
    "vilt": ("emoji", ["vilt", "--steps", 1000, "--encoder-option", "patch=8"]),
    "vilt drawings": ("drawings", ["vilt", "--steps", 4000, "--encoder-option", "patch=14", "--mask-ratio", 0.3]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with emoji/ and nlvr/")
    parser.add_argument("--runs", type=Path, required=True, help="folder for tables and runs")
    parser.add_argument("--models", default=";".join(MODELS), help="names, with semicolons")
    arguments = parser.parse_args()
    data, runs = arguments.data.resolve(), arguments.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    tables = {"emoji": write_emoji(data / "emoji", runs), "drawings": write_drawings(data / "nlvr", runs)}
    file = Path(__file__).with_suffix(".json")
    for name in arguments.models.split(";"):
        result = measure(name, *tables[MODELS[name][0]], runs / name.replace(" ", "-"))
        records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        records[name] = result
        file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def write_emoji(folder: Path, runs: Path) -> tuple[Path, Path]:
    """Write a table for each vendor."""
    rows = read(folder / "captions.csv")
    vendors = list(dict.fromkeys(row["vendor"] for row in rows))
    train, test = ([row for row in rows if row["vendor"] == vendor] for vendor in vendors[:2])
    return write(runs / "emoji-train.csv", train), write(runs / "emoji-test.csv", test)


def write_drawings(folder: Path, runs: Path) -> tuple[Path, Path]:
    """Write drawings as squares: of long images, crops would show a part. Return those of which the sentence is true."""
    tables = []
    for part in ("train", "test"):
        rows = [{**row, "path": str(fold(Path(row["path"]), runs))} for row in read(folder / f"{part}.csv")]
        write(runs / f"pairs-{part}.csv", rows)
        tables.append(write(runs / f"drawings-{part}.csv", [row for row in rows if row["label"] == "true"]))
    return tables[0], tables[1]


def fold(drawing: Path, runs: Path) -> Path:
    """Write the three boxes of a drawing of 200 by 50 px, whose order means nothing, into a square; return its file."""
    file = runs / "drawings" / drawing.parent.name / drawing.name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        square = Image.new("RGB", (SQUARE, SQUARE), (128, 128, 128))
        with Image.open(drawing) as image:
            for left, corner in ((0, (0, 0)), (75, (SQUARE - 50, 0)), (150, (0, SQUARE - 50))):
                square.paste(image.convert("RGB").crop((left, 0, left + 50, 50)), corner)
        square.save(file)
    return file


def read(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table, with absolute paths."""
    with table.open(newline="", encoding="utf-8") as stream:
        return [{**row, "path": str(table.parent / row["path"])} for row in csv.DictReader(stream)]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write a table and return its path."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path


def measure(name: str, train: Path, test: Path, out: Path) -> dict[str, Any]:
    """Train a model, or go on; return what it reaches on images that were not trained on."""
    data, (task, *flags) = MODELS[name]
    sslkit("pretrain", task, "--data", train, *SIZES[data], *flags, "--out", out, "--resume")
    last = logged(out)[-1]
    checkpoint = ["--ckpt", out / "model.safetensors"]
    record: dict[str, Any] = {**provenance(), "seconds": last["seconds"], "samples_per_second": last["samples_per_second"]}
    if "image_gain" in last:
        record["image_gain"] = last["image_gain"]  # of the last steps, on what was trained on
    if task in ("clip", "albef"):
        again = ["--rerank", 16] if task == "albef" else []
        rows = sslkit("zeroshot", *checkpoint, "--data", test, *again)["rows"]
        record["recall"] = [row_of(row) | {"test": row["test"].rpartition(", ")[2]} for row in rows]
    elif name == "virtex":
        result = sslkit("caption", *checkpoint, "--data", test, "--beam", 5, "--out", out / "captions.csv")
        record["captions"] = [row_of(row) | {"exact": row["metrics"][1]["value"]} for row in result["score"]["rows"]]
    if name == "vilt drawings":
        pairs = [out.parent / f"pairs-{part}.csv" for part in ("train", "test")]
        rows = sslkit("pairs", *checkpoint, "--data", pairs[0], "--test", pairs[1], "--label", "label")["rows"]
        record["pairs"] = [row_of(row) for row in rows]
    if data == "emoji":
        labeled = ["--data", train, "--test", test, "--label", "category"]
        for verb in ("knn", "probe"):
            record[verb] = [row_of(row) for row in sslkit(verb, *checkpoint, *labeled)["rows"]]
    return record


if __name__ == "__main__":
    main()
