"""A queue of past vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.contract.task import DataInfo


def check_queue(size: int, data: DataInfo) -> None:
    """Raise SslkitError if a queue is smaller than a batch: part of the batch's keys would be lost."""
    if size < data.batch_size:
        raise SslkitError(
            f"{size:,} is smaller than the batch size of {data.batch_size:,}",
            f"use at least {data.batch_size:,}",
            flag="queue",
        )


class Queue(nn.Module):
    """A ring buffer of the last `size` vectors, `rows` `[size, width]`, initialized with random unit vectors.

    Rows and position are buffers, so that they survive a resume.
    """

    rows: Tensor
    position: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replace the oldest rows by `rows` `[n, width]`; of more than `size`, only the last ones are kept."""
        rows = rows[-len(self.rows) :]
        places = (self.position + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows[places] = rows.to(self.rows.dtype)
        self.position.add_(len(rows)).remainder_(len(self.rows))
