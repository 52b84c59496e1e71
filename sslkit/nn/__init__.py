"""Pieces that several tasks share: heads and losses."""

from sslkit.nn.heads import Norm as Norm
from sslkit.nn.heads import mlp as mlp
from sslkit.nn.losses import nt_xent as nt_xent

__all__ = ["Norm", "mlp", "nt_xent"]
