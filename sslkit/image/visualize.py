"""`sslkit visualize`: what features show of images: principal components as colors, and attention maps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import read_model
from sslkit.engine.features import extract
from sslkit.engine.precision import choose_machine
from sslkit.evaluation.features import report_unreadable
from sslkit.evaluation.splits import check_channels, evaluation_size, named_data
from sslkit.files import output_path, write_atomically
from sslkit.image.encoders.timm import VisionTransformerEncoder
from sslkit.image.feature_maps import MapReader
from sslkit.image.source import ImageSource
from sslkit.image.specs import VisualizeSpec
from sslkit.image.transforms import resize
from sslkit.pictures import draw_previews, heat_map, to_rgb

_SIDE = 128  # pixels of a picture
_TAILS = (0.01, 0.99)  # quantiles of a component that are black and full in its color


@dataclass(frozen=True)
class VisualizeResult:
    """The picture, and what it shows: how much of the variance of places the three components have, and how many heads."""

    checkpoint: str
    picture: str
    samples: int
    variance: float
    heads: int


def visualize(spec: VisualizeSpec) -> VisualizeResult:
    """Draw images with the principal components of their places as colors, and the attention of heads.

    Raises SslkitError for encoders without feature maps of images.
    """
    out = output_path(spec.out, ".png")
    checkpoint, machine = read_model(spec.ckpt, part=spec.part), choose_machine(spec.device)
    encoder = checkpoint.build_encoder(spec.encoder).to(machine.device)
    read = MapReader(encoder, str(checkpoint.path), spec.layer)
    read.check("visualize")
    data, _, spec = named_data(spec, checkpoint)
    index = ImageSource.read_index(list(find_parts(data, ImageSource.kind).values())[-1], spec)
    check_channels(index, checkpoint)
    order = np.random.default_rng(spec.seed).permutation(len(index))[: max(spec.samples, spec.fit)]
    images = ImageSource.for_evaluation(index.subset(order), spec, encoder, evaluation_size(spec, checkpoint))

    def features(view: Tensor) -> dict[str, Tensor]:
        return {"map": read(view), "image": view}

    taken = extract(encoder, images, machine, spec.batch_size, spec.workers, read=features)
    report_unreadable(images, taken)
    maps, image = taken.layers["map"], taken.layers["image"][: spec.samples]
    colors, variance = component_colors(maps, spec.foreground)
    columns, names = [image, colors[: spec.samples]], ["image", "components"]
    if isinstance(encoder, VisionTransformerEncoder) and spec.heads:
        with torch.no_grad():
            attention = encoder.attention(image.to(machine.device))[:, : spec.heads].float().cpu()
        columns += [heat_map(head) for head in attention.unbind(1)]
        names += [f"head {number}" for number in range(1, attention.shape[1] + 1)]
    pictures = torch.stack([enlarge(to_rgb(column)) for column in columns], dim=1)
    with write_atomically(out) as stream:
        draw_previews(pictures, tuple(names), stream)
    return VisualizeResult(str(checkpoint.path), str(out), len(image), variance, len(names) - 2)


def component_colors(maps: Tensor, foreground: bool = False) -> tuple[Tensor, float]:
    """Return the first three principal components of all places of feature maps `[N, D, h, w]` as colors `[N, 3, h, w]`.

    Also their share of the variance. Signs are those that make the largest loading positive, so that colors are the same in
    every run. With `foreground`, places on the side of the border in the first component are black, and the components are
    those of the others (Oquab et al., 2023, section 7.4).
    """
    count, _, height, width = maps.shape
    places = maps.movedim(1, 3).flatten(0, 2).double()
    inside = torch.ones(len(places), dtype=torch.bool)
    if foreground:
        first = _components(places, inside, 1)[0][:, 0].view(count, height, width)
        edges = torch.cat([first[:, 0], first[:, -1], first[:, :, 0], first[:, :, -1]], dim=1)
        inside = (first * -edges.mean().sign()).flatten() > 0
        inside = inside if inside.sum() > 3 else torch.ones_like(inside)
    components, variance = _components(places, inside, 3)
    low, high = (torch.quantile(components[inside][:_MOST], tail, dim=0) for tail in _TAILS)
    colors = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) * inside[:, None]
    colors = torch.nn.functional.pad(colors, (0, 3 - colors.shape[1]))
    return colors.float().view(count, height, width, 3).movedim(3, 1), variance


_MOST = 2**20  # places of which quantiles are taken


def _components(places: Tensor, inside: Tensor, number: int) -> tuple[Tensor, float]:
    """Return all places `[P, D]` along the components of some, `[P, number]`, and what share of the variance these have."""
    centered = places - places[inside].mean(dim=0)
    chosen = centered[inside]
    values, vectors = torch.linalg.eigh(chosen.T @ chosen)
    vectors = vectors.flip(1)[:, :number]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    share = values.flip(0)[:number].sum() / values.sum().clamp(min=1e-12)
    return centered @ (vectors * largest.sign()), float(share)


def enlarge(picture: Tensor) -> Tensor:
    """Return pictures `[N, 3, h, w]` at the size at which they are drawn: small ones in whole squares, large ones shrunk."""
    factor = _SIDE // picture.shape[3]
    if factor > 1:
        picture = picture.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return resize(picture, _SIDE)
