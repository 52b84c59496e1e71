"""What pyproject.toml lists is what is there."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, entry_points
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sslkit.exporting.graphs import Onnx

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


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


def test_all_holds_every_extra_of_a_user() -> None:
    (every,) = EXTRAS["all"]
    assert set(every.removeprefix("sslkit[").removesuffix("]").split(",")) == set(EXTRAS) - {"all", "docs", "dev"}
    assert "sslkit[all,docs]" in EXTRAS["dev"]


def installed_packages(requirements: list[str]) -> set[str]:
    """Return the names of packages that some requirements bring, without those of CUDA."""
    waiting, names = list(map(Requirement, requirements)), set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
            if (name, extra) not in names:
                names.add((name, extra))
                needs = map(Requirement, distribution(name).requires or [])
                waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in names if not name.startswith(("nvidia-", "cuda-")) and name != "triton"}


def test_an_installation_has_few_packages() -> None:
    packages = {*installed_packages(PROJECT["project"]["dependencies"]), "sslkit"}
    assert len(packages) <= 46, sorted(packages)


def package_data() -> set[Path]:
    """Return the files that are packed besides modules."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["sslkit"]
    return {file for pattern in patterns for file in (ROOT / "sslkit").glob(pattern)}


def test_every_file_that_is_no_module_is_packed() -> None:
    others = {
        file
        for folder in ("sslkit", "plugins")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert others == package_data()


def test_the_wheel_is_small(tmp_path: Path) -> None:
    """Pack what the wheel holds as it does; .ci/run weighs the wheel itself."""
    wheel = tmp_path / "sslkit.whl"
    with ZipFile(wheel, "w", compression=ZIP_DEFLATED) as archive:
        for folder in ("sslkit", "plugins"):
            for file in (ROOT / folder).rglob("*.py"):
                archive.write(file, file.relative_to(ROOT))
        for file in package_data():
            archive.write(file, file.relative_to(ROOT))
    assert wheel.stat().st_size < 1_200_000


def functions() -> Iterator[tuple[str, str]]:
    """Return name and source of each function of ours that looks for packages that may be missing."""
    for file in [*(ROOT / "sslkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        if "find_spec(" in text or "ImportError" in text or "ModuleNotFoundError" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    source = ast.unparse(node)
                    if "find_spec(" in source or "except ImportError" in source or "except (ImportError" in source:
                        yield f"{file.relative_to(ROOT).with_suffix('').as_posix()}.{node.name}", source


def test_what_looks_for_a_package_names_the_extra_that_brings_it() -> None:
    others = {
        "sslkit/registry._read_source",  # any plugin's
        "sslkit/encoders/build._import_factory",  # the user's own
        "sslkit/engine/memory.peak_memory",  # of the standard library
        "sslkit/image/canvas_cache.decoder_versions",  # what is missing decodes nothing
        "sslkit/video/clip_cache.decoder_versions",
        "sslkit/image/jpeg._decoder",  # of torchvision, which is always there
    }
    unnamed = {name for name, source in functions() if "sslkit[" not in source}
    assert unnamed == others


def test_extras_that_errors_name_bring_the_package() -> None:
    wrong = []
    for file in [*(ROOT / "sslkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        wrong += [f"{file.name}: {extra}" for extra in re.findall(r"sslkit\[(\w+)\]", text) if extra not in EXTRAS]
        for call in ast.walk(ast.parse(text)) if "load_extra" in text else []:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "load_extra":
                module, extra = call.args[:2]
                first = module.values[0] if isinstance(module, ast.JoinedStr) else module
                assert isinstance(first, ast.Constant) and isinstance(extra, ast.Constant), ast.unparse(call)
                brought = {canonicalize_name(Requirement(need).name) for need in EXTRAS[str(extra.value)]}
                package = canonicalize_name(str(first.value).partition(".")[0])
                if {"mlflow": "mlflow-skinny"}.get(package, package) not in brought:
                    wrong.append(f"{file.name}: {ast.unparse(call)}")
    assert not wrong
    assert set(Onnx._packages) <= {Requirement(need).name for need in EXTRAS["onnx"]}
