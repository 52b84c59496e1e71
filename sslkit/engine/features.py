"""One pass over the data in order, without gradient: an encoder's features, or any function of the samples."""

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
from sslkit.contract.task import ON_REQUEST, Batch
from sslkit.data.loader import Loader, ordered_batches
from sslkit.engine.parallel import ALONE, World

Read = Callable[[Tensor], dict[str, Tensor]]  # from images `[B, C, H, W]` to features by name, `[B, width]`


@dataclass(frozen=True)
class Features:
    """Features by layer, `[N, width]` float32 on the CPU, with the samples they belong to.

    `rows` are places in the data, in order; `hashes` of the decoded content are int64 `[N]`.
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
    """Return features in data order: those of `read`, or the encoder's under the name `last`.

    Unreadable samples are skipped or, with `substitute`, replaced as in training, so that no row is missing. Content is
    `hashed` only to find duplicates; training does not need it. Several processes take a share each. The encoder's mode
    is restored afterwards. Raises SslkitError if no sample can be read.
    """
    of_one_view = read or (lambda view: {"last": encoder(view)})

    def read_all(view: Tensor) -> dict[str, Tensor]:
        return over_views(of_one_view, encoder.sample_dims, view)

    share = world.share(source.info.samples)
    layers: dict[str, list[Tensor]] = {}
    rows: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    hashes: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    training, buffers = encoder.training, [buffer.clone() for buffer in encoder.buffers()]
    encoder.eval()
    try:
        with show_progress("features", share.stop - share.start) as progress:
            for raw, arrays in _batches(source, batch_size, workers, substitute, world):
                if len(raw["index"]):
                    on_device = {name: value.to(encoder.device) for name, value in arrays.items()}
                    for name, features in read_all(source.view(source.prepare(on_device), encoder.modality)).items():
                        layers.setdefault(name, []).append(features.float().cpu())
                    rows.append(raw["index"])
                    if hashed:
                        hashes.append(_content(arrays))
                progress.advance(len(raw["index"]), f"{source.noun}")
        all_rows = world.gather_uneven(torch.cat(rows))
        if not len(all_rows):
            raise SslkitError(f"none of the {source.noun} in {source.location} can be read", flag="data")
        if not layers:  # nothing in this process's share is readable: the others need empty features of the right width
            view = source.view(_first_batch(source, encoder.device), encoder.modality)
            layers = {name: [features[:0].float().cpu()] for name, features in read_all(view).items()}
    finally:
        encoder.train(training)
    assert all(map(torch.equal, encoder.buffers(), buffers)), "taking features changed the encoder"
    gathered = {name: world.gather_uneven(torch.cat(parts)) for name, parts in layers.items()}
    return Features(gathered, all_rows.numpy(), world.gather_uneven(torch.cat(hashes)).numpy())


@torch.no_grad()
def map_samples(
    function: Callable[[Batch], Tensor], source: Source, device: torch.device, batch_size: int, world: World = ALONE
) -> Tensor:
    """Return a function of all samples in data order, `[N, ...]` on the CPU; it gets prepared batches on the device.

    Unreadable samples are replaced as in training. Several processes take a share each.
    """
    parts: list[Tensor] = []
    for _, arrays in _batches(source, batch_size, "auto", True, world):
        parts.append(function(source.prepare({name: value.to(device) for name, value in arrays.items()})).cpu())
    if not parts:  # fewer samples than processes
        parts.append(function(_first_batch(source, device))[:0].cpu())
    return world.gather_uneven(torch.cat(parts))


def contents(source: Source, batch_size: int, workers: int | str, world: World) -> NDArray[np.int64]:
    """Return a hash of each readable sample's decoded content, int64 `[N]`."""
    hashes = [_content(arrays) for _, arrays in _batches(source, batch_size, workers, False, world)]
    return world.gather_uneven(torch.cat([torch.empty(0, dtype=torch.int64), *hashes])).numpy()


def _batches(
    source: Source, batch_size: int, workers: int | str, substitute: bool, world: World
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Read this process's share in data order; yield what the loader delivers, and its tensors by name."""
    loader = Loader(source, source.workers(workers)[0], substitute)
    share = world.share(source.info.samples)
    try:
        for raw in loader([batch + share.start for batch in ordered_batches(share.stop - share.start, batch_size)]):
            yield raw, {name: value for name, value in raw.items() if isinstance(value, Tensor)}
    finally:
        loader.close()


def _content(arrays: dict[str, Tensor]) -> Tensor:
    """Return a hash of each sample's decoded content, int64 `[B]`."""
    content = [array for name, array in sorted(arrays.items()) if name not in ON_REQUEST]
    whole = [array.reshape(len(array), -1).view(torch.uint8).numpy() for array in content]
    digests = [
        blake2b(b"".join(array[row].tobytes() for array in whole), digest_size=8).digest() for row in range(len(whole[0]))
    ]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.int64).copy())


def _first_batch(source: Source, device: torch.device) -> Batch:
    """Return the first two samples, prepared; for shapes only."""
    rows = np.array([0, 1])
    arrays, _ = source.read(rows)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in {**arrays, "index": rows}.items()}
    return source.prepare(tensors)
