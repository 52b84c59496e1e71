"""Features of a data set: eval mode, no gradient, nothing changed."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import meter
from sslkit.data.loader import Loader, ordered_batches
from sslkit.data.source import Source
from sslkit.encoders import Encoder
from sslkit.engine.distributed import ALONE, World
from sslkit.errors import SslkitError


@torch.no_grad()
def extract(
    encoder: Encoder,
    source: Source,
    batch_size: int = 256,
    workers: int | str = "auto",
    substitute: bool = False,
    world: World = ALONE,
) -> tuple[Tensor, NDArray[np.int64]]:
    """Return features `[N, width]` (float32, on the CPU) and the rows they belong to, in data order.

    Unreadable samples are left out or, with `substitute`, replaced as in training, so that no row is missing.
    Several processes take a share each. The encoder's mode is put back afterwards. Raises SslkitError if nothing can
    be read.
    """
    count, _ = source.workers(workers)
    loader = Loader(source, count, substitute)
    own = world.own(source.info.samples)
    batches = [rows + own.start for rows in ordered_batches(own.stop - own.start, batch_size)]
    features: list[Tensor] = [torch.empty(0, encoder.width)]
    found: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    training, buffers = encoder.training, [buffer.clone() for buffer in encoder.buffers()]
    encoder.eval()
    try:
        with meter("features", own.stop - own.start) as progress:
            for raw in loader(batches):
                arrays = {name: value.to(encoder.device) for name, value in raw.items() if isinstance(value, Tensor)}
                if len(raw["index"]):
                    features.append(encoder(source.view(source.prepare(arrays))).float().cpu())
                    found.append(raw["index"])
                progress.advance(len(raw["index"]))
    finally:
        encoder.train(training)
        loader.close()
    assert all(map(torch.equal, encoder.buffers(), buffers)), "taking features changed the encoder"
    rows = world.gather_uneven(torch.cat(found))
    if not len(rows):
        raise SslkitError(f"--data: not one of the {source.called} in {source.location} can be read")
    return world.gather_uneven(torch.cat(features)), rows.numpy()
