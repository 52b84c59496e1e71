"""A detector of anomalies: its memory of normal patches, its threshold, and what it says of test images."""

import csv
import io
import json
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.contract.result import Metric, Role, Row
from sslkit.data.index import Index
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.features import read_views
from sslkit.engine.precision import Machine
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.models import Model
from sslkit.evaluation.ranking_quality import Ranking
from sslkit.evaluation.statistics import interval_of_mean
from sslkit.exporting.graphs import remove_paths
from sslkit.files import write_atomically
from sslkit.image.decode import image_sizes
from sslkit.image.feature_maps import extract_every
from sslkit.image.patch_memory import PatchMemory, thin_out
from sslkit.image.segmentation import WholeImages
from sslkit.image.specs import AnomalySpec
from sslkit.image.targets import Masks
from sslkit.pictures import draw_previews, heat_map, to_rgb

_HELD_OUT = 0.2  # of the normal images: for the threshold
_PART = 32  # images whose patches are in memory at once
_PICTURED, _SIDE = 6, 192
_BINS = 4096  # of distances of pixels


@dataclass(frozen=True)
class TestImages:
    """Images to score, which of them are anomalous, and their masks, as far as that is known."""

    name: str
    index: Index
    normal: str  # the class of normal images
    anomalous: NDArray[np.bool_] | None
    masks: Masks | None
    pretrained: bool  # whether the images were part of pretraining

    def mask(self, row: int) -> NDArray[np.bool_]:
        """Return which pixels are anomalous, `[H, W]`; of a normal image without a mask none are.

        Raises SslkitError for a mask that can't be read.
        """
        assert self.masks is not None
        if self.masks.stamps[row, 1] < 0:
            width, height = image_sizes(self.index.subset(np.array([row])))[0].tolist()
            return np.zeros((height, width), dtype=bool)
        try:
            return self.masks.read_whole(row) > 0
        except UnreadableSampleError as error:
            raise SslkitError(str(error), "each anomalous image needs one", flag="targets") from error


