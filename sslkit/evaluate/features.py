"""Features of a data set: eval mode, no gradient, nothing changed."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import meter
from sslkit.data.canvas import Canvases
from sslkit.data.loader import Loader, choose_workers, ordered_batches
from sslkit.encoders import Encoder
from sslkit.errors import SslkitError
from sslkit.transforms import center_view


@torch.no_grad()
def extract(
    encoder: Encoder,
    canvases: Canvases,
    size: int,
    batch_size: int = 256,
    workers: int | str = "auto",
    substitute: bool = False,
) -> tuple[Tensor, NDArray[np.int64]]:
    """Return features `[N, width]` (float32, on the CPU) and the rows they belong to.

    Unreadable images are left out or, with `substitute`, replaced as in training, so that no row is missing.
    The encoder's mode is put back afterwards. Raises SslkitError if nothing can be read.
    """
    count, _ = choose_workers(canvases, workers)
    loader = Loader(canvases, count, substitute)
    features: list[Tensor] = []
    rows: list[NDArray[np.int64]] = []
    training, buffers = encoder.training, [buffer.clone() for buffer in encoder.buffers()]
    encoder.eval()
    try:
        with meter("features", len(canvases.index)) as progress:
            for raw in loader(ordered_batches(len(canvases.index), batch_size)):
                image = raw["image"].to(encoder.mean.device).permute(0, 3, 1, 2).float() / 255
                if len(image):
                    features.append(encoder(center_view(image, size)).float().cpu())
                    rows.append(raw["index"].numpy())
                progress.advance(len(image))
    finally:
        encoder.train(training)
        loader.close()
    assert all(map(torch.equal, encoder.buffers(), buffers)), "taking features changed the encoder"
    if not features:
        raise SslkitError(f"--data: not one image in {canvases.index.source} can be read")
    return torch.cat(features), np.concatenate(rows)
