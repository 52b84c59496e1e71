"""`sslkit export`: a file for other programs, verified by a process that reads it without sslkit."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslkit import registry
from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import Exporter, ExportJob, Network
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.classifier import read_classifier
from sslkit.engine.run_folder import holds_run
from sslkit.exporting.batches import verification_batches
from sslkit.exporting.card import Card, card_path, write_card
from sslkit.exporting.comparison import compare, compute_outputs, read_back
from sslkit.exporting.description import describe_export, find_input_guide
from sslkit.files import write_atomically
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
    input: dict[str, Any]  # how a file becomes the input; the same is in the exported file
    output: dict[str, Any]
    input_summary: str


def export(spec: ExportSpec) -> ExportResult:
    """Export an encoder, or a fine-tuned classifier, and verify that the file computes the same.

    Another process reads the file with the format's own loader and runs it on real samples, one alone and seven together.
    pt2 and ONNX take images in [0, 1], normalization inside. Raises RunFailedError, and leaves no file, if the largest
    difference is above the tolerance; SslkitError for what cannot be written.
    """
    exporter, checkpoint = load_exporter(spec.to), read_model(spec.ckpt, part=spec.part)
    job = build_job(spec, checkpoint, exporter)
    guide = find_input_guide(job, checkpoint)
    job = replace(job, description=describe_export(job, exporter, guide))
    path = _output_path(spec, checkpoint, exporter)
    batches, origin = exporter.batches(job) or verification_batches(job, checkpoint)
    expected = compute_outputs(job, batches)
    with _replaced(path, exporter) as temporary:
        settings = exporter.write(job, batches[0], temporary)
        computed = read_back(exporter, job, temporary, settings, batches)
        difference = compare(job, computed, expected, exporter.tolerance)
        card = Card(path, exporter, job, checkpoint, settings, difference.largest, guide)
        write_card(card, card_path(temporary if exporter.files else path, exporter))
        for name, content in guide.files.items() if guide and not exporter.contents(job) else ():
            with write_atomically(Path(f"{path}.{name}")) as stream:
                stream.write(content)
    return ExportResult(
        path=str(path),
        card=str(card_path(path, exporter)),
        format=spec.to,
        max_abs_diff=difference.largest,
        mean_abs_diff=difference.mean,
        tolerance=difference.tolerance,
        samples=origin,
        input=job.description.get("input", {}),
        output=job.description.get("output", {}),
        input_summary=guide.summary if guide else "",
    )


def load_exporter(name: str) -> Exporter:
    """Return the installed export format of a name; raises SslkitError if there is none or it cannot be imported."""
    kind = registry.load(registry.find(registry.EXPORTERS, name))
    if not (isinstance(kind, type) and issubclass(kind, Exporter)):
        raise SslkitError(f"{name} points to {kind!r}", "an entry of sslkit.exporters has to be an Exporter class")
    return kind()


def build_job(spec: ExportSpec, checkpoint: Checkpoint, exporter: Exporter) -> ExportJob:
    """Return the job with the network that was built; raises SslkitError for a checkpoint that the format cannot hold."""
    spec.check_modality(checkpoint.modality)
    if exporter.modalities and checkpoint.modality not in exporter.modalities:
        kinds = " or ".join(exporter.modalities)
        raise SslkitError(
            f"{spec.to} takes encoders of {kinds} data, and {checkpoint.path} holds one of {checkpoint.modality} data",
            "use another format",
            flag="to",
        )
    encoder = checkpoint.build_encoder(allowed=spec.encoder)
    classifier = read_classifier(checkpoint) if checkpoint.part("head") else None
    job = ExportJob(
        spec.to,
        checkpoint.path,
        checkpoint.metadata,
        Network(encoder, None if classifier is None else classifier.head).eval(),
        [] if classifier is None else classifier.classes,
        spec.sample_size(checkpoint.modality) or checkpoint.size,
        spec.dynamic_batch,
        spec.dynamic_size,
        spec.license,
    )
    exporter.check(job)
    return job


def _output_path(spec: ExportSpec, checkpoint: Checkpoint, exporter: Exporter) -> Path:
    """Return the file or folder to write; raises SslkitError for another folder, or the checkpoint itself."""
    name = exporter.suffix if spec.part == MAIN_PART else f"-{spec.part}{exporter.suffix}"
    path = Path(spec.out) if spec.out else _beside(checkpoint.path, name)
    if exporter.files:
        if path.exists() and not path.is_dir():
            raise SslkitError(f"{path} is a file", "name a folder", flag="out")
        others = sorted({file.name for file in path.iterdir()} - {*exporter.files}) if path.is_dir() else []
        if others:
            raise SslkitError(f"{path} holds {others[0]}, which is not of an export", "name a new folder", flag="out")
        return path
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
def _replaced(path: Path, exporter: Exporter) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block ends without an error, and is removed otherwise."""
    temporary = path.with_name(f"{path.stem}.tmp{os.getpid()}{exporter.suffix}")  # torch checks the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if exporter.files:
            temporary.mkdir()
        else:
            temporary.touch()  # torch and safetensors raise errors of their own for a folder without write permission
        yield temporary
        if exporter.files and path.is_dir():
            for file in temporary.iterdir():  # into the folder of an earlier export
                os.replace(file, path / file.name)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise SslkitError(f"cannot write {path}: {error.strerror or error}", flag="out") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        elif temporary.exists():
            temporary.unlink()


__all__ = ["ExportResult", "export", "load_exporter"]
