"""Find what is installed: entry points by group and name, listed without importing them."""

import ast
import importlib.util
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.contract.errors import SslkitError, did_you_mean

if TYPE_CHECKING:
    from sslkit.contract.source import Source

TASKS, ENCODERS, SOURCES = "sslkit.tasks", "sslkit.encoders", "sslkit.sources"
LOGGERS = "sslkit.loggers"


@dataclass(frozen=True)
class Entry:
    """Describe one installed name: where it comes from and what its source says about it."""

    name: str
    package: str
    version: str
    summary: str
    modality: str
    point: EntryPoint


def entries(group: str, name: str | None = None) -> list[Entry]:
    """List what is installed in an entry-point group, by name or with one `name`, importing none of it.

    Two packages with one name make two entries: a listing shows both, `find` refuses them.
    """
    # An environment may hold two copies of one distribution's metadata (an editable install beside its build folder).
    installed = entry_points(group=group) if name is None else entry_points(group=group, name=name)
    points = {(point.name, point.value, point.dist.name if point.dist else ""): point for point in installed}
    return [_describe(point) for _, point in sorted(points.items())]


def names(group: str) -> list[str]:
    """List the installed names of a group, without looking at their source."""
    return sorted({point.name for point in entry_points(group=group)})


def find(group: str, name: str) -> Entry:
    """Return the entry called `name`; an unknown name or one offered by two packages is an SslkitError."""
    found = entries(group, name)
    kind = {TASKS: "task", ENCODERS: "encoder", SOURCES: "modality", LOGGERS: "logger"}[group]
    if not found:
        raise SslkitError(f"unknown {kind} {name}", did_you_mean(name, names(group)))
    if len(found) > 1:
        raise SslkitError(
            f"{kind} {name} is offered by {' and '.join(entry.package for entry in found)}", "uninstall one of them"
        )
    return found[0]


def load(entry: Entry) -> Any:
    """Import what an entry points to; whatever goes wrong in a plugin is its own and reported in one line."""
    try:
        return entry.point.load()
    except Exception as error:  # a plugin may fail in any way, and must break only itself
        raise SslkitError(
            f"{entry.name} of package {entry.package} {entry.version} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def load_source(modality: str) -> type["Source"]:
    """Return the class that reads data of a modality."""
    from sslkit.contract.source import Source

    source = load(find(SOURCES, modality))
    if not (isinstance(source, type) and issubclass(source, Source)):
        raise SslkitError(f"{modality} points to {source!r}", "an entry of sslkit.sources has to be a Source class")
    return source


def _describe(point: EntryPoint) -> Entry:
    distribution = point.dist
    summary, modality = _read_source(point)
    return Entry(
        name=point.name,
        package=distribution.name if distribution else "",
        version=distribution.version if distribution else "",
        summary=summary,
        modality=modality,
        point=point,
    )


def _read_source(point: EntryPoint) -> tuple[str, str]:
    """Return the first line of the docstring and the modality; what can't be read without importing is blank."""
    package, _, rest = point.module.partition(".")
    try:
        spec = importlib.util.find_spec(package)  # of a top-level name: imports nothing
    except (ImportError, ValueError):
        return "", ""
    if spec is None:
        return "", ""
    inside = Path(*rest.split(".")) if rest else Path()
    for folder in spec.submodule_search_locations or []:
        for file in (Path(folder, inside).with_suffix(".py"), Path(folder, inside, "__init__.py")):
            if file.is_file():
                return _read_definition(file, point.attr)
    if spec.origin and not rest and spec.origin.endswith(".py"):
        return _read_definition(Path(spec.origin), point.attr)
    return "", ""


def _read_definition(file: Path, name: str) -> tuple[str, str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return "", ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            docstring = ast.get_docstring(node) or ""
            return docstring.partition("\n")[0], _modality(node) if isinstance(node, ast.ClassDef) else ""
    return "", ""


def _modality(node: ast.ClassDef) -> str:
    for statement in node.body:
        target: ast.expr | None = None
        if isinstance(statement, ast.AnnAssign):
            target = statement.target
        elif isinstance(statement, ast.Assign):
            target = statement.targets[0]
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and target.id == "modality" and isinstance(value, ast.Constant):
            return str(value.value)
    direct = any(ast.unparse(base).rpartition(".")[2] == "PretextTask" for base in node.bases)
    return "image" if direct else ""  # the contract's default; what another base class says is not known
