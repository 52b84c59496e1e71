"""Building blocks for tasks of any modality: heads, teacher, queue, memory bank, codebook, clustering, losses."""

from sslkit.nn.adversary import critic_layers, with_frozen_weights
from sslkit.nn.clustering import Clusters, cluster_count, kmeans, sinkhorn, whiten
from sslkit.nn.codebook import Codebook
from sslkit.nn.heads import Norm, Prototypes, mlp
from sslkit.nn.losses.contrastive import (
    info_nce,
    jensen_shannon,
    margin_loss,
    matched_nce,
    matched_pairs,
    noise_contrastive,
    nt_xent,
)
from sslkit.nn.losses.joint_embedding import barlow_twins, msn, negative_cosine, swapped_prediction, vicreg
from sslkit.nn.losses.masked import error_share
from sslkit.nn.memory_bank import MemoryBank
from sslkit.nn.norms import batch_statistics, in_eval_mode
from sslkit.nn.queue import Queue, check_queue
from sslkit.nn.teacher import Momentum, Teacher, momentum_reason, teacher_momentum
from sslkit.nn.transformer import Attention, Block, feed_forward

__all__ = [
    "Attention",
    "Block",
    "Clusters",
    "Codebook",
    "MemoryBank",
    "Momentum",
    "Norm",
    "Prototypes",
    "Queue",
    "Teacher",
    "barlow_twins",
    "batch_statistics",
    "check_queue",
    "cluster_count",
    "critic_layers",
    "error_share",
    "feed_forward",
    "in_eval_mode",
    "info_nce",
    "jensen_shannon",
    "kmeans",
    "margin_loss",
    "matched_nce",
    "matched_pairs",
    "mlp",
    "momentum_reason",
    "msn",
    "negative_cosine",
    "noise_contrastive",
    "nt_xent",
    "sinkhorn",
    "swapped_prediction",
    "teacher_momentum",
    "vicreg",
    "whiten",
    "with_frozen_weights",
]