@dataclass
class Detector:
    """A memory of patches, its threshold, and what it found in the test images."""

    model: Model
    network: PatchMemory
    normal: WholeImages  # on whose canvas all images are brought
    threshold: float
    scores: NDArray[np.float64]  # of test images
    distances: Tensor  # [N, h, w]

    @classmethod
    def fit(cls, model: Model, features: nn.Module, normal: Index, spec: AnomalySpec, machine: Machine) -> "Detector":
        """Remember patches of four fifths of the normal images; the others set the threshold."""
        random = np.random.default_rng(spec.seed)
        order = random.permutation(len(normal))
        held_out, kept = np.sort(order[: max(1, round(_HELD_OUT * len(order)))]), order[max(1, round(_HELD_OUT * len(order))) :]
        each = -(-spec.places // len(kept))  # of each image
        patches, images = [], WholeImages.whole(normal, spec, model.size)
        for maps in _maps(features, model, normal.subset(np.sort(kept)), images, spec, machine):
            for places in maps.flatten(2).transpose(1, 2):
                patches.append(places[torch.from_numpy(np.sort(random.permutation(len(places))[:each]))])
        every = torch.cat(patches).to(machine.device)
        seed_stage(spec.seed, "memory", 0)
        network = PatchMemory(features, every[thin_out(every, spec.memory).to(machine.device)]).eval()
        detector = cls(model, network, images, 0.0, np.empty(0), torch.empty(0))
        scores, _ = detector.score(normal.subset(held_out), spec, machine)
        # The smallest score with at most so many above; of few images, the largest.
        detector.threshold = float(np.quantile(scores, 1 - spec.false_alarms, method="higher"))
        return detector

    def score(self, index: Index, spec: AnomalySpec, machine: Machine) -> tuple[NDArray[np.float64], Tensor]:
        """Return scores `[N]` and distances of places `[N, h, w]` of images."""
        scores, distances = list[Tensor](), list[Tensor]()
        for maps in _maps(self.network, self.model, index, self.normal, spec, machine):
            scores.append(maps.flatten(1).amax(dim=1))
            distances.append(maps)
        return torch.cat(scores).double().numpy(), torch.cat(distances)

    def row(self, test: TestImages, spec: AnomalySpec, machine: Machine, outcomes: CheckpointOutcomes[Ranking]) -> Row:
        """Score the test images once; return the row."""
        self.scores, self.distances = self.score(test.index, spec, machine)
        role: Role = self.model.role
        above = torch.from_numpy(self.scores > self.threshold).double()
        weights = "" if role == "baseline" else self.model.weights
        count, comparisons = len(self.scores), {}
        if test.anomalous is None:
            low, high, method = interval_of_mean(above)
            metrics = [Metric("above the threshold", float(above.mean()), low, high, method, n=count, unit_of_n="images")]
        else:
            ranking = Ranking(self.scores, test.anomalous)
            metrics = [ranking.metric("image AUROC", "images")]
            comparisons = outcomes.compare(role, 0, None, ranking)
            if test.masks is not None:
                metrics.append(Metric("pixel AUROC", self._pixel_area(test), n=count, unit_of_n="images"))
            for name, chosen in (("detected", test.anomalous), ("false alarms", ~test.anomalous)):
                value = float(above[torch.from_numpy(chosen)].mean()) if chosen.any() else 0.0
                better = name == "detected"
                metrics.append(Metric(name, value, n=int(chosen.sum()), unit_of_n="images", higher_is_better=better))
        return Row(self.model.name, metrics, test.name, comparisons=comparisons, weights=weights, role=role)

    def _pixel_area(self, test: TestImages) -> float:
        """Return the area under the ROC curve over all pixels, from histograms of distances, at the size of each mask."""
        edges = np.linspace(0, float(self.distances.max()) * (1 + 1e-6) + 1e-12, _BINS + 1)
        counts = np.zeros((2, _BINS), dtype=np.int64)
        for row, distances in enumerate(self.distances):
            mask = test.mask(row)
            enlarged = F.interpolate(distances[None, None], size=mask.shape, mode="bilinear")[0, 0].numpy()
            for kind in (False, True):
                counts[int(kind)] += np.histogram(enlarged[mask == kind], edges)[0]
        middles = (edges[:-1] + edges[1:]) / 2
        ranking = Ranking(np.tile(middles, 2), np.repeat([False, True], _BINS))
        return ranking.area(counts.reshape(-1))

    def table(self, test: TestImages) -> bytes:
        """Return a table with the score of each test image, and whether it is above the threshold."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "score", "anomalous"])
        for row, score in enumerate(self.scores.tolist()):
            place = os.path.join(test.index.root, test.index.name(row))
            writer.writerow([place, f"{score:.6g}", "yes" if score > self.threshold else "no"])
        return text.getvalue().encode(errors="surrogateescape")

    def draw(self, path: Path, test: TestImages, spec: AnomalySpec) -> None:
        """Write a picture of the images with the largest scores, where they are unlike normal ones, and masks if there are."""
        rows = np.argsort(-self.scores, kind="stable")[:_PICTURED].copy()
        images = WholeImages.whole(test.index.subset(rows), spec, _SIDE)
        pictures = to_rgb(read_views(images, np.arange(len(rows)), "image", torch.device("cpu")))
        maps = F.interpolate(self.distances[torch.from_numpy(rows)][:, None], size=(_SIDE, _SIDE), mode="bilinear")[:, 0]
        colors = heat_map(maps.flatten(0, 1)).unflatten(1, (len(rows), _SIDE)).movedim(1, 0)  # one scale for all
        columns, names = [pictures, 0.4 * pictures + 0.6 * colors], ["image", "unlike normal"]
        if test.masks is not None:
            masks = [test.mask(row) for row in rows.tolist()]
            shrunk = [F.interpolate(torch.from_numpy(mask)[None, None].float(), size=(_SIDE, _SIDE))[0] for mask in masks]
            columns.append(torch.stack(shrunk).expand(-1, 3, -1, -1))
            names.append("mask")
        with write_atomically(path) as stream:
            draw_previews(torch.stack(columns, dim=1), tuple(names), stream)

    def export(self, path: Path, checkpoint: Checkpoint) -> None:
        """Write a torch.export program from images `[B, C, S, S]` in [0, 1] to scores `[B]` and maps `[B, h, w]`.

        Raises SslkitError for an encoder that cannot be traced.
        """
        side, network = self.model.size, deepcopy(self.network).cpu()
        example = torch.rand(2, checkpoint.channels, side, side)
        try:
            with torch.no_grad():
                program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except (torch._dynamo.exc.UserError, RuntimeError) as error:  # as for encoders
            reason = str(error).strip().partition("\n")[0]
            raise SslkitError(f"torch.export cannot trace the encoder: {reason}", "leave it out", flag="export") from error
        remove_paths(program)
        description = {"threshold": self.threshold, "size": side, "channels": checkpoint.channels}
        archive = io.BytesIO()
        torch.export.save(program, archive, extra_files={"sslkit.json": json.dumps(description)})
        with write_atomically(path) as stream:
            stream.write(archive.getvalue())


def _maps(
    network: nn.Module, model: Model, index: Index, like: WholeImages, spec: AnomalySpec, machine: Machine
) -> Iterator[Tensor]:
    """Yield what a network computes of images, some at a time, on the CPU: maps `[n, D, h, w]`, or distances `[n, h, w]`."""

    def read(view: Tensor) -> dict[str, Tensor]:
        output = network(view)
        return {"last": output[1] if isinstance(output, tuple) else output}

    for start in range(0, len(index), _PART):
        images = WholeImages.whole(index.subset(np.arange(start, min(start + _PART, len(index)))), spec, model.size, like)
        yield extract_every(model.encoder, images, machine, spec, read)
