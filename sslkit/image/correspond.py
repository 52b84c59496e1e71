"""`sslkit correspond`: whether features find a part of an image again after a known change of view."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.encoder import Encoder
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Metric, Result, Role, Row, TestData
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.splits import check_channels, check_run_data, named_data
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, interval_of_mean
from sslkit.files import output_path, write_atomically
from sslkit.image.feature_maps import extract_every, read_models
from sslkit.image.source import ImageSource
from sslkit.image.specs import CorrespondSpec
from sslkit.image.transforms import patchify
from sslkit.pictures import as_tile

_PART = 64  # images in memory at once
_PATCH = 16  # pixels of a patch of colors
_PICTURED, _LINES, _GAP = 4, 12, 8
_COLORS, _SAME = "colors of patches", "the same place"

Maps = Callable[[Tensor], Tensor]  # images [B, C, S, S] -> feature maps [B, D, h, w]


@dataclass(frozen=True)
class Matcher:
    """What finds places again: feature maps, or, without any, the same place."""

    name: str
    role: Role
    side: int
    maps: Maps | None
    weights: str = ""

    @torch.no_grad()
    def match(self, image: Tensor, warped: Tensor, homography: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each place of a warped image `[C, S, S]` the place of the image that is most similar, the true one, and
        whether that is inside: `[h * w, 2]` (x and y, from 0 to 1) twice, and bool `[h * w]`.
        """
        if self.maps is None:
            at = _centers(self.side // _PATCH, self.side // _PATCH)
            nearest = at
        else:
            first, second = self.maps(torch.stack([image, warped])).float().unbind(0)
            at = _centers(second.shape[1], second.shape[2])
            cosine = F.normalize(second.flatten(1), dim=0).T @ F.normalize(first.flatten(1), dim=0)
            nearest = _centers(first.shape[1], first.shape[2])[cosine.argmax(dim=1).cpu()]
        true = project(homography, at)
        return nearest, true, ((true >= 0) & (true <= 1)).all(dim=1)


class Correspond(Evaluation):
    """Find parts of images again after a known change of view, by the similarity of features."""

    verb = "correspond"
    Options = CorrespondSpec
    labels = "none"
    requires = ("feature_map",)
    modalities = ("image",)
    in_all = False
    protocols = (
        Protocol(
            "correspond/warp-v1",
            "nearest place by cosine in the unchanged image, of each place of the same image under a random homography; the "
            "share within 1/14 of the side",
            {"samples": 200, "resolution": 224, "layer": "last", "strength": 0.2, "jitter": 0.3, "threshold": 1 / 14},
        ),
    )

    def run(self, spec: CorrespondSpec) -> Result:
        """Measure a checkpoint, random weights, colors of patches, and the guess that nothing has moved.

        Of data with train/ and test/, test is read. Raises SslkitError for encoders without feature maps.
        """
        started_at = time.monotonic()
        picture = None if spec.out is None else output_path(spec.out, ".png")
        checkpoint, machine = read_model(spec.ckpt, part=spec.part), choose_machine(spec.device)
        encoder = checkpoint.build_encoder(spec.encoder).to(machine.device)
        matchers = _matchers(spec, checkpoint, encoder, machine)
        data, from_run, spec = named_data(spec, checkpoint)
        name, location = list(find_parts(data, ImageSource.kind).items())[-1]
        index = ImageSource.read_index(location, spec)
        check_channels(index, checkpoint)
        pretrained = index.fingerprint() == checkpoint.metadata["data"]
        check_run_data(data, from_run and name == "train", pretrained)
        random = np.random.default_rng(spec.seed)
        index = index.subset(np.sort(random.permutation(len(index))[: spec.samples]))
        homographies = torch.stack([random_homography(random, spec.strength) for _ in range(len(index))])
        light = torch.from_numpy(1 + spec.jitter * (2 * random.random((2, len(index))) - 1)).float()
        rows, outcomes = list[Row](), CheckpointOutcomes[Answers](compare_answers)
        test = data if name == "train" else f"{name} of {data}"
        for matcher in matchers:
            shares, errors = _measure(matcher, index, homographies, light, encoder, spec, machine)
            rows.append(_row(matcher, shares, errors, test, outcomes))
        protocol = self.protocols[0]
        settings = {name: getattr(spec, name) for name in protocol.settings}
        result = Result(
            verb=self.verb,
            protocol=protocol.id if settings == protocol.settings and not spec.sample_values() else None,
            settings={**settings, "seed": spec.seed},
            checkpoint=str(checkpoint.path),
            weights=rows[0].weights,
            data=Data(tests=[TestData(test, index.fingerprint(), len(index), seen_in_pretraining=pretrained)]),
            rows=adjust_comparisons(rows),
            notes=["Errors are in shares of the side. Places that come from outside the image do not count."],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec, can_finetune=False)
        append_result(checkpoint.path.parent, result.to_json())
        if picture is not None:
            first = index.subset(np.arange(min(_PICTURED, len(index))))
            images = _images(first, matchers[0].side, encoder, spec, machine)
            with write_atomically(picture) as stream:
                _draw(matchers[0], images, homographies, light, spec, machine).save(stream, format="PNG")
        return result


def correspond(spec: CorrespondSpec) -> Result:
    """Find parts of images again after a known change of view, as `sslkit correspond` does."""
    return Correspond().run(spec)


def random_homography(random: np.random.Generator, strength: float) -> Tensor:
    """Return a homography `[3, 3]` from the warped image to the unchanged one, whose corners move by `strength` at most.

    Coordinates are x and y, from 0 to 1.
    """
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    moved = corners + strength * (2 * random.random((4, 2)) - 1)
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return torch.from_numpy(np.append(np.linalg.solve(np.array(rows), np.array(values)), 1).reshape(3, 3)).float()


def project(homography: Tensor, points: Tensor) -> Tensor:
    """Return where a homography `[3, 3]` takes points `[P, 2]`."""
    mapped = torch.cat([points, torch.ones(len(points), 1)], dim=1) @ homography.T
    projected: Tensor = mapped[:, :2] / mapped[:, 2:]
    return projected


def warp(image: Tensor, homography: Tensor, light: Tensor) -> Tensor:
    """Return an image `[C, S, S]` in another view, and in another light: by contrast and brightness, `[2]`; black outside."""
    side = image.shape[1]
    at = project(homography, _centers(side, side)).view(1, side, side, 2).to(image.device)
    moved = F.grid_sample(image[None], 2 * at - 1, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    contrast, brightness = light.tolist()
    mean = moved.mean()
    lit: Tensor = (((moved - mean) * contrast + mean) * brightness).clamp(0, 1)
    return lit


def _centers(rows: int, columns: int) -> Tensor:
    """Return the centers of the places of a grid, row by row, `[rows * columns, 2]`: x and y from 0 to 1."""
    down, across = ((torch.arange(length) + 0.5) / length for length in (rows, columns))
    return torch.stack([across.repeat(rows), down.repeat_interleave(columns)], dim=1)


def _colors(image: Tensor) -> Tensor:
    """Return the pixels of each patch less the image's mean, `[B, D, h, w]`."""
    patches = patchify(image - image.mean(dim=(2, 3), keepdim=True), _PATCH)
    maps: Tensor = patches.transpose(1, 2).unflatten(2, (image.shape[2] // _PATCH, -1))
    return maps


def _matchers(spec: CorrespondSpec, checkpoint: Checkpoint, encoder: Encoder, machine: Machine) -> list[Matcher]:
    """Return the checkpoint and what stands beside it, on the device."""
    readers = read_models(spec, checkpoint, encoder, machine, "correspond")
    matchers = [Matcher(model.name, model.role, model.size, read, model.weights) for model, read in readers]
    if spec.baselines:
        side = -(-spec.resolution // _PATCH) * _PATCH
        matchers += [Matcher(_COLORS, "baseline", side, _colors), Matcher(_SAME, "other", side, None)]
    return matchers


def _images(index: Index, side: int, encoder: Encoder, spec: CorrespondSpec, machine: Machine) -> Tensor:
    """Return the middle of images, `[N, C, side, side]`; raises SslkitError for one that can't be read."""
    images = ImageSource.for_evaluation(index, spec, encoder, side)
    return extract_every(encoder, images, machine, spec, lambda view: {"last": view})


def _measure(
    matcher: Matcher,
    index: Index,
    homographies: Tensor,
    light: Tensor,
    encoder: Encoder,
    spec: CorrespondSpec,
    machine: Machine,
) -> tuple[Tensor, Tensor]:
    """Return for each image the share of places that are matched rightly, and the mean error, `[N]` each."""
    shares, errors = list[float](), list[float]()
    with show_progress(f"matches, {matcher.name}", len(index)) as progress:
        for start in range(0, len(index), _PART):
            rows = np.arange(start, min(start + _PART, len(index)))
            for row, image in zip(rows, _images(index.subset(rows), matcher.side, encoder, spec, machine), strict=True):
                image = image.to(machine.device)
                at, true, inside = matcher.match(image, warp(image, homographies[row], light[:, row]), homographies[row])
                distance = (at - true).norm(dim=1)[inside]
                shares.append(float((distance <= spec.threshold).float().mean()))
                errors.append(float(distance.mean()))
                progress.advance(1)
    return torch.tensor(shares, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64)


def _row(matcher: Matcher, shares: Tensor, errors: Tensor, test: str, outcomes: CheckpointOutcomes[Answers]) -> Row:
    """Return the row of one model, with intervals over images."""
    low, high, method = interval_of_mean(shares)
    count = len(shares)
    metrics = [
        Metric("right matches", float(shares.mean()), low, high, method, n=count, unit_of_n="images"),
        Metric("error", float(errors.mean()), n=count, unit_of_n="images", higher_is_better=False, unit="other"),
    ]
    comparisons = outcomes.compare(matcher.role, 0, None, Answers(np.arange(count), shares))
    return Row(matcher.name, metrics, test, comparisons=comparisons, weights=matcher.weights, role=matcher.role)


def _draw(
    matcher: Matcher, images: Tensor, homographies: Tensor, light: Tensor, spec: CorrespondSpec, machine: Machine
) -> Image.Image:
    """Return a picture of images, warped ones beside them, and lines between matches: green for right ones, else red."""
    side = images.shape[2]
    sheet = Image.new("RGB", (2 * side + 3 * _GAP, len(images) * (side + _GAP) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, image in enumerate(images):
        image = image.to(machine.device)
        warped = warp(image, homographies[row], light[:, row])
        at, true, inside = matcher.match(image, warped, homographies[row])
        top = _GAP + row * (side + _GAP)
        for column, picture in enumerate((image, warped)):
            sheet.paste(as_tile(picture, side), (_GAP + column * (side + _GAP), top))
        places = _centers(*_grid(len(at)))
        for place in inside.nonzero()[:, 0][:: max(1, int(inside.sum()) // _LINES)].tolist():
            right = float((at[place] - true[place]).norm()) <= spec.threshold
            start = (_GAP + float(at[place, 0]) * side, top + float(at[place, 1]) * side)
            end = (2 * _GAP + side + float(places[place, 0]) * side, top + float(places[place, 1]) * side)
            pen.line((*start, *end), fill=(46, 158, 87) if right else (217, 64, 51), width=2)
    return sheet


def _grid(places: int) -> tuple[int, int]:
    """Return rows and columns of the grid of a square image."""
    side = round(places**0.5)
    return side, side
