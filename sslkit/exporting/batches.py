"""The samples on which an exported file is verified."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.console import say
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import ExportJob
from sslkit.data.indexed_source import IndexedSource
from sslkit.data.loader import Loader
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.run_folder import holds_run, read_spec
from sslkit.engine.stepper import to_device
from sslkit.registry import load_modality
from sslkit.specs.data import DataSpec

_SAMPLES = 7  # run alone and all together: a graph with a fixed batch size fails on one of the two


def verification_batches(job: ExportJob, checkpoint: Checkpoint) -> tuple[list[Tensor], str]:
    """Return batches of real samples `[N, C, ...]`, a second one of other sizes with `dynamic_size`, and their origin."""
    encoder = job.network.encoder
    if job.dynamic_size and encoder.sample_dims < 3:
        raise SslkitError(f"is for images, and this encodes {encoder.modality} data", "leave it out", flag="dynamic_size")
    samples, origin = _real_samples(checkpoint, encoder, job.size)
    if not job.dynamic_batch:
        samples = samples[:1]
    batches = [samples]
    if job.dynamic_size:
        sizes = (encoder.nearest_valid_size(2 * job.size), encoder.nearest_valid_size(job.size + 8))
        batches.append(F.interpolate(samples, size=sizes[: samples.dim() - 2]))
    return batches, origin


def _real_samples(checkpoint: Checkpoint, encoder: Encoder, size: int) -> tuple[Tensor, str]:
    """Return samples as the encoder takes them, from the run's data or those that ship with sslkit, and their origin."""
    folder, modality = checkpoint.path.parent, load_modality(checkpoint.modality)
    of_run = holds_run(folder) and checkpoint.metadata["data"] and checkpoint.evaluated_as == modality.name
    recorded = read_spec(folder) if of_run else {}
    data, spec = recorded.get("data"), DataSpec(cache="off", workers=0).with_recorded(recorded, same_data=True)
    if not isinstance(data, str) or not issubclass(modality.source, IndexedSource):
        return modality.example_inputs(_SAMPLES, checkpoint.channels, size)
    try:
        index = modality.source.read_index(find_parts(data, modality.source.kind)["train"], spec)
    except SslkitError as error:
        say(f"not using the run's data for verification: {error}")
        return modality.example_inputs(_SAMPLES, checkpoint.channels, size)
    if modality.source.channels(index) not in (None, checkpoint.channels):
        return modality.example_inputs(_SAMPLES, checkpoint.channels, size)
    source = modality.source.for_evaluation(index, spec, encoder, size)
    raw = next(Loader(source, 0, substitute=True)([np.arange(_SAMPLES) % len(index)]))
    samples = source.view(to_device(raw, source, torch.device("cpu")), encoder.modality)
    return samples if samples.dim() == encoder.sample_dims + 1 else samples[:, 0], data  # of several views the first
