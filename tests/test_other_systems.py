"""What Windows and macOS lack is not needed: runs without it, and with workers started by `spawn`; names that are legal there.

No other system is here: what only one of them does remains untested.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from PIL import Image

from sslkit.contract.errors import SslkitError
from sslkit.data.index import index_files
from sslkit.scaffolding import check_name
from sslkit.tasks.load import split_names, task_name

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "other_systems"
sys.path.append(str(FOLDER))

from posix_names import MODULES, NAMES  # noqa: E402

SMALL = ["--encoder", "resnet_micro", "--encoder-option", "width=8", "--size", "16", "--batch-size", "16", "--device", "cpu"]


def run(*arguments: object, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python without the names that Windows lacks."""
    paths = os.pathsep.join([str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, **variables}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_the_names_are_hidden_from_sslkit_alone() -> None:
    code = """
    import multiprocessing, os, torch
    multiprocessing.set_start_method("spawn")
    from sslkit.data import process_share
    from sslkit.engine.memory import free_memory, peak_growth, peak_memory
    from sslkit.processes import CHECKPOINT_SIGNAL
    cpu = torch.device("cpu")
    assert CHECKPOINT_SIGNAL is None and hasattr(os, "fork") and not hasattr(process_share.os, "fork")
    assert peak_memory(cpu) is free_memory(cpu) is peak_growth(cpu, int) is None
    assert process_share.available_cores() >= 1 and process_share.available_memory() is None
    """
    run("-c", "\n".join(line.strip() for line in code.splitlines()))


@pytest.mark.slow
def test_a_run_with_workers_that_spawn_starts(digits: Path, tmp_path: Path) -> None:
    flags = ["--data", digits, "--out", tmp_path / "run", *SMALL, "--workers", 2, "--json"]
    first = json.loads(run("-m", "sslkit", "pretrain", "rotation", *flags, "--steps", 3).stdout)
    assert first["steps"] == 3
    knn = json.loads(run("-m", "sslkit", "knn", "--ckpt", tmp_path / "run" / "model.safetensors", "--json").stdout)
    assert knn["rows"][0]["metrics"]


@pytest.mark.slow
def test_resuming_plan_and_processes(digits: Path, tmp_path: Path) -> None:
    flags = ["--data", digits, *SMALL, "--json"]
    once = [*flags, "--workers", 1, "--out", tmp_path / "once"]
    run("-m", "sslkit", "pretrain", "rotation", *once, "--epochs", 1)
    again = run("-m", "sslkit", "pretrain", "rotation", *once, "--resume", "--extend-to", 2)
    assert json.loads(again.stdout)["steps"] == 6
    plan = run("-m", "sslkit", "plan", "rotation", *flags[:-1], "--workers", 0).stdout
    assert re.search("memory +not measured\nlargest batch +not measured\n", plan)
    two = [*flags, "--workers", 1, "--out", tmp_path / "two", "--steps", 2, "--devices", 2]
    assert json.loads(run("-m", "sslkit", "pretrain", "rotation", *two).stdout)["steps"] == 2


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in [*(ROOT / "sslkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        yield str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))


def names_checked(tree: ast.Module) -> set[tuple[str, str]]:
    """Return what a module looks for with `hasattr` or `getattr`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 1]
    return {
        (ast.unparse(call.args[0]), str(call.args[1].value))
        for call in calls
        if ast.unparse(call.func) in ("hasattr", "getattr") and isinstance(call.args[1], ast.Constant)
    }


def test_names_of_one_system_are_looked_for_before_they_are_used() -> None:
    unguarded = []
    for file, tree in trees():
        checked = names_checked(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module, name = node.value.id, node.attr
                if name in NAMES.get(module, ()) and (module, name) not in checked:
                    unguarded.append(f"{file}:{node.lineno}: {module}.{name}")
            elif isinstance(node, ast.ImportFrom) and node.module in NAMES:
                names = {alias.name for alias in node.names} & NAMES[node.module]
                unguarded += [f"{file}:{node.lineno}: {node.module}.{name}" for name in names]
    assert not unguarded


def test_modules_of_one_system_may_be_missing() -> None:
    unguarded = []
    for file, tree in trees():
        guarded = {
            id(statement)
            for node in ast.walk(tree)
            if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(each.type) for each in node.handlers if each.type)
            for statement in node.body
        }
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if MODULES & set(names) and id(node) not in guarded:
                unguarded.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    assert not unguarded


def test_text_files_are_opened_with_their_encoding() -> None:
    """Find what would be read and written in the code page of a Windows machine."""
    unnamed = []
    for file, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            text = method in ("read_text", "write_text") or ast.unparse(node.func) == "open"
            binary = any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "b" in a.value for a in node.args[1:2])
            named = any(keyword.arg == "encoding" for keyword in node.keywords)
            if text and not binary and not named:
                unnamed.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    assert not unnamed


def test_output_in_a_code_page_that_lacks_characters() -> None:
    code = "from sslkit.console import replace_unprintable; replace_unprintable(); print('2 ≥ 3')"
    assert run("-c", code, PYTHONIOENCODING="ascii").stdout == "2 ? 3\n"
    assert run("-m", "sslkit", "tasks", PYTHONIOENCODING="cp1252").stdout


def test_no_file_of_ours_is_one_that_windows_cannot_have() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = listed.stdout.splitlines() or [str(path.relative_to(ROOT)) for path in (ROOT / "sslkit").rglob("*")]
    parts = {part for file in files for part in PurePosixPath(file).parts}
    device = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
    characters = re.compile(r'[<>:"|?*\\\x00-\x1f]|[ .]$')
    assert not [part for part in parts if characters.search(part) or device.fullmatch(part)]
    assert not [name for name, count in Counter(file.lower() for file in files).items() if count > 1]
    assert max(map(len, files)) < 150  # of 260, with the folder that it lies in


@pytest.mark.parametrize("name", ["aux", "con", "nul", "com1", "lpt9"])
def test_no_package_is_named_like_a_device(name: str) -> None:
    with pytest.raises(SslkitError, match="name of a device on Windows"):
        check_name(name, set(), "my_task")


def test_a_task_in_a_file_on_a_drive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.tasks.load.Path", PureWindowsPath)
    monkeypatch.setattr(PureWindowsPath, "is_file", lambda path: False, raising=False)
    assert split_names(r"C:\tasks\tilt.py") == [r"C:\tasks\tilt.py"]
    assert task_name(r"simclr+C:\tasks\tilt.py") == "simclr+tilt"


def test_a_list_with_backslashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cats").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "cats" / "1.png")
    with pytest.raises(SslkitError, match=re.escape("write / between folders, not \\")):
        index_files("list.txt", tmp_path, [r"cats\1.png", r"cats\2.png"])
    monkeypatch.setattr(os, "sep", "\\")  # as it is on Windows
    index = index_files("list.txt", tmp_path, [r"cats\1.png", r"cats\2.png"])
    monkeypatch.undo()
    assert index.paths == ["cats/1.png", "cats/2.png"]
    assert index.fingerprint() == index_files("list.txt", tmp_path, ["cats/1.png", "cats/2.png"]).fingerprint()
