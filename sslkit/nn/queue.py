"""A queue of past vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.contract.task import DataInfo


def check_queue(size: int, data: DataInfo) -> None:
    """Raise SslkitError if a queue would not hold one batch: the others' keys would be lost."""
    if size < data.batch_size:
        raise SslkitError(
            f"{size:,} are fewer than a batch of {data.batch_size:,}", f"give at least {data.batch_size:,}", flag="queue"
        )


class Queue(nn.Module):
    """Hold the last `size` unit vectors, `rows` `[size, width]`; random ones until it is full.

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
        """Put rows `[n, width]` in the place of the oldest ones; of more than `size`, the last ones stay."""
        rows = rows[-len(self.rows) :]
        places = (self.position + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows[places] = rows.to(self.rows.dtype)
        self.position.add_(len(rows)).remainder_(len(self.rows))
