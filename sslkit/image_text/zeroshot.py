"""`sslkit zeroshot`: classify images by the names of classes, or find captions of images and images of captions."""

import time
from pathlib import Path

import torch
import torch.nn.functional as F

from sslkit.console import say
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Result, Row, TestData
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.data.tables import read_lines
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import choose_machine
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.metrics import is_correct, score
from sslkit.evaluation.notes import note_on_labels, write_notes
from sslkit.evaluation.splits import (
    annotations,
    check_channels,
    check_labeled,
    check_run_data,
    labeled_fingerprint,
    named_data,
)
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers
from sslkit.image.source import ImageSource
from sslkit.image_text.retrieve import retrieve
from sslkit.image_text.source import read_captions
from sslkit.image_text.specs import ZeroshotSpec
from sslkit.image_text.towers import Towers, load_towers


class Zeroshot(Evaluation):
    """Classify images by the names of classes, or match images and captions, with a checkpoint of clip or albef."""

    verb = "zeroshot"
    Options = ZeroshotSpec
    labels = "pair"
    modalities = ("image_text",)
    protocols = (
        Protocol(
            "zeroshot/names-v1",
            "the class whose name is nearest by cosine, in the joint space of images and captions (Radford et al., 2021)",
            {"templates": ["{}"]},
        ),
        Protocol(
            "zeroshot/recall-v1",
            "recall at 1, 5 and 10 of captions by images and of images by captions, by cosine",
            {"rerank": 0},
        ),
    )

    def run(self, spec: ZeroshotSpec) -> Result:
        """Evaluate a checkpoint of images and captions without any training.

        Labeled data is classified: an image belongs to the class whose prompts are nearest to it, averaged over templates
        (Radford et al., 2021, section 3.1). In a table with captions and without `--label`, each image retrieves its caption
        and each caption its images. Of data with train/ and test/, test is read. Raises SslkitError for checkpoints without
        a text encoder.
        """
        started_at = time.monotonic()
        if 0 < spec.rerank < 10:
            raise SslkitError(f"{spec.rerank} candidates are too few for recall at 10", "use 0, or 10 at least", flag="rerank")
        bad = next((template for template in spec.templates if template.count("{}") != 1), None)
        if bad is not None:
            raise SslkitError(f"{bad!r} should hold {{}} once", "it stands for the class name", flag="templates")
        checkpoint = read_model(spec.ckpt)
        machine = choose_machine(spec.device)
        device = machine.device
        towers = load_towers(checkpoint, spec, device)
        by_hand = bool(spec.sample_values())
        data, from_run, spec = named_data(spec, checkpoint)
        name, location = list(find_parts(data, ImageSource.kind).items())[-1]
        index = ImageSource.read_index(location, spec)
        check_channels(index, checkpoint)
        test = data if name == "train" else f"{name} of {data}"
        say(f"test part: {test}")
        pretrained = index.fingerprint() == checkpoint.metadata["data"]
        check_run_data(data, from_run and name == "train", pretrained)
        if index.labels is not None and spec.rerank:
            raise SslkitError("captions are needed to rerank, and these are classes", "drop --rerank or --label", flag="rerank")
        if index.labels is not None:
            check_labeled(index, "data", several=False, split=False)
            rows = _classify(spec, checkpoint, towers, index, test, device)
        else:
            rows = retrieve(spec, checkpoint, towers, index, read_captions(location), test, machine)
        protocol = self.find_protocol("zeroshot/recall-v1" if index.labels is None else "zeroshot/names-v1")
        settings = {"templates": spec.templates, "labels": spec.labels, "size": towers.image.size, **annotations(spec)}
        if index.labels is None:
            settings["rerank"] = spec.rerank
        unchanged = protocol.settings.items() <= settings.items() and spec.labels is None and not by_hand
        fingerprint = index.fingerprint() if index.labels is None else labeled_fingerprint(index)
        sizes = {row.test: row.headline.n for row in rows}
        tests = [TestData(name, fingerprint, n, seen_in_pretraining=pretrained) for name, n in sizes.items()]
        rows = adjust_comparisons(rows)
        result = Result(
            verb=self.verb,
            protocol=protocol.id if unchanged else None,
            settings=settings,
            checkpoint=str(spec.ckpt),
            weights=rows[0].weights,
            data=Data(tests=tests),
            rows=rows,
            notes=[*write_notes(rows, Data(tests=tests)), *note_on_labels(checkpoint.metadata)],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def zeroshot(spec: ZeroshotSpec) -> Result:
    """Evaluate a checkpoint of images and captions without any training, as `sslkit zeroshot` does."""
    return Zeroshot().run(spec)


def _classify(
    spec: ZeroshotSpec, checkpoint: Checkpoint, towers: Towers, index: Index, test: str, device: torch.device
) -> list[Row]:
    """Return a row for the checkpoint and one for random weights."""
    names = _class_names(spec.labels, index.classes)
    assert index.labels is not None
    rows: list[Row] = []
    outcomes = CheckpointOutcomes[Answers](compare_answers)
    for model in [towers, *([load_towers(checkpoint, spec, device, trained=False)] if spec.baselines else [])]:
        prompts = [model.embed_texts([template.replace("{}", name) for name in names]) for template in spec.templates]
        classes = F.normalize(torch.stack(prompts).mean(dim=0), dim=1)
        images, places = model.embed_images(index, spec)
        scores, labels = images @ classes.T, torch.from_numpy(index.labels[places])
        answers = Answers(places, is_correct(scores, labels))
        metrics, by_class = score([scores], labels, index.classes)
        comparisons = outcomes.compare(model.image.role, 0, None, answers)
        rows.append(
            Row(
                model.image.name,
                metrics,
                test=test,
                by_class=by_class,
                comparisons=comparisons,
                weights=model.image.weights,
                role=model.image.role,
            )
        )
    return rows


def _class_names(file: str | None, classes: tuple[str, ...]) -> list[str]:
    """Return the name of each class: the data's, or a file's, with CLASS,NAME or a name per line in class order."""
    if file is None:
        return [name.replace("_", " ") for name in classes]
    lines = [line.strip() for _, line in read_lines(Path(file), "labels")]
    if lines and all("," in line for line in lines):
        names = dict(line.split(",", 1) for line in lines)
        missing = next((name for name in classes if name not in names), None)
        if missing is not None:
            raise SslkitError(f"{file} has no line for class {missing}", did_you_mean(missing, list(names)), flag="labels")
        return [names[name].strip() for name in classes]
    if set(lines) == set(classes):
        return list(classes)
    if len(lines) != len(classes):
        raise SslkitError(
            f"{file} has {len(lines)} lines for {len(classes)} classes", "write a name per class, or CLASS,NAME", flag="labels"
        )
    pairs = ", ".join(f"{name} is {line}" for name, line in zip(classes, lines, strict=True))
    say(f"class names: {pairs}")
    return lines
