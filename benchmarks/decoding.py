"""Decoding of photographs: the first epoch against decoding alone, time by stage, and a training run with each cache.

    python benchmarks/decoding.py --folder SCRATCH --photographs DIR --out benchmarks/decoding.json

SCRATCH gets `--images` photographs of DIR, repeated as needed. Without `--photographs` they are JPEGs of smooth noise of 500 by
375 pixels. Parts, of which `--only` names some:

- `cold`: images per second of the loader that decodes and fills the cache, against `read_canvas` in as many processes;
- `stages`: milliseconds of one core per image: decoding, resizing, writing, encoding, the transform of `simclr`; and the
  quality of resizing and of encoding;
- `run`: images per second of two epochs of `sslkit pretrain simclr`, with each kind of cache.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.io  # noqa: F401  (as in a run, before workers start: it takes a second)
from PIL import Image

import sslkit
from sslkit.contract.source import ReadSeed
from sslkit.contract.task import Clock
from sslkit.data.index import Index
from sslkit.data.loader import Loader, epoch_batches
from sslkit.data.process_share import available_cores
from sslkit.encoders.builder import RecipeBuilder
from sslkit.engine.pretrain import prepare
from sslkit.engine.stepper import Stepper, to_device
from sslkit.image import decode as decoding
from sslkit.image.canvas_files import open_maps, write_row
from sslkit.image.decode import CanvasFormat, image_sizes, read_canvas
from sslkit.image.jpeg import decode_jpeg, encode_jpeg
from sslkit.image.source import ImageSource, choose_canvas
from sslkit.specs.data import DataSpec
from sslkit.specs.train import PretrainSpec

_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--encoder", default="resnet_micro", help="of the runs")
    parser.add_argument("--only", default="cold,stages,run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = arguments.folder / f"photographs-{arguments.images}"
    make(data, arguments.images, arguments.photographs)
    os.environ["SSLKIT_CACHE"] = str(arguments.folder / "cache")
    index = ImageSource.read_index(str(data), DataSpec())
    form = CanvasFormat(choose_canvas(arguments.size, image_sizes(index), "whole")[0], "whole")
    results: dict[str, Any] = {"machine": machine(), "images": arguments.images, "canvas": form.side, "size": arguments.size}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "cold": lambda: cold(data, index, form, arguments.size, arguments.turns),
        "stages": lambda: stages(data, index, form, arguments.size),
        "run": lambda: run(data, arguments.size, arguments.encoder),
    }
    for name in arguments.only.split(","):
        results[name] = parts[name]()
        print(json.dumps({name: results[name]}), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    with open("/proc/cpuinfo") as stream:
        model = next((line.partition(":")[2].strip() for line in stream if line.startswith("model name")), platform.machine())
    versions = {"torch": torch.__version__, "sslkit": sslkit.__version__, "commit": commit}
    return {"processor": model, "cores": available_cores(), "date": date.today().isoformat(), **versions}


def make(folder: Path, count: int, photographs: Path | None) -> None:
    """Copy photographs, or write JPEGs that are about as hard to decode, unless they are there."""
    if folder.exists():
        return
    half = folder.with_name(folder.name + "-unfinished")
    half.mkdir(parents=True, exist_ok=True)
    files = [] if photographs is None else sorted(photographs.rglob("*.jpg"))
    generator = np.random.default_rng(0)
    for number in range(count):
        if files:
            shutil.copyfile(files[number % len(files)], half / f"{number:05d}.jpg")
            continue
        coarse = Image.fromarray(generator.integers(0, 255, (40, 53, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (fine + generator.integers(-12, 12, fine.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(half / f"{number:05d}.jpg", quality=90)
    half.rename(folder)


def cold(data: Path, index: Index, form: CanvasFormat, size: int, turns: int) -> dict[str, Any]:
    """Compare a loader that fills the cache with decoding alone, in turns; `cpu` counts the time of all processes' cores."""
    cores = available_cores()
    alone, loading = [], []
    for turn in range(turns + 1):
        bare, ours = decode_alone(index, form, cores), load(data, index, size, cores)
        if turn:  # the first brings the files into memory
            alone.append(bare)
            loading.append(ours)
    ratios = [ours[0] / bare[0] for ours, bare in zip(loading, alone, strict=True)]
    return {
        "decoding_alone_images_per_second": round(statistics.median(rate for rate, _ in alone)),
        "loader_images_per_second": round(statistics.median(rate for rate, _ in loading)),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "decoding_alone_cpu_milliseconds": round(statistics.median(cpu for _, cpu in alone), 3),
        "loader_cpu_milliseconds": round(statistics.median(cpu for _, cpu in loading), 3),
    }


