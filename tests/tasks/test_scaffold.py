"""A package for a task of one's own: what is written works as it is, and is what the example shows."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sslkit import SslkitError
from sslkit.contract.task import CONTRACT, PretextTask
from sslkit.tasks.load import load_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin_package"


def test_the_example_is_what_is_written(sslkit: Callable[..., Any], tmp_path: Path) -> None:
    result = sslkit("new-task", "upside_down", "--out", tmp_path / "package", "--json").json
    assert result["files"] == sorted(file.name for file in EXAMPLE.iterdir() if file.is_file())
    for name in result["files"]:
        assert (tmp_path / "package" / name).read_text() == (EXAMPLE / name).read_text(), f"{name}: run sslkit new-task again"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Tilt", "should consist of lowercase letters"),
        ("a-b", "should consist of lowercase letters"),
        ("class", "should consist of"),
        ("rotation", "a task rotation is already installed"),
        ("tilt_", "should consist of lowercase letters"),
        ("größe", "should consist of lowercase letters"),
        ("plugins", "is already used inside"),
    ],
)
def test_names_that_cannot_be(name: str, message: str, sslkit: Callable[..., Any], tmp_path: Path) -> None:
    ran = sslkit("new-task", name, "--out", tmp_path / "package")
    assert ran.code == 2 and message in ran.err and not (tmp_path / "package").exists()
    ran = sslkit("new-task", "tilt", "--out", tmp_path)
    assert ran.code == 2 and "already exists" in ran.err


@pytest.mark.slow
def test_the_package_installs_and_runs(tmp_path: Path, digits: Path) -> None:
    def ran(*command: object) -> str:
        environment = {**os.environ, "SSLKIT_CACHE": str(tmp_path / "cache")}
        done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    ran(sys.executable, "-m", "sslkit", "new-task", "upside_down", "--out", "package")
    ran(sys.executable, "-m", "build", "--wheel", "package")
    ran(sys.executable, "-m", "venv", "--system-site-packages", "own")
    python = tmp_path / "own" / "bin" / "python"
    # What runs the tests may be an environment itself, whose packages are not the system's.
    (site,) = (tmp_path / "own" / "lib").glob("python*/site-packages")
    ours = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in sys.path if folder.endswith("site-packages"))
    (site / "tests.pth").write_text(ours)
    (wheel,) = (tmp_path / "package" / "dist").glob("*.whl")
    ran(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    listed = json.loads(ran(python, "-m", "sslkit", "tasks", "--json"))["tasks"]
    assert "sslkit-upside-down" in {task["package"] for task in listed}
    (tmp_path / "test_upside_down.py").write_text((EXAMPLE / "test_upside_down.py").read_text())
    assert "2 passed" in ran(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_upside_down.py")
    settings = ["--data", digits, "--steps", 2, "--batch-size", 8, "--out", "run"]
    ran(python, "-m", "sslkit", "pretrain", "upside_down", *settings)


def test_a_task_for_another_contract_is_refused(tmp_path: Path) -> None:
    source = (EXAMPLE / "sslkit_upside_down.py").read_text()
    assert f"contract: ClassVar = {CONTRACT}" in source
    for number, hint in ((CONTRACT + 1, "upgrade sslkit"), (CONTRACT - 1, "ask for a version of UpsideDown")):
        file = tmp_path / f"other{number}.py"
        file.write_text(source.replace(f"contract: ClassVar = {CONTRACT}", f"contract: ClassVar = {number}"))
        with pytest.raises(SslkitError, match=f"was written for contract {number}, this sslkit has {CONTRACT}") as raised:
            load_task(str(file))
        assert hint in raised.value.hint

    class Silent(PretextTask):
        needs: ClassVar = ()

    assert Silent.contract == CONTRACT  # who says nothing is taken at this one's word
