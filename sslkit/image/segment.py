"""`sslkit segment`: the class of each pixel, from an encoder's feature maps."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import say_once
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Fit, Result, Role, Row, TestData
from sslkit.data.locations import find_parts
from sslkit.data.tables import read_lines
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.features import read_views
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.positions import fit_positions
from sslkit.evaluation.splits import check_channels, check_run_data, draw_held_out, named_data, test_location
from sslkit.evaluation.statistics import adjust_comparisons
from sslkit.files import output_path, write_atomically
from sslkit.image.feature_maps import read_models
from sslkit.image.segment_training import train_segmenter
from sslkit.image.segmentation import (
    MaskedImages,
    Overlaps,
    WholeImages,
    class_places,
    class_shares,
    count_numbers,
    find_masked,
    predict_mask,
)
from sslkit.image.source import ImageSource
from sslkit.image.specs import SegmentSpec
from sslkit.pictures import draw_previews

_TEST_SHARE = 0.2  # of the images, where there is no test part
_LINEAR: dict[str, Any] = {"c": [0.001, 0.01, 0.1, 1.0], "iterations": 100, "held_out": 0.2}
_SHARED = {"resolution": 224, "layer": "last"}
_COLOR = "color and position"
_MAJORITY = "most frequent class"
_PICTURED, _PICTURE_SIDE = 6, 192
_CHUNK = 2048  # places whose neighbors are searched at once
_GOLDEN = 0.618034  # of a turn: hues of classes that follow each other are far apart

Scorer = Callable[[Tensor], Tensor]  # features [P, D] -> scores of classes [P, C]


@dataclass(frozen=True)
class Maps:
    """A model of which feature maps are read, `[B, D, h, w]` of images `[B, C, S, S]`."""

    name: str
    role: Role
    encoder: Encoder
    side: int
    read: Callable[[Tensor], Tensor]


class ColorAndPosition(Encoder):
    """The mean color of each place of a grid, and where it is: what a segmentation can know without features."""

    provides = ("pooled", "feature_map")

    def __init__(self, in_channels: int, grid: tuple[int, int]) -> None:
        super().__init__(in_channels + 2, in_channels)
        self.grid = grid
        self.register_buffer("at", torch.zeros(()))  # so that it has a device

    def feature_map(self, image: Tensor) -> Tensor:
        """Return colors and places, each from 0 to 1, `[B, C + 2, h, w]`."""
        color = F.adaptive_avg_pool2d(image, self.grid)
        down, across = (torch.linspace(0, 1, length, device=image.device) for length in self.grid)
        place = torch.stack(torch.meshgrid(down, across, indexing="ij"))
        return torch.cat([color, place.expand(len(image), -1, -1, -1)], dim=1)


class Segment(Evaluation):
    """Segment images by a classifier on feature maps: the class of each pixel, mean IoU."""

    verb = "segment"
    Options = SegmentSpec
    labels = "map"
    requires = ("feature_map",)
    modalities = ("image",)
    in_all = False
    protocols = (
        Protocol(
            "segment/linear-v1",
            "logistic regression on places of frozen feature maps; scores enlarged bilinearly to the size of each mask; mIoU "
            "over all test pixels",
            {**_LINEAR, **_SHARED, "places": 50_000},
        ),
        Protocol(
            "segment/knn-v1",
            "shares of classes at the most similar places of training images, weighted (Balazevic et al., 2023); enlarged "
            "bilinearly; mIoU over all test pixels",
            {"neighbors": 30, "temperature": 0.02, **_SHARED, "places": 50_000},
        ),
        Protocol(
            "segment/finetuned-v1",
            "encoder and a linear layer on its feature map trained together; enlarged bilinearly; mIoU over all test pixels",
            {"epochs": 10, "lr": 5e-4, "batch_size": 16, **_SHARED},
        ),
    )

    def run(self, spec: SegmentSpec) -> Result:
        """Fit on images with masks, and measure each test part once.

        Whole images are stretched to squares; predictions are compared with masks of any size. Random weights, color and
        position, and the most frequent class stand beside it. Raises SslkitError for encoders without feature maps, and for
        masks that are missing, or have numbers that training lacks.
        """
        started_at = time.monotonic()
        picture = None if spec.out is None else output_path(spec.out, ".png")
        protocol = self.find_protocol(spec.protocol)
        _check_settings(spec, protocol)
        checkpoint, machine = read_model(spec.ckpt, part=spec.part), choose_machine(spec.device)
        models = _models(spec, checkpoint, machine)
        train, tests, spec = _read_parts(spec, checkpoint)
        counts = count_numbers(train, spec.ignore)
        numbers = [int(number) for number in np.flatnonzero(counts)]
        if len(numbers) < 2:
            raise SslkitError(f"masks of {train.name} have one class only", "at least two are needed", flag="targets")
        names = _class_names(spec, numbers)
        rows, outcomes, pictured = list[Row](), CheckpointOutcomes[Overlaps](Overlaps.compare), list[NDArray[np.int64]]()
        for model in models:
            weights = "" if isinstance(model.encoder, ColorAndPosition) else weights_hash(model.encoder)
            predict, fit = _fit(model, train, numbers, spec, machine)
            for place, test in enumerate(tests):
                pairs = _pairs(predict(test), test, numbers, spec, pictured if model is models[0] and not place else None)
                overlaps = Overlaps.of(pairs, len(numbers))
                rows.append(_row(model.name, model.role, test, overlaps, names, outcomes, place, fit, weights))
        if spec.baselines:
            most = int(counts[numbers].argmax())
            scores = F.one_hot(torch.tensor(most), len(numbers)).float()[:, None, None]
            for place, test in enumerate(tests):
                constant = (scores for _ in range(len(test)))
                overlaps = Overlaps.of(_pairs(constant, test, numbers, spec, None), len(numbers))
                rows.append(_row(_MAJORITY, "other", test, overlaps, names, outcomes, place, None, ""))
        settings = {name: getattr(spec, name, value) for name, value in protocol.settings.items()}
        unchanged = settings == protocol.settings and not (spec.sample_values().keys() - {"targets"})
        result = Result(
            verb=self.verb,
            protocol=protocol.id if unchanged else None,
            settings={**settings, "ignore": spec.ignore, "seed": spec.seed},
            checkpoint=str(checkpoint.path),
            weights=rows[0].weights,
            data=Data(
                train.fingerprint(), [TestData(test.name, test.fingerprint(), len(test), 0, test.pretrained) for test in tests]
            ),
            rows=adjust_comparisons(rows),
            notes=[f"{len(train):,} training and {sum(map(len, tests)):,} test images, {len(numbers)} classes."],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec, can_finetune=False)
        append_result(checkpoint.path.parent, result.to_json())
        if picture is not None:
            _draw(picture, tests[0], pictured, numbers, spec)
        return result


def segment(spec: SegmentSpec) -> Result:
    """Segment images by a classifier on feature maps, as `sslkit segment` does."""
    return Segment().run(spec)


def _check_settings(spec: SegmentSpec, protocol: Protocol) -> None:
    """Raise SslkitError for a setting that belongs to another protocol."""
    every = {name for other in Segment.protocols for name in other.settings}
    foreign = sorted(every & spec.model_fields_set - protocol.settings.keys() - {"batch_size"})
    if foreign:
        raise SslkitError(f"{protocol.id} has no such setting", "see `sslkit protocols`", flag=foreign[0])


def _models(spec: SegmentSpec, checkpoint: Checkpoint, machine: Machine) -> list[Maps]:
    """Return the checkpoint and what stands beside it, on the device."""
    encoder = checkpoint.build_encoder(spec.encoder)
    readers = read_models(spec, checkpoint, encoder, machine, "segment")
    maps = [Maps(model.name, model.role, model.encoder, model.size, read) for model, read in readers]
    if spec.baselines:
        with torch.no_grad():
            side = maps[0].side
            shape = maps[0].read(torch.zeros(1, encoder.in_channels, side, side, device=machine.device)).shape
        plain = ColorAndPosition(encoder.in_channels, (shape[2], shape[3])).to(machine.device)
        maps.append(Maps(_COLOR, "baseline", plain, side, plain.feature_map))
    return maps


def _read_parts(spec: SegmentSpec, checkpoint: Checkpoint) -> tuple[MaskedImages, list[MaskedImages], SegmentSpec]:
    """Return the training part, the test parts, and the spec with what the run recorded.

    Without a test part a fifth of the images is held out by the seed.
    """
    data, from_run, spec = named_data(spec, checkpoint)
    located = find_parts(data, ImageSource.kind)
    index = ImageSource.read_index(located.pop("train"), spec)
    check_channels(index, checkpoint)
    pretrained_on = checkpoint.metadata["data"]
    pretrained = index.fingerprint() == pretrained_on
    check_run_data(data, from_run, pretrained)
    train = find_masked(index, data, spec, pretrained)
    places = [(test, *test_location(test, ImageSource.kind)) for test in spec.test]
    if not places and located:
        places = [(data, *next(iter(located.items())))]
    tests = []
    for holder, name, location in places:
        part = ImageSource.read_index(location, spec)
        check_channels(part, checkpoint)
        name = holder if location == holder else f"{name} of {holder}"
        tests.append(find_masked(part, name, spec, part.fingerprint() == pretrained_on))
        say_once(f"test part: {tests[-1].name}")
    if tests:
        return train, tests, spec
    if len(train) < 3:
        raise SslkitError(
            f"{data} has {len(train)} images", "at least three are needed, to fit, choose and test on", flag="data"
        )
    say_once(f"test part: a fifth of the images of {data}, chosen by --seed {spec.seed}")
    chosen = draw_held_out(len(train), _TEST_SHARE, spec.seed)
    test = find_masked(index.subset(np.flatnonzero(chosen)), f"a fifth of {data}", spec, pretrained)
    return find_masked(index.subset(np.flatnonzero(~chosen)), data, spec, pretrained), [test], spec


def _class_names(spec: SegmentSpec, numbers: list[int]) -> list[str]:
    """Return the name of each class: the number, or the file's line for it."""
    if spec.names is None:
        return [str(number) for number in numbers]
    lines = [line.strip() for _, line in read_lines(Path(spec.names), "names")]
    if len(lines) <= numbers[-1]:
        raise SslkitError(
            f"{spec.names} has {len(lines)} lines, and a mask has {numbers[-1]}", "a line per number", flag="names"
        )
    return [lines[number] for number in numbers]


