"""Pieces that several tasks share: heads, decoders, a teacher, a queue, losses, clusters, colours, an adversary."""

from sslkit.nn.adversary import critic_layers as critic_layers
from sslkit.nn.adversary import frozen as frozen
from sslkit.nn.bank import Bank as Bank
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
from sslkit.nn.decoders import CodeDecoder as CodeDecoder
from sslkit.nn.decoders import ConvDecoder as ConvDecoder
from sslkit.nn.decoders import PatchDecoder as PatchDecoder
from sslkit.nn.decoders import PatchDecoderOptions as PatchDecoderOptions
from sslkit.nn.decoders import map_size as map_size
from sslkit.nn.decoders import sine_positions as sine_positions
from sslkit.nn.heads import Norm as Norm
from sslkit.nn.heads import Prototypes as Prototypes
from sslkit.nn.heads import mlp as mlp
from sslkit.nn.losses import barlow_twins as barlow_twins
from sslkit.nn.losses import error_share as error_share
from sslkit.nn.losses import info_nce as info_nce
from sslkit.nn.losses import jensen_shannon as jensen_shannon
from sslkit.nn.losses import margin_loss as margin_loss
from sslkit.nn.losses import matched_nce as matched_nce
from sslkit.nn.losses import matched_pairs as matched_pairs
from sslkit.nn.losses import msn as msn
from sslkit.nn.losses import negative_cosine as negative_cosine
from sslkit.nn.losses import noise_contrastive as noise_contrastive
from sslkit.nn.losses import nt_xent as nt_xent
from sslkit.nn.losses import swapped_prediction as swapped_prediction
from sslkit.nn.losses import vicreg as vicreg
from sslkit.nn.norms import in_eval_mode as in_eval_mode
from sslkit.nn.norms import own_statistics as own_statistics
from sslkit.nn.queue import Queue as Queue
from sslkit.nn.queue import check_queue as check_queue
from sslkit.nn.teacher import Momentum as Momentum
from sslkit.nn.teacher import Teacher as Teacher
from sslkit.nn.teacher import momentum_reason as momentum_reason
from sslkit.nn.teacher import teacher_momentum as teacher_momentum
from sslkit.nn.tokenizer import Codebook as Codebook
from sslkit.nn.tokenizer import read_tokenizer as read_tokenizer
from sslkit.nn.tokenizer import tokenizer_for as tokenizer_for

__all__ = [
    "Bank",
    "Clusters",
    "CodeDecoder",
    "Codebook",
    "ConvDecoder",
    "Momentum",
    "Norm",
    "PatchDecoder",
    "PatchDecoderOptions",
    "Prototypes",
    "Queue",
    "Teacher",
    "ab_bins",
    "annealed_mean",
    "barlow_twins",
    "check_queue",
    "cluster_count",
    "critic_layers",
    "error_share",
    "frozen",
    "in_eval_mode",
    "info_nce",
    "jensen_shannon",
    "kmeans",
    "map_size",
    "margin_loss",
    "matched_nce",
    "matched_pairs",
    "mlp",
    "momentum_reason",
    "msn",
    "nearest_bin",
    "negative_cosine",
    "noise_contrastive",
    "nt_xent",
    "own_statistics",
    "rarity_weights",
    "read_tokenizer",
    "sine_positions",
    "sinkhorn",
    "soft_bins",
    "swapped_prediction",
    "teacher_momentum",
    "tokenizer_for",
    "vicreg",
    "whitened",
]
