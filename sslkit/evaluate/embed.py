"""`sslkit embed` and `sslkit map`: features to take elsewhere, and to look at."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslkit.console import say
from sslkit.data.index import Index
from sslkit.data.parts import find_parts
from sslkit.data.store import write_atomically
from sslkit.encoders import WordVectors
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import choose_device
from sslkit.errors import SslkitError
from sslkit.evaluate.data import check_channels, named_data, source_of
from sslkit.evaluate.features import cached
from sslkit.evaluate.models import Model, weights_hash
from sslkit.evaluate.words import vocabulary
from sslkit.specs import DataSpec, EmbedSpec, MapSpec


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


@dataclass(frozen=True)
class MapResult:
    """Hold what `sslkit map --json` prints."""

    path: str
    images: int
    method: str
    weights: str
    checkpoint: str


def embed(spec: EmbedSpec) -> EmbedResult:
    """Write the features of all samples of `--data`, or all word vectors; everything `sslkit embed` does.

    The file holds `features` `[N, width]` float32, `paths` and, for data with labels, `labels` (texts; several joined
    by `;`). Of a checkpoint of words `paths` are the words. With train/ and test/ inside, name the one you want.
    """
    out = writable(spec.out, ".npz")
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
        raise SslkitError("--layer: all of them do not fit into one array", "give a number, last or last4")
    checkpoint = read_model(spec.ckpt)
    encoder = checkpoint.build_encoder(spec.encoder).to(choose_device(spec.device)[0])
    if isinstance(encoder, WordVectors):
        vectors, words = encoder.table.weight.detach().cpu().numpy()[:most], vocabulary(encoder, spec.ckpt)[:most]
        return Embedded(vectors, words, None, weights_hash(encoder))
    source_class = source_of(checkpoint)
    index = read_samples(spec, checkpoint)
    if most is not None and most < len(index):
        index = index.subset(np.sort(np.random.default_rng(spec.seed).permutation(len(index))[:most]))
    model = Model(str(spec.ckpt), encoder, checkpoint.size if spec.size == "auto" else spec.size)
    found = cached(model, source_class.shown(index, spec, encoder, model.size), spec.layer, spec.pool, spec)
    (features,) = found.layers.values()
    return Embedded(
        features.numpy(),
        [index.name(int(row)) for row in found.rows],
        None if index.labels is None else [spelled(index, int(row)) for row in found.rows],
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


def spelled(index: Index, row: int) -> str:
    """Return a sample's label as the data spells it; several are joined by `;`."""
    assert index.labels is not None
    label = index.labels[row]
    return index.classes[label] if label.ndim == 0 else ";".join(index.classes[one] for one in np.flatnonzero(label))


def map_features(spec: MapSpec) -> MapResult:
    """Draw features in the plane, coloured by label; everything `sslkit map` does."""
    out = writable(spec.out, ".png")
    found = embedded(spec, spec.samples)
    if len(found.features) < 10:
        raise SslkitError(f"--data: a map of {len(found.features)} samples says nothing", "expected ten or more")
    from sslkit.report.maps import draw_map

    draw_map(found.features, found.labels, spec.method, spec.seed, out)
    return MapResult(str(out), len(found.names), spec.method, found.weights, str(spec.ckpt))


def writable(out: str, suffix: str) -> Path:
    """Return the path to write; raises SslkitError before any work for one that can't be."""
    path = Path(out)
    if path.suffix != suffix:
        raise SslkitError(f"--out: {out} should end in {suffix}")
    if path.is_dir() or not path.parent.exists():
        raise SslkitError(f"--out: cannot write {out}", "it is a folder" if path.is_dir() else f"{path.parent} does not exist")
    return path
