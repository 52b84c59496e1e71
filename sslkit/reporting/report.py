"""`sslkit report`: runs in one HTML file that needs nothing else, to show to others."""

from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from sslkit.contract.errors import SslkitError
from sslkit.files import output_path, write_atomically
from sslkit.reporting.comparison import compare_runs
from sslkit.reporting.figures import make_figures
from sslkit.reporting.page import asset, document, text
from sslkit.reporting.run_sections import describe_run
from sslkit.reporting.runs import RunRecord, names_of
from sslkit.specs.look import ReportSpec


@dataclass(frozen=True)
class ReportResult:
    """The page `sslkit report` wrote."""

    path: str
    runs: list[str]
    bytes: int


def report(spec: ReportSpec) -> ReportResult:
    """Write a page about runs, as `sslkit report` does.

    It shows the contents of run folders; map, neighbors and confusion matrix need the samples to be readable.
    """
    out = output_path(spec.out, ".html")
    if not spec.runs:
        raise SslkitError("no run is named", "sslkit report RUN...")
    folders = [Path(run).resolve() for run in spec.runs]
    runs = [RunRecord.read(folder, name, spec.encoder) for folder, name in zip(folders, names_of(folders), strict=True)]
    figures = [make_figures(run.checkpoint, run.encoder, spec) for run in runs]
    title = ", ".join(run.name for run in runs)
    parts = [f"<h1>{text(title)}</h1>"]
    if len(runs) > 1:
        parts += compare_runs(runs, figures)
    for run, run_figures in zip(runs, figures, strict=True):
        if len(runs) > 1:
            parts.append(f'<h2 class="run">{text(run.name)}</h2>')
        parts += describe_run(run, run_figures)
    parts.append(f'<footer><p class="quiet">sslkit {version("sslkit")}, {date.today()}</p></footer>')
    page = document(title, asset("base.css", "report.css"), "".join(parts), asset("report.js"))
    with write_atomically(out) as stream:
        stream.write(page)
    return ReportResult(str(out), [str(run.path) for run in runs], len(page))
