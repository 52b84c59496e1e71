"""Find what is installed: entry points by group and name, listed without importing them."""

import ast
import importlib.util
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.contract.errors import SslkitError, did_you_mean

if TYPE_CHECKING:
    from sslkit.contract.modality import Modality
    from sslkit.contract.options import DataOptions

TASKS, MODALITIES, ENCODERS, LIBRARIES = "sslkit.tasks", "sslkit.modalities", "sslkit.encoders", "sslkit.encoder_libraries"
LOGGERS, EVALUATIONS, COMMANDS, OPTIONS, EXPORTERS = (
    "sslkit.loggers",
    "sslkit.evaluations",
    "sslkit.commands",
    "sslkit.options",
    "sslkit.exporters",
)
DEFAULT_MODALITY = "image"  # of a command that names neither a task nor a checkpoint
_KINDS = {
    TASKS: "task",
    MODALITIES: "modality",
    ENCODERS: "encoder",
    LIBRARIES: "encoder library",
    LOGGERS: "logger",
    EVALUATIONS: "evaluation",
    EXPORTERS: "export format",
    COMMANDS: "command",
    OPTIONS: "spec",
}


@dataclass(frozen=True)
class Entry:
    """Describe one installed name: where it comes from and what its source declares."""

    name: str
    package: str
    version: str
    summary: str
    constants: dict[str, Any]  # class variables whose values stand in the source, such as a task's modality
    point: EntryPoint

    @property
    def modality(self) -> str:
        """Return a task's modality, blank if the source does not declare it."""
        return str(self.constants.get("modality", ""))


def entries(group: str, name: str | None = None) -> list[Entry]:
    """List what is installed in an entry-point group, by name or with one `name`, importing none of it.

    Two packages with one name make two entries: a listing shows both, `find` refuses them.
    """
    # An environment may hold two copies of one distribution's metadata (an editable install beside its build folder).
    installed = entry_points(group=group) if name is None else entry_points(group=group, name=name)
    points = {(point.name, point.value, _package(point.dist)): point for point in installed}
    return [_describe(point) for _, point in sorted(points.items())]


def names(group: str) -> list[str]:
    """List the installed names of a group, without looking at their source."""
    return sorted({point.name for point in entry_points(group=group)})


def find(group: str, name: str) -> Entry:
    """Return the entry called `name`; an unknown name or one offered by two packages is an SslkitError."""
    matches = entries(group, name)
    kind = _KINDS[group]
    if not matches:
        raise SslkitError(f"unknown {kind} {name}", did_you_mean(name, names(group)))
    if len(matches) > 1:
        raise SslkitError(
            f"{kind} {name} is offered by {' and '.join(entry.package for entry in matches)}", "uninstall one of them"
        )
    return matches[0]


def load(entry: Entry) -> Any:
    """Import what an entry points to; whatever goes wrong in a plugin is its own and reported in one line."""
    try:
        return entry.point.load()
    except Exception as error:  # a plugin may fail in any way, and must break only itself
        raise SslkitError(
            f"{entry.name} of package {entry.package} {entry.version} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def data_options() -> dict[str, type["DataOptions"]]:
    """Return the data options of every installed modality by name, without torch; a plugin that cannot be imported is left out.

    Naming that modality, as a task or a checkpoint does, reports why.
    """
    options: dict[str, type[DataOptions]] = {}
    for entry in entries(MODALITIES):
        with suppress(SslkitError):
            options[entry.name] = _data_options(entry)
    return options


@cache
def load_modality(name: str) -> "Modality":
    """Return the record of a modality; raises SslkitError if it is not installed or cannot be imported."""
    from sslkit.contract.modality import Modality  # not at the top: a listing needs no pydantic

    entry = find(MODALITIES, name)
    module, _, attribute = _data_options(entry).record.partition(":")
    record = load(replace(entry, point=EntryPoint(name, f"{module}:{attribute}", MODALITIES)))
    if not (isinstance(record, type) and issubclass(record, Modality)):
        raise SslkitError(f"{module}:{attribute} is not a Modality class", f"named by the data options of {name}")
    return record()


def _data_options(entry: Entry) -> type["DataOptions"]:
    from sslkit.contract.options import DataOptions  # as above

    options = load(entry)
    if not (isinstance(options, type) and issubclass(options, DataOptions) and options.modality == entry.name):
        raise SslkitError(
            f"{entry.name} points to {options!r}", "an entry of sslkit.modalities has to be the DataOptions of that name"
        )
    return options


def _describe(point: EntryPoint) -> Entry:
    package, version = _package(point.dist)
    summary, constants = _read_source(point)
    return Entry(point.name, package, version, summary, constants, point)


@cache
def _package(distribution: Distribution | None) -> tuple[str, str]:
    """Return name and version of a package, whose metadata is parsed for each of them."""
    return (distribution.name, distribution.version) if distribution else ("", "")


def _read_source(point: EntryPoint) -> tuple[str, dict[str, Any]]:
    """Return the first line of the docstring and constant class variables; nothing where that would need an import."""
    package, _, rest = point.module.partition(".")
    try:
        spec = importlib.util.find_spec(package)  # of a top-level name: imports nothing
    except (ImportError, ValueError):
        return "", {}
    if spec is None:
        return "", {}
    inside = Path(*rest.split(".")) if rest else Path()
    for folder in spec.submodule_search_locations or []:
        for file in (Path(folder, inside).with_suffix(".py"), Path(folder, inside, "__init__.py")):
            if file.is_file():
                return _read_definition(file, point.attr)
    if spec.origin and not rest and spec.origin.endswith(".py"):
        return _read_definition(Path(spec.origin), point.attr)
    return "", {}


def _read_definition(file: Path, name: str) -> tuple[str, dict[str, Any]]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return "", {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            docstring = ast.get_docstring(node) or ""
            return docstring.partition("\n")[0], _constants(node) if isinstance(node, ast.ClassDef) else {}
    return "", {}


def _constants(node: ast.ClassDef) -> dict[str, Any]:
    # The default of these two; what another base class says is not known.
    direct = any(ast.unparse(base).rpartition(".")[2] in ("PretextTask", "ImageTask") for base in node.bases)
    constants: dict[str, Any] = {"modality": DEFAULT_MODALITY} if direct else {}
    for statement in node.body:
        target: ast.expr | None = None
        if isinstance(statement, ast.AnnAssign):
            target = statement.target
        elif isinstance(statement, ast.Assign):
            target = statement.targets[0]
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            constants[target.id] = value.value
    return constants
