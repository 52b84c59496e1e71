"""Pieces that several tasks share: heads, decoders, a teacher, a queue, losses, clusters, colours as classes."""

from sslkit.nn.clustering import kmeans as kmeans
from sslkit.nn.colors import ab_bins as ab_bins
from sslkit.nn.colors import nearest_bin as nearest_bin
from sslkit.nn.decoders import PatchDecoder as PatchDecoder
from sslkit.nn.heads import Norm as Norm
from sslkit.nn.heads import mlp as mlp
from sslkit.nn.losses import info_nce as info_nce
from sslkit.nn.losses import nt_xent as nt_xent
from sslkit.nn.queue import Queue as Queue
from sslkit.nn.teacher import Teacher as Teacher
from sslkit.nn.teacher import teacher_momentum as teacher_momentum

__all__ = [
    "Norm",
    "PatchDecoder",
    "Queue",
    "Teacher",
    "ab_bins",
    "info_nce",
    "kmeans",
    "mlp",
    "nearest_bin",
    "nt_xent",
    "teacher_momentum",
]
