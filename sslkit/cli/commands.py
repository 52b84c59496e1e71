"""The verbs of ours that write files: each a row of `sslkit.commands`, like anybody else's. Nothing here imports torch.

Verbs that measure are entry points of `sslkit.evaluations`; those that need a task's options, or tell about the installation,
have a module of their own beside this one.
"""

import shlex
from dataclasses import asdict
from typing import Any, ClassVar

import sslkit
from sslkit.cli.output import field_lines
from sslkit.contract.command import Command
from sslkit.contract.result import Result
from sslkit.specs.extend import NewEvaluationSpec, NewTaskSpec
from sslkit.specs.look import MapSpec, ReportSpec, WatchSpec
from sslkit.specs.train import CompareSpec, DemoSpec
from sslkit.specs.use import CurateSpec, EmbedSpec, ExportSpec, PredictSpec, PushSpec, SearchSpec


class Compare(Command):
    """Train several tasks for the same time, evaluate them and write a report."""

    Options: ClassVar = CompareSpec
    panel: ClassVar = "Train"
    extended: ClassVar = True

    def run(self, spec: CompareSpec) -> Any:
        """Train and evaluate."""
        return sslkit.compare(spec)

    def lines(self, result: Any) -> list[str]:
        """Return a line for each run, and where the report is."""
        lines = []
        for name, folder in result.runs.items():
            measures = {"k-NN": result.knn, "probe": result.probe}
            numbers = [f"{title} {values[name]:.1%}" for title, values in measures.items() if values is not None]
            lines.append("  ".join([f"{name:<20}", *numbers, folder]))
        return [*lines, f"report in {result.report}"]


class Demo(Command):
    """Pretrain, evaluate, fine-tune and export in about two minutes, on images that are made for it."""

    Options: ClassVar = DemoSpec
    panel: ClassVar = "Train"

    def run(self, spec: DemoSpec) -> Any:
        """Run the demo."""
        return sslkit.demo(spec)

    def lines(self, result: Any) -> list[str | Result]:
        """Return the evaluations, where the files are, and which commands to try next."""
        if result.run is None:
            return [
                f"images      {result.images}",
                "next:",
                "  "
                + shlex.join(["sslkit", "pretrain", "rotation", "--data", result.images, "--size", "16", "--minutes", "1"]),
            ]
        tables = [line for table in result.results for line in (table, "")]
        files = [f"{name:<11} {getattr(result, name)}" for name in ("images", "run", "checkpoint", "export")]
        following = (
            shlex.join(["sslkit", "report", result.run, "--out", "report.html"]),
            shlex.join(["sslkit", "search", "--ckpt", result.checkpoint, "--out", "search.png"]),
            "sslkit pretrain simclr --data YOUR_IMAGES --minutes 10",
        )
        return [*tables, *files, "next:", *(f"  {command}" for command in following)]


class Embed(Command):
    """Write features, paths and labels to a file."""

    Options: ClassVar = EmbedSpec
    panel: ClassVar = "Use"

    def run(self, spec: EmbedSpec) -> Any:
        """Write features."""
        return sslkit.embed(spec)

    def lines(self, result: Any) -> list[str]:
        """Return a line for each field; a table is written beside an .npy only."""
        return field_lines({name: value for name, value in asdict(result).items() if value is not None})