Predictions = Callable[[MaskedImages], Iterator[Tensor]]  # scores of classes of each image, [C, h, w]


def _fit(model: Maps, train: MaskedImages, numbers: list[int], spec: SegmentSpec, machine: Machine) -> tuple[Predictions, Fit]:
    """Return what scores the classes at each place of images, and how it was fitted."""
    if spec.protocol == "segment/finetuned-v1" and not isinstance(model.encoder, ColorAndPosition):
        images = WholeImages.whole(train.index, spec, model.side)
        layer = train_segmenter(model.read, model.encoder, images, train, numbers, spec, machine)

        def read(image: Tensor) -> Tensor:
            scores: Tensor = layer(model.read(image).float())
            return scores

        return partial(_predict, model, read, spec, machine, None), Fit(spec.seed, len(train))
    features, shares, rows = _places(model, train, numbers, spec, machine)
    scorer: Scorer
    if spec.protocol == "segment/knn-v1":
        memory, shares = F.normalize(features, dim=1).to(machine.device), shares.to(machine.device)
        scorer, fit = partial(_vote, memory, shares, spec), Fit(spec.seed, len(features))
    else:
        labels = [str(place) for place in shares.argmax(dim=1).tolist()]
        classes = tuple(sorted(set(labels), key=int))
        (fitted,) = fit_positions(
            {"last": features}, labels, rows, classes, machine.device, spec.seed, _LINEAR, "last"
        ).values()
        columns, count = [int(name) for name in classes], len(numbers)

        def scorer(places: Tensor) -> Tensor:
            scores = torch.full((len(places), count), float("-inf"))
            scores[:, columns] = fitted.scores({"last": places}).float()
            return scores.nan_to_num(neginf=-1e4)  # of classes that fill no place: enlarged, infinite ones would not be numbers

        fit = Fit(spec.seed, fitted.n_train, dict(fitted.chosen), dict(fitted.held_out))
    return partial(_predict, model, model.read, spec, machine, scorer), fit


