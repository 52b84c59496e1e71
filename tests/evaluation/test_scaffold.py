"""A package for an evaluation of one's own: it works as written, and is the example."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sslkit import NewEvaluationSpec, SslkitError, new_evaluation

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluation_package"


def test_the_example_is_what_is_written(tmp_path: Path) -> None:
    result = new_evaluation(NewEvaluationSpec(name="nearest_centroid", out=str(tmp_path / "package")))
    assert result.files == sorted(file.name for file in EXAMPLE.iterdir() if file.is_file())
    for name in result.files:
        assert (tmp_path / "package" / name).read_text() == (EXAMPLE / name).read_text(), f"{name}: run new-evaluation again"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Tilt", "should consist of lowercase letters"),
        ("a-b", "should consist of lowercase letters"),
        ("class", "should consist of"),
        ("knn", "an evaluation knn is already installed"),
        ("word_vectors", "an evaluation word-vectors is already installed"),
        ("plugins", "is already used inside the package"),
    ],
)
def test_names_that_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SslkitError, match=message):
        new_evaluation(NewEvaluationSpec(name=name, out=str(tmp_path / "package")))
    assert not (tmp_path / "package").exists()
    with pytest.raises(SslkitError, match="already exists"):
        new_evaluation(NewEvaluationSpec(name="tilt", out=str(tmp_path)))


@pytest.mark.slow
def test_the_package_installs_and_runs(tmp_path: Path, trained: Path) -> None:
    def run(*command: object) -> str:
        environment = {**os.environ, "SSLKIT_CACHE": str(tmp_path / "cache")}
        done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    new_evaluation(NewEvaluationSpec(name="nearest_centroid", out=str(tmp_path / "package")))
    run(sys.executable, "-m", "build", "--wheel", "package")
    run(sys.executable, "-m", "venv", "--system-site-packages", "environment")
    python = tmp_path / "environment" / "bin" / "python"
    # What runs the tests may be an environment itself, whose packages are not the system's.
    (site,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    ours = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in sys.path if folder.endswith("site-packages"))
    (site / "tests.pth").write_text(ours)
    (wheel,) = (tmp_path / "package" / "dist").glob("*.whl")
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    (tmp_path / "test_nearest_centroid.py").write_text((EXAMPLE / "test_nearest_centroid.py").read_text())
    assert "1 passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_nearest_centroid.py")
    protocols = json.loads(run(python, "-m", "sslkit", "protocols", "--json"))["protocols"]
    assert "nearest-centroid/cosine-v1" in {protocol["id"] for protocol in protocols}
    flags = ["--ckpt", trained, "--protocol", "nearest-centroid", "--json"]
    (result,) = json.loads(run(python, "-m", "sslkit", "evaluate", *flags))["results"]
    assert result["verb"] == "nearest-centroid" and result["rows"][0]["metrics"][0]["value"] > 0.5
