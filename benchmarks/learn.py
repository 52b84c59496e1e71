"""Does it learn? Every image task on two data sets, for a number of steps that is fixed once, beside random weights.

    tar -xzf cifar10.tar.gz -C CIFAR && python benchmarks/subset.py CIFAR
    tar -xzf cats_dogs.tar.gz -C PHOTOS && tar -xzf camvid.tar.gz -C PHOTOS && python benchmarks/photographs.py PHOTOS

    python benchmarks/learn.py budgets --set cifar10=CIFAR --set photographs=PHOTOS --runs RUNS     # on a quiet machine
    python benchmarks/learn.py train --set cifar10=CIFAR --set photographs=PHOTOS --runs RUNS --jobs 2

`budgets` measures the steps that each task takes in a second of one core, and writes into budgets.json how many it takes in
540 (byol, simsiam and dino: three times that). `train` trains for so many steps with the task's own defaults, so that neither
the machine nor its load decides how much is learned, and evaluates; results lie in learning/SET/TASK-SEED.json. Interrupted
runs are continued; a result whose task, budget and data have not changed is not made again.
"""

import argparse
import json
import os
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from commands import logged, provenance, sslkit

from sslkit import registry
from sslkit.files import write_atomically

HERE = Path(__file__).parent
RESULTS, BUDGETS = HERE / "learning", HERE / "budgets.json"
CORE_SECONDS = 540
TIMES = {"byol": 3, "simsiam": 3, "dino": 3}  # as much: they begin slowly
MEASURED_SECONDS, TURNS = 20, 3
# The run that a task needs, and the flag it takes it with.
TEACHERS = {"clusterfit": ("rotation", "--teacher"), "beit": ("vqvae", "--tokenizer"), "cae": ("vqvae", "--tokenizer")}
SIZES = {"cifar10": 32, "photographs": 64}
EVALUATIONS = {"knn": "knn/chosen-layer-v1", "probe": "probe/chosen-layer-v1"}


@dataclass(frozen=True)
class DataSet:
    """A data set of the table: its name, and a folder with train.csv and test.csv."""

    name: str
    folder: Path

    @property
    def flags(self) -> list[Any]:
        """Return the flags with which a run reads it."""
        return ["--data", self.folder / "train.csv", "--size", SIZES[self.name]]

    @property
    def labels(self) -> list[Any]:
        """Return the flags with which an evaluation reads it."""
        columns = (self.folder / "train.csv").read_text(encoding="utf-8").partition("\n")[0].split(",")
        group = ["--group", "group"] if "group" in columns else []
        return ["--data", self.folder / "train.csv", "--test", self.folder / "test.csv", "--label", "label", *group]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["budgets", "train"])
    parser.add_argument("--set", action="append", required=True, help="NAME=FOLDER; may be repeated")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--tasks", default="all", help="names with commas between them")
    parser.add_argument("--seeds", default="0", help="numbers with commas between them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on a core of its own")
    arguments = parser.parse_args()
    sets = [DataSet(name, Path(folder).resolve()) for name, _, folder in (each.partition("=") for each in arguments.set)]
    tasks = image_tasks() if arguments.tasks == "all" else arguments.tasks.split(",")
    runs = arguments.runs.resolve()
    if arguments.command == "budgets":
        measure_budgets(sets, tasks, runs)
        return
    units = [(data, task, int(seed)) for seed in arguments.seeds.split(",") for data in sets for task in tasks]
    teachers = {task for task, _ in TEACHERS.values()}
    first = [unit for unit in units if unit[1] in teachers]  # others wait for their runs
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for some in (first, [unit for unit in units if unit not in first]):
            list(pool.map(lambda unit: learn(*unit, runs), some))


def image_tasks() -> list[str]:
    """Return the names of the image tasks that ship with sslkit."""
    return [entry.name for entry in registry.entries(registry.TASKS) if entry.point.module.startswith("sslkit_plugins.image.")]