def _predict(
    model: Maps,
    read: Callable[[Tensor], Tensor],
    spec: SegmentSpec,
    machine: Machine,
    scorer: Scorer | None,
    test: MaskedImages,
) -> Iterator[Tensor]:
    """Yield the scores of classes of each test image, `[C, h, w]`; without a scorer, what is read are scores."""
    for _, features in test.maps(read, model.encoder, spec, model.side, machine):
        yield features if scorer is None else scorer(features.flatten(1).T).T.unflatten(1, features.shape[1:])


def _places(
    model: Maps, train: MaskedImages, numbers: list[int], spec: SegmentSpec, machine: Machine
) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Return features `[P, D]` of places chosen at random by the seed, shares of classes there `[P, C]`, and the image of each.

    Places that are void for the most part are left out.
    """
    random, most = np.random.default_rng(spec.seed), -(-spec.places // len(train))
    features, shares, rows = list[Tensor](), list[Tensor](), list[NDArray[np.int64]]()
    for row, map_of_row in train.maps(model.read, model.encoder, spec, model.side, machine):
        true = class_places(train.mask(row), numbers, spec.ignore, train.masks.paths[row])
        of_places = class_shares(true, len(numbers), (map_of_row.shape[1], map_of_row.shape[2])).flatten(1).T
        known = np.flatnonzero((of_places.sum(dim=1) > 0.5).numpy())
        chosen = torch.from_numpy(np.sort(random.permutation(known)[:most]))
        features.append(map_of_row.flatten(1).T[chosen])
        shares.append(of_places[chosen])
        rows.append(np.full(len(chosen), row))
    if not sum(map(len, rows)):
        raise SslkitError(f"masks of {train.name} are void nearly everywhere", "check --ignore", flag="targets")
    return torch.cat(features), torch.cat(shares), np.concatenate(rows)


def _vote(memory: Tensor, shares: Tensor, spec: SegmentSpec, places: Tensor) -> Tensor:
    """Return the weighted mean of the shares at the most similar places of the memory, `[P, C]`."""
    votes = []
    for chunk in F.normalize(places, dim=1).split(_CHUNK):
        similarity, nearest = (chunk.to(memory.device) @ memory.T).topk(min(spec.neighbors, len(memory)), dim=1)
        weight = (similarity / spec.temperature).softmax(dim=1)
        votes.append((weight[..., None] * shares[nearest]).sum(dim=1).cpu())
    return torch.cat(votes)


def _pairs(
    scores: Iterator[Tensor],
    test: MaskedImages,
    numbers: list[int],
    spec: SegmentSpec,
    pictured: list[NDArray[np.int64]] | None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield predicted and true masks, of the size of the latter; the first ones are kept for the picture."""
    for row, of_places in enumerate(scores):
        true = class_places(test.mask(row), numbers, spec.ignore, test.masks.paths[row])
        predicted = predict_mask(of_places, (true.shape[0], true.shape[1]))
        if pictured is not None and len(pictured) < _PICTURED:
            pictured.append(predicted)
        yield predicted, true


