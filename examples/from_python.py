"""Everything a command does is one typed call: `python examples/from_python.py IMAGES MINUTES`."""

import sys

import torch

import sslkit


def main(images: str, minutes: float) -> None:
    """Pretrain, evaluate, export, and use the encoder."""
    run = sslkit.pretrain(sslkit.PretrainSpec(task="rotation", data=images, minutes=minutes, options={"crop_scale": 0.7}))
    print(f"{run.steps} steps, {run.samples_per_second:.0f} images/s -> {run.checkpoint}")

    result = sslkit.knn(sslkit.KnnSpec(ckpt=run.checkpoint))
    print(f"k-NN {result.headline.text()} by {result.protocol} on {result.headline.n} images")

    exported = sslkit.export(sslkit.ExportSpec(ckpt=run.checkpoint, to="pt2"))
    print(f"{exported.path} differs by at most {exported.max_abs_diff:.1g}")

    encoder = sslkit.load(run.checkpoint)  # in eval mode, normalization inside: images in [0, 1] go in
    with torch.no_grad():
        print("features", tuple(encoder(torch.rand(2, 3, 32, 32)).shape))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
