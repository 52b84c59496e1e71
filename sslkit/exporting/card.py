"""The card beside an export: what the file is, how it was made, what is known of it, how to load it."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from sslkit.encoders.build import encoder_name
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.run_folder import RESULTS
from sslkit.evaluation.notes import read_results
from sslkit.files import write_atomically
from sslkit.specs.use import ExportSpec

_NORMALIZED = "image = (image - torch.tensor({mean}).view(-1, 1, 1)) / torch.tensor({std}).view(-1, 1, 1)"


def write_card(
    card: str,
    path: Path,
    spec: ExportSpec,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    size: int,
    classes: list[str],
    difference: float,
    weights: str,
) -> None:
    """Write the card, Markdown with a table of results, next to the file."""
    metadata, output = checkpoint.metadata, "logits" if classes else "features"
    run, before = metadata.get("spec", {}), metadata.get("pretrained_by")
    options = ", ".join(f"{name} {value}" for name, value in run.get("options", {}).items())
    whole = spec.to in ("pt2", "onnx")
    size_said = f"{size} px and more" if spec.dynamic_size else f"{size} px"
    batch_said = "" if spec.dynamic_batch or not whole else ", one at a time"
    made, role = metadata.get("encoder_from", "sslkit"), metadata.get("role", "student")
    facts: dict[str, Any] = {
        "task": metadata["task"] + (f" ({options})" if options else ""),
        **({} if before is None else {"pretrained by": f"{before['task']}, weights {before['weights']}"}),
        "trained": f"{metadata['step']:,} steps of {run.get('batch_size', '?')} images of {checkpoint.size} px",
        "encoder": f"{encoder_name(checkpoint.recipe)} of {made}; the {role}'s",
        "input": f"{checkpoint.channels} channels of {size_said} in [0, 1]{batch_said}, "
        + ("not yet normalized: that is inside" if whole else "normalized as below"),
        "output": f"{output}, computed as sslkit does up to {difference:.1g}",
        "data": f"fingerprint {metadata['data']}",
        "weights": f"hash {weights}",
    }
    lines = titled(path, facts)
    if classes:
        lines += ["", f"Classes, in order: {', '.join(classes)}."]
    lines += ["", "## Results", "", *_results(checkpoint.path.parent / RESULTS, weights)]
    lines += ["", "## Loading", "", "```python", *_loading(path.name, spec.to, settings, output), "```", ""]
    with write_atomically(Path(card)) as stream:
        stream.write("\n".join(lines).encode(errors="replace"))  # names of classes may be no text


def titled(path: Path, facts: dict[str, Any]) -> list[str]:
    """Return the lines with which a card begins: the file's name, and a table of facts, those of every card last."""
    facts = {**facts, "made by": f"sslkit {version('sslkit')}", "license": "not stated: fill in"}
    return [f"# {path.name}", "", "| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts.items())]


def _results(file: Path, weights: str) -> list[str]:
    """Return a table of the run's results with these weights; a test part is named by its hash, not its path."""
    rows = []
    for result in read_results(file):
        for row in result.rows:
            if row.weights != weights:
                continue
            metric, test = row.headline, result.data.test(row.test)
            size = f"{metric.n:,}" + (f", {test.fingerprint}" if test is not None else "")
            interval = f" ({metric.interval_text()})" if metric.interval_text() else ""
            rows.append(f"| {result.title} | {size} | {row.layer or ''} | {metric.text()}{interval} {metric.name} |")
    if not rows:
        return ["None were measured beside the checkpoint: run `sslkit evaluate`."]
    head = "| protocol | test samples, hash of samples and labels | layer | headline metric and 95% interval |"
    return [head, "|---|---|---|---|", *dict.fromkeys(rows)]


def _cell(value: Any) -> str:
    """Return a value as a cell of a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _loading(name: str, kind: str, settings: dict[str, Any], output: str) -> list[str]:
    """Return the lines that load the file and run it."""
    if kind == "pt2":
        return ["import torch", f'network = torch.export.load("{name}").module()', f"{output} = network(image)  # [B, C, H, W]"]
    if kind == "onnx":
        return [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{name}")',
            f'({output},) = session.run(None, {{"image": image}})  # float32 array [B, C, H, W]',
        ]
    options = "".join(f", {option}={value!r}" for option, value in settings["options"].items())
    if kind == "timm":
        made = [f'model = timm.create_model("{settings["name"]}"{options}).eval()']
    else:
        made = [f'model = torchvision.models.get_model("{settings["name"]}"{options}).eval()']
        kept = tuple(settings["kept"])
        parts = f"*(part for part in model.{{0}}.children() if type(part).__name__ in {kept})"
        last = f", torch.nn.Linear({settings['width']}, {settings['classes']})" if settings["classes"] else ""
        made += [f"model.{settings['classifier']} = torch.nn.Sequential({parts.format(settings['classifier'])}{last})"]
    return [
        f"import {kind}, torch, safetensors.torch",
        *made,
        f'model.load_state_dict(safetensors.torch.load_file("{name}"))',
        _NORMALIZED.format(mean=[round(value, 4) for value in settings["mean"]], std=[round(v, 4) for v in settings["std"]]),
        f"{output} = model(image)",
    ]
