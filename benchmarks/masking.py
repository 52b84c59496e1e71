"""What an encoder costs that sees a quarter of the patches: FLOPs, and seconds of forward and backward in turns.

    python benchmarks/masking.py --encoder vit_micro --size 32 --batch-size 256

Prints one line of JSON.
"""

import argparse
import json
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.encoders.base import PatchEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default="vit_micro")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--visible", type=float, default=0.25)
    parser.add_argument("--turns", type=int, default=10)
    arguments = parser.parse_args()
    encoder = build_encoder(recipe_for(arguments.encoder, arguments.size))
    assert isinstance(encoder, PatchEncoder)
    image = torch.rand(arguments.batch_size, 3, arguments.size, arguments.size)
    patches = (arguments.size // encoder.patch) ** 2
    keep = torch.rand(len(image), patches).argsort(dim=1)[:, : round(arguments.visible * patches)]
    with torch.no_grad():
        flops = []
        for kept in (None, keep[:1]):
            with FlopCounterMode(display=False) as counter:
                encoder.tokens(image[:1], keep=kept)
            flops.append(counter.get_total_flops())
    seconds: list[list[float]] = [[], []]
    for _ in range(arguments.turns + 1):
        for place, kept in enumerate((None, keep)):
            began = time.perf_counter()
            encoder.tokens(image, keep=kept).square().mean().backward()
            seconds[place].append(time.perf_counter() - began)
    ratios = [part / whole for whole, part in zip(*seconds, strict=True)][1:]  # the first turn warms up
    print(
        json.dumps(
            {
                "encoder": arguments.encoder,
                "size": arguments.size,
                "batch_size": arguments.batch_size,
                "flops_ratio": round(flops[1] / flops[0], 3),
                "seconds_whole": round(statistics.median(seconds[0][1:]), 3),
                "seconds_part": round(statistics.median(seconds[1][1:]), 3),
                "time_ratio": round(statistics.median(ratios), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
