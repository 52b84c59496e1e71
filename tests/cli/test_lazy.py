"""Help and listings never import torch."""

import os
import re
import subprocess
import sys

import pytest

_RUN = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm", "torchvision", "sklearn"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
from sslkit.cli.app import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["tasks"], ["tasks", "--json"], ["--version"]])
def test_needs_no_torch(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_guard_works() -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, "check", "rotation"], capture_output=True, text=True, timeout=60)
    assert "torch was imported" in done.stderr


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm-256color"}])
def test_no_colors_in_a_pipe_or_where_they_are_not_wanted(variables: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | variables
    for command in (["--help"], ["tasks"], ["pretrain", "nothing"]):
        done = subprocess.run([sys.executable, "-m", "sslkit", *command], env=environment, capture_output=True, text=True)
        output = done.stdout + done.stderr
        assert output and not re.search(r"\x1b\[[0-9;]*(3[0-7]|38|9[0-7])[;m]", output)
        assert variables or "\x1b" not in output
