"""`sslkit export`: a file for other programs, verified by a process that reads it without sslkit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sslkit import registry
from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import Exporter, ExportJob, Network
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.run_folder import holds_run
from sslkit.evaluation.predict import classifier
from sslkit.exporting.batches import verification_batches
from sslkit.exporting.card import Card, write_card
from sslkit.exporting.comparison import compare, compute_outputs, read_back
from sslkit.specs.data import MAIN_PART
from sslkit.specs.use import ExportSpec


@dataclass(frozen=True)
class ExportResult:
    """The output of `sslkit export --json`."""

    path: str
    card: str
    format: str
    max_abs_diff: float
    mean_abs_diff: float
    tolerance: float
    samples: str  # on which it was verified


def export(spec: ExportSpec) -> ExportResult:
    """Export an encoder, or a fine-tuned classifier, and verify that the file computes the same.

    Another process reads the file with the format's own loader and runs it on real samples, one alone and seven together.
    pt2 and ONNX take images in [0, 1], normalization inside. Raises RunFailedError, and leaves no file, if the largest
    difference is above the tolerance; SslkitError for what cannot be written.
    """
    exporter, checkpoint = load_exporter(spec.to), read_model(spec.ckpt, part=spec.part)
    job = _prepare(spec, checkpoint, exporter)
    path = _output_path(spec, checkpoint, exporter.suffix)
    batches, origin = exporter.batches(job) or verification_batches(job, checkpoint)
    expected = compute_outputs(job, batches)
    with _replaced(path, exporter.suffix) as temporary:
        settings = exporter.write(job, batches[0], temporary)
        computed = read_back(exporter, job, temporary, settings, batches)
        difference = compare(job, computed, expected, exporter.tolerance)
        card = write_card(Card(path, exporter, job, checkpoint, settings, difference.largest))
    return ExportResult(str(path), str(card), spec.to, difference.largest, difference.mean, difference.tolerance, origin)


def load_exporter(name: str) -> Exporter:
    """Return the installed export format of a name; raises SslkitError if there is none or it cannot be imported."""
    kind = registry.load(registry.find(registry.EXPORTERS, name))
    if not (isinstance(kind, type) and issubclass(kind, Exporter)):
        raise SslkitError(f"{name} points to {kind!r}", "an entry of sslkit.exporters has to be an Exporter class")
    return kind()


def _prepare(spec: ExportSpec, checkpoint: Checkpoint, exporter: Exporter) -> ExportJob:
    """Build the network; raises SslkitError for a checkpoint that the format cannot hold."""
    spec.check_modality(checkpoint.modality)
    if exporter.modalities and checkpoint.modality not in exporter.modalities:
        kinds = " or ".join(exporter.modalities)
        raise SslkitError(
            f"{spec.to} takes encoders of {kinds} data, and {checkpoint.path} holds one of {checkpoint.modality} data",
            "use another format",
            flag="to",
        )
    encoder = checkpoint.build_encoder(allowed=spec.encoder)
    classes, head = classifier(checkpoint) if checkpoint.part("head") else ([], None)
    job = ExportJob(
        spec.to,
        checkpoint.path,
        checkpoint.metadata,
        Network(encoder, head).eval(),
        classes,
        spec.sample_size(checkpoint.modality) or checkpoint.size,
        spec.dynamic_batch,
        spec.dynamic_size,
    )
    exporter.check(job)
    return job


def _output_path(spec: ExportSpec, checkpoint: Checkpoint, suffix: str) -> Path:
    """Return the file to write; raises SslkitError for a folder or the checkpoint itself."""
    name = suffix if spec.part == MAIN_PART else f"-{spec.part}{suffix}"
    path = Path(spec.out) if spec.out else _beside(checkpoint.path, name)
    if path.is_dir() or path.resolve() == checkpoint.path.resolve():
        raise SslkitError(
            f"{path} is {'a folder' if path.is_dir() else 'the checkpoint itself'}", "name a new file", flag="out"
        )
    return path


def _beside(checkpoint: Path, suffix: str) -> Path:
    """Return `runs/NAME.pt2` for `runs/NAME/model.safetensors` (a run folder holds the run only), else beside the file."""
    stem = checkpoint.parent if holds_run(checkpoint.parent) else checkpoint.with_suffix("")
    return stem.with_name(stem.name + suffix)


@contextmanager
def _replaced(path: Path, suffix: str) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block ends without an error, and is removed otherwise."""
    temporary = path.with_name(f"{path.stem}.tmp{os.getpid()}{suffix}")  # torch checks the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # torch and safetensors raise errors of their own for a folder without write permission
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise SslkitError(f"cannot write {path}: {error.strerror or error}", flag="out") from error
    finally:
        if temporary.exists():
            temporary.unlink()


__all__ = ["ExportResult", "export", "load_exporter"]
