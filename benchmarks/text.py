"""Language models of Shakespeare's plays: what they reach on the last tenth of the text, beside counts and compressors.

    gunzip -c shakespeare.txt.gz > shakespeare.txt
    python benchmarks/text.py --data shakespeare.txt --runs RUNS        # writes benchmarks/text.json; about 20 minutes

The small model has the settings that nanoGPT gives for a CPU: 2,000 steps of 12 passages of 64 bytes, 4 layers of width 128.
"""

import argparse
import json
import math
from pathlib import Path

from commands import provenance, sslkit

MODELS = {
    "gpt": ["--unit", "byte", "--context", 64, "--batch-size", 12, "--steps", 2000, "--betas", "0.9,0.99"],
    "rnn_lm": ["--unit", "byte", "--context", 64, "--batch-size", 32, "--steps", 2000],
}
STRIDES = {"half a window": [], "a whole window": ["--stride", 64, "--no-baselines"]}  # nanoGPT counts every token of a window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="shakespeare.txt")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--models", default=",".join(MODELS), help="names with commas between them")
    arguments = parser.parse_args()
    file = Path(__file__).with_suffix(".json")
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in arguments.models.split(","):
        out = arguments.runs.resolve() / name
        flags = [*MODELS[name], "--data", arguments.data, "--held-out", 0.1, "--out", out, "--resume"]
        trained = sslkit("pretrain", name, *flags)
        record = {"flags": [str(flag) for flag in MODELS[name]], **provenance(), "seconds": trained["seconds"]}
        for title, stride in STRIDES.items():
            result = sslkit("perplexity", "--ckpt", out / "model.safetensors", *stride)
            record[title] = {row["model"]: metrics_of(row) for row in result["rows"]}
        records[name] = record
        file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def metrics_of(row: dict) -> dict[str, float]:
    """Return bits and nats per byte of a row, with the ends of the 95% interval of the bits."""
    metric = next(metric for metric in row["metrics"] if metric["name"] == "bits per byte")
    values = {name: metric[name] for name in ("value", "low", "high") if metric[name] is not None}
    return {"bits_per_byte": values.pop("value"), **values, "nats_per_byte": metric["value"] * math.log(2)}


if __name__ == "__main__":
    main()
