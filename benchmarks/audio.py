"""Spoken digits of speakers that nobody has heard: every speaker is left out once, from pretraining and from the classifier.

    tar -xzf fsdd.tar.gz -C FSDD
    python benchmarks/audio.py --fsdd FSDD --runs RUNS --models hubert      # writes benchmarks/audio.json

A run for each speaker that is left out, on the recordings of the five others; digits are read by k-NN and by logistic
regression fitted on the same five, and the answers for all recordings that were left out are counted together. Beside them, on
the same recordings, random weights and MFCC, with paired differences; and how well a task answers its own question about them.
A run that is there goes on or is measured again.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from commands import logged, provenance, sslkit
from scipy.stats import binomtest

MODELS = {  # five to ten minutes of a core
    "hubert": ["hubert", "--steps", 1200],
    "wavlm": ["wavlm", "--steps", 1200],
    "wav2vec2": ["wav2vec2", "--steps", 700],
    "audio_mae": ["audio_mae", "--steps", 900],
    "best_rq": ["best_rq", "--steps", 900],
    "cpc_audio": ["cpc_audio", "--steps", 700],
    "cpc_audio, negatives of other recordings": ["cpc_audio", "--steps", 700, "--negatives", "recordings"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fsdd", type=Path, required=True, help="folder with fsdd/recordings/")
    parser.add_argument("--runs", type=Path, required=True, help="folder for lists and runs")
    parser.add_argument("--models", default=";".join(MODELS), help="names with semicolons between them")
    parser.add_argument("--speakers", default="all", help="names with commas between them")
    arguments = parser.parse_args()
    recordings = sorted(next(arguments.fsdd.resolve().rglob("recordings")).glob("*.wav"))
    speakers = sorted({speaker_of(recording) for recording in recordings})
    speakers = speakers if arguments.speakers == "all" else arguments.speakers.split(",")
    file = Path(__file__).with_suffix(".json")
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in arguments.models.split(";"):
        task, *words = MODELS[name]
        record: dict[str, Any] = {**provenance(), "flags": [task, *map(str, words)], "speakers": {}}
        for speaker in speakers:
            parts = write_lists(recordings, speaker, arguments.runs.resolve())
            out = arguments.runs.resolve() / f"{name.replace(', ', '-').replace(' ', '-')}-{speaker}"
            flags = ["--data", parts["train"], *words, "--health-every", 0, "--out", out, "--resume"]
            trained = sslkit("pretrain", task, *flags)
            last = {key: value for key, value in logged(out)[-1].items() if isinstance(value, float)}
            rows: dict[str, Any] = {"seconds": trained["seconds"], "last": last}
            held_out = ["--data", parts["test"], "--samples", 500, "--out", out / "test.png"]
            rows["held_out"] = sslkit("preview", task, "--ckpt", out / "model.safetensors", *held_out)["metrics"]
            for verb in ("knn", "probe"):
                labeled = ["--data", parts["train"], "--test", parts["test"], "--label", "digit"]
                result = sslkit(verb, "--ckpt", out / "model.safetensors", *labeled)
                rows[verb] = {row["model"]: counts_of(row) for row in result["rows"]}
            record["speakers"][speaker] = rows
            records[name] = {**record, **{verb: pooled(record["speakers"], verb) for verb in ("knn", "probe")}}
            file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def speaker_of(recording: Path) -> str:
    """Return the speaker in a file's name, DIGIT_SPEAKER_NUMBER."""
    return recording.stem.split("_")[1]


def write_lists(recordings: list[Path], speaker: str, folder: Path) -> dict[str, Path]:
    """Write tables of the recordings of all others, and of a speaker's."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part in ("train", "test"):
        files[part] = folder / f"{speaker}-{part}.csv"
        rows = [[str(each), each.stem[0]] for each in recordings if (speaker_of(each) == speaker) == (part == "test")]
        with open(files[part], "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([["path", "digit"], *rows])
    return files


def counts_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return how many recordings a row has right, of how many, and its paired difference from the checkpoint."""
    metric = row["metrics"][0]
    paired = row["comparisons"].get("checkpoint")
    result = {"correct": round(metric["value"] * metric["n"]), "n": metric["n"]}
    return result if paired is None else {**result, "paired": {name: paired[name] for name in ("difference", "low", "high")}}


def pooled(speakers: dict[str, Any], verb: str) -> dict[str, Any]:
    """Return accuracies over all recordings, and by how much the checkpoint is better: the mean over speakers, all alike many.

    The interval of the mean comes from the paired intervals of the speakers.
    """
    models = next(iter(speakers.values()))[verb]
    result: dict[str, Any] = {}
    for model in models:
        correct, n = (sum(rows[verb][model][name] for rows in speakers.values()) for name in ("correct", "n"))
        interval = binomtest(correct, n).proportion_ci(method="wilson")
        result[model] = {"accuracy": correct / n, "low": interval.low, "high": interval.high, "n": n}
        if model != "checkpoint":
            paired = [rows[verb][model]["paired"] for rows in speakers.values()]
            gain = -sum(each["difference"] for each in paired) / len(paired)
            half = sum(((each["high"] - each["low"]) / 2) ** 2 for each in paired) ** 0.5 / len(paired)
            better = sum(each["difference"] < 0 for each in paired)
            result[model] |= {"gain": gain, "gain_low": gain - half, "gain_high": gain + half, "better_for_speakers": better}
    return result


if __name__ == "__main__":
    main()
