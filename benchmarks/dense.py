"""What features tell of places: segmentation of CamVid by three protocols, correspondence, and scikit-learn on the same places.

    tar -xzf camvid.tar.gz -C DATA
    python benchmarks/dense.py --data DATA/camvid --ckpt RUN/model.safetensors      # writes benchmarks/dense.json

The checkpoint is one that was pretrained on photographs, such as a run of benchmarks/learn.py.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import provenance, row_of, sslkit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sslkit import load
from sslkit.evaluation.positions import fit_positions
from sslkit.image.transforms import resize

MASKS, VOID, SIDE, PLACES = "../masks/{stem}.png", 11, 224, 60  # places of each image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of CamVid, with train/, val/ and test/")
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of an encoder with feature maps")
    arguments = parser.parse_args()
    data, checkpoint = arguments.data.resolve(), arguments.ckpt.resolve()
    record: dict[str, Any] = {**provenance(), "task": json.loads((checkpoint.parent / "spec.json").read_text())["task"]}
    masks = ["--targets", MASKS, "--ignore", VOID]
    for protocol in ("linear", "knn", "finetuned"):
        words = ["--ckpt", checkpoint, "--data", data, *masks, "--protocol", f"segment/{protocol}-v1"]
        result = sslkit("segment", *words)
        record[protocol] = {"seconds": result["seconds"], "rows": [row_of(row) for row in result["rows"]]}
    result = sslkit("correspond", "--ckpt", checkpoint, "--data", data / "test" / "images")
    record["correspond"] = {"seconds": result["seconds"], "rows": [row_of(row) for row in result["rows"]]}
    record["scikit_learn"] = compare_with_scikit_learn(data, checkpoint)
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def compare_with_scikit_learn(data: Path, checkpoint: Path) -> dict[str, float]:
    """Fit both classifiers on the same places of training images; return their accuracies on places of test images."""
    (train, labels), (test, truth) = (read_places(data / part, checkpoint) for part in ("train", "test"))
    classes = tuple(map(str, sorted(set(labels.tolist()))))
    settings = {"c": [0.1], "iterations": 500, "held_out": 0.2}
    names, rows = [str(label) for label in labels.tolist()], np.arange(len(labels)) // PLACES
    fitted = fit_positions({"last": train}, names, rows, classes, torch.device("cpu"), 0, settings, "last")["last"]
    ours = np.array(classes)[fitted.scores({"last": test}).argmax(dim=1).numpy()].astype(int)
    scaler = StandardScaler().fit(train.numpy())
    reference = LogisticRegression(C=0.1, max_iter=2000, tol=1e-6).fit(scaler.transform(train.numpy()), labels.numpy())
    theirs = reference.predict(scaler.transform(test.numpy()))
    return {
        "places": len(labels),
        "ours": float((ours == truth.numpy()).mean()),
        "scikit-learn": float((theirs == truth.numpy()).mean()),
        "agree": float((ours == theirs).mean()),
    }


def read_places(folder: Path, checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of random places of images `[P, D]`, and the class at the center of each `[P]`; void is left out."""
    from PIL import Image

    encoder, random = load(str(checkpoint)), np.random.default_rng(0)
    features, labels = [], []
    for file in sorted((folder / "images").iterdir()):
        pixels = torch.from_numpy(np.asarray(Image.open(file).convert("RGB").resize((SIDE, SIDE)))).permute(2, 0, 1) / 255
        with torch.no_grad():
            places = encoder.feature_map(resize(pixels[None], SIDE))[0]
        mask = Image.open(folder / "masks" / f"{file.stem}.png").resize(places.shape[:0:-1], Image.Resampling.NEAREST)
        at = np.asarray(mask).flatten()
        chosen = random.permutation(np.flatnonzero(at != VOID))[:PLACES]
        features.append(places.flatten(1).T[torch.from_numpy(chosen)])
        labels.append(torch.from_numpy(at[chosen].astype(np.int64)))
    return torch.cat(features), torch.cat(labels)


if __name__ == "__main__":
    main()
