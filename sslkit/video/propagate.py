"""`sslkit propagate`: whether features tell which pixels of a video belong together, by carrying a mask from frame to frame."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Metric, Result, Role, Row, TestData
from sslkit.encoders.build import build_encoder
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import CHECKPOINT, RANDOM, weights_hash
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, interval_of_mean
from sslkit.files import output_path, write_atomically
from sslkit.image.transforms import patchify
from sslkit.pictures import draw_previews
from sslkit.video.masked_clips import MaskedClip, find_clips, fingerprint
from sslkit.video.propagation import Mask, Propagation, boundary_accuracy, region_similarity, to_labels, to_mask
from sslkit.video.specs import PropagateSpec

_STRIDE = 8  # sides of frames are multiples of it, and raw pixels are squares of so many
_SHOWN, _SIDE = 8, 192  # clips in a picture, and width of a frame in it
_TINT = (1.0, 0.35, 0.1)


@dataclass(frozen=True)
class Tracker:
    """An encoder whose feature maps carry masks, or, without one, the pixels themselves."""

    name: str
    role: Role
    encoder: Encoder | None
    layer: str = "last"

    @property
    def multiple(self) -> int:
        """Return of what the sides of frames are multiples."""
        return _STRIDE if self.encoder is None else math.lcm(_STRIDE, self.encoder.size_step)

    @torch.no_grad()
    def map_of(self, frame: Tensor) -> Tensor:
        """Return the feature map `[D, h, w]` of a frame `[1, 3, H, W]`."""
        if self.encoder is None:
            patches = patchify(frame - frame.mean(), _STRIDE)[0]
            return patches.T.reshape(-1, frame.shape[2] // _STRIDE, frame.shape[3] // _STRIDE)
        frame = frame.to(self.encoder.device)
        if self.layer == "last":
            return self.encoder.feature_map(frame)[0]
        layers = self.encoder.layers(frame) if "layers" in self.encoder.provides else []
        maps = [layer for layer in layers if layer.dim() == 4]
        if int(self.layer) > len(maps):
            raise SslkitError(f"the encoder has {len(maps)} layers that are maps (got {self.layer})", flag="layer")
        return maps[int(self.layer) - 1][0]


class Propagate(Evaluation):
    """Carry masks of objects through clips by the similarity of features: J and F, as on DAVIS."""

    verb = "propagate"
    Options = PropagateSpec
    labels = "map"
    requires = ("feature_map",)
    modalities = ("image",)
    protocols = (
        Protocol(
            "propagate/masks-v1",
            "labels of the 5 most similar places within 12, from the first and the last 7 frames (Caron et al., 2021)",
            {"context": 7, "radius": 12, "neighbors": 5, "temperature": 0.1, "resolution": 480, "layer": "last"},
            deterministic=True,
        ),
    )

    def run(self, spec: PropagateSpec) -> Result:
        """Measure a checkpoint, the same encoder with random weights, raw pixels, and copies of the first mask.

        Raises SslkitError for an encoder without feature maps of RGB images, and for clips without masks.
        """
        started_at = time.monotonic()
        picture = None if spec.out is None else output_path(spec.out, ".png")
        checkpoint = read_model(spec.ckpt, part=spec.part)
        trackers = _trackers(spec, checkpoint)
        clips = find_clips(Path(spec.data), Path(spec.masks))
        scores = {
            tracker.name: [track(tracker, clip, spec) for clip in _with_progress(tracker.name, clips)] for tracker in trackers
        }
        rows: list[Row] = []
        outcomes = CheckpointOutcomes[Answers](compare_answers)
        for tracker in trackers:
            rows.append(_row(tracker, np.array(scores[tracker.name]), outcomes, str(spec.data)))
        if spec.baselines:
            copies = np.array([copy_first(clip) for clip in clips])
            rows.append(_row(Tracker("copies of the first mask", "baseline", None), copies, outcomes, str(spec.data)))
        protocol = self.protocols[0]
        settings = {name: getattr(spec, name) for name in protocol.settings}
        result = Result(
            verb=self.verb,
            protocol=protocol.id if settings == protocol.settings else None,
            settings=settings,
            checkpoint=str(spec.ckpt),
            weights=rows[0].weights,
            data=Data(tests=[TestData(str(spec.data), fingerprint(clips), len(clips))]),
            rows=adjust_comparisons(rows),
            notes=[
                f"{len(clips)} clips, {sum(len(clip.scored) for clip in clips):,} masks; the first and the last do not count."
            ],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec, can_finetune=False)
        append_result(checkpoint.path.parent, result.to_json())
        if picture is not None:
            _draw(picture, trackers[0], clips, spec)
        return result


def propagate(spec: PropagateSpec) -> Result:
    """Carry masks through clips by the features of a checkpoint, as `sslkit propagate` does."""
    return Propagate().run(spec)


def track(tracker: Tracker, clip: MaskedClip, spec: PropagateSpec) -> tuple[float, float]:
    """Return J and F of a clip: means over objects and over the frames that count."""
    objects = clip.objects
    return score_masks(
        clip, ((number, to_mask(labels, objects, clip.first.shape)) for number, labels in _labels(tracker, clip, spec))
    )


def copy_first(clip: MaskedClip) -> tuple[float, float]:
    """Return J and F of predicting the first mask for all frames."""
    return score_masks(clip, ((number, clip.first) for number in clip.scored))


def score_masks(clip: MaskedClip, masks: Iterator[tuple[int, Mask]]) -> tuple[float, float]:
    """Return J and F of the masks of frames, by their numbers: means over objects and over the frames that count."""
    scored = set(clip.scored)
    scores = [
        (region_similarity(mask == number, true == number), boundary_accuracy(mask == number, true == number))
        for frame, mask in masks
        if frame in scored
        for true in [clip.mask(frame)]
        for number in clip.objects
    ]
    region, boundary = np.array(scores).mean(axis=0)
    return float(region), float(boundary)


def _labels(tracker: Tracker, clip: MaskedClip, spec: PropagateSpec) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each frame but the first, and its labels `[1 + objects, h, w]`."""
    rule = Propagation(spec.context, spec.radius, spec.neighbors, spec.temperature)
    numbers = range(max(clip.scored) + 1)
    maps = (tracker.map_of(clip.pixels(number, spec.resolution, tracker.multiple)) for number in numbers)
    features = next(maps)
    first = to_labels(clip.first, clip.objects, (features.shape[1], features.shape[2])).to(features.device)
    yield from zip(numbers[1:], rule.run(chain([features], maps), first), strict=True)