def measure_budgets(sets: list[DataSet], tasks: list[str], runs: Path) -> None:
    """Write the steps of each task that has none: what it does in 540 seconds of a core, by the median of three short runs."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for all processes of a run
    budgets: dict[str, Any] = json.loads(BUDGETS.read_text(encoding="utf-8")) if BUDGETS.exists() else {}
    for turn in range(TURNS):
        for data in sets:
            for task in tasks:
                entry = budgets.setdefault(data.name, {}).setdefault(task, {"steps_per_second": []})
                if len(entry["steps_per_second"]) > turn:
                    continue
                entry["steps_per_second"].append(measure_rate(task, data, runs))
                if len(entry["steps_per_second"]) == TURNS:
                    seconds = CORE_SECONDS * TIMES.get(task, 1)
                    steps = round(seconds * statistics.median(entry["steps_per_second"]))
                    entry |= {"core_seconds": seconds, "steps": steps, **provenance()}
                with write_atomically(BUDGETS) as stream:  # runs may be reading it
                    stream.write((json.dumps(budgets, indent=1) + "\n").encode())


def measure_rate(task: str, data: DataSet, runs: Path) -> float:
    """Return the steps per second of a short run on one core, everything after its first logged line included."""
    settings, out = [], runs / f"rate-{task}"
    if task in TEACHERS:
        teacher, flag = TEACHERS[task]
        start = runs / f"start-{teacher}-{data.name}"
        sslkit("pretrain", teacher, *data.flags, "--steps", 5, "--out", start, "--resume", threads=1)
        settings = [flag, start / "model.safetensors"]
    shutil.rmtree(out, ignore_errors=True)
    sslkit("pretrain", task, *settings, *data.flags, "--minutes", MEASURED_SECONDS / 60, "--out", out, threads=1)
    lines = logged(out)
    return round((lines[-1]["step"] - lines[0]["step"]) / (lines[-1]["seconds"] - lines[0]["seconds"]), 4)


def learn(data: DataSet, task: str, seed: int, runs: Path) -> None:
    """Train and evaluate one task, unless that has been done."""
    file, key = RESULTS / data.name / f"{task}-{seed}.json", key_of(data, task, seed)
    if file.exists() and json.loads(file.read_text(encoding="utf-8"))["key"] == key:
        print(f"{data.name}, {task}, seed {seed}: has not changed", flush=True)
        return
    run = train(data, task, seed, runs)
    spec, lines = json.loads((run / "spec.json").read_text(encoding="utf-8")), logged(run)
    record = {
        "set": data.name,
        "task": task,
        "family": family_of(task),
        "seed": seed,
        "key": key,
        **provenance(),
        "spec": without_paths(spec),
        "pretext": pretext_metrics(run, lines),
        "alarms": [alarm for line in lines for alarm in line.get("alarms", [])],
    }
    for verb, protocol in EVALUATIONS.items():
        result = sslkit(verb, "--ckpt", run / "model.safetensors", *data.labels, "--protocol", protocol, threads=1)
        record[verb] = {name: value for name, value in result.items() if name != "checkpoint"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def train(data: DataSet, task: str, seed: int, runs: Path) -> Path:
    """Return the folder of a task's run, finished."""
    settings = []
    if task in TEACHERS:
        teacher, flag = TEACHERS[task]
        settings = [flag, train(data, teacher, seed, runs) / "model.safetensors"]
    out = runs / f"{data.name}-{task}-{seed}-{key_of(data, task, seed)}"
    length = ["--steps", steps_of(data, task), "--seed", seed]
    sslkit("pretrain", task, *settings, *data.flags, *length, "--out", out, "--resume", threads=1)
    return out


def steps_of(data: DataSet, task: str) -> int:
    """Return the steps of a task's budget."""
    return int(json.loads(BUDGETS.read_text(encoding="utf-8"))[data.name][task]["steps"])


def key_of(data: DataSet, task: str, seed: int) -> str:
    """Return a hash of what decides a result: the task's source, its teacher's, steps, seed, and the lists of images."""
    parts = [source_of(task).read_bytes(), f"{steps_of(data, task)} {seed}".encode()]
    if task in TEACHERS:
        parts.append(key_of(data, TEACHERS[task][0], seed).encode())
    parts += [(data.folder / name).read_bytes() for name in ("train.csv", "test.csv")]
    return blake2b(b"".join(parts), digest_size=8).hexdigest()


def source_of(task: str) -> Path:
    """Return the file of a task."""
    module = find_spec(registry.find(registry.TASKS, task).point.module)
    assert module is not None and module.origin is not None
    return Path(module.origin)


def family_of(task: str) -> str:
    """Return the folder that a task lies in."""
    return source_of(task).parent.name


def pretext_metrics(run: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each of the task's own metrics over the first five and the last twenty logged lines, and chance."""
    levels: dict[str, float] = json.loads((run / "training.json").read_text(encoding="utf-8"))["chance"]
    means = {name: [mean(lines[:5], name), mean(lines[-20:], name)] for name in ("loss", *levels)}
    return {"means": means, "chance": levels}


def mean(lines: list[dict[str, Any]], name: str) -> float | None:
    """Return the mean of a value over logged lines, None if it is in none of them."""
    values = [line[name] for line in lines if line.get(name) is not None]
    return sum(values) / len(values) if values else None


def without_paths(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec without the paths of this machine."""
    files = ("teacher", "tokenizer")
    options = {name: TEACHERS[spec["task"]][0] if name in files else value for name, value in spec["options"].items()}
    return {name: value for name, value in spec.items() if name not in ("data", "init")} | {"options": options}


if __name__ == "__main__":
    main()
