"""`sslkit robustness`: what a classifier on frozen features loses where images differ from those it was fitted on."""

import time

from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Result
from sslkit.engine.precision import choose_machine
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.notes import write_notes
from sslkit.evaluation.session import open_session
from sslkit.evaluation.splits import labeled_fingerprint
from sslkit.evaluation.statistics import adjust_comparisons
from sslkit.files import output_path
from sslkit.image.corruption import CORRUPTIONS, choose_corruptions
from sslkit.image.robustness_corruptions import measure_corruptions
from sslkit.image.robustness_shape import SHAPE_BIAS, measure_conflicts, measure_shape
from sslkit.image.robustness_shift import measure_shift
from sslkit.image.specs import RobustnessSpec

_SHARED = {"classifier": "probe", "layer": "last", "pool": "auto"}


class Robustness(Evaluation):
    """Classify corrupted images, other test sets and images with conflicting cues, by classifiers fitted on clean ones."""

    verb = "robustness"
    Options = RobustnessSpec
    modalities = ("image",)
    in_all = False
    protocols = (
        Protocol(
            "robustness/corruptions-v1",
            "mean accuracy over fifteen corruptions at five severities (after Hendrycks & Dietterich, 2019)",
            {**_SHARED, "samples": 1000, "corruption": list(CORRUPTIONS), "severity": [1, 2, 3, 4, 5]},
        ),
        Protocol(
            "robustness/shift-v1",
            "accuracy on other test sets, among the classes that they have, and beyond what the accuracy on the test part "
            "predicts (Taori et al., 2020)",
            _SHARED,
        ),
        Protocol(
            "robustness/shape-v1",
            "share of pictures with the coarse shape of one class and the fine texture of another that are classified by shape",
            {**_SHARED, "samples": 1000, "cutoff": 8.0},
        ),
        Protocol(
            "robustness/conflicts-v1",
            "share of pictures with the shape of one class and the texture of another that are classified by shape, of a table "
            "(Geirhos et al., 2019)",
            _SHARED,
        ),
    )

    def run(self, spec: RobustnessSpec) -> Result:
        """Fit classifiers on the training part, and measure each model on images that differ from it.

        Random weights and raw pixels stand beside it, and models of `--against`. Raises SslkitError for settings of another
        protocol, and for test sets with other classes.
        """
        started_at = time.monotonic()
        protocol = self.find_protocol(spec.protocol)
        _check_settings(spec, protocol)
        chosen = choose_corruptions(spec.corruption)
        picture = None if spec.out is None else output_path(spec.out, ".png")
        session, machine = open_session(spec, 16 if spec.classifier == "probe" else 32), choose_machine(spec.device)
        if protocol.id == "robustness/shift-v1":
            table = measure_shift(session, spec)
        elif protocol.id == "robustness/shape-v1":
            table = measure_shape(session, spec, machine, picture)
        elif protocol.id == "robustness/conflicts-v1":
            table = measure_conflicts(session, spec, machine)
        else:
            table = measure_corruptions(session, spec, machine, picture)
        settings = {name: getattr(spec, name) for name in protocol.settings}
        if "corruption" in settings:
            settings["corruption"] = chosen
        unchanged = settings == protocol.settings and not spec.sample_values()
        rows, data = adjust_comparisons(table.rows), Data(labeled_fingerprint(session.parts.train), table.tests)
        result = Result(
            verb=self.verb,
            protocol=protocol.id if unchanged else None,
            settings=session.recorded(settings),
            checkpoint=str(session.checkpoint.path),
            weights=rows[0].weights,
            data=data,
            rows=rows,
            notes=[*table.notes, *write_notes(rows, data)],
            seconds=round(time.monotonic() - started_at, 1),
        )
        if rows[0].headline.name != SHAPE_BIAS:  # of which more is not better
            result = with_findings(result, session.checkpoint, spec, can_finetune=False)
        append_result(session.checkpoint.path.parent, result.to_json())
        return result


def robustness(spec: RobustnessSpec) -> Result:
    """Classify images that differ from those of the training part, as `sslkit robustness` does."""
    return Robustness().run(spec)


def _check_settings(spec: RobustnessSpec, protocol: Protocol) -> None:
    """Raise SslkitError for a setting of another protocol, and for one that this protocol needs."""
    of_protocol = {
        "robustness/corruptions-v1": {"samples", "corruption", "severity", "out"},
        "robustness/shift-v1": {"shifted"},
        "robustness/shape-v1": {"samples", "cutoff", "out"},
        "robustness/conflicts-v1": {"conflicts"},
    }
    foreign = sorted(set().union(*of_protocol.values()) & spec.model_fields_set - of_protocol[protocol.id])
    if foreign:
        fitting = next(name for name, settings in of_protocol.items() if foreign[0] in settings)
        raise SslkitError(f"{protocol.id} has no such setting", f"use --protocol {fitting}", flag=foreign[0])
    for name in ("shifted", "conflicts"):
        if name in of_protocol[protocol.id] and not getattr(spec, name):
            raise SslkitError("missing", f"{protocol.id} needs it", flag=name)