def _trackers(spec: PropagateSpec, checkpoint: Checkpoint) -> list[Tracker]:
    """Return the checkpoint and the baselines beside it."""
    encoder = checkpoint.build_encoder(spec.encoder)
    if encoder.modality != "image" or "feature_map" not in encoder.provides:
        problem = f"{checkpoint.path} holds an encoder of {encoder.modality} data with {', '.join(encoder.provides)}"
        raise SslkitError(problem, "propagate needs feature maps of images", flag="ckpt")
    if encoder.in_channels != 3:
        raise SslkitError(f"frames have 3 channels, the encoder takes {encoder.in_channels}", flag="ckpt")
    trackers = [Tracker(CHECKPOINT, "checkpoint", encoder, spec.layer)]
    if spec.baselines:
        seed_stage(spec.seed, "random", 0)
        random = build_encoder(checkpoint.recipe, allowed=spec.encoder).eval()
        trackers += [Tracker(RANDOM, "random", random, spec.layer), Tracker("raw pixels", "baseline", None)]
    device = choose_device(spec.device)[0]
    for tracker in trackers:
        if tracker.encoder is not None:
            tracker.encoder.to(device)
    return trackers


def _row(tracker: Tracker, scores: NDArray[np.float64], outcomes: CheckpointOutcomes[Answers], test: str) -> Row:
    """Return the row of scores `[clips, 2]`, with intervals over clips."""
    mean = torch.from_numpy(scores.mean(axis=1))
    metrics = []
    for name, values in (("J&F", mean), ("J", torch.from_numpy(scores[:, 0])), ("F", torch.from_numpy(scores[:, 1]))):
        low, high, method = interval_of_mean(values)
        metrics.append(Metric(name, float(values.mean()), low, high, method, n=len(values), unit_of_n="clips"))
    weights = "" if tracker.encoder is None else weights_hash(tracker.encoder)
    comparisons = outcomes.compare(tracker.role, 0, None, Answers(np.arange(len(scores)), mean))
    return Row(tracker.name, metrics, test=test, comparisons=comparisons, weights=weights, role=tracker.role)


def _with_progress(name: str, clips: list[MaskedClip]) -> Iterator[MaskedClip]:
    with show_progress(f"clips, {name}", len(clips)) as progress:
        for clip in clips:
            yield clip
            progress.advance(1)


def _draw(path: Path, tracker: Tracker, clips: list[MaskedClip], spec: PropagateSpec) -> None:
    """Write a picture of the first mask, and of true and propagated masks in the middle and at the end of clips."""
    rows = []
    for clip in clips[:_SHOWN]:
        numbers = [clip.scored[len(clip.scored) // 2], clip.scored[-1]]
        masks = {
            number: to_mask(labels, clip.objects, clip.first.shape)
            for number, labels in _labels(tracker, clip, spec)
            if number in numbers
        }
        pictures = [_tinted(clip, 0, clip.first)]
        for number in numbers:
            pictures += [_tinted(clip, number, clip.mask(number)), _tinted(clip, number, masks[number])]
        rows.append(torch.stack(pictures))
    height = max(row.shape[2] for row in rows)
    rows = [F.pad(row, (0, 0, 0, height - row.shape[2]), value=1.0) for row in rows]
    with write_atomically(path) as stream:
        draw_previews(torch.stack(rows), ("first mask", "middle, true", "propagated", "end, true", "propagated"), stream)


def _tinted(clip: MaskedClip, number: int, mask: Mask) -> Tensor:
    """Return a frame with its objects tinted, `[3, H, side]`."""
    frame = clip.pixels(number, _SIDE, 1)
    inside = F.interpolate(torch.from_numpy((mask > 0).astype(np.float32))[None, None], size=frame.shape[2:])
    tint = torch.tensor(_TINT).view(1, 3, 1, 1)
    tinted = torch.where(inside > 0, 0.4 * frame + 0.6 * tint, frame)
    size = (round(tinted.shape[2] * _SIDE / tinted.shape[3]), _SIDE)
    return F.interpolate(tinted, size=size, mode="bilinear", antialias=True)[0]
