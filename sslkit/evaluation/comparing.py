"""What the checkpoint reached, with which the rows of other models are compared."""

from collections.abc import Callable
from typing import Generic, TypeVar

from sslkit.contract.result import Comparison, Role
from sslkit.evaluation.models import CHECKPOINT

T = TypeVar("T")  # of an outcome: answers, or totals


class CheckpointOutcomes(Generic[T]):
    """The checkpoint's outcomes by test part and layer.

    `compare` gets another model's outcome and the checkpoint's, and returns None where they cannot be compared.
    """

    def __init__(self, compare: Callable[[T, T], Comparison | None]) -> None:
        self._compare = compare
        self._outcomes: dict[int, dict[str | None, T]] = {}

    def compare(self, role: Role, test: int, layer: str | None, outcome: T) -> dict[str, Comparison]:
        """Return how a model's outcome differs from the checkpoint's: of the same layer, or else of the last one.

        An outcome of the checkpoint itself is kept, and compared with nothing.
        """
        if role == "checkpoint":
            self._outcomes.setdefault(test, {})[layer] = outcome
            return {}
        by_layer = self._outcomes[test]
        comparison = self._compare(outcome, by_layer.get(layer, self.last(test)))
        return {} if comparison is None else {CHECKPOINT: comparison}

    def last(self, test: int) -> T:
        """Return the outcome of the last layer on a test part."""
        return list(self._outcomes[test].values())[-1]
