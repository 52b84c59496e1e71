"""Random state: every stage of every step is seeded by what it is, so that none has to be saved."""

from hashlib import blake2b

import torch


def seed_stage(seed: int, stage: str, step: int, micro_batch: int = 0, rank: int = 0) -> None:
    """Seed torch on all devices for one stage of one step; repeating the stage draws the same values.

    `micro_batch` is the micro-batch and `rank` the process, for stages that run once in each; a stage that has to draw the
    same values everywhere leaves them out.
    """
    digest = blake2b(f"{seed} {stage} {step} {micro_batch} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
