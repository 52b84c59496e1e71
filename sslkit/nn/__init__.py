"""Pieces that several tasks share: heads, decoders, a teacher, a queue, losses, clusters, colours, an adversary."""

from sslkit.nn.adversary import frozen as frozen
from sslkit.nn.clustering import Clusters as Clusters
from sslkit.nn.clustering import cluster_count as cluster_count
from sslkit.nn.clustering import kmeans as kmeans
from sslkit.nn.clustering import sinkhorn as sinkhorn
from sslkit.nn.clustering import whitened as whitened
from sslkit.nn.colors import ab_bins as ab_bins
from sslkit.nn.colors import annealed_mean as annealed_mean
from sslkit.nn.colors import nearest_bin as nearest_bin
from sslkit.nn.colors import rarity_weights as rarity_weights
from sslkit.nn.colors import soft_bins as soft_bins
from sslkit.nn.decoders import ConvDecoder as ConvDecoder
from sslkit.nn.decoders import PatchDecoder as PatchDecoder
from sslkit.nn.decoders import map_size as map_size
from sslkit.nn.heads import Norm as Norm
from sslkit.nn.heads import mlp as mlp
from sslkit.nn.losses import info_nce as info_nce
from sslkit.nn.losses import nt_xent as nt_xent
from sslkit.nn.losses import swapped_prediction as swapped_prediction
from sslkit.nn.queue import Queue as Queue
from sslkit.nn.teacher import Teacher as Teacher
from sslkit.nn.teacher import teacher_momentum as teacher_momentum

__all__ = [
    "Clusters",
    "ConvDecoder",
    "Norm",
    "PatchDecoder",
    "Queue",
    "Teacher",
    "ab_bins",
    "annealed_mean",
    "cluster_count",
    "frozen",
    "info_nce",
    "kmeans",
    "map_size",
    "mlp",
    "nearest_bin",
    "nt_xent",
    "rarity_weights",
    "sinkhorn",
    "soft_bins",
    "swapped_prediction",
    "teacher_momentum",
    "whitened",
]