def decode_alone(index: Index, form: CanvasFormat, cores: int) -> tuple[float, float]:
    """Return the images per second of processes that decode and do nothing else, and the CPU time per image."""
    parts = np.array_split(np.random.default_rng(0).permutation(len(index)), cores)
    with multiprocessing.Pool(cores, _share, (index, form)) as pool:
        pool.map(_decode, [part[:2] for part in parts])  # they have started
        began = time.perf_counter()
        cpu = sum(pool.map(_decode, parts, chunksize=1))
        return len(index) / (time.perf_counter() - began), 1e3 * cpu / len(index)


def _share(index: Index, form: CanvasFormat) -> None:
    global _shared
    _shared = index, form
    torch.set_num_threads(1)
    decode_as_workers()


def decode_as_workers() -> None:
    """Decode in this process as loader workers do."""
    decoding.get_worker_info = lambda: True  # type: ignore[assignment, return-value]


def _decode(rows: np.ndarray) -> float:
    began = time.process_time()
    for row in rows:
        read_canvas(_shared[0], int(row), _shared[1])
    return time.process_time() - began


def load(data: Path, index: Index, size: int, cores: int) -> tuple[float, float]:
    """Return the images per second of a loader that fills a new cache, from its first batch on, and the CPU time per image."""
    shutil.rmtree(Path(os.environ["SSLKIT_CACHE"]) / "canvases", ignore_errors=True)
    source = ImageSource.for_training(index, DataSpec(data=str(data), workers=cores, size=size))
    loader, before = Loader(source, cores, substitute=True), _cpu_seconds()
    began, count = 0.0, 0
    for raw in loader(epoch_batches(len(index), _BATCH, 0, 0)):
        if not began:
            began = time.perf_counter()
        else:
            count += len(raw["index"])
    rate = count / (time.perf_counter() - began)
    loader.close()
    return rate, 1e3 * (_cpu_seconds() - before) / (count + _BATCH)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of children that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def stages(data: Path, index: Index, form: CanvasFormat, size: int, count: int = 300) -> dict[str, Any]:
    """Return milliseconds of one core per image, and the quality of resizing and of encoding."""
    torch.set_num_threads(1)
    files = [bytearray((data / path).read_bytes()) for path in index.paths[:count]]
    images = [Image.open(BytesIO(file)).convert("RGB") for file in files]
    pixels = [array for file in files if (array := decode_jpeg(file, 3)) is not None]
    canvases = [decoding._resize(array, form.side) for array in pixels]
    encoded = [bytearray(encode_jpeg(canvas)) for canvas in canvases]
    box = (form.side, form.side)
    milliseconds = {
        "pillow_decode": _time(lambda file: Image.open(BytesIO(file)).convert("RGB"), files),
        "decode": _time(lambda file: decode_jpeg(file, 3), files),
        "pillow_resize": _time(lambda image: np.asarray(image.resize(box, Image.Resampling.BILINEAR)), images),
        "resize": _time(lambda array: decoding._resize(array, form.side), pixels),
        "write_through_map": _time_writing(canvases, through_map=True),
        "write": _time_writing(canvases, through_map=False),
        "compact_encode": _time(encode_jpeg, canvases),
        "compact_decode": _time(lambda file: decode_jpeg(file, 3), encoded),
        "transform_two_views": _transform(data, size),
    }
    equal = all(np.array_equal(array, np.asarray(image)) for array, image in zip(pixels, images, strict=True))
    return {
        "milliseconds": milliseconds,
        "equal_to_pillow": equal,
        "resize_decibels": _quality_of_resizing(pixels, images, form.side),
        "compact": [_quality_of_encoding(canvases, *setting) for setting in ((85, 2), (90, 2), (90, 0), (95, 2), (95, 0))],
    }


def _time(function: Callable[[Any], Any], values: Sequence[Any], turns: int = 5) -> float:
    """Return the milliseconds of a core that a function takes for a value, in the best of some turns."""
    seconds = []
    for _ in range(turns):
        began = time.process_time()
        for value in values:
            function(value)
        seconds.append(time.process_time() - began)
    return round(1e3 * min(seconds) / len(values), 3)


