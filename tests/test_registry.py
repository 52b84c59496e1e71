"""Entry points: lazy, colliding, broken; tasks from files."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslkit import registry
from sslkit.contract.errors import SslkitError
from sslkit.tasks.load import load_task, task_name


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a package with one task on the path, as an installer would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(package: str, name: str, source: str) -> None:
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[sslkit.tasks]\n{name} = {package}:Task\n")

    return add


GOOD = '''
from sslkit import PretextTask
class Task(PretextTask):
    """Ask something new.

    More.
    """
    modality = "audio"
'''


def test_third_party_task_is_described_without_importing_it(install: Callable[..., None]) -> None:
    install("asker", "asking", GOOD)
    entry = registry.find(registry.TASKS, "asking")
    assert (entry.package, entry.version, entry.summary, entry.modality) == ("asker", "1.2", "Ask something new.", "audio")
    assert "asker" not in sys.modules
    assert load_task("asking").__name__ == "Task"


def test_two_packages_with_one_name_are_refused(install: Callable[..., None]) -> None:
    install("one", "same", GOOD)
    install("two", "same", GOOD)
    with pytest.raises(SslkitError, match="task same is offered by one and two"):
        load_task("same")


def test_a_broken_plugin_breaks_only_itself(install: Callable[..., None], sslkit: Callable[..., Any]) -> None:
    install("wreck", "wrecked", "import no_such_thing\nclass Task: pass\n")
    ran = sslkit("pretrain", "wrecked", "--data", "x")
    assert ran.code == 2
    assert "wrecked of package wreck 1.2 cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'" in ran.err
    listed = sslkit("tasks", "--json").json["tasks"]
    assert {"wrecked", "rotation", "simclr"} <= {task["name"] for task in listed}
    assert set(listed[0]) == {"name", "modality", "package", "version", "summary"}


def test_an_entry_that_is_no_task(install: Callable[..., None]) -> None:
    install("liar", "lying", "Task = 3\n")
    with pytest.raises(SslkitError, match="has to be a PretextTask class"):
        load_task("lying")
    assert registry.find(registry.TASKS, "lying").summary == ""


def test_task_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    assert load_task(str(file)).modality == "audio"
    assert task_name(str(file)) == "mine"
    file.write_text("x = 1\n")
    with pytest.raises(SslkitError, match="should define one PretextTask class"):
        load_task(str(file))
    file.write_text("import\n")
    with pytest.raises(SslkitError, match="cannot be imported: SyntaxError"):
        load_task(str(file))
