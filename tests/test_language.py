"""Identifiers are whole, plain words: docs/glossary.md, and the language section of docs/architecture.md."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = frozenset(
    [
        "told",
        "said",
        "found",
        "seen",
        "given",
        "own",
        "drawn",
        "looked",
        "wanted",
        "settled",
        "joined",
        "compared",
        "narrowed",
        "shown",
        "asked",
        "meant",
        "one",
        "what",
        "tmp",
        "foo",
        "data2",
        "thing",
        "stuff",
        "obj",
    ]
)
FOLDERS = ("sslkit", "plugins", "tests", "examples", "benchmarks", "docs")
FILES = sorted(file for folder in FOLDERS for file in ROOT.glob(f"{folder}/**/*.py"))


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield names, arguments, attributes, keyword arguments and string keys, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.keyword) and node.arg is not None:
            yield node.arg, node.value.lineno
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, key.lineno
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            yield node.slice.value, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "register_buffer":
            yield from ((str(argument.value), node.lineno) for argument in node.args[:1] if isinstance(argument, ast.Constant))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_identifiers_are_plain_words(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    forbidden = FORBIDDEN - {"given"} if "from hypothesis import" in text else FORBIDDEN  # whose decorator is called so
    violations = sorted({(line, name) for name, line in identifiers(ast.parse(text)) if name.lstrip("_") in forbidden})
    assert not violations


def test_spelling_is_american() -> None:
    """Codespell, with its list of British spellings, over everything that people read."""
    command = shutil.which("codespell", path=str(Path(sys.executable).parent))
    assert command is not None
    places = ["sslkit", "plugins", "tests", "examples", "docs", "benchmarks", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    done = subprocess.run([command, *places], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
