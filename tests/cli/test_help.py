"""The help of every command is what the files in help/ say; `UPDATE_HELP=1 pytest tests/cli/test_help.py` writes them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslkit.cli.app import verbs

FOLDER = Path(__file__).parent / "help"
TASKS = ("rotation", "skipgram", "cola", "order_verification", "clip")  # one of each modality
VERBS = sorted(verb.name for verb in verbs() if verb.entry is None or verb.entry.package == "sslkit")
PAGES = {
    "sslkit": ["--help"],
    "all": ["--all"],
    **{verb: [verb, "--help"] for verb in VERBS},
    **{f"pretrain-{task}": ["pretrain", task, "--help"] for task in TASKS},
}


@pytest.mark.parametrize("page", PAGES)
def test_help(page: str, sslkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = "\n".join(line.rstrip() for line in sslkit(*PAGES[page]).out.strip().splitlines()) + "\n"
    file = FOLDER / f"{page}.txt"
    if os.environ.get("UPDATE_HELP"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "UPDATE_HELP=1 writes the new text"


def test_every_file_is_of_a_page() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(PAGES)
