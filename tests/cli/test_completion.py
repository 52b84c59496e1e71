"""The shell completes commands, tasks, their options, and encoders."""

import os
import subprocess
import sys

import pytest


def offered(line: str) -> list[str]:
    """Return what bash is told after a line, of which the last word is being typed."""
    environment = {**os.environ, "COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_SSLKIT_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'sslkit'; from sslkit.cli.app import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sslkit pre", ["pretrain", "predict", "preview"]),
        ("sslkit pretrain ro", ["rotation"]),
        ("sslkit pretrain simclr+ro", ["simclr+rotation"]),
        ("sslkit pretrain rotation --cro", ["--crop-scale"]),
        ("sslkit pretrain rotation --encoder vit_mi", ["vit_micro"]),
        ("sslkit pretrain nothing --cro", []),
        ("sslkit export --to w", ["word2vec"]),
    ],
)
def test_what_may_come_next(line: str, words: list[str]) -> None:
    assert sorted(offered(line)) == sorted(words)