class Curate(Command):
    """List the samples to keep: no near duplicates, no outliers, a balanced or diverse part of the rest."""

    Options: ClassVar = CurateSpec
    panel: ClassVar = "Use"
    extended: ClassVar = True

    def run(self, spec: CurateSpec) -> Any:
        """Write both tables."""
        return sslkit.curate(spec)

    def lines(self, result: Any) -> list[str]:
        """Return how many are kept and left out, and where the tables are."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.left_out.items()) or "none left out"
        kept = f"kept {result.kept:,} of {result.samples:,} ({reasons}), in {result.clusters:,} clusters"
        return [kept, f"tables: {result.path} for --data, and {result.left_out_path}"]


class Predict(Command):
    """Predict the class of each sample with a fine-tuned checkpoint."""

    Options: ClassVar = PredictSpec
    panel: ClassVar = "Use"

    def run(self, spec: PredictSpec) -> Any:
        """Write predictions."""
        return sslkit.predict(spec)


class Search(Command):
    """Find the samples nearest to samples or texts, or the words nearest to words."""

    Options: ClassVar = SearchSpec
    panel: ClassVar = "Use"
    argument: ClassVar = "queries"
    extended: ClassVar = True

    def run(self, spec: SearchSpec) -> Any:
        """Find neighbors."""
        return sslkit.search(spec)

    def lines(self, result: Any) -> list[str]:
        """Return a line for each query, and where the picture is."""
        lines = [
            f"{query:<16} {', '.join(f'{name} {cosine:.2f}' for name, cosine in near)}"
            for query, near in result.neighbors.items()
        ]
        return lines if result.picture is None else [*lines, f"picture in {result.picture}"]


class Export(Command):
    """Write the encoder for other programs, and verify that they compute the same."""

    Options: ClassVar = ExportSpec
    panel: ClassVar = "Use"

    def run(self, spec: ExportSpec) -> Any:
        """Export and read back."""
        return sslkit.export(spec)

    def lines(self, result: Any) -> list[str]:
        """Return where the files are, what goes in and out, and how close it comes."""
        rows = {"path": result.path, "card": result.card}
        if result.input:
            rows["input"] = ": ".join(part for part in (result.input["name"], result.input_summary) if part)
            rows["output"] = f"{result.output['name']}, {result.output['width']} values"
        rows["verified"] = f"largest difference {result.max_abs_diff:.2g} on {result.samples}"
        return [f"{name:<9} {value}" for name, value in rows.items()]


class Push(Command):
    """Upload a run or an exported folder to the Hugging Face Hub, after listing what will be uploaded."""

    Options: ClassVar = PushSpec
    panel: ClassVar = "Use"
    argument: ClassVar = ("source", "repository")
    extended: ClassVar = True

    def run(self, spec: PushSpec) -> Any:
        """List, ask and upload."""
        return sslkit.push(spec)

    def lines(self, result: Any) -> list[str]:
        """Return the commit, and how to start from it."""
        address = f"hf_hub:{result.repository}@{result.commit}"
        return [f"uploaded {len(result.files)} files to {result.repository}", f"start from them with --init {address}"]


class Report(Command):
    """Write one HTML page about runs: curves, pictures, results."""

    Options: ClassVar = ReportSpec
    panel: ClassVar = "Look"
    argument: ClassVar = "runs"

    def run(self, spec: ReportSpec) -> Any:
        """Write the page."""
        return sslkit.report(spec)


class Watch(Command):
    """Show a live page of runs: curves, previews and health, for browsers of this machine."""

    Options: ClassVar = WatchSpec
    panel: ClassVar = "Look"
    argument: ClassVar = "run"

    def run(self, spec: WatchSpec) -> Any:
        """Serve the page until Ctrl-C."""
        return sslkit.watch(spec)

    def lines(self, result: Any) -> list[str]:
        """Return that it is over."""
        return [f"stopped watching {result.run}"]


class Map(Command):
    """Plot features in two dimensions by t-SNE or PCA."""

    Options: ClassVar = MapSpec
    panel: ClassVar = "Look"
    extended: ClassVar = True

    def run(self, spec: MapSpec) -> Any:
        """Draw the map."""
        return sslkit.map_features(spec)


class NewEvaluation(Command):
    """Scaffold a package for a new evaluation, with its test and entry points."""

    Options: ClassVar = NewEvaluationSpec
    panel: ClassVar = "Extend"
    argument: ClassVar = "name"

    def run(self, spec: NewEvaluationSpec) -> Any:
        """Write the package."""
        return sslkit.new_evaluation(spec)

    def lines(self, result: Any) -> list[str]:
        """Return what was written, and what to do next."""
        return [
            f"wrote {', '.join(result.files)} to {result.folder}",
            f"next: pip install -e {result.folder} && sslkit {result.name.replace('_', '-')} --help",
        ]


class NewTask(Command):
    """Scaffold a package for a new pretext task, with its test and entry point."""

    Options: ClassVar = NewTaskSpec
    panel: ClassVar = "Extend"
    argument: ClassVar = "name"

    def run(self, spec: NewTaskSpec) -> Any:
        """Write the package."""
        return sslkit.new_task(spec)

    def lines(self, result: Any) -> list[str]:
        """Return what was written, and what to do next."""
        return [
            f"wrote {', '.join(result.files)} to {result.folder}",
            f"next: pip install -e {result.folder} && sslkit check {result.name} --full",
        ]
