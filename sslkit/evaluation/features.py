"""Features of a data set, kept in the cache under what they were made of."""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import say
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.data.cache import UNREADABLE, cache_folder, make_room
from sslkit.data.indexed_source import IndexedSource
from sslkit.engine.features import Features, Read, extract
from sslkit.evaluation.models import Model
from sslkit.files import write_atomically
from sslkit.specs.data import DataSpec


def cached(model: Model, samples: IndexedSource, layer: str, pool: str, spec: DataSpec) -> Features:
    """Return a model's features of samples by a layer (`last`, `last4`, `all` or a number), from the cache if they are in it.

    They are kept by weights, samples, size and pooling: a second evaluation reads no file. Raises SslkitError if the
    encoder lacks the layer or its features are not finite.
    """
    read = reader(model.encoder, model.name, layer, pool)
    what = f"{model.weights} {samples.key()} {layer} {pool}"
    folder = cache_folder() / "features" / blake2b(what.encode(), digest_size=12).hexdigest()
    found = _stored(folder) if spec.cache != "off" else None
    if found is None:
        found = extract(model.encoder, samples, spec.batch_size, spec.workers, read=read, hashed=True)
        if not all(torch.isfinite(features).all() for features in found.layers.values()):
            raise SslkitError(f"features of {model.name} are not finite", "the run had diverged", flag="ckpt")
        # What could not be read now may be read another time.
        if spec.cache != "off" and len(found.rows) == len(samples.index):
            _store(folder, found, int(spec.cache_limit * 1e9))
    say_left_out(samples, found)
    return found


def say_left_out(samples: IndexedSource, found: Features) -> None:
    """Print how many samples could not be read, if any."""
    if len(found.rows) < len(samples.index):
        say(f"{len(samples.index) - len(found.rows)} unreadable {samples.noun} of {samples.location} left out")


def reader(encoder: Encoder, name: str, layer: str, pool: str) -> Read:
    """Return what turns images into features of the wanted layers, by name; raises SslkitError for one there is not.

    Layers are counted from the input, from 1. Maps are averaged over places; tokens are pooled as the encoder does
    (`auto`), over patches, by the class token, or both side by side.
    """
    if pool in ("class", "both") and not encoder.class_token:
        raise SslkitError(f"{name} has no class token", "try average", flag="pool")
    if layer == "last" and pool == "auto":
        return lambda view: {"last": encoder(view)}
    if "layers" not in encoder.offers:
        flag = "pool" if layer == "last" else "layer"
        raise SslkitError(f"{name} offers {', '.join(encoder.offers)}, no layers", "leave it out", flag=flag)

    def read(view: Tensor) -> dict[str, Tensor]:
        found = [_pooled(encoder, output, pool) for output in encoder.layers(view)]
        if (layer.isdigit() and int(layer) > len(found)) or (layer == "last4" and len(found) < 4):
            raise SslkitError(f"{name} has {len(found)} layers (got {layer})", f"give 1 to {len(found)}", flag="layer")
        if layer == "last":
            return {layer: found[-1]}
        if layer == "all":
            return {str(number): features for number, features in enumerate(found, start=1)}
        if layer == "last4":
            return {layer: torch.cat(found[-4:], dim=1)}
        return {layer: found[int(layer) - 1]}

    return read


def _pooled(encoder: Encoder, output: Tensor, pool: str) -> Tensor:
    if output.dim() == 4:
        return output.mean(dim=(2, 3))
    if pool == "auto":
        return encoder.pool(output)
    parts = {"class": output[:, 0], "average": output[:, encoder.prefix :].mean(dim=1)}
    return torch.cat(list(parts.values()), dim=1) if pool == "both" else parts[pool]


def _stored(folder: Path) -> Features | None:
    """Return what a folder of the cache holds, None if it is not there or not whole."""
    try:
        arrays: dict[str, NDArray[Any]] = {file.stem: np.load(file, allow_pickle=False) for file in folder.glob("*.npy")}
        layers = {name.removeprefix("layer-"): array for name, array in arrays.items() if name.startswith("layer-")}
        whole = len(layers) == int(arrays["count"]) and all(len(array) == len(arrays["rows"]) for array in layers.values())
        folder.touch()  # its modification time says when it was last used
    except (*UNREADABLE, KeyError):  # not there, or damaged: they are computed again
        return None
    if not whole:
        return None
    # By number: `glob` has an order of its own.
    names = sorted(layers, key=lambda name: (len(name), name))
    return Features({name: torch.from_numpy(layers[name]) for name in names}, arrays["rows"], arrays["hashes"])


def _store(folder: Path, features: Features, limit: int) -> None:
    arrays: dict[str, NDArray[Any]] = {"rows": features.rows, "hashes": features.hashes}
    arrays |= {f"layer-{name}": array.numpy() for name, array in features.layers.items()}
    needed = sum(array.nbytes for array in arrays.values())
    if needed > limit:
        return
    try:
        make_room(needed, limit, keep=folder)
        for name, array in {**arrays, "count": np.array(len(features.layers))}.items():
            with write_atomically(folder / f"{name}.npy") as stream:
                np.save(stream, array)
    except OSError as error:
        raise SslkitError(f"cannot write to {cache_folder()}: {error.strerror}", "set SSLKIT_CACHE", flag="cache") from error
