"""Features of a data set: eval mode, no gradient, nothing changed; kept in the cache under what they were made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import meter, say
from sslkit.data.indexed import Indexed
from sslkit.data.loader import Loader, ordered_batches
from sslkit.data.source import Source
from sslkit.data.store import UNREADABLE, cache_folder, make_room, write_atomically
from sslkit.encoders import Encoder, over_views
from sslkit.engine.distributed import ALONE, World
from sslkit.errors import SslkitError
from sslkit.evaluate.models import Model
from sslkit.specs import DataSpec

Read = Callable[[Tensor], dict[str, Tensor]]  # from images `[B, C, H, W]` to features by name, `[B, width]`


@dataclass(frozen=True)
class Features:
    """Hold features by layer, `[N, width]` float32 on the CPU, and what they belong to.

    `rows` are places in the data, in order; `hashes` name the content that was decoded, int64 `[N]`.
    """

    layers: dict[str, Tensor]
    rows: NDArray[np.int64]
    hashes: NDArray[np.int64]


@torch.no_grad()
def extract(
    encoder: Encoder,
    source: Source,
    batch_size: int = 256,
    workers: int | str = "auto",
    substitute: bool = False,
    world: World = ALONE,
    read: Read | None = None,
    hashed: bool = False,
) -> Features:
    """Return features in data order: `read`'s, or by the name `last` what the encoder returns.

    Unreadable samples are left out or, with `substitute`, replaced as in training, so that no row is missing. Content
    is `hashed` only where somebody looks for duplicates: training asks for features, too. Several processes take a share
    each. The encoder's mode is put back afterwards. Raises SslkitError if nothing can be read.
    """
    of_one_view = read or (lambda view: {"last": encoder(view)})

    def read_all(view: Tensor) -> dict[str, Tensor]:
        return over_views(of_one_view, encoder.sample_dims, view)

    own = world.own(source.info.samples)
    layers: dict[str, list[Tensor]] = {}
    rows: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    hashes: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    training, buffers = encoder.training, [buffer.clone() for buffer in encoder.buffers()]
    encoder.eval()
    try:
        with meter("features", own.stop - own.start) as progress:
            for raw, arrays in _batches(source, batch_size, workers, substitute, world):
                if len(raw["index"]):
                    on_device = {name: value.to(encoder.device) for name, value in arrays.items()}
                    for name, features in read_all(source.view(source.prepare(on_device))).items():
                        layers.setdefault(name, []).append(features.float().cpu())
                    rows.append(raw["index"])
                    if hashed:
                        hashes.append(_content(arrays))
                progress.advance(len(raw["index"]), f"{source.called}")
        found = world.gather_uneven(torch.cat(rows))
        if not len(found):
            raise SslkitError(f"--data: not one of the {source.called} in {source.location} can be read")
        if not layers:  # of this process's share nothing could be read: the others need an empty piece of the right width
            layers = {name: [features[:0]] for name, features in _widths(encoder, source, read_all).items()}
    finally:
        encoder.train(training)
    assert all(map(torch.equal, encoder.buffers(), buffers)), "taking features changed the encoder"
    gathered = {name: world.gather_uneven(torch.cat(pieces)) for name, pieces in layers.items()}
    return Features(gathered, found.numpy(), world.gather_uneven(torch.cat(hashes)).numpy())


def contents(source: Source, batch_size: int, workers: int | str, world: World) -> NDArray[np.int64]:
    """Return a hash of each readable sample's decoded content, int64 `[N]`."""
    hashes = [_content(arrays) for _, arrays in _batches(source, batch_size, workers, False, world)]
    return world.gather_uneven(torch.cat([torch.empty(0, dtype=torch.int64), *hashes])).numpy()


def _batches(
    source: Source, batch_size: int, workers: int | str, substitute: bool, world: World
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Read this process's share in data order; yield what the loader delivers, and the tensors in it by name."""
    loader = Loader(source, source.workers(workers)[0], substitute)
    own = world.own(source.info.samples)
    try:
        for raw in loader([batch + own.start for batch in ordered_batches(own.stop - own.start, batch_size)]):
            yield raw, {name: value for name, value in raw.items() if isinstance(value, Tensor)}
    finally:
        loader.close()


def cached(model: Model, samples: Indexed, layer: str, pool: str, spec: DataSpec) -> Features:
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
            raise SslkitError(f"--ckpt: features of {model.name} are not finite", "the run had diverged")
        # What could not be read now may be read another time.
        if spec.cache != "off" and len(found.rows) == len(samples.index):
            _store(folder, found, int(spec.cache_limit * 1e9))
    say_left_out(samples, found)
    return found


def say_left_out(samples: Indexed, found: Features) -> None:
    """Print how many samples could not be read, if any."""
    if len(found.rows) < len(samples.index):
        say(f"{len(samples.index) - len(found.rows)} unreadable {samples.called} of {samples.location} left out")


def reader(encoder: Encoder, name: str, layer: str, pool: str) -> Read:
    """Return what turns images into features of the wanted layers, by name; raises SslkitError for one there is not.

    Layers are counted from the input, from 1. Maps are averaged over places; tokens are pooled as the encoder does
    (`auto`), over patches, by the class token, or both side by side.
    """
    if pool in ("class", "both") and not encoder.class_token:
        raise SslkitError(f"--pool: {name} has no class token", "try average")
    if layer == "last" and pool == "auto":
        return lambda view: {"last": encoder(view)}
    if "layers" not in encoder.offers:
        flag = "--pool" if layer == "last" else "--layer"
        raise SslkitError(f"{flag}: {name} offers {', '.join(encoder.offers)}, no layers", "leave it out")

    def read(view: Tensor) -> dict[str, Tensor]:
        found = [_pooled(encoder, output, pool) for output in encoder.layers(view)]
        if (layer.isdigit() and int(layer) > len(found)) or (layer == "last4" and len(found) < 4):
            raise SslkitError(f"--layer: {name} has {len(found)} layers (got {layer})", f"give 1 to {len(found)}")
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


def _content(arrays: dict[str, Tensor]) -> Tensor:
    """Return a hash of each sample's decoded content, int64 `[B]`."""
    whole = [array.flatten(1).view(torch.uint8).numpy() for name, array in sorted(arrays.items()) if name != "index"]
    digests = [
        blake2b(b"".join(array[row].tobytes() for array in whole), digest_size=8).digest() for row in range(len(whole[0]))
    ]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.int64).copy())


def _widths(encoder: Encoder, source: Source, read: Read) -> dict[str, Tensor]:
    arrays, _ = source.read(np.array([0, 1]))
    tensors = {name: torch.from_numpy(array).to(encoder.device) for name, array in arrays.items()}
    return {name: features.float().cpu() for name, features in read(source.view(source.prepare(tensors))).items()}


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
        raise SslkitError(f"--cache: cannot write to {cache_folder()}: {error.strerror}", "set SSLKIT_CACHE") from error
