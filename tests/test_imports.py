"""Who may import whom: the rules of docs/architecture.md."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODALITIES = {"image", "audio", "video", "text", "points", "image_text", "audio_video"}
MACHINERY = {"data", "engine", "nn", "encoders", "evaluation", "exporting", "reporting", "cli", "tasks", "testing", "specs"}


def modules() -> dict[str, Path]:
    """Return every module of ours by name."""
    files = {}
    for folder, package in ((ROOT / "sslkit", "sslkit"), (ROOT / "plugins", "sslkit_plugins")):
        for file in sorted(folder.rglob("*.py")):
            parts = (package, *file.relative_to(folder).with_suffix("").parts)
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


MODULES = modules()
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def imports(name: str, everywhere: bool) -> Iterator[tuple[str, ast.stmt]]:
    """Return what a module imports, with the statement: at its top, or also inside functions and for type checkers."""
    nodes: list[ast.AST] = list(ast.walk(TREES[name])) if everywhere else list(TREES[name].body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, f"{name}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in MODULES else node.module), node


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if parts[0] == "sslkit" and len(parts) > 1 else ""


def test_the_contract_imports_nothing_else_of_ours() -> None:
    violations = [
        f"{name} imports {other}"
        for name in MODULES
        if room(name) == "contract"
        for other, _ in imports(name, everywhere=True)
        if other.split(".")[0] == "sslkit" and room(other) != "contract"
    ]
    assert not violations


def test_machinery_knows_no_modality() -> None:
    violations = [
        f"{name} imports {other}"
        for name in MODULES
        if room(name) in MACHINERY or (room(name) and "." not in name.removeprefix("sslkit.") and room(name) not in MODALITIES)
        for other, _ in imports(name, everywhere=True)
        if room(other) in MODALITIES
    ]
    assert not violations


def test_machinery_compares_no_modality_by_name() -> None:
    violations = []
    for name, tree in TREES.items():
        if room(name) not in MACHINERY:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                constants = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                if constants & MODALITIES:
                    violations.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert not violations


def test_plugins_import_the_standard_library_torch_pydantic_and_sslkit() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "pydantic", "sslkit"}
    violations = [
        f"{name} imports {other}"
        for name in MODULES
        if name.startswith("sslkit_plugins.")
        for other, _ in imports(name, everywhere=True)
        if other.split(".")[0] not in allowed
    ]
    assert not violations


def test_no_circles() -> None:
    """Find modules that import each other, however many lie between them, at the top or inside functions."""
    graph = {name: {other for other, _ in imports(name, everywhere=False) if other in MODULES} for name in MODULES}
    finished: dict[str, int] = {}

    def circle(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in finished:
            return []
        for other in sorted(graph[name] - {name}):
            if cycle := circle(other, [*path, name]):
                return cycle
        finished[name] = 1
        return []

    assert not [" -> ".join(cycle) for name in MODULES if (cycle := circle(name, []))]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("sslkit")])
def test_local_imports_are_of_optional_or_slow_packages(name: str) -> None:
    """Find imports of ours inside functions that have another reason than to keep torch out of `--help`."""
    free = {"sslkit.registry", "sslkit.tasks.load", "sslkit.image.demo", "sslkit.contract.modality", "sslkit.console"}
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in inner.names] if isinstance(inner, ast.Import) else [inner.module or ""]
                ours = [other for other in names if other.split(".")[0] == "sslkit"]
                assert not ours or room(name) in ("cli", "specs") or name in free, (
                    f"{name}:{inner.lineno}: {ast.unparse(inner)}"
                )
