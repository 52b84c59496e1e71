"""The cache is a marked folder: nothing of the user's is ever removed."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslkit import SslkitError
from sslkit.data.cache import MARKER, cache_folder, claim_cache, clear, make_room, stored

Run = Callable[..., Any]


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Set SSLKIT_CACHE to a folder of the user's with names that the cache has, too."""
    files = [tmp_path / "work" / kind / "my_run" / "file" for kind in ("features", "index", "texts", "canvases", "schemas")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"mine")
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "work"))
    return files


def test_files_of_the_user_are_never_removed(
    own_files: list[Path], digits: Path, quick: list[str], sslkit: Run, tmp_path: Path
) -> None:
    cleared = sslkit("cache", "--clear")
    assert cleared.code == 2 and "is no cache of sslkit" in cleared.err
    run = ["--data", digits, *quick, "--steps", 1, "--cache-limit", 0.001, "--out", tmp_path / "run"]
    trained = sslkit("pretrain", "rotation", *run)
    assert trained.code == 2 and "holds other files, such as" in trained.err and "set SSLKIT_CACHE" in trained.err
    assert sslkit("pretrain", "rotation", "--help").code == 0  # which keeps a schema, if it can
    assert sslkit("cache").code == 0 and stored() == []
    with pytest.raises(SslkitError, match="holds other files"):
        make_room(10**9, 1, tmp_path)
    assert all(file.read_bytes() == b"mine" for file in own_files)


def test_a_new_folder_becomes_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run, digits: Path) -> None:
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "new"))
    assert claim_cache() == claim_cache() == tmp_path / "new"
    assert (tmp_path / "new" / MARKER).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    (tmp_path / "new" / "canvases" / "set").mkdir(parents=True)
    (tmp_path / "new" / "canvases" / "set" / "canvases.npy").write_bytes(b"0" * 100)
    assert [entry.bytes for entry in stored()] == [100]
    assert clear() > 100 and stored() == [] and (tmp_path / "new" / MARKER).exists()


def test_features_and_samples_make_no_room_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    folders = {kind: [claim_cache() / kind / name for name in "ab"] for kind in ("canvases", "features", "tables")}
    for old, new in folders.values():
        for folder in (old, new):
            folder.mkdir(parents=True)
            (folder / "values.npy").write_bytes(b"0" * 60)
        os.utime(old, (0, 0))
    make_room(60, 130, cache_folder() / "features" / "c")
    assert [entry.folder.name for entry in stored() if entry.folder.parent.name == "features"] == ["b", "c"]
    assert all(folder.exists() for kind in ("canvases", "tables") for folder in folders[kind])
    make_room(60, 250, cache_folder() / "canvases" / "c")  # canvases and tables share a limit
    assert not folders["canvases"][0].exists() or not folders["tables"][0].exists()
    assert (cache_folder() / "features" / "b").exists()


def test_an_empty_mount_may_be_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost+found").mkdir()
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path))
    assert claim_cache() == tmp_path


def test_an_empty_variable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run) -> None:
    monkeypatch.setenv("SSLKIT_CACHE", "")
    for command in (["cache", "--clear"], ["cache"], ["pretrain", "rotation", "--data", ".", "--out", tmp_path]):
        ran = sslkit(*command)
        assert ran.code == 2 and "SSLKIT_CACHE is empty (name a folder, or unset it)" in ran.err


def test_without_a_home_the_cache_is_temporary(tmp_path: Path) -> None:
    script = "import os; from sslkit.data.cache import claim_cache; os.setuid(54321); print(claim_cache())"
    if subprocess.run([sys.executable, "-c", "import os; os.setuid(54321)"], capture_output=True).returncode:
        pytest.skip("needs the right to change the user")
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder != Path("/tmp") and folder != Path("/"):
            folder.chmod(0o755)
    environment = {"PATH": "", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    first, second = (subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2))
    assert first.stdout == second.stdout == f"{tmp_path}/sslkit-54321\n", first.stderr
    assert "there is no home folder" in first.stderr and not second.stderr


def test_several_processes_may_claim_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    script = "from sslkit.data.cache import claim_cache as c; (c() / 'index').mkdir(exist_ok=True)"
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[1] for process in processes] == [""] * 4
    assert (cache_folder() / MARKER).is_file()


def test_a_chosen_folder_below_the_temporary_one_is_not_called_a_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    assert claim_cache() == tmp_path / "cache"
    assert not capsys.readouterr().err
