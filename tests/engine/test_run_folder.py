"""Run folders hold what their run wrote, and nothing of others is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("name", ["model.safetensors", "results.jsonl", "previews"])
def test_files_that_no_run_wrote_stay(
    name: str, digits: Path, tmp_path: Path, quick: list[str], sslkit: Callable[..., Any]
) -> None:
    folder = tmp_path / "mine"
    file = folder / name / "holiday.png" if name == "previews" else folder / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    for flags in ([], ["--resume"]):
        ran = sslkit("pretrain", "rotation", "--data", digits, *quick, "--steps", 1, "--out", folder, *flags)
        assert ran.code == 2 and f"--out: {folder} holds {name}, but no run that wrote it (choose another folder)" in ran.err
    assert file.read_bytes() == b"mine" and len(list(folder.iterdir())) == 1
