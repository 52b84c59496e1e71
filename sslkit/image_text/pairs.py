"""`sslkit pairs`: classify pairs of image and text, such as sentences that are true or false of a drawing, by fine-tuning."""

import time
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sslkit.console import say_once, show_progress
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Comparison, Data, Fit, Result, Role, Row, TestData
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.features import extract
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.run_folder import append_result
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.features import report_unreadable
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.metrics import is_correct, score
from sslkit.evaluation.models import CHECKPOINT, RANDOM, weights_hash
from sslkit.evaluation.notes import write_notes
from sslkit.evaluation.splits import (
    TEST_SHARE,
    annotations,
    check_channels,
    check_groups,
    check_labeled,
    check_run_data,
    evaluation_size,
    held_out_rows,
    labeled_fingerprint,
    map_classes,
    named_data,
    test_location,
)
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, count_duplicates
from sslkit.image.source import ImageSource
from sslkit.image_text.caption import OTHER_IMAGES, other_images
from sslkit.image_text.matcher import PairEncoder, read_pair_encoder
from sslkit.image_text.source import read_captions
from sslkit.image_text.specs import PairsSpec

_MAJORITY = "most frequent class"
_WARMUP, _WEIGHT_DECAY, _CLIP, _DROPOUT = 0.1, 0.01, 1.0, 0.1  # as for labeled words
_CHUNK = 256  # pairs read at once
_PART = 4096  # images that are decoded before they are kept as bytes


@dataclass(frozen=True)
class LabeledPairs:
    """Pairs of image and text with labels, as the network reads them."""

    name: str
    index: Index
    image: Tensor  # [N, C, S, S], uint8
    tokens: Tensor  # [N, T]
    labels: Tensor  # [N]
    pretrained: bool  # whether the images were part of pretraining

    def hashes(self) -> NDArray[np.int64]:
        """Return a hash of each pair's image and text, int64 `[N]`."""
        pairs = zip(self.image, self.tokens, strict=True)
        digests = b"".join(
            blake2b(image.numpy().tobytes() + tokens.numpy().tobytes(), digest_size=8).digest() for image, tokens in pairs
        )
        return np.frombuffer(digests, dtype=np.int64)

    def several_of_an_image(self) -> bool:
        """Return whether an image has more than one text."""
        return len({self.index.name(row) for row in range(len(self.index))}) < len(self.index)

    def take(self, rows: NDArray[np.int64], name: str) -> "LabeledPairs":
        """Return some of the pairs."""
        chosen = torch.from_numpy(rows)
        return LabeledPairs(
            name, self.index.subset(rows), self.image[chosen], self.tokens[chosen], self.labels[chosen], self.pretrained
        )


