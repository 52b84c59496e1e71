"""`sslkit anomaly`: images, and places in them, that are unlike all normal images."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Result, Row, TestData
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.encoders.build import build_encoder
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.run_folder import append_result
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import CHECKPOINT, RANDOM, Model, load_other
from sslkit.evaluation.ranking_quality import Ranking
from sslkit.evaluation.splits import check_channels, check_run_data, evaluation_size, named_data, test_location
from sslkit.evaluation.statistics import adjust_comparisons
from sslkit.files import output_path, write_atomically
from sslkit.image.anomaly_detector import Detector, TestImages
from sslkit.image.options import ImageOptions
from sslkit.image.patch_memory import PatchColors, PatchFeatures
from sslkit.image.segmentation import check_proportions
from sslkit.image.source import ImageSource
from sslkit.image.specs import AnomalySpec
from sslkit.image.targets import Masks, find_targets

_COLORS = "colors of patches"
_FEWEST = 5  # normal images


class Anomaly(Evaluation):
    """Find images, and places in them, that are unlike all normal ones: distance to the nearest patch, AUROC, heat maps."""

    verb = "anomaly"
    Options = AnomalySpec
    panel = "Use"
    requires = ("layers",)
    modalities = ("image",)
    in_all = False
    protocols = (
        Protocol(
            "anomaly/patches-v1",
            "largest distance of a place to the nearest of 2,000 patches of normal images, chosen so that all are near one "
            "(after PatchCore; Roth et al., 2022); AUROC over images and pixels",
            {"resolution": 224, "layers": "auto", "memory": 2000, "places": 50_000, "false_alarms": 0.01},
        ),
    )

    def run(self, spec: AnomalySpec) -> Result:
        """Remember patches of normal images, and score test images, of which some may be normal.

        Raises SslkitError for encoders without layers, too few normal images, and test data that has no normal class.
        """
        started_at = time.monotonic()
        picture, table, exported = (
            None if file is None else output_path(file, suffix)
            for file, suffix in ((spec.out, ".png"), (spec.scores, ".csv"), (spec.export, ".pt2"))
        )
        checkpoint = read_model(spec.ckpt, part=spec.part)
        machine = replace(choose_machine(spec.device), autocast_dtype=None)  # as the exported program computes
        normal, test, spec = _read_parts(spec, checkpoint)
        rows, outcomes = list[Row](), CheckpointOutcomes[Ranking](lambda first, second: first.compare(second))
        detectors = list[Detector]()
        for model, features in _models(spec, checkpoint, machine):
            detector = Detector.fit(model, features, normal, spec, machine)
            rows.append(detector.row(test, spec, machine, outcomes))
            detectors.append(detector)
        first = detectors[0]
        protocol = self.protocols[0]
        settings = {name: getattr(spec, name) for name in protocol.settings}
        result = Result(
            verb=self.verb,
            protocol=protocol.id if settings == protocol.settings and not (spec.sample_values().keys() - {"targets"}) else None,
            settings={**settings, "seed": spec.seed, "normal": test.normal},
            checkpoint=str(checkpoint.path),
            weights=rows[0].weights,
            data=Data(
                normal.fingerprint(),
                [TestData(test.name, test.index.fingerprint(), len(test.index), seen_in_pretraining=test.pretrained)],
            ),
            rows=adjust_comparisons(rows),
            notes=[
                f"{len(normal):,} normal images, of which a fifth sets the threshold: {first.threshold:.4g} for "
                f"{100 * spec.false_alarms:g}% false alarms."
            ],
            seconds=round(time.monotonic() - started_at, 1),
        )
        if test.anomalous is not None:
            result = with_findings(result, checkpoint, spec, can_finetune=False)
        append_result(checkpoint.path.parent, result.to_json())
        if table is not None:
            with write_atomically(table) as stream:
                stream.write(first.table(test))
        if picture is not None:
            first.draw(picture, test, spec)
        if exported is not None:
            first.export(exported, checkpoint)
        return result


def anomaly(spec: AnomalySpec) -> Result:
    """Find images that are unlike all normal ones, as `sslkit anomaly` does."""
    return Anomaly().run(spec)


def _read_parts(spec: AnomalySpec, checkpoint: Checkpoint) -> tuple[Index, TestImages, AnomalySpec]:
    """Return the normal images, the test images, and the spec with what the run recorded."""
    data, from_run, spec = named_data(spec, checkpoint)
    located = find_parts(data, ImageSource.kind)
    normal = ImageSource.read_index(located.pop("train"), spec)
    check_channels(normal, checkpoint)
    every, pretrained_on = normal.fingerprint(), checkpoint.metadata["data"]
    check_run_data(data, from_run, every == pretrained_on)
    _check_labels(normal, "data")
    name = spec.normal
    if name is None and len(normal.classes) == 1:
        name = normal.classes[0]
    if normal.labels is not None and name is not None:
        if name not in normal.classes:
            raise SslkitError(f"{data} has no class {name}", f"it has {', '.join(normal.classes[:5])}", flag="normal")
        normal = normal.subset(np.flatnonzero(normal.labels == normal.classes.index(name)))
    elif len(normal.classes) > 1:
        problem = f"{data} has {len(normal.classes)} classes"
        raise SslkitError(problem, "name the one of normal images, or data that has only these", flag="normal")
    if len(normal) < _FEWEST:
        raise SslkitError(f"{data} has {len(normal)} normal images", f"at least {_FEWEST} are needed", flag="data")
    if spec.test is None and not located:
        raise SslkitError("missing", f"{data} has no test part", flag="test")
    part, location = next(iter(located.items())) if spec.test is None else test_location(spec.test, ImageSource.kind)
    with renamed_flags({"data": "test" if spec.test is not None else "data"}):
        index = ImageSource.read_index(location, spec)
        check_channels(index, checkpoint)
        _check_labels(index, "data")
        if index.fingerprint() == every:
            raise SslkitError(f"{location} has the images that are remembered", "name others", flag="data")
    check_proportions(normal, data)
    check_proportions(index, location, "test")
    anomalous = None
    if index.labels is not None and len(index.classes) > 1:
        if name not in index.classes:
            problem = f"{location} has classes {', '.join(index.classes[:5])}"
            raise SslkitError(problem, "name the one of normal images", flag="normal")
        anomalous = index.labels != index.classes.index(name)
    pattern = spec.table(ImageOptions).targets
    masks = None if pattern is None else find_targets(index, pattern)
    if masks is not None and not isinstance(masks, Masks):
        raise SslkitError(f"{pattern} are boxes", "masks are needed, such as ../masks/{stem}.png", flag="targets")
    if anomalous is not None and masks is not None:
        missing = np.flatnonzero(anomalous & (masks.stamps[:, 1] < 0))
        if len(missing):
            problem = f"{index.name(int(missing[0]))} is anomalous, and has no mask {masks.paths[missing[0]]}"
            raise SslkitError(problem, "only normal images need none", flag="targets")
    title = location if spec.test is not None else f"{part} of {data}"
    say_once(f"test part: {title}")
    return normal, TestImages(title, index, name or "", anomalous, masks, index.fingerprint() == pretrained_on), spec


def _check_labels(index: Index, flag: str) -> None:
    """Raise SslkitError if only some images have a class, or some have several."""
    if index.labels is None:
        return
    if index.labels.ndim != 1:
        raise SslkitError(f"{index.source} has several labels per image", "each has one class", flag=flag)
    unlabeled = np.flatnonzero(index.labels < 0)
    if len(unlabeled):
        raise SslkitError(f"{index.name(int(unlabeled[0]))} of {index.source} has no class", "all or none have one", flag=flag)


def _models(spec: AnomalySpec, checkpoint: Checkpoint, machine: Machine) -> Iterator[tuple[Model, nn.Module]]:
    """Yield the checkpoint and what stands beside it, with what describes places of images, on the device."""
    encoder = checkpoint.build_encoder(spec.encoder)
    models = [Model(CHECKPOINT, encoder, spec.resolution, "checkpoint")]
    if spec.baselines:
        seed_stage(spec.seed, "random", 0)
        models.append(Model(RANDOM, build_encoder(checkpoint.recipe, allowed=spec.encoder).eval(), spec.resolution, "random"))
    models += [load_other(name, evaluation_size(spec, checkpoint), spec, checkpoint, spec.encoder) for name in spec.against]
    layers = None if spec.layers == "auto" else [int(number) for number in spec.layers.split(",")]
    places = 0
    for model in models:
        side = model.encoder.nearest_valid_size(spec.resolution)
        flag = "against" if model.role == "other" else "ckpt"
        features = PatchFeatures(model.encoder.to(machine.device), layers, model.name, flag).eval()
        if not places:
            with torch.no_grad():
                places = features(torch.zeros(1, encoder.in_channels, side, side, device=machine.device)).shape[2]
        yield replace(model, size=side), features
    if spec.baselines:
        colors = PatchColors(places)
        yield Model(_COLORS, encoder, models[0].encoder.nearest_valid_size(spec.resolution), "baseline"), colors
