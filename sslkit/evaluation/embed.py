"""`sslkit embed`: features of samples in a file."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import choose_device
from sslkit.evaluation.embedding_files import WRITERS, write_embeddings
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.models import Model, weights_hash
from sslkit.evaluation.splits import check_channels, check_run_data, evaluation_size, named_data, source_of
from sslkit.extras import load_extra
from sslkit.files import output_path
from sslkit.specs.data import DataSpec
from sslkit.specs.use import EmbedSpec


@dataclass(frozen=True)
class Embeddings:
    """Features `[N, width]` of samples, with their names and, if there are any, labels as texts."""

    features: NDArray[np.float32]
    names: list[str]
    labels: list[str] | None
    weights: str
    words: bool = False  # whether the names are words, which say what is embedded


@dataclass(frozen=True)
class EmbedResult:
    """The file that was written."""

    path: str
    samples: int
    width: int
    labels: bool
    weights: str
    checkpoint: str
    table: str | None = None  # with path and label of each row, beside an .npy


def embed(spec: EmbedSpec) -> EmbedResult:
    """Write the features of all samples of `--data`, or all word vectors, as `sslkit embed` does.

    An .npz holds `features` `[N, width]` float32, `paths` and, for data with labels, `labels` (texts; several joined
    by `;`); a .parquet the columns `features`, `path` and `label`; an .npy the features, with `NAME.paths.csv` beside it.
    Of a checkpoint of words the paths are the words, unless `--data` names texts. Of data with train/ and test/, train is read.
    """
    out = output_path(spec.out, *WRITERS)
    if out.suffix == ".parquet":
        load_extra("pyarrow", "hf", "a .parquet file")
    embeddings = compute_embeddings(spec)
    table = write_embeddings(embeddings, out)
    return EmbedResult(
        str(out),
        len(embeddings.names),
        embeddings.features.shape[1],
        embeddings.labels is not None,
        embeddings.weights,
        str(spec.ckpt),
        None if table is None else str(table),
    )


def compute_embeddings(spec: EmbedSpec, most: int | None = None) -> Embeddings:
    """Return features of the samples of `--data`, at most `most` drawn by the seed; without it, of words the most frequent."""
    if spec.layer == "all":
        raise SslkitError("all layers do not fit into one array", "use a number, last or last4", flag="layer")
    checkpoint = read_model(spec.ckpt, part=spec.part)
    encoder = checkpoint.build_encoder(spec.encoder).to(choose_device(spec.device)[0])
    vocabulary = encoder.vocabulary() if spec.data is None else None
    if vocabulary is not None:
        words, vectors = vocabulary
        return Embeddings(vectors.cpu().numpy()[:most], words[:most], None, weights_hash(encoder), words=True)
    source_class = source_of(checkpoint)
    index = read_samples(spec, checkpoint)
    if most is not None and most < len(index):
        index = index.subset(np.sort(np.random.default_rng(spec.seed).permutation(len(index))[:most]))
    model = Model(str(spec.ckpt), encoder, evaluation_size(spec, checkpoint))
    features = cached_features(
        model, source_class.for_evaluation(index, spec, encoder, model.size), spec.layer, spec.pool, spec
    )
    (vectors,) = features.layers.values()
    return Embeddings(
        vectors.numpy(),
        [index.name(int(row)) for row in features.rows],
        None if index.labels is None else [label_text(index, int(row)) for row in features.rows],
        model.weights,
    )


def read_samples(spec: DataSpec, checkpoint: Checkpoint) -> Index:
    """Return the index of the samples of `--data`, by default those of the run; the training part, if it has parts.

    Raises SslkitError if the run's data has changed.
    """
    data, from_run, spec = named_data(spec, checkpoint)
    source_class = source_of(checkpoint)
    parts = find_parts(data, source_class.kind)
    if len(parts) > 1:
        say_once(f"{data} has {' and '.join(parts)}: reading train")
    index = source_class.read_index(parts["train"], spec)
    check_channels(index, checkpoint)
    check_run_data(data, from_run, index.fingerprint() == checkpoint.metadata["data"])
    return index


def label_text(index: Index, row: int) -> str:
    """Return a sample's label as text, empty if it is unknown; several are joined by `;`."""
    assert index.labels is not None
    label = index.labels[row]
    if label.ndim == 0:
        return index.classes[label] if label >= 0 else ""
    return ";".join(index.classes[place] for place in np.flatnonzero(label))
