"""Make the pictures of the README from the images of `sslkit demo`: previews of some tasks, and a report of one run.

    python docs/images/make.py --only previews
    python docs/images/make.py --only report --minutes 1.5
    python docs/images/make.py --tiny --out OUT  # in less time, and without a browser

Writes `previews.png` and `report.png` (a screenshot by headless Chromium, left out without one).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TASKS = ("rotation", "jigsaw", "colorization", "simclr", "mae", "swav")
WIDTH = 1200


def sslkit(*words: object) -> None:
    """Run the command line."""
    subprocess.run([sys.executable, "-m", "sslkit", *map(str, words)], check=True)


def report(data: Path, folder: Path, length: list[object], out: Path | None) -> None:
    """Train, evaluate, write the report and, where there is a place for it, take its picture."""
    run, page = folder / "rotation", folder / "report.html"
    sslkit("pretrain", "rotation", "--data", data, "--out", run, *length)
    sslkit("knn", "--ckpt", run / "model.safetensors", "--protocol", "knn/fewshot-v1")
    sslkit("probe", "--ckpt", run / "model.safetensors")
    sslkit("report", run, "--out", page)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or out is None:
        print("no Chromium, or --tiny: report.png is left as it is")
        return
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'browser'}"]
    flags += [f"--window-size={WIDTH},1500", f"--screenshot={out / 'report.png'}"]
    subprocess.run([browser, *flags, page.as_uri()], check=True, stderr=subprocess.DEVNULL)


def previews(data: Path, folder: Path, out: Path) -> None:
    """Draw what some tasks make of the same images, a panel each."""
    panels = []
    for task in TASKS:
        file = folder / f"{task}.png"
        sslkit("preview", task, "--data", data, "--out", file, "--rows", 3, "--samples", 64)
        panels.append((task, Image.open(file).convert("RGB")))
    column, font = WIDTH // 2, ImageFont.load_default(18)
    resized = []
    for task, picture in panels:
        factor = min(1.0, (column - 20) / picture.width)
        resized.append((task, picture.resize((round(picture.width * factor), round(picture.height * factor)))))
    rows = [resized[place : place + 2] for place in range(0, len(resized), 2)]
    heights = [max(picture.height for _, picture in row) + 40 for row in rows]
    sheet = Image.new("RGB", (WIDTH, sum(heights)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for row, height in zip(rows, heights, strict=True):
        for place, (task, picture) in enumerate(row):
            pen.text((place * column + 10, top + 8), task, fill="black", font=font)
            sheet.paste(picture, (place * column + 10, top + 34))
        top += height
    sheet.save(out / "previews.png", optimize=True)


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("previews", "report"))
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--tiny", action="store_true", help="two steps of a small encoder, and no browser")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    length: list[object] = ["--minutes", arguments.minutes]
    if arguments.tiny:
        length = ["--steps", 2, "--batch-size", 16, "--encoder-option", "width=8", "--workers", 0]
    with tempfile.TemporaryDirectory() as scratch:
        sslkit("demo", "--images-only", "--out", Path(scratch, "digits"))
        data = Path(scratch, "digits", "images")
        if arguments.only != "report":
            previews(data, Path(scratch), arguments.out)
        if arguments.only != "previews":
            report(data, Path(scratch), length, None if arguments.tiny else arguments.out)


if __name__ == "__main__":
    main()
