"""One pass over the data in order, without gradient: an encoder's features, or any function of the samples."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslkit.console import say, show_progress
from sslkit.contract.encoder import Encoder, over_views
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import Source
from sslkit.contract.task import ON_REQUEST, Batch
from sslkit.data.loader import Loader, ordered_batches
from sslkit.data.prefetch import prefetch
from sslkit.data.process_share import available_cores
from sslkit.engine.parallel import World
from sslkit.engine.precision import Machine, compilation_failure

Read = Callable[[Tensor], dict[str, Tensor]]  # from images `[B, C, H, W]` to features by name, `[B, width]`

_COMPILED = 100_000  # samples from which compiling, about a minute, takes less than it saves
_HASHED = 16  # samples that a thread hashes at once


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
    machine: Machine,
    batch_size: int = 256,
    workers: int | str = "auto",
    substitute: bool = False,
    read: Read | None = None,
    hashed: bool = False,
) -> Features:
    """Return features in data order: those of `read`, or the encoder's under the name `last`.

    The encoder computes in the machine's precision, where it lies. Unreadable samples are skipped or, with `substitute`,
    replaced as in training, so that no row is missing. Content is `hashed` only to find duplicates; training does not need
    it. Several processes take a share each. The encoder's mode is restored afterwards. Raises SslkitError if no sample can
    be read.
    """
    world, device = machine.world, encoder.device
    share = world.share(source.info.samples)
    count = share.stop - share.start
    rows, hashes, collected = [np.empty(0, np.int64)], [np.empty(0, np.int64)], _Rows(count)
    training, buffers = encoder.training, [buffer.clone() for buffer in encoder.buffers()]
    encoder.eval()
    try:
        network = _Network(encoder, read, machine, count, batch_size)
        with show_progress(f"features of {source.noun}", count) as progress:
            for raw in _batches(source, device, batch_size, workers, substitute, world, hashed):
                if len(raw["rows"]):
                    collected.add(network(source.view(_prepare(raw, source, device), encoder.modality)))
                    rows.append(raw["rows"])
                    hashes.append(raw["hashes"])
                progress.advance(len(raw["rows"]))
        layers = collected.finish()
        all_rows = world.gather_uneven(torch.from_numpy(np.concatenate(rows)))
        if not len(all_rows):
            raise SslkitError(f"none of the {source.noun} in {source.location} can be read", flag="data")
        if not layers:  # nothing in this process's share is readable: the others need empty features of the right width
            view = source.view(_first_batch(source, device), encoder.modality)
            layers = {name: features[:0].cpu() for name, features in network(view).items()}
    finally:
        encoder.train(training)
    assert all(map(torch.equal, encoder.buffers(), buffers)), "taking features changed the encoder"
    gathered = {name: world.gather_uneven(features) for name, features in layers.items()}
    all_hashes = world.gather_uneven(torch.from_numpy(np.concatenate(hashes)))
    return Features(gathered, all_rows.numpy(), all_hashes.numpy())


@torch.no_grad()
def map_samples(function: Callable[[Batch], Tensor], source: Source, machine: Machine, batch_size: int) -> Tensor:
    """Return a function of all samples in data order, `[N, ...]` on the CPU; it gets prepared batches on the device.

    Unreadable samples are replaced as in training. Several processes take a share each.
    """
    world, device = machine.world, machine.device
    share = world.share(source.info.samples)
    collected = _Rows(share.stop - share.start)
    for raw in _batches(source, device, batch_size, "auto", True, world):
        collected.add({"": function(_prepare(raw, source, device))})
    outputs = collected.finish() or {"": function(_first_batch(source, device))[:0].cpu()}  # fewer samples than processes
    return world.gather_uneven(outputs[""])


def contents(source: Source, batch_size: int, workers: int | str, world: World) -> NDArray[np.int64]:
    """Return a hash of each readable sample's decoded content, int64 `[N]`."""
    batches = _batches(source, torch.device("cpu"), batch_size, workers, False, world, hashed=True)
    hashes = np.concatenate([np.empty(0, np.int64), *(raw["hashes"] for raw in batches)])
    return world.gather_uneven(torch.from_numpy(hashes)).numpy()


class _Network:
    """Read features of views in a machine's precision, as one compiled function where that pays."""

    def __init__(self, encoder: Encoder, read: Read | None, machine: Machine, samples: int, batch_size: int) -> None:
        self.machine, self.sample_dims, self.batch_size = machine, encoder.sample_dims, batch_size

        def widened(view: Tensor) -> dict[str, Tensor]:
            outputs = {"last": encoder(view)} if read is None else read(view)
            return {name: features.float() for name, features in outputs.items()}

        recurrent = any(isinstance(module, nn.RNNBase) for module in encoder.modules())  # torch.compile refuses them
        pays = machine.compile and samples >= _COMPILED and not recurrent
        self.eager: Read = widened
        self.compiled: Read | None = torch.compile(widened, dynamic=False) if pays else None

    def __call__(self, view: Tensor) -> dict[str, Tensor]:
        """Return float32 features by name, `[B, width]`, of samples or of several views of each."""
        with self.machine.autocast():
            return over_views(self._read, self.sample_dims, view)

    def _read(self, view: Tensor) -> dict[str, Tensor]:
        if self.compiled is None or len(view) != self.batch_size:  # the last batch: another shape compiles again
            return self.eager(view)
        try:
            return self.compiled(view)
        except RuntimeError as error:
            if compilation_failure(error) is None:
                raise
            say(f"features are computed eagerly: the encoder cannot be compiled ({type(error).__name__})")
            self.compiled = None
            return self.eager(view)


