"""What the network and the exported file compute for the same batches, and how far they differ."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslkit.contract.errors import RunFailedError, SslkitError
from sslkit.contract.exporter import Exporter, ExportJob, Settings

_TINY = 1e-6  # the tolerance is relative to the largest value computed, or to this if all are smaller
_VERIFY = Path(__file__).with_name("verify.py")


@dataclass(frozen=True)
class Difference:
    """Absolute differences between the outputs of a file and of the network."""

    largest: float
    mean: float
    tolerance: float


@torch.no_grad()
def compute_outputs(job: ExportJob, batches: list[Tensor]) -> Tensor:
    """Return the network's outputs for each batch, its first sample alone and all together: `[sum(1 + N), width]`.

    Raises SslkitError for samples of a size that the encoder does not take.
    """
    try:
        return torch.cat([torch.cat([job.network(batch[:1]), job.network(batch)]) for batch in batches])
    except (RuntimeError, AssertionError, ValueError) as error:  # what architectures raise for a size that they do not take
        reason = str(error).partition("\n")[0]
        raise SslkitError(
            f"the encoder does not take samples of size {job.size}: {reason}", "leave it out", flag="size"
        ) from error


def read_back(exporter: Exporter, job: ExportJob, file: Path, settings: Settings, batches: list[Tensor]) -> Tensor:
    """Return what `compute_outputs` does, computed from the file by a process that does not import sslkit.

    Raises RunFailedError if the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        samples, out = Path(folder, "samples.npz"), Path(folder, "out.npz")
        np.savez(samples, *(batch.numpy() for batch in batches))
        # -P: a file beside verify.py must not hide a package of the same name.
        command = [sys.executable, "-P", _VERIFY, exporter.reader, file, json.dumps(settings), samples, out]
        process = subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"the process that read it ended with {process.returncode}"]
            hint = "the encoder may need a fixed size: leave out --dynamic-size" if job.dynamic_size else "it was removed"
            raise RunFailedError(f"the {job.format} file cannot be read back: {lines[-1]}", hint)
        with np.load(out) as outputs:
            return torch.from_numpy(np.concatenate([outputs[name] for name in outputs]))


def compare(job: ExportJob, computed: Tensor, expected: Tensor, tolerance: float) -> Difference:
    """Return the differences; raises RunFailedError if the largest is above the tolerance, relative, or not a number."""
    if computed.shape != expected.shape:
        raise RunFailedError(
            f"the {job.format} file computes {tuple(computed.shape)} values instead of {tuple(expected.shape)}",
            "it was removed",
        )
    difference, scale = (computed - expected).abs(), max(_TINY, expected.abs().max().item())
    result = Difference(difference.max().item(), difference.mean().item(), tolerance * scale)
    if not result.largest <= result.tolerance:
        raise RunFailedError(f"the {job.format} file computes features that differ by {result.largest:.2g}", "it was removed")
    return result