def _time_writing(canvases: list[np.ndarray], through_map: bool) -> float:
    """Return the milliseconds of a core that a canvas takes to a new file of the cache."""
    folder, layout = Path(os.environ["SSLKIT_CACHE"]) / "stages", (len(canvases), *canvases[0].shape)
    folder.mkdir(parents=True)
    mapped = open_maps(folder, {"canvases": (np.uint8, layout)}, first="canvases")["canvases"]
    began = time.process_time()
    for row, canvas in enumerate(canvases):
        if through_map:
            mapped[row] = canvas
        else:
            write_row(folder / "canvases.npy", mapped, row, canvas)
    seconds = time.process_time() - began
    shutil.rmtree(folder)
    return round(1e3 * seconds / len(canvases), 3)


def _transform(data: Path, size: int) -> float:
    """Return the milliseconds per image of `simclr`'s transform on one core."""
    spec = PretrainSpec(task="simclr", data=str(data), size=size, batch_size=32, steps=10, encoder="resnet_micro", cache="off")
    training = prepare(spec)
    encoder = training.build_encoder(RecipeBuilder(training.settings.recipe, training.settings.data))
    task = training.build_task(encoder, training.settings.data)
    stepper = Stepper(task, training.settings, Clock(steps=10))
    raw = next(Loader(training.settings.source, 0, substitute=True)([np.arange(32)], ReadSeed(0, 0)))
    batch = to_device(raw, training.settings.source, stepper.machine.device)
    with torch.no_grad():
        return round(_time(lambda _: task.transform(dict(batch)), range(3)) / 32, 3)


def _decibels(errors: Sequence[float]) -> float:
    return round(float(np.mean([10 * np.log10(255**2 / error) for error in errors])), 2)


def _quality_of_resizing(pixels: list[np.ndarray], images: list[Image.Image], side: int) -> dict[str, float]:
    """Return the PSNR of Pillow's resizing and of ours against that in double precision."""
    errors: dict[str, list[float]] = {"pillow": [], "sslkit": []}
    for array, image in zip(pixels[:50], images, strict=False):
        exact = F.interpolate(
            torch.from_numpy(array).permute(2, 0, 1)[None].double(), size=(side, side), mode="bilinear", antialias=True
        )
        reference = exact[0].permute(1, 2, 0).numpy()
        resized = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        errors["pillow"].append(((resized - reference) ** 2).mean())
        errors["sslkit"].append(((decoding._resize(array, side) - reference) ** 2).mean())
    return {name: _decibels(each) for name, each in errors.items()}


def _quality_of_encoding(canvases: list[np.ndarray], quality: int, subsampling: int) -> dict[str, Any]:
    """Return bytes and PSNR of canvases as JPEG."""
    sizes, errors = [], []
    for canvas in canvases:
        stream = BytesIO()
        Image.fromarray(canvas).save(stream, "JPEG", quality=quality, subsampling=subsampling)
        sizes.append(len(stream.getvalue()))
        errors.append(((np.asarray(Image.open(stream)).astype(float) - canvas) ** 2).mean())
    name = {0: "4:4:4", 2: "4:2:0"}[subsampling]
    return {"quality": quality, "subsampling": name, "bytes": round(np.mean(sizes)), "decibels": _decibels(errors)}


def run(data: Path, size: int, encoder: str) -> dict[str, Any]:
    """Return the images per second of two epochs with each kind of cache, each in a process and a cache of its own."""
    rates: dict[str, Any] = {}
    for kind in ("on", "compact", "off"):
        cache = Path(os.environ["SSLKIT_CACHE"]).with_name(f"cache-{kind}")
        for folder in (cache, cache.with_name(f"run-{kind}")):
            shutil.rmtree(folder, ignore_errors=True)
        seconds = []
        for epochs in (1, 2):  # with the second, the first is read from resume.pt
            command = ["sslkit", "pretrain", "simclr", "--data", data, "--size", size, "--encoder", encoder, "--cache", kind]
            command += ["--batch-size", _BATCH, "--out", cache.with_name(f"run-{kind}"), "--health-every", 0]
            command += ["--epochs", 1] if epochs == 1 else ["--resume", "--extend-to", 2]
            environment = os.environ | {"SSLKIT_CACHE": str(cache)}
            done = subprocess.run([*map(str, command), "--json"], env=environment, capture_output=True, text=True, check=True)
            seconds.append(json.loads(done.stdout)["samples_per_second"])
        rates[kind] = {
            "first_epoch_images_per_second": seconds[0],
            "second_epoch_images_per_second": seconds[1],
            "cache_bytes": sum(file.stat().st_size for file in cache.glob("canvases/*/canvases.*")),
        }
    return rates


if __name__ == "__main__":
    main()
