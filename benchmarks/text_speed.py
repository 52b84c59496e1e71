"""Words and tokens per second: `skipgram` and `cbow` against gensim, `gpt` and `bert` against a bare loop.

    python benchmarks/text_speed.py --text text --runs RUNS      # writes benchmarks/text_speed.json

Everything is measured in turns, one after the other, on as many threads as OMP_NUM_THREADS says. gensim trains on the same
words in stretches of the same length, with the same window, negatives and subsampling. The bare loop trains the same network
on one batch, with the same loss and optimizer, and nothing else.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from commands import provenance, sslkit
from throughput import alternate, engine_steps, fixed_tensor_steps, new_stepper, turn

from sslkit.specs.data import DataSpec
from sslkit.specs.train import PretrainSpec
from sslkit.text.passages import Passages

TURNS, EPOCHS = 3, 3
MINUTES = 2  # of skipgram and of cbow, before their vectors are compared with ratings of similarity
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt": {"unit": "byte", "context": 64, "batch_size": 12},
    "bert": {"vocabulary": 8192, "context": 64, "batch_size": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="folder with reviews/")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    arguments = parser.parse_args()
    reviews, threads = arguments.text / "reviews", torch.get_num_threads()
    file = Path(__file__).with_suffix(".json")
    record: dict[str, Any] = {**provenance(), "threads": threads}

    def keep(name: str, value: Any) -> None:
        record[name] = value
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    for task in SETTINGS:
        spec = PretrainSpec.model_validate({"task": task, "data": str(reviews), "steps": 10**6, **SETTINGS[task]})
        stepper = new_stepper(spec)
        engine, bare = engine_steps(stepper), fixed_tensor_steps(stepper)
        for steps in (engine, bare):
            turn(steps, 5)
        rates: dict[str, Any] = {**alternate(spec.batch_size, engine, bare, turns=15, steps=10)}
        size = stepper.settings.data.size
        keep(task, {
            "tokens_per_second": round(rates["engine_images_per_second"] * size),
            "bare_tokens_per_second": round(rates["fixed_tensor_images_per_second"] * size),
            "ratio": rates["ratio"],
        })  # fmt: skip
    for number, task in enumerate(("cbow", "skipgram")):
        keep(f"{task} and gensim", words_per_second(task, reviews, arguments.runs, threads, skipgram=bool(number)))
    for task in ("skipgram", "cbow"):
        keep(f"{task} similarity", similarity(task, reviews, arguments.runs))


def words_per_second(task: str, data: Path, runs: Path, threads: int, skipgram: bool) -> dict[str, float]:
    """Return medians of words per second, ours and gensim's, and of their ratios."""
    import gensim

    text = Passages.open(DataSpec.model_validate({"data": str(data), "held_out": 0.0}))
    words, numbers = text.info.details["words"], text.tokens
    known = [
        [words[place] for place in numbers[start : start + 128] if place < len(words)] for start in range(0, len(numbers), 128)
    ]
    ours, theirs = [], []
    for number in range(TURNS):
        out = runs / f"{task}-{number}"
        run = sslkit("pretrain", task, "--data", data, "--epochs", EPOCHS, "--health-every", 0, "--out", out, threads=threads)
        ours.append(run["samples_per_second"] * text.info.size)
        model = gensim.models.Word2Vec(
            vector_size=100, window=5, negative=5, sample=1e-3, sg=int(skipgram), min_count=5, workers=threads, seed=number
        )
        model.build_vocab(known)
        began = time.perf_counter()
        model.train(known, total_examples=len(known), epochs=EPOCHS)
        theirs.append(EPOCHS * len(numbers) / (time.perf_counter() - began))
    ratios = [our_rate / their_rate for our_rate, their_rate in zip(ours, theirs, strict=True)]
    return {
        "words_per_second": round(statistics.median(ours)),
        "gensim_words_per_second": round(statistics.median(theirs)),
        "ratio": round(statistics.median(ratios), 3),
    }


def similarity(task: str, data: Path, runs: Path) -> list[dict[str, Any]]:
    """Return Spearman's correlations with the ratings of word pairs that gensim ships, after some minutes of training."""
    from gensim.test.utils import datapath

    out = runs / f"{task}-minutes"
    run = sslkit("pretrain", task, "--data", data, "--minutes", MINUTES, "--health-every", 0, "--out", out)
    files = ["--similarity", datapath("wordsim353.tsv"), "--similarity", datapath("simlex999.txt")]
    rows = sslkit("word-vectors", "--ckpt", run["checkpoint"], *files)["rows"]
    values = [(Path(row["test"]).name, row["metrics"][0]) for row in rows if row["role"] == "checkpoint"]
    return [{"file": name, **{key: metric[key] for key in ("value", "low", "high", "n")}} for name, metric in values]


if __name__ == "__main__":
    main()
