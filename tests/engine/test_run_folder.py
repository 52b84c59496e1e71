"""Run folders hold what their run wrote, and nothing of others is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslkit.engine.run_folder import RunFolder


@pytest.mark.parametrize("name", ["model.safetensors", "results.jsonl", "previews", "wandb", "mlflow", "tensorboard"])
def test_files_that_no_run_wrote_stay(
    name: str, digits: Path, tmp_path: Path, quick: list[str], sslkit: Callable[..., Any]
) -> None:
    folder = tmp_path / "mine"
    file = folder / name if "." in name else folder / name / "holiday.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    for flags in ([], ["--resume"]):
        ran = sslkit("pretrain", "rotation", "--data", digits, *quick, "--steps", 1, "--out", folder, *flags)
        assert ran.code == 2 and f"--out: {folder} holds {name}, but no run that wrote it (choose another folder)" in ran.err
    assert file.read_bytes() == b"mine" and len(list(folder.iterdir())) == 1


def test_a_run_that_got_nowhere_takes_only_its_own_folders_with_it(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    with pytest.raises(ValueError), RunFolder(tmp_path, removable=("wandb", "mlflow")) as folder:
        folder.file("mlflow").mkdir()
        raise ValueError
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]
