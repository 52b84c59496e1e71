"""`sslkit embed` and `sslkit map`: features to take elsewhere, and to look at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import choose_device
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.models import Model, weights_hash
from sslkit.evaluation.splits import check_channels, evaluation_size, named_data, source_of
from sslkit.files import output_path, write_atomically
from sslkit.specs.data import DataSpec
from sslkit.specs.use import EmbedSpec


@dataclass(frozen=True)
class Embedded:
    """Hold features `[N, width]` of images, with their names and, if there are any, labels as the data spells them."""

    features: NDArray[np.float32]
    names: list[str]
    labels: list[str] | None
    weights: str


@dataclass(frozen=True)
class EmbedResult:
    """Hold what `sslkit embed --json` prints."""

    path: str
    images: int
    width: int
    labels: bool
    weights: str
    checkpoint: str


def embed(spec: EmbedSpec) -> EmbedResult:
    """Write the features of all samples of `--data`, or all word vectors; everything `sslkit embed` does.

    The file holds `features` `[N, width]` float32, `paths` and, for data with labels, `labels` (texts; several joined
    by `;`). Of a checkpoint of words `paths` are the words. With train/ and test/ inside, name the one you want.
    """
    out = output_path(spec.out, ".npz")
    found = embedded(spec)
    with write_atomically(out) as stream:
        if found.labels is None:
            np.savez(stream, features=found.features, paths=np.array(found.names))
        else:
            np.savez(stream, features=found.features, paths=np.array(found.names), labels=np.array(found.labels))
    return EmbedResult(
        str(out), len(found.names), found.features.shape[1], found.labels is not None, found.weights, str(spec.ckpt)
    )


def embedded(spec: EmbedSpec, most: int | None = None) -> Embedded:
    """Return features of the samples of `--data`, of at most `most` drawn by the seed; of words, the most frequent ones'."""
    if spec.layer == "all":
        raise SslkitError("all of them do not fit into one array", "give a number, last or last4", flag="layer")
    checkpoint = read_model(spec.ckpt)
    encoder = checkpoint.build_encoder(spec.encoder).to(choose_device(spec.device)[0])
    vocabulary = encoder.vocabulary()
    if vocabulary is not None:
        words, vectors = vocabulary
        return Embedded(vectors.cpu().numpy()[:most], words[:most], None, weights_hash(encoder))
    source_class = source_of(checkpoint)
    index = read_samples(spec, checkpoint)
    if most is not None and most < len(index):
        index = index.subset(np.sort(np.random.default_rng(spec.seed).permutation(len(index))[:most]))
    model = Model(str(spec.ckpt), encoder, evaluation_size(spec, checkpoint))
    features = cached_features(
        model, source_class.for_evaluation(index, spec, encoder, model.size), spec.layer, spec.pool, spec
    )
    (vectors,) = features.layers.values()
    return Embedded(
        vectors.numpy(),
        [index.name(int(row)) for row in features.rows],
        None if index.labels is None else [label_text(index, int(row)) for row in features.rows],
        model.weights,
    )


def read_samples(spec: DataSpec, checkpoint: Checkpoint) -> Index:
    """Return the index of the samples of `--data`, by default those of the run; the training part, if it has parts."""
    data, label, _ = named_data(spec, checkpoint)
    source_class = source_of(checkpoint)
    parts = find_parts(data, source_class.kind)
    if len(parts) > 1:
        say(f"{data} has {' and '.join(parts)}: reading train")
    index = source_class.read_index(parts["train"], label, spec.reindex)
    check_channels(index, checkpoint)
    return index


def label_text(index: Index, row: int) -> str:
    """Return a sample's label as the data spells it; several are joined by `;`."""
    assert index.labels is not None
    label = index.labels[row]
    return index.classes[label] if label.ndim == 0 else ";".join(index.classes[one] for one in np.flatnonzero(label))
