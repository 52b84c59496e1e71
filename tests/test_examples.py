"""A modality that sslkit knows nothing of comes as a package: installed, listed, checked, trained, loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "examples" / "sensors"


@pytest.mark.slow
def test_time_series_from_a_package(tmp_path: Path) -> None:
    copied = tmp_path / "package"  # a build leaves traces beside the source
    copied.mkdir()
    for file in ("pyproject.toml", "sslkit_sensors.py", "sslkit_sensors_options.py"):
        (copied / file).write_text((PACKAGE / file).read_text())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "SSLKIT_CACHE": str(tmp_path / "cache")}

    def ran(*command: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    ran("-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", copied)
    listed = json.loads(ran("-m", "sslkit", "tasks", "--json"))["tasks"]
    assert {"fill_gaps", "sensors", "sslkit-sensors"} <= set(
        next(task for task in listed if task["name"] == "fill_gaps").values()
    )
    assert json.loads(ran("-m", "sslkit", "check", "fill_gaps", "--full", "--json"))["passed"]
    ran("-m", "sslkit_sensors", "recordings.npy")
    result = json.loads(ran("-m", "sslkit", "pretrain", "fill_gaps", "--data", "recordings.npy", "--steps", "20", "--json"))
    code = "import sslkit, sys, torch; print(tuple(sslkit.load(sys.argv[1])(torch.rand(2, 3, 128)).shape))"
    assert ran("-c", code, result["checkpoint"]) == "(2, 64)\n"