class _Rows:
    """Collect rows of tensors by name on the CPU; what a GPU computed is copied while it computes the next batch."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.tensors: dict[str, Tensor] = {}
        self._pending: tuple[dict[str, Tensor], torch.cuda.Event | None] | None = None

    def add(self, batch: dict[str, Tensor]) -> None:
        """Add `[B, ...]` of each tensor."""
        device = next(iter(batch.values())).device
        on_gpu = device.type == "cuda"
        copies = {name: rows.to("cpu", non_blocking=on_gpu) for name, rows in batch.items()}  # pinned, if it does not block
        copied = torch.cuda.current_stream(device).record_event() if on_gpu else None
        self._store()
        self._pending = copies, copied

    def finish(self) -> dict[str, Tensor]:
        """Return all rows, in the order in which they were added."""
        self._store()
        return {name: rows[: self.count] for name, rows in self.tensors.items()}

    def _store(self) -> None:
        if self._pending is None:
            return
        (copies, copied), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        length = 0
        for name, rows in copies.items():
            length = len(rows)
            if name not in self.tensors:
                self.tensors[name] = torch.empty(self.most, *rows.shape[1:], dtype=rows.dtype)
            self.tensors[name][self.count : self.count + length] = rows
        self.count += length


def _batches(
    source: Source,
    device: torch.device,
    batch_size: int,
    workers: int | str,
    substitute: bool,
    world: World,
    hashed: bool = False,
) -> Iterator[dict[str, Any]]:
    """Read this process's share in data order, one batch ahead of a GPU, with `rows` and `hashes`, arrays on the CPU."""
    loader = Loader(source, source.workers(workers)[0], substitute, pin_memory=device.type == "cuda")
    share = world.share(source.info.samples)
    try:
        loaded = loader([batch + share.start for batch in ordered_batches(share.stop - share.start, batch_size)])
        yield from prefetch(_with_hashes(loaded, hashed), device)
    finally:
        loader.close()


def _with_hashes(batches: Iterator[dict[str, Any]], hashed: bool) -> Iterator[dict[str, Any]]:
    """Add `rows` and, if they are to be hashed, `hashes`; on the way to a GPU this is done while it computes."""
    with ThreadPoolExecutor(min(8, available_cores())) as threads:  # hashing releases the interpreter's lock
        for raw in batches:
            hashes = _content(raw, threads) if hashed else np.empty(0, np.int64)
            yield {**raw, "rows": raw["index"].numpy(), "hashes": hashes}


def _content(raw: dict[str, Any], threads: ThreadPoolExecutor) -> NDArray[np.int64]:
    """Return a hash of each sample's decoded content, int64 `[B]`."""
    count = len(raw["index"])
    tensors = [value for name, value in sorted(raw.items()) if isinstance(value, Tensor) and name not in ON_REQUEST]
    arrays = [tensor.numpy().reshape(count, -1).view(np.uint8) for tensor in tensors if count]
    digests = threads.map(partial(_digests, arrays), range(0, count, _HASHED))
    return np.frombuffer(b"".join(digests), dtype=np.int64)


def _digests(arrays: list[NDArray[np.uint8]], start: int) -> bytes:
    digests = []
    for rows in zip(*(array[start : start + _HASHED] for array in arrays), strict=True):
        digest = blake2b(digest_size=8)
        for row in rows:
            digest.update(row)
        digests.append(digest.digest())
    return b"".join(digests)


def _prepare(raw: dict[str, Any], source: Source, device: torch.device) -> Batch:
    """Return a loaded batch on the device, where a GPU has it already, as the source prepares it."""
    return source.prepare({name: value.to(device) for name, value in raw.items() if isinstance(value, Tensor)})


def read_views(source: Source, rows: NDArray[np.int64], encodes: str, device: torch.device) -> Tensor:
    """Return a few samples as an encoder sees them, on a device; a broken one is as the source leaves it."""
    arrays, _ = source.read(rows)
    return source.view(_prepare({name: torch.from_numpy(array) for name, array in arrays.items()}, source, device), encodes)


def _first_batch(source: Source, device: torch.device) -> Batch:
    """Return the first two samples, prepared; for shapes only."""
    rows = np.array([0, 1])
    arrays, _ = source.read(rows)
    return _prepare({name: torch.from_numpy(array) for name, array in {**arrays, "index": rows}.items()}, source, device)