def _row(
    name: str,
    role: Role,
    test: MaskedImages,
    overlaps: Overlaps,
    names: list[str],
    outcomes: CheckpointOutcomes[Overlaps],
    place: int,
    fit: Fit | None,
    weights: str,
) -> Row:
    """Return the row of one model and test part."""
    comparisons = outcomes.compare(role, place, None, overlaps)
    by_class = {
        name: None if np.isnan(value) else float(value) for name, value in zip(names, overlaps.iou().tolist(), strict=True)
    }
    row = Row(name, overlaps.metrics(), test.name, by_class=by_class, comparisons=comparisons, weights=weights, role=role)
    return row if fit is None else replace(row, fits=[fit])


def _draw(path: Path, test: MaskedImages, pictured: list[NDArray[np.int64]], numbers: list[int], spec: SegmentSpec) -> None:
    """Write a picture of some test images, of their masks and of what the checkpoint predicts."""
    images = WholeImages.whole(test.index.subset(np.arange(len(pictured))), spec, _PICTURE_SIDE)
    views = read_views(images, np.arange(len(pictured)), "image", torch.device("cpu"))
    rows = []
    for row, (image, predicted) in enumerate(zip(views, pictured, strict=True)):
        true = class_places(test.mask(row), numbers, spec.ignore, test.masks.paths[row])
        rows.append(torch.stack([image[:3].expand(3, -1, -1), _tinted(true), _tinted(predicted)]))
    with write_atomically(path) as stream:
        draw_previews(torch.stack(rows), ("image", "mask", "predicted"), stream)


def _tinted(places: NDArray[np.int64]) -> Tensor:
    """Return a mask in colors, void in white, `[3, side, side]`."""
    # Each channel is a triangle wave of the hue, and every second class is darker; -1, void, is the last color.
    hue = torch.arange(256)[:, None] * _GOLDEN + torch.arange(3) / 3
    shade = torch.where(torch.arange(256) % 2 == 0, 1.0, 0.6)[:, None]
    colors = torch.cat([shade * (1.6 - 3 * (hue % 1 - 0.5).abs() * 1.2).clamp(0.1, 1), torch.ones(1, 3)])
    picture = colors[torch.from_numpy(places)].permute(2, 0, 1)[None]
    return F.interpolate(picture, size=(_PICTURE_SIDE, _PICTURE_SIDE))[0]
