"""The text that a language model was trained on, which evaluations hold beside what they test on."""

from pathlib import Path
from typing import TypeVar

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import Checkpoint
from sslkit.evaluation.splits import check_run_data, named_data
from sslkit.specs.data import DataSpec
from sslkit.text.corpus import Corpus
from sslkit.text.options import TextOptions
from sslkit.text.passages import open_corpus, text_fingerprint

S = TypeVar("S", bound=DataSpec)


def open_training_text(spec: S, checkpoint: Checkpoint) -> tuple[Corpus, S]:
    """Return the documents of `--data`, by default of the run's text, and the spec with the checkpoint's data options.

    Raises SslkitError if there is none, and if that of the run has changed.
    """
    data, from_run, spec = named_data(spec, checkpoint)
    corpus = open_corpus(data, spec.table(TextOptions))
    check_run_data(data, from_run, text_fingerprint(data, spec.reindex) == checkpoint.metadata["data"])
    return corpus, spec.updated({"data": data})


def find_training_text(spec: S, checkpoint: Checkpoint) -> tuple[Corpus | None, S]:
    """Return what `open_training_text` does, but None if no text is named, and the run's is not there or has changed."""
    if spec.data is None:
        spec = spec.with_recorded(checkpoint.metadata.get("spec"), same_data=False)
        try:
            data, _, spec = named_data(spec, checkpoint)
        except SslkitError:  # a checkpoint that lies alone
            return None, spec
        if not Path(data).exists():
            return None, spec
        if text_fingerprint(data, spec.reindex) != checkpoint.metadata["data"]:
            say_once(f"left out: {data} has changed since the run")
            return None, spec
        spec = spec.updated({"data": data})
    return open_training_text(spec, checkpoint)
