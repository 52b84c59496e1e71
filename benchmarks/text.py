"""Language models of Shakespeare's plays and of film reviews: what they reach on text and labels that they have not seen.

    gunzip -c shakespeare.txt.gz > shakespeare.txt; tar -xzf text.tar.gz
    python benchmarks/text.py --shakespeare shakespeare.txt --text text --runs RUNS      # writes benchmarks/text.json

`gpt` has the settings that nanoGPT gives for a CPU: 2,000 steps of 12 passages of 64 bytes, 4 layers of width 128. A run that
is there goes on or is measured again; `--models` and `--measures` choose among rows and what is measured of them.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from commands import logged, provenance, sslkit

SHAKESPEARE = {
    "gpt": ["gpt", "--unit", "byte", "--context", 64, "--batch-size", 12, "--steps", 2000, "--betas", "0.9,0.99"],
    "gpt_wide": [
        *("gpt", "--unit", "byte", "--context", 128, "--batch-size", 16, "--steps", 3572),
        *("--encoder-option", "width=192", "--encoder-option", "heads=6", "--encoder-option", "dropout=0.1"),
    ],
}
REVIEWS = {
    "bert": [
        *("bert", "--vocabulary", 8192, "--context", 64, "--batch-size", 32, "--steps", 10_000, "--lr", 2e-3),
        *("--mask-ratio", 0.25),
    ],
    "rnn_lm": ["rnn_lm", "--vocabulary", 2048, "--steps", 2000],
    "elmo": ["elmo", "--unit", "word", "--vocabulary", 4096, "--batch-size", 16, "--steps", 5000],
}
STRIDES = {"half a window": [], "a whole window": ["--stride", 64, "--no-baselines"]}  # nanoGPT counts every token of a window
_LAST = 200  # lines of the log whose mean is the masked loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shakespeare", type=Path, help="shakespeare.txt")
    parser.add_argument("--text", type=Path, help="folder with reviews/, ewt/ and sentence_polarity.tsv")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--models", default=",".join([*SHAKESPEARE, *REVIEWS]), help="names with commas between them")
    parser.add_argument("--measures", default="perplexity,masked,tag,finetune", help="names with commas between them")
    arguments = parser.parse_args()
    file = Path(__file__).with_suffix(".json")
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    measures = arguments.measures.split(",")
    for name in arguments.models.split(","):
        out = arguments.runs.resolve() / name
        flags = [*(SHAKESPEARE | REVIEWS)[name][1:], "--out", out, "--resume", "--health-every", 0]
        flags += (
            ["--data", arguments.shakespeare, "--held-out", 0.1]
            if name in SHAKESPEARE
            else ["--data", arguments.text / "reviews"]
        )
        task = (SHAKESPEARE | REVIEWS)[name][0]
        trained = sslkit("pretrain", task, *flags)
        described = [str(flag) for flag in (SHAKESPEARE | REVIEWS)[name]]
        record = records.get(name, {}) | {"flags": described, **provenance(), "seconds": trained["seconds"]}
        checkpoint = ["--ckpt", out / "model.safetensors"]
        if task != "bert" and "perplexity" in measures:
            for title, stride in STRIDES.items() if name == "gpt" else [("half a window", [])]:
                result = sslkit("perplexity", *checkpoint, *stride)
                record[title] = {row["model"]: metrics_of(row) for row in result["rows"]}
        if task == "bert" and "masked" in measures:
            record["masked"] = masked_loss(out)
        if name in ("bert", "elmo") and "tag" in measures:
            for layer in ("all", "mix") if name == "elmo" else ("mix",):  # which layer is best is elmo's question
                result = sslkit("tag", *checkpoint, "--data", arguments.text / "ewt", "--layer", layer)
                record[f"tag, {layer}"] = [row_of(row) for row in result["rows"]]
        if task == "bert" and "tag" in measures:
            result = sslkit("tag", *checkpoint, "--data", arguments.text / "ewt", "--finetune")
            record["tag, fine-tuned"] = [row_of(row) for row in result["rows"]]
        if task == "bert" and "finetune" in measures:
            labeled = ["--data", arguments.text / "sentence_polarity.tsv", "--label", "label", "--epochs", 4]
            out = arguments.runs.resolve() / f"{name}-finetune"
            result = sslkit("finetune", *checkpoint, *labeled, "--scratch", "--out", out, "--resume")
            record["finetune"] = [row_of(row) for row in result["rows"]]
        records[name] = record
        file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def masked_loss(run: Path) -> dict[str, float]:
    """Return the mean nats per masked token at the end of a run of `bert`, and those of the frequencies of tokens."""
    values = [line["masked_nats"] for line in logged(run) if "masked_nats" in line][-_LAST:]
    chance = json.loads((run / "training.json").read_text(encoding="utf-8"))["chance"]["masked_nats"]
    return {"masked_nats": sum(values) / len(values), "unigram_nats": chance}


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return model, layer, headline and its interval, and the comparison with the checkpoint."""
    metric = row["metrics"][0]
    names = ("difference", "low", "high", "p_value")
    differences = {model: {name: value[name] for name in names} for model, value in row["comparisons"].items()}
    return {
        "model": row["model"],
        "layer": row["layer"],
        "metrics": {each["name"]: each["value"] for each in row["metrics"]},
        "low": metric["low"],
        "high": metric["high"],
        "differences": differences,
    }


def metrics_of(row: dict[str, Any]) -> dict[str, float]:
    """Return bits and nats per byte of a row, with the ends of the 95% interval; of units that lose text, the perplexity."""
    metric = next((metric for metric in row["metrics"] if metric["name"] == "bits per byte"), None)
    if metric is None:
        return {metric["name"]: metric["value"] for metric in row["metrics"]}
    values = {name: metric[name] for name in ("value", "low", "high") if metric[name] is not None}
    return {"bits_per_byte": values.pop("value"), **values, "nats_per_byte": metric["value"] * math.log(2)}


if __name__ == "__main__":
    main()
