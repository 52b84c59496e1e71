"""Labels for tasks that need them: which samples' labels a run gets, and how many labeled samples a batch has."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import Labels, Source
from sslkit.contract.task import PretextTask
from sslkit.data.indexed_source import IndexedSource
from sslkit.data.locations import find_parts
from sslkit.evaluation.splits import TEST_SHARE, held_out_rows
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.joint import Joint


def reveal_labels(
    source: Source, spec: PretrainSpec, task_class: type[PretextTask], name: str
) -> tuple[PretrainSpec, dict[str, str], dict[str, Any]]:
    """Give a source the labels that its task may see.

    Those of the fifth that evaluations of the same data test on, where it has no test part, stay hidden; so do those beyond
    `--label-share`. Returns the spec without `auto`, the reasons for what was chosen, and what a checkpoint records.

    Raises SslkitError if the task needs labels and there are none, or if it needs none and they are asked for.
    """
    if "label" not in task_class.needs:
        for flag in ("label_share", "all_labels", "labeled_in_batch"):
            if getattr(spec, flag) != PretrainSpec.model_fields[flag].default:
                hint = f"leave it out, or train jointly with labels: {name}+supervised"
                raise SslkitError(f"{name} uses no labels", hint, flag=flag)
        return spec, {}, {}
    labels = _find_labels(source, name, task_class.several_labels)
    chosen, held_out = _visible_rows(labels, source, spec)
    values = np.full_like(labels.values, -1)
    values[chosen] = labels.values[chosen]
    source.reveal_labels(Labels(values, labels.classes, labels.groups))
    reasons = {"label_share": f"{len(chosen):,} of {len(values):,} {source.noun} have a label the task sees"}
    if held_out:
        reasons["label_share"] += f"; a fifth, on which evaluations with --seed {spec.seed} test, is hidden"
    metadata: dict[str, Any] = {"labeled": len(chosen), "labeled_classes": len(labels.classes)}
    if held_out:
        metadata["labels_held_out"] = spec.seed
    if len(chosen) == len(values):
        return spec, {}, metadata
    share = spec.labeled_in_batch
    if share == "auto":
        share = 1.0 if _needs_all(task_class) else 0.5
        why = "unlabeled ones are of no use to the task" if share == 1 else "as in S4L"
        reasons["labeled_in_batch"] = f"{share:g} of each batch: {why}"
    return spec.model_copy(update={"labeled_in_batch": share}), reasons, metadata


def _find_labels(source: Source, name: str, several: bool) -> Labels:
    """Return the labels of the training part; raises SslkitError, naming the task, if it can't be used without them."""
    try:
        labels = source.find_labels(several)
    except SslkitError as error:
        raise SslkitError(f"{error.message}, and {name} needs them", error.hint, flag=error.flags) from error
    if len(labels.classes) < 2:
        raise SslkitError(
            f"{source.location} has only one class ({labels.classes[0]}), and {name} needs two or more", flag="data"
        )
    return labels


def _visible_rows(labels: Labels, source: Source, spec: PretrainSpec) -> tuple[NDArray[np.int64], bool]:
    """Return the rows whose labels the task may see, and whether a part was held out for evaluations."""
    known = labels.known
    rows, held_out = np.flatnonzero(known), False
    assert spec.data is not None
    if (
        not spec.all_labels
        and known.all()
        and isinstance(source, IndexedSource)
        and len(find_parts(spec.data, source.kind)) == 1
    ):
        rows, held_out = held_out_rows(labels.values, spec.seed, labels.classes, TEST_SHARE, labels.groups)[0], True
    if spec.label_share < 1:
        rows = rows[held_out_rows(labels.values[rows], spec.seed, labels.classes, spec.label_share)[1]]
    return rows, held_out


def _needs_all(task_class: type[PretextTask]) -> bool:
    """Return whether no part of a task learns from samples without a label."""
    children = task_class.children_of.values() if issubclass(task_class, Joint) else [task_class]
    return all("label" in child.needs for child in children)
