"""k-NN accuracy during a run: on a fixed subset of the training part, whose labels the task never sees."""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.data.indexed_source import IndexedSource
from sslkit.data.locations import find_parts
from sslkit.engine.features import extract
from sslkit.engine.parallel import ALONE
from sslkit.engine.precision import Machine
from sslkit.evaluation.knn import votes
from sslkit.evaluation.metrics import is_correct
from sslkit.evaluation.splits import check_labeled, held_out_rows
from sslkit.registry import load_modality
from sslkit.specs.train import PretrainSpec

_SAMPLES, _K, _TEMPERATURE = 2000, 20, 0.07  # as knn/weighted-v1, but of few images, a quarter of them queries


class OnlineKnn:
    """k-NN accuracy of an encoder on at most 2,000 training samples; raises SslkitError if they have no labels."""

    def __init__(self, spec: PretrainSpec, modality: str) -> None:
        assert spec.data is not None
        self.spec = spec
        source = load_modality(modality).source
        if not issubclass(source, IndexedSource):
            raise SslkitError(f"{source.noun} have no labels", flag="online_knn")
        self.source = source
        index = source.read_index(find_parts(spec.data, source.kind)["train"], spec)
        check_labeled(index, "online_knn", several=False)
        chosen = np.random.default_rng(spec.seed).permutation(len(index))[:_SAMPLES]
        self.index = index.subset(np.sort(chosen))
        if len(chosen) // 4 < 1:
            raise SslkitError(f"{len(index)} samples are too few", "at least four are needed", flag="online_knn")
        self.is_query = np.arange(len(self.index)) % 4 == 0
        if self.index.groups is not None:
            assert self.index.labels is not None
            _, queries = held_out_rows(self.index.labels, spec.seed, index.classes, 0.25, self.index.groups)
            self.is_query = np.isin(np.arange(len(self.index)), queries)

    @cached_property
    def samples(self) -> IndexedSource:
        """Return the samples, as training reads them."""
        return self.source.for_training(self.index, self.spec)

    def __call__(self, encoder: Encoder, machine: Machine) -> float:
        """Return the accuracy, a share of 1, of every fourth sample's class (or of a fourth in whole groups) by the others."""
        extracted = extract(encoder, self.samples, replace(machine, world=ALONE), workers=0)
        assert self.index.labels is not None
        features, labels = extracted.layers["last"], torch.from_numpy(self.index.labels[extracted.rows])
        is_query = torch.from_numpy(self.is_query[extracted.rows])
        k = min(_K, int((~is_query).sum()))
        scores = votes(features[~is_query], labels[~is_query], features[is_query], k, _TEMPERATURE, len(self.index.classes))
        return float(is_correct(scores, labels[is_query]).mean())
