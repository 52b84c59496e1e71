"""Help and listings never import torch."""

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
from sslkit.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["tasks"], ["tasks", "--json"], ["--version"]])
def test_needs_no_torch(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_guard_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, "pretrain", "rotation", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
