"""The classifier that a checkpoint may keep beside its encoder: of `sslkit finetune`, or of a task that learned classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import Checkpoint, load_strictly


@dataclass(frozen=True)
class Classifier:
    """A linear layer, from features to scores of classes `[N, classes]`; samples may have `several` classes at once."""

    classes: list[str]
    head: nn.Linear
    several: bool = False
    sigmoid: bool = False  # each class by itself

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the probabilities of scores."""
        return scores.sigmoid() if self.sigmoid else scores.softmax(dim=1)


def choose_loss(loss: str, several: bool) -> str:
    """Return the loss that `auto` stands for; raises SslkitError for a softmax where samples have `several` labels."""
    if loss == "softmax" and several:
        raise SslkitError("softmax needs one label per sample, and some have several", "use sigmoid or multi-hot", flag="loss")
    return ("sigmoid" if several else "softmax") if loss == "auto" else loss


def describe_classifier(classes: Sequence[str], loss: str, several: bool) -> dict[str, Any]:
    """Return what a task adds to a checkpoint's description so that `read_classifier` can read its `head`."""
    return {"classes": list(classes), "loss": loss, **({"several_labels": True} if several else {})}


def has_classifier(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint keeps a classifier."""
    return bool(_description(checkpoint.metadata) and checkpoint.part("head"))


def read_classifier(checkpoint: Checkpoint, flag: str = "ckpt") -> Classifier:
    """Return the classifier of a checkpoint; raises SslkitError if it has none."""
    description, state = _description(checkpoint.metadata), checkpoint.part("head")
    if not description or not state:
        raise SslkitError(
            f"{checkpoint.path} has no classifier: it was trained by {checkpoint.metadata['task']}",
            f"train one: sslkit finetune --ckpt {checkpoint.path} --data LABELED",
            flag=flag,
        )
    classes = list(description["classes"])
    head = nn.Linear(state["weight"].shape[1], len(classes))
    load_strictly(head, state, str(checkpoint.path))
    sigmoid = description.get("loss") == "sigmoid"
    return Classifier(classes, head.eval(), bool(description.get("several_labels", False)), sigmoid)


def _description(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a checkpoint's description that names classes: of fine-tuning, of the task, or of a joint task's."""
    task = metadata.get("task_metadata", {})
    places = [metadata, task, *(values for values in task.values() if isinstance(values, dict))]
    return next((place for place in places if place.get("classes")), {})
