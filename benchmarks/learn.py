"""Does it learn? Every image task on two data sets, for a number of steps that is fixed once, beside random weights.

    tar -xzf cifar10.tar.gz -C CIFAR && python benchmarks/subset.py CIFAR
    tar -xzf cats_dogs.tar.gz -C PHOTOS && tar -xzf camvid.tar.gz -C PHOTOS && python benchmarks/photographs.py PHOTOS

    python benchmarks/learn.py budgets --set cifar10=CIFAR --set photographs=PHOTOS --runs RUNS     # on a quiet machine
    python benchmarks/learn.py train --set cifar10=CIFAR --set photographs=PHOTOS --runs RUNS --jobs 2

`budgets` measures the steps that each task takes in a second of one core, and writes into budgets.json how many it takes in
540 (byol, simsiam and dino: three times that). `train` trains for so many steps with the task's own defaults, so that neither
the machine nor its load decides how much is learned, and evaluates; results lie in learning/SET/TASK-SEED.json, those of
training on 1% of the labels from scratch in learning/SET/scratch-ENCODER.json. Interrupted runs are continued; a result whose
task, budget and data have not changed is not made again. `python benchmarks/results.py` writes the page about them.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
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
FEW_LABELS = ["--protocol", "finetune/fewlabel-v1", "--shares", 0.01]
CHECKS = 10  # of k-NN accuracy while training, on a held-out fifth of the training part


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
    def columns(self) -> list[Any]:
        """Return the flags that name its columns."""
        header = (self.folder / "train.csv").read_text(encoding="utf-8").partition("\n")[0].split(",")
        return ["--label", "label", *(["--group", "group"] if "group" in header else [])]

    @property
    def labels(self) -> list[Any]:
        """Return the flags with which an evaluation reads it."""
        return ["--data", self.folder / "train.csv", "--test", self.folder / "test.csv", *self.columns]


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
        list(pool.map(lambda unit: learn_from_scratch(*unit), encoders(sets)))


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
                if "steps" in entry or len(entry["steps_per_second"]) > turn:
                    continue
                entry["steps_per_second"].append(measure_rate(task, data, runs))
                if len(entry["steps_per_second"]) == TURNS:
                    seconds = CORE_SECONDS * TIMES.get(task, 1)
                    steps = round(seconds * statistics.median(entry["steps_per_second"]))
                    entry |= {"core_seconds": seconds, "steps": steps, **provenance()}
                write(BUDGETS, budgets)  # runs may be reading it


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
        "curve": [[line["step"] + 1, line["online_knn"]] for line in lines if line.get("online_knn") is not None],
        "alarms": [alarm for line in lines for alarm in line.get("alarms", [])],
    }
    model = ["--ckpt", run / "model.safetensors"]
    for verb, protocol in EVALUATIONS.items():
        record[verb] = of_result(sslkit(verb, *model, *data.labels, "--protocol", protocol, threads=1), data)
    with tempfile.TemporaryDirectory() as folder:
        record["few_labels"] = of_result(
            sslkit("finetune", *model, *data.labels, *FEW_LABELS, "--no-scratch", "--out", Path(folder, "run"), threads=1), data
        )
    write(file, record)


def learn_from_scratch(data: DataSet, encoder: str) -> None:
    """Train an encoder on 1% of the labels from random weights, unless that has been done."""
    file, key = RESULTS / data.name / f"scratch-{encoder}.json", hash_of([encoder.encode(), *lists(data)])
    if file.exists() and json.loads(file.read_text(encoding="utf-8"))["key"] == key:
        return
    with tempfile.TemporaryDirectory() as folder:
        flags = [*data.labels, *FEW_LABELS, "--encoder", encoder, "--size", SIZES[data.name], "--out", Path(folder, "run")]
        result = of_result(sslkit("finetune", *flags, threads=1), data)
    write(file, {"set": data.name, "encoder": encoder, "key": key, **provenance(), "few_labels": result})


def encoders(sets: list[DataSet]) -> list[tuple[DataSet, str]]:
    """Return the encoders of the results, by data set."""
    files = [(data, file) for data in sets for file in (RESULTS / data.name).glob("*-*.json")]
    specs = [(data, json.loads(file.read_text(encoding="utf-8")).get("spec")) for data, file in files]
    return list(dict.fromkeys((data, str(spec["encoder"])) for data, spec in specs if spec is not None))


def of_result(result: dict[str, Any], data: DataSet) -> dict[str, Any]:
    """Return what is kept of a result: no commands, and no paths of this machine."""
    kept = {name: value for name, value in result.items() if name not in ("checkpoint", "findings", "notes", "seconds")}
    without: dict[str, Any] = json.loads(json.dumps(kept).replace(f"{data.folder}/", ""))
    return without


def write(file: Path, record: dict[str, Any]) -> None:
    """Write a record, whole or not at all."""
    with write_atomically(file) as stream:
        stream.write((json.dumps(record, indent=1) + "\n").encode())


def train(data: DataSet, task: str, seed: int, runs: Path) -> Path:
    """Return the folder of a task's run, finished."""
    settings = []
    if task in TEACHERS:
        teacher, flag = TEACHERS[task]
        settings = [flag, train(data, teacher, seed, runs) / "model.safetensors"]
    out = runs / f"{data.name}-{task}-{seed}-{key_of(data, task, seed)}"
    steps = steps_of(data, task)
    length = ["--steps", steps, "--seed", seed]
    checks = ["--online-knn", *data.columns, "--health-every", max(1, steps // CHECKS)]
    sslkit("pretrain", task, *settings, *data.flags, *length, *checks, "--out", out, "--resume", threads=1)
    return out


def steps_of(data: DataSet, task: str) -> int:
    """Return the steps of a task's budget."""
    return int(json.loads(BUDGETS.read_text(encoding="utf-8"))[data.name][task]["steps"])


def key_of(data: DataSet, task: str, seed: int) -> str:
    """Return a hash of what decides a result: the task's source, its teacher's, steps, seed, and the lists of images."""
    parts = [source_of(task).read_bytes(), f"{steps_of(data, task)} {seed}".encode()]
    if task in TEACHERS:
        parts.append(key_of(data, TEACHERS[task][0], seed).encode())
    return hash_of([*parts, *lists(data)])


def lists(data: DataSet) -> list[bytes]:
    """Return the lists of images."""
    return [(data.folder / name).read_bytes() for name in ("train.csv", "test.csv")]


def hash_of(parts: list[bytes]) -> str:
    """Return a short hash."""
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
