"""What pyproject.toml lists is what is there."""

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("sslkit/**/__init__.py")}
    plugins = {
        ".".join(("sslkit_plugins", *path.parent.relative_to(ROOT / "plugins").parts))
        for path in ROOT.glob("plugins/**/__init__.py")
    }
    assert listed == there | plugins


def test_every_plugin_file_has_its_entry_point() -> None:
    files = {
        ".".join(("sslkit_plugins", *path.relative_to(ROOT / "plugins").with_suffix("").parts))
        for path in ROOT.glob("plugins/**/*.py")
        if path.name != "__init__.py"
    }
    points = PROJECT["project"]["entry-points"]["sslkit.tasks"]
    assert {value.partition(":")[0] for value in points.values()} == files
    assert {name: value.partition(":")[0].rpartition(".")[2] for name, value in points.items()} == {n: n for n in points}


def test_installed_entry_points_are_the_listed_ones() -> None:
    for group, points in PROJECT["project"]["entry-points"].items():
        ours = {point.name: point.value for point in entry_points(group=group) if point.dist and point.dist.name == "sslkit"}
        assert ours == points


def test_dev_holds_every_extra() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    held = next(need for need in extras["dev"] if need.startswith("sslkit["))
    assert set(held.removeprefix("sslkit[").removesuffix("]").split(",")) == set(extras) - {"dev"}
