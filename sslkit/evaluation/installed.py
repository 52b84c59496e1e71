"""The installed evaluations: classes behind the entry points of `sslkit.evaluations`."""

from contextlib import suppress

from sslkit import registry
from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.options import Spec


def load_evaluation(name: str) -> type[Evaluation]:
    """Return the evaluation of a name; raises SslkitError if it is not installed or its entry point is not a valid class."""
    evaluation = registry.load(registry.find(registry.EVALUATIONS, name))
    if not (isinstance(evaluation, type) and issubclass(evaluation, Evaluation)):
        raise SslkitError(f"the evaluation {name} points to {evaluation!r}, which is not an Evaluation class")
    options = getattr(evaluation, "Options", None)
    if getattr(evaluation, "verb", None) != name or not (isinstance(options, type) and issubclass(options, Spec)):
        raise SslkitError(f"{evaluation.__name__} needs verb = {name!r} and Options, a subclass of Spec")
    return evaluation


def installed_evaluations() -> dict[str, type[Evaluation]]:
    """Return every installed evaluation by name; a plugin that cannot be imported is left out."""
    evaluations = {}
    for name in registry.names(registry.EVALUATIONS):
        with suppress(SslkitError):
            evaluations[name] = load_evaluation(name)
    return evaluations


def installed_protocols() -> dict[str, Protocol]:
    """Return the protocols of every installed evaluation by id."""
    return {protocol.id: protocol for evaluation in installed_evaluations().values() for protocol in evaluation.protocols}
