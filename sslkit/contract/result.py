"""The result of every evaluation: one schema for tables, `--json`, `results.jsonl`, reports and cards, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, Literal, Self

from sslkit.contract.presentation import to_html

SCHEMA = 1  # of a stored result; a reader refuses what is newer

Unit = Literal["share", "correlation", "count", "other"]
Role = Literal["checkpoint", "random", "baseline", "other"]  # other: a model named by --against


@dataclass(frozen=True)
class Metric:
    """One number with what it takes to believe it: an interval, the number of samples, the spread between seeds."""

    name: str  # "top-1", "mAP", "recall at 1"
    value: float
    low: float | None = None  # 95% interval
    high: float | None = None
    interval_method: str | None = None  # "bootstrap over samples, 2,000 resamples", ...
    deviation: float | None = None  # standard deviation between seeds
    seeds: int = 1
    n: int = 0
    unit_of_n: str = "samples"
    higher_is_better: bool = True
    unit: Unit = "share"

    def text(self) -> str:
        """Return the value as people read it: a share in percent, with the deviation between seeds if there is one."""
        if self.unit == "count":
            return f"{self.value:,.0f}"
        if self.unit != "share":
            return f"{self.value:.3f}" if abs(self.value) < 1000 else f"{self.value:,.0f}"
        return f"{self.value:.1%}" + ("" if self.deviation is None else f" ± {100 * self.deviation:.1f}")

    def interval_text(self) -> str:
        """Return the 95% interval, nothing if there is none."""
        if self.low is None or self.high is None:
            return ""
        scale = 100 if self.unit == "share" else 1
        digits = 1 if self.unit == "share" else 3
        return f"{scale * self.low:.{digits}f} to {scale * self.high:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """How a row differs from another one of the same result."""

    p_value: float
    method: str  # "McNemar's exact test"
    adjusted: float | None = None  # for the number of comparisons in the result (Holm)
    difference: float | None = None  # of the headlines over the samples of both, this row's minus the other's
    low: float | None = None  # 95% interval of the difference
    high: float | None = None


@dataclass(frozen=True)
class Training:
    """The run behind a row whose encoder was trained for it."""

    run: str  # folder
    share: float  # of each class's labels
    steps: int
    samples_per_second: float
    seconds: float
    loss: float | None  # the last one logged; None if it is not finite


@dataclass(frozen=True)
class Fit:
    """How one seed's model was fitted: what was chosen, and how every candidate did, on held-out training data."""

    seed: int
    n_train: int
    chosen: dict[str, Any] = field(default_factory=dict)  # {"c": 0.1}
    held_out: dict[str, float] = field(default_factory=dict)  # accuracy of each candidate
    training: Training | None = None


@dataclass(frozen=True)
class Row:
    """The metrics of one model on one test part; the first metric is the headline."""

    model: str
    metrics: list[Metric]
    test: str = ""
    part: str = "encoder"  # of the checkpoint
    layer: str | None = None
    by_class: dict[str, float | None] = field(default_factory=dict)
    comparisons: dict[str, Comparison] = field(default_factory=dict)  # by the name of the other row's model
    weights: str = ""  # hash of the encoder
    fits: list[Fit] = field(default_factory=list)  # by seed; empty where nothing was fitted
    role: Role = "checkpoint"

    @property
    def headline(self) -> Metric:
        """Return the protocol's first metric."""
        return self.metrics[0]

    @property
    def n_train(self) -> int:
        """Return the number of training samples, 0 where nothing was fitted."""
        return self.fits[0].n_train if self.fits else 0

    def metric(self, name: str) -> Metric | None:
        """Return the metric of a name, None if this row has none."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True)
class TestData:
    """One test part: what it is, and what has to be known before its numbers are believed."""

    __test__ = False  # not a test class of pytest's

    name: str
    fingerprint: str  # of samples and labels
    n: int
    duplicates: int = 0  # samples that also occur in the training part
    seen_in_pretraining: bool = False


@dataclass(frozen=True)
class Data:
    """The data of a result: fingerprints, not paths."""

    train: str = ""  # fingerprint of samples and labels; empty where nothing was fitted
    tests: list[TestData] = field(default_factory=list)

    def test(self, name: str) -> TestData | None:
        """Return the test part of a name, None if there is none."""
        return next((test for test in self.tests if test.name == name), None)


@dataclass(frozen=True)
class Finding:
    """What a result means, in a plain sentence or two, and the command to try next."""

    rule: str  # that chose it: "random", "few-steps"; see `sslkit.evaluation.findings`
    text: str
    command: str = ""  # complete, in one line; empty if there is none


@dataclass(frozen=True)
class Result:
    """The result of an evaluation: a row per model, layer and test part; the checkpoint's own come first."""

    verb: str
    protocol: str | None  # None where a value was set by hand
    settings: dict[str, Any]
    checkpoint: str
    weights: str
    data: Data
    rows: list[Row]
    notes: list[str] = field(default_factory=list)  # on data and settings
    findings: list[Finding] = field(default_factory=list)  # at most two, the most important first
    seconds: float = field(default=0.0, compare=False)
    schema: int = SCHEMA

    @property
    def headline(self) -> Metric:
        """Return the first row's first metric."""
        return self.rows[0].headline

    @property
    def title(self) -> str:
        """Return the protocol's id, or the verb where settings were made by hand."""
        return self.protocol or f"{self.verb}, custom settings"

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        return to_html(self)  # what a notebook shows

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return a stored result; raises ValueError for one of a newer schema, or damaged."""
        try:
            if not isinstance(values["schema"], int) or values["schema"] > SCHEMA:
                raise ValueError(f"a result of schema {values['schema']!r}; this sslkit reads up to {SCHEMA}")
            data = Data(values["data"]["train"], [TestData(**test) for test in values["data"]["tests"]])
            rows = [_row(row) for row in values["rows"]]
            if not rows or not all(row.metrics for row in rows):
                raise ValueError("a damaged result: a row without a metric")
            findings = [Finding(**finding) for finding in values.get("findings", [])]  # which older results do not have
            return cls(**{**values, "data": data, "rows": rows, "findings": findings})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a damaged result: {error}") from error


@dataclass(frozen=True)
class Results:
    """What `evaluate` returns: a result for each protocol, and why the other protocols were not possible."""

    checkpoint: str
    results: list[Result]
    impossible: dict[str, str] = field(default_factory=dict)  # reason by protocol
    table: str | None = None  # Markdown file with all of it

    def to_json(self) -> dict[str, Any]:
        """Return the results as plain values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        reasons = "".join(f"<p>{escape(f'{name}: not possible: {reason}')}</p>" for name, reason in self.impossible.items())
        return "".join(map(to_html, self.results)) + reasons


def _row(values: Mapping[str, Any]) -> Row:
    metrics: Sequence[Mapping[str, Any]] = values["metrics"]
    comparisons: Mapping[str, Mapping[str, Any]] = values["comparisons"]
    return Row(
        **{
            **values,
            "metrics": [Metric(**metric) for metric in metrics],
            "comparisons": {name: Comparison(**comparison) for name, comparison in comparisons.items()},
            "fits": [_fit(fit) for fit in values["fits"]],
        }
    )


def _fit(values: Mapping[str, Any]) -> Fit:
    training: Mapping[str, Any] | None = values["training"]
    return Fit(**{**values, "training": None if training is None else Training(**training)})
