"""Features of a data set, cached by weights, samples, layer, pooling and precision."""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import say_once
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.data.cache import UNREADABLE, cache_error, cache_folder, make_room
from sslkit.data.indexed_source import IndexedSource
from sslkit.engine.features import Features, Read, extract
from sslkit.engine.precision import choose_machine
from sslkit.evaluation.models import Model
from sslkit.files import write_atomically
from sslkit.specs.data import DataSpec


def cached_features(model: Model, samples: IndexedSource, layer: str, pool: str, spec: DataSpec) -> Features:
    """Return a model's features of samples by a layer (`last`, `last4`, `all` or a number), from the cache if they are in it.

    They are kept by weights, samples, size, pooling and precision: a second evaluation reads no file, and keeps none of
    them in memory before it uses them. Raises SslkitError if the encoder lacks the layer or its features are not finite.
    """
    read = reader(model.encoder, model.name, layer, pool)
    machine = choose_machine(spec.device)
    key = f"{model.weights} {samples.key()} {layer} {pool} {machine.precision}"
    folder = cache_folder() / "features" / blake2b(key.encode(), digest_size=12).hexdigest()
    features = _load(folder) if spec.cache != "off" else None
    if features is None:
        features = extract(model.encoder, samples, machine, spec.batch_size, spec.workers, read=read, hashed=True)
        if not all(torch.isfinite(values).all() for values in features.layers.values()):
            raise SslkitError(f"features of {model.name} are not finite", "the run diverged", flag="ckpt")
        # Samples that are unreadable now may be readable another time.
        if spec.cache != "off" and len(features.rows) == len(samples.index):
            _store(folder, features, int(spec.cache_limit * 1e9))
            features = _load(folder) or features
    report_unreadable(samples, features)
    return features


def report_unreadable(samples: IndexedSource, features: Features) -> None:
    """Print how many samples could not be read, if any, and which classes have no other."""
    index = samples.index
    if len(features.rows) == len(index):
        return
    say_once(f"skipped {len(index) - len(features.rows)} unreadable {samples.noun} of {samples.location}")
    if index.labels is None or index.labels.ndim != 1:
        return
    for place in np.setdiff1d(index.labels, [-1, *index.labels[features.rows]]):
        rows = np.flatnonzero(index.labels == place)
        files = ", ".join(index.name(int(row)) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
        problem = f"none of its {len(rows)} {samples.noun} in this part can be read ({files})"
        say_once(f"class {index.classes[place]} is missing from the figures: {problem}")


def reader(encoder: Encoder, name: str, layer: str, pool: str) -> Read:
    """Return a function from samples to features of the requested layers by name; raises SslkitError for a missing layer.

    Layers are counted from the input, from 1. Maps are averaged over places; tokens are pooled as the encoder does
    (`auto`), over patches, by the class token, both side by side, or by the last token.
    """
    if pool in ("class", "both") and not encoder.class_token:
        raise SslkitError(f"{name} has no class token", "use average", flag="pool")
    if layer == "last" and pool == "auto":
        return lambda view: {"last": encoder(view)}
    if "layers" not in encoder.provides:
        flag = "pool" if layer == "last" else "layer"
        raise SslkitError(f"{name} provides {', '.join(encoder.provides)}, but no layers", "leave the flag out", flag=flag)

    def read(view: Tensor) -> dict[str, Tensor]:
        view = encoder.without_padding(view)
        layers = [_pool(encoder, output, pool, view) for output in encoder.layers(view)]
        if (layer.isdigit() and int(layer) > len(layers)) or (layer == "last4" and len(layers) < 4):
            raise SslkitError(f"{name} has {len(layers)} layers (got {layer})", f"use 1 to {len(layers)}", flag="layer")
        if layer == "last":
            return {layer: layers[-1]}
        if layer == "all":
            return {str(number): features for number, features in enumerate(layers, start=1)}
        if layer == "last4":
            return {layer: torch.cat(layers[-4:], dim=1)}
        return {layer: layers[int(layer) - 1]}

    return read


def _pool(encoder: Encoder, output: Tensor, pool: str, sample: Tensor) -> Tensor:
    if pool == "last":
        return encoder.last_token(output, sample)
    if output.dim() == 4:
        return output.mean(dim=(2, 3))
    if pool == "auto":
        return encoder.pool_sample(output, sample)
    parts = {"class": output[:, 0], "average": encoder.average(output, sample)}
    return torch.cat(list(parts.values()), dim=1) if pool == "both" else parts[pool]


def _load(folder: Path) -> Features | None:
    """Return the features in a folder of the cache, None if they are missing or incomplete."""
    try:
        # Mapped: of many layers, only the one in use is read. Private, because torch wants arrays that can be written.
        arrays: dict[str, NDArray[Any]] = {file.stem: np.load(file, mmap_mode="c") for file in folder.glob("*.npy")}
        layers = {name.removeprefix("layer-"): array for name, array in arrays.items() if name.startswith("layer-")}
        complete = len(layers) == int(arrays["count"]) and all(len(array) == len(arrays["rows"]) for array in layers.values())
        folder.touch()  # its modification time records the last use
    except (*UNREADABLE, KeyError):  # missing or damaged: computed again
        return None
    if not complete:
        return None
    # By number: `glob` has no defined order.
    names = sorted(layers, key=lambda name: (len(name), name))
    return Features(
        {name: torch.from_numpy(layers[name]) for name in names}, np.array(arrays["rows"]), np.array(arrays["hashes"])
    )


def _store(folder: Path, features: Features, limit: int) -> None:
    arrays: dict[str, NDArray[Any]] = {"rows": features.rows, "hashes": features.hashes}
    arrays |= {f"layer-{name}": array.numpy() for name, array in features.layers.items()}
    needed = sum(array.nbytes for array in arrays.values())
    if needed > limit:
        return
    try:
        make_room(needed, limit, folder)
        for name, array in {**arrays, "count": np.array(len(features.layers))}.items():
            with write_atomically(folder / f"{name}.npy") as stream:
                np.save(stream, array)
    except OSError as error:
        raise cache_error(error) from error
