"""The pictures of a task's predictions that a run has saved."""

from pathlib import Path

from sslkit.engine.run_folder import PREVIEWS

_LARGEST = 2**25  # bytes of a picture


def preview_steps(run: Path) -> list[int]:
    """Return the steps after which a run has saved pictures, ascending."""
    try:
        numbers = [file.stem.partition("-")[2] for file in (run / PREVIEWS).glob("step-*.png")]
    except OSError:
        return []
    return sorted(int(number) for number in numbers if number.isascii() and number.isdecimal())


def read_preview(run: Path, step: int) -> bytes | None:
    """Return a picture of a run, None if it has none for this step or the file is no picture of its own."""
    file = run / PREVIEWS / f"step-{step}.png"
    try:
        if not file.resolve().is_relative_to(run.resolve()) or not file.is_file() or file.stat().st_size > _LARGEST:
            return None
        picture = file.read_bytes()
    except OSError:
        return None
    return picture if picture.startswith(b"\x89PNG\r\n\x1a\n") else None
