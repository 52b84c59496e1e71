"""`sslkit predict`: classes and probabilities by a fine-tuned checkpoint."""

import csv
import io
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.engine.checkpoint import read_model
from sslkit.engine.classifier import Classifier, read_classifier
from sslkit.engine.precision import choose_device
from sslkit.evaluation.embed import read_samples
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.models import Model
from sslkit.evaluation.splits import evaluation_size, source_of
from sslkit.files import output_path, write_atomically
from sslkit.specs.use import PredictSpec

_LIKELY = 0.5  # probability from which a class is listed, where samples may have several


@dataclass(frozen=True)
class PredictResult:
    """The file that was written."""

    path: str
    samples: int
    classes: int
    weights: str
    checkpoint: str


def predict(spec: PredictSpec) -> PredictResult:
    """Write path, class and probability of all samples of `--data`, as `sslkit predict` does.

    Where a sample may have several labels, all likely classes are listed, joined by `;`, and the probability is the largest.
    Raises SslkitError for a checkpoint without a classifier.
    """
    out = output_path(spec.out, ".csv")
    checkpoint = read_model(spec.ckpt)
    classifier = read_classifier(checkpoint)
    device = choose_device(spec.device)[0]
    encoder = checkpoint.build_encoder(spec.encoder).to(device)
    index = read_samples(spec, checkpoint)
    model = Model(str(spec.ckpt), encoder, evaluation_size(spec, checkpoint))
    samples = source_of(checkpoint).for_evaluation(index, spec, encoder, model.size)
    features = cached_features(model, samples, "last", "auto", spec)
    with torch.no_grad():
        scores = classifier.head(features.layers["last"])
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(["path", "class", "probability"])
    for row, (name, probability) in zip(features.rows, name_classes(classifier, scores), strict=True):
        table.writerow([index.name(int(row)), name, f"{probability:.4f}"])
    with write_atomically(out) as stream:
        stream.write(written.getvalue().encode(errors="surrogateescape"))  # names that are not UTF-8 stay as they are
    return PredictResult(str(out), len(features.rows), len(classifier.classes), model.weights, str(spec.ckpt))


def name_classes(classifier: Classifier, scores: Tensor) -> list[tuple[str, float]]:
    """Return class and probability of each of scores `[N, classes]`.

    Where there may be several, classes are listed from 0.5 on for sigmoids, and from half of the largest probability on for
    a softmax.
    """
    classes, probability = classifier.classes, classifier.probabilities(scores)
    best, place = probability.max(dim=1)
    if not classifier.several:
        return [(classes[index], share) for index, share in zip(place.tolist(), best.tolist(), strict=True)]
    likely = (probability >= (_LIKELY if classifier.sigmoid else _LIKELY * best[:, None])).tolist()
    names = [";".join(name for name, is_likely in zip(classes, row, strict=True) if is_likely) for row in likely]
    return list(zip(names, best.tolist(), strict=True))
