"""Building blocks for tasks of any modality: heads, teacher, queue, memory bank, codebook, clustering, losses."""

from sslkit.nn.adversary import critic_layers, with_frozen_weights
from sslkit.nn.clustering import KMeansResult, cluster_count, kmeans, sinkhorn, whiten
from sslkit.nn.codebook import Codebook
from sslkit.nn.constants import constant
from sslkit.nn.fusion import fusible
from sslkit.nn.heads import Norm, ProjectorOptions, Prototypes, mlp
from sslkit.nn.losses.classification import class_targets, classification_loss, top_class_correct
from sslkit.nn.losses.contrastive import (
    in_batch_info_nce,
    info_nce,
    info_nce_from_scores,
    jensen_shannon,
    margin_loss,
    noise_contrastive,
    nt_xent,
    pairwise_sigmoid,
    symmetric_cross_entropy,
)
from sslkit.nn.losses.joint_embedding import barlow_twins, msn, negative_cosine, swapped_prediction, vicreg
from sslkit.nn.losses.masked import error_share
from sslkit.nn.memory_bank import MemoryBank, MemoryBankOptions
from sslkit.nn.norms import batch_statistics, in_eval_mode
from sslkit.nn.precision import widen
from sslkit.nn.queue import Queue, check_queue
from sslkit.nn.teacher import Momentum, Teacher, early_momentum, momentum_reason, teacher_momentum
from sslkit.nn.transformer import Attention, Block, CrossBlock, feed_forward

__all__ = [
    "Attention",
    "Block",
    "Codebook",
    "CrossBlock",
    "KMeansResult",
    "MemoryBank",
    "MemoryBankOptions",
    "Momentum",
    "Norm",
    "ProjectorOptions",
    "Prototypes",
    "Queue",
    "Teacher",
    "barlow_twins",
    "batch_statistics",
    "check_queue",
    "class_targets",
    "classification_loss",
    "cluster_count",
    "constant",
    "critic_layers",
    "early_momentum",
    "error_share",
    "feed_forward",
    "fusible",
    "in_batch_info_nce",
    "in_eval_mode",
    "info_nce",
    "info_nce_from_scores",
    "jensen_shannon",
    "kmeans",
    "margin_loss",
    "mlp",
    "momentum_reason",
    "msn",
    "negative_cosine",
    "noise_contrastive",
    "nt_xent",
    "pairwise_sigmoid",
    "sinkhorn",
    "swapped_prediction",
    "symmetric_cross_entropy",
    "teacher_momentum",
    "top_class_correct",
    "vicreg",
    "whiten",
    "widen",
    "with_frozen_weights",
]
