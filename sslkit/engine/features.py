"""One pass over the data with an encoder: eval mode, no gradient, nothing changed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.encoder import Encoder, over_views
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import Source
from sslkit.data.loader import Loader, ordered_batches
from sslkit.engine.parallel import ALONE, World

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
        with show_progress("features", own.stop - own.start) as progress:
            for raw, arrays in _batches(source, batch_size, workers, substitute, world):
                if len(raw["index"]):
                    on_device = {name: value.to(encoder.device) for name, value in arrays.items()}
                    for name, features in read_all(source.view(source.prepare(on_device))).items():
                        layers.setdefault(name, []).append(features.float().cpu())
                    rows.append(raw["index"])
                    if hashed:
                        hashes.append(_content(arrays))
                progress.advance(len(raw["index"]), f"{source.noun}")
        found = world.gather_uneven(torch.cat(rows))
        if not len(found):
            raise SslkitError(f"not one of the {source.noun} in {source.location} can be read", flag="data")
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