class Pairs(Evaluation):
    """Classify pairs of image and text by fine-tuning a network that reads both."""

    verb = "pairs"
    Options = PairsSpec
    panel = "Train"
    labels = "pair"
    requires = ("tokens",)
    modalities = ("image_text",)
    in_all = False
    protocols = (
        Protocol(
            "pairs/finetuned-v1",
            "image encoder, text tower, matcher and a linear layer trained together; accuracy, beside other images",
            {"epochs": 10, "lr": 5e-4, "batch_size": 32},
        ),
    )

    def run(self, spec: PairsSpec) -> Result:
        """Fine-tune a checkpoint of albef or vilt on labeled pairs, and test it once.

        Its row is compared with the same network where each text has the image of another one, with random weights trained
        alike, and with the most frequent class. Raises SslkitError for checkpoints that do not read both, and for data
        without captions or labels.
        """
        started_at = time.monotonic()
        checkpoint, machine = read_model(spec.ckpt), choose_machine(spec.device)
        reader = read_pair_encoder(checkpoint, spec.encoder)
        train, tests, classes = _read_parts(spec, checkpoint, reader, machine)
        fit = Fit(spec.seed, len(train.labels))
        rows, outcomes = list[Row](), list[Answers]()

        def add(model: str, role: Role, scores: list[Tensor], weights: str) -> None:
            for place, (test, values) in enumerate(zip(tests, scores, strict=True)):
                metrics, by_class = score([values], test.labels, classes)
                answers = Answers(np.arange(len(test.labels)), is_correct(values, test.labels))
                comparisons = dict[str, Comparison]()
                if role == "checkpoint":
                    outcomes.append(answers)
                else:
                    comparisons[CHECKPOINT] = compare_answers(answers, outcomes[place])
                row = Row(model, metrics, test.name, by_class=by_class, comparisons=comparisons, weights=weights, role=role)
                rows.append(row if role == "baseline" else replace(row, fits=[fit]))

        weights = weights_hash(reader.encoder)
        classifier = PairClassifier(reader, len(classes), machine.device, spec.seed)
        classifier.fit(train, spec)
        add(CHECKPOINT, "checkpoint", [classifier.scores(test) for test in tests], weights)
        orders = [other_images([test.index.name(row) for row in range(len(test.labels))]) for test in tests]
        if all(order is not None for order in orders):
            add(
                OTHER_IMAGES,
                "other",
                [classifier.scores(test, order) for test, order in zip(tests, orders, strict=True)],
                weights,
            )
        if spec.baselines:
            random = read_pair_encoder(checkpoint, spec.encoder, spec.seed)
            weights = weights_hash(random.encoder)
            classifier = PairClassifier(random, len(classes), machine.device, spec.seed)
            classifier.fit(train, spec)
            add(RANDOM, "random", [classifier.scores(test) for test in tests], weights)
            counts = torch.bincount(train.labels, minlength=len(classes)).float()
            add(_MAJORITY, "baseline", [counts.expand(len(test.labels), -1) for test in tests], "")
        settings = {name: getattr(spec, name) for name in self.protocols[0].settings}
        unchanged = settings == self.protocols[0].settings and not spec.sample_values()
        data = Data(
            labeled_fingerprint(train.index),
            [
                TestData(
                    test.name,
                    labeled_fingerprint(test.index),
                    len(test.labels),
                    count_duplicates(train.hashes(), test.hashes()),
                    test.pretrained,
                )
                for test in tests
            ],
        )
        rows = adjust_comparisons(rows)
        result = Result(
            verb=self.verb,
            protocol=self.protocols[0].id if unchanged else None,
            settings={**settings, "size": train.image.shape[-1], "seed": spec.seed, **annotations(spec)},
            checkpoint=str(spec.ckpt),
            weights=rows[0].weights,
            data=data,
            rows=rows,
            notes=[*write_notes(rows, data), *_notes(tests)],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec, can_finetune=False)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def pairs(spec: PairsSpec) -> Result:
    """Classify pairs of image and text by fine-tuning, as `sslkit pairs` does."""
    return Pairs().run(spec)


