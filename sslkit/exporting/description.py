"""What is written about an export into the file itself and printed by `--json`: plain values, and nothing of this machine."""

from importlib.metadata import version
from typing import Any

from sslkit.contract.exporter import Exporter, ExportJob
from sslkit.contract.modality import InputGuide
from sslkit.encoders.recipe import encoder_name
from sslkit.engine.checkpoint import Checkpoint
from sslkit.evaluation.models import weights_hash
from sslkit.registry import load_modality
from sslkit.specs.data import DataSpec


def find_input_guide(job: ExportJob, checkpoint: Checkpoint) -> InputGuide | None:
    """Return how a file becomes the input of the network, with the data options and samples of its training."""
    modality = load_modality(checkpoint.modality)
    options = DataSpec().with_recorded(job.metadata.get("spec"), same_data=True).table(modality.options)
    details = job.metadata.get("sample_details")
    return modality.input_guide(job.network.encoder, job.size, options, details if isinstance(details, dict) else {})


def describe_export(job: ExportJob, exporter: Exporter, guide: InputGuide | None) -> dict[str, Any]:
    """Return the description of a file: weights and, unless it holds something other than a network, input and output."""
    encoder = job.network.encoder
    origin = {"sslkit": version("sslkit"), "task": job.metadata["task"], "weights": weights_hash(encoder)}
    if exporter.contents(job):
        return origin
    return {
        **origin,
        "encoder": encoder_name(job.recipe),
        "input": {
            "name": job.input,
            **(guide.facts if guide else {"size": job.size}),
            "normalization": {"inside": exporter.normalizes, **encoder.describe()},
        },
        "output": {"name": job.output, "width": len(job.classes) or encoder.width},
        **({"classes": job.classes} if job.classes else {}),
        **({"license": job.license} if job.license else {}),
    }
