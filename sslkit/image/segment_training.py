"""Training of an encoder on masks, with a linear layer on its feature map."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.console import show_progress
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.engine.precision import Machine
from sslkit.engine.seeds import seed_stage
from sslkit.image.segmentation import MaskedImages, WholeImages, class_places
from sslkit.image.specs import SegmentSpec

_WARMUP, _WEIGHT_DECAY, _CLIP = 0.1, 0.05, 1.0
_VOID = -1


def train_segmenter(
    read: Callable[[Tensor], Tensor],
    encoder: Encoder,
    images: WholeImages,
    train: MaskedImages,
    numbers: list[int],
    spec: SegmentSpec,
    machine: Machine,
) -> nn.Module:
    """Train an encoder and a linear layer on its feature map, which is returned, by the cross-entropy of pixels.

    AdamW's rate rises for a tenth of the steps and falls to zero; half of the batches are mirrored. Images are read anew in
    every pass, from the cache of canvases where there is room.
    """
    seed_stage(spec.seed, "head", 0)
    width = read(torch.zeros(2, encoder.in_channels, images.info.size, images.info.size, device=machine.device)).shape[1]
    layer = nn.Conv2d(width, len(numbers), 1).to(machine.device)
    parameters = [*encoder.parameters(), *layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=_WEIGHT_DECAY)
    steps = spec.epochs * -(-len(train) // spec.batch_size)
    warmup = max(1, round(_WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    random = np.random.default_rng(spec.seed)
    seed_stage(spec.seed, "finetune", 0)
    encoder.train()
    with show_progress("training on masks", steps) as progress:
        for _ in range(spec.epochs):
            for rows in np.split(order := random.permutation(len(train)), range(spec.batch_size, len(order), spec.batch_size)):
                image, mask = _read(images, train, rows, numbers, spec, machine.device)
                if random.random() < 0.5:
                    image, mask = image.flip(3), mask.flip(2)
                with machine.autocast():
                    scores = layer(read(image))
                enlarged = F.interpolate(scores.float(), size=mask.shape[1:], mode="bilinear")
                loss = F.cross_entropy(enlarged, mask, ignore_index=_VOID)
                if not torch.isfinite(loss):
                    raise SslkitError(f"{spec.lr:g} makes the loss infinite", "use a smaller one", flag="lr")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, _CLIP)
                optimizer.step()
                schedule.step()
                progress.advance(1, f"loss {loss.item():.3f}")
    encoder.eval()
    return layer.eval()


def _read(
    images: WholeImages,
    train: MaskedImages,
    rows: np.ndarray,
    numbers: list[int],
    spec: SegmentSpec,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return images `[B, C, S, S]` and masks of places in `numbers`, int64 `[B, S, S]`, void -1."""
    arrays, broken = images.read(rows)
    if broken:
        raise SslkitError(
            f"{train.index.name(int(rows[next(iter(broken))]))} can't be read", "remove it, or mend it", flag="data"
        )
    batch = images.prepare({name: torch.from_numpy(array).to(device) for name, array in arrays.items()})
    side = images.info.size
    masks = []
    for row in rows:
        places = class_places(train.mask(int(row)), numbers, spec.ignore, train.masks.paths[int(row)])
        masks.append(F.interpolate(torch.from_numpy(places)[None, None].float(), size=(side, side))[0, 0].long())
    return images.view(batch, "image"), torch.stack(masks).to(device)