class PairClassifier(nn.Module):
    """A linear layer on the state of the token that ends a text and has seen the image."""

    def __init__(self, reader: PairEncoder, classes: int, device: torch.device, seed: int) -> None:
        super().__init__()
        seed_stage(seed, "head", 0)
        self.reader, self.layer = reader, nn.Linear(reader.matcher.width, classes)
        self.to(device)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Return logits `[B, classes]` of images, uint8 `[B, C, S, S]`, and texts `[B, T]`."""
        places = self.reader.encode_image(image.float() / 255)
        logits: Tensor = self.layer(F.dropout(self.reader.summarize(places, tokens), _DROPOUT, self.training))
        return logits

    def fit(self, train: LabeledPairs, spec: PairsSpec) -> None:
        """Train all of it by AdamW, whose rate rises for a tenth of the steps and falls to zero."""
        device, count = self.layer.weight.device, len(train.labels)
        optimizer = torch.optim.AdamW(self.parameters(), lr=spec.lr, weight_decay=_WEIGHT_DECAY)
        steps = spec.epochs * -(-count // spec.batch_size)
        warmup = max(1, round(_WARMUP * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        )
        order = torch.Generator().manual_seed(spec.seed)
        seed_stage(spec.seed, "finetune", 0)
        self.train()
        with show_progress("fine-tuning on pairs", steps) as progress:
            for _ in range(spec.epochs):
                for rows in torch.randperm(count, generator=order).split(spec.batch_size):
                    logits = self(train.image[rows].to(device), train.tokens[rows].to(device))
                    loss = F.cross_entropy(logits, train.labels[rows].to(device))
                    if not torch.isfinite(loss):
                        raise SslkitError(f"{spec.lr:g} makes the loss infinite", "use a smaller one", flag="lr")
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    nn.utils.clip_grad_norm_(self.parameters(), _CLIP)
                    optimizer.step()
                    schedule.step()
                    progress.advance()
        self.eval()

    @torch.no_grad()
    def scores(self, test: LabeledPairs, order: NDArray[np.int64] | None = None) -> Tensor:
        """Return logits `[N, classes]` on the CPU; with `order`, texts are read with the images at these places."""
        device, image = self.layer.weight.device, test.image if order is None else test.image[torch.from_numpy(order)]
        batches = zip(image.split(_CHUNK), test.tokens.split(_CHUNK), strict=True)
        return torch.cat([self(chunk.to(device), tokens.to(device)).float().cpu() for chunk, tokens in batches])


def _notes(tests: list[LabeledPairs]) -> list[str]:
    """Return what the rows do not tell."""
    notes = [f"{OTHER_IMAGES}: each text has the image of another one, in the test only."]
    if any(test.several_of_an_image() for test in tests):
        notes.append("Intervals take pairs as independent, although some share an image.")
    return notes


def _read_parts(
    spec: PairsSpec, checkpoint: Checkpoint, reader: PairEncoder, machine: Machine
) -> tuple[LabeledPairs, list[LabeledPairs], tuple[str, ...]]:
    """Return the training part, the test parts, and the classes.

    Without a test part a fifth of each class is held out by the seed, all captions of an image together.
    """
    data, from_run, spec = named_data(spec, checkpoint)
    located = find_parts(data, ImageSource.kind)
    location = located.pop("train")
    index = ImageSource.read_index(location, spec)
    check_labeled(index, "data", several=False, split=not spec.test and not located)
    check_channels(index, checkpoint)
    check_run_data(data, from_run, index.fingerprint() == checkpoint.metadata["data"])
    train = _read_pairs(index, location, data, spec, checkpoint, reader, machine)
    places = [(test, *test_location(test, ImageSource.kind)) for test in spec.test]
    if not places and located:
        places = [(data, *next(iter(located.items())))]
    tests = []
    for holder, name, location in places:
        with renamed_flags({"data": "test" if spec.test else "data"}):
            part = map_classes(check_labeled(ImageSource.read_index(location, spec), "data", several=False, split=False), index)
            check_groups(index, part, "data")
            name = holder if location == holder else f"{name} of {holder}"
            tests.append(_read_pairs(part, location, name, spec, checkpoint, reader, machine))
        say_once(f"test part: {name}")
    if tests:
        return train, tests, index.classes
    index, groups = train.index, train.index.groups
    if groups is None:
        groups = np.unique([index.name(row) for row in range(len(index))], return_inverse=True)[1].astype(np.int64)
        groups = groups if groups.max() + 1 < len(index) else None
    kept, held_out = held_out_rows(index.labels, spec.seed, index.classes, TEST_SHARE, groups)
    say_once(f"test part: a fifth of each class of {data}, chosen by --seed {spec.seed}")
    return train.take(kept, data), [train.take(held_out, f"a fifth of {data}")], index.classes


def _read_pairs(
    index: Index, location: str, name: str, spec: PairsSpec, checkpoint: Checkpoint, reader: PairEncoder, machine: Machine
) -> LabeledPairs:
    """Return the pairs of one part whose image can be read; all images are kept in memory, a byte per value."""
    size, images, rows = evaluation_size(spec, checkpoint), list[Tensor](), list[NDArray[np.int64]]()
    for start in range(0, len(index), _PART):
        part = np.arange(start, min(start + _PART, len(index)))
        samples = ImageSource.for_evaluation(index.subset(part), spec, reader.encoder, size)
        features = extract(
            reader.encoder, samples, machine, _CHUNK, spec.workers, read=lambda view: {"last": (255 * view).round()}
        )
        report_unreadable(samples, features)
        images.append(features.layers["last"].byte())
        rows.append(part[features.rows])
    readable = np.concatenate(rows)
    captions = read_captions(location)
    encoded = reader.tokenizer().encode([captions[row] for row in readable])
    tokens = torch.from_numpy(reader.framing().pad(encoded, reader.length)).long()
    pretrained = index.fingerprint() == checkpoint.metadata["data"]
    index = index.subset(readable)
    assert index.labels is not None
    return LabeledPairs(name, index, torch.cat(images), tokens, torch.from_numpy(index.labels), pretrained)
