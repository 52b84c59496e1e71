"""Check that training computes what another commit computes, bit by bit.

    python benchmarks/same_as.py REF [--tasks rotation,simclr,deepcluster] [--steps 20]

REF is checked out beside this tree and runs in a process of its own with this environment's packages; both train each task for
the same steps on the same handwritten digits, and every tensor of `model.safetensors` has to be equal. Float32 results differ
between machines, so that nothing is stored: the other commit is run here and now. Encoder tensors are compared by name.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
_RUN = """import sys
try:
    from sslkit.cli.app import main
except ImportError:  # before the command line had rooms
    from sslkit.cli import main
main(sys.argv[1:])
"""


def environment(tree: Path, folder: Path) -> dict[str, str]:
    """Return the environment in which a tree is what is installed: its own packages, and metadata for its entry points."""
    site = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(tree)]
    subprocess.run(command, check=True)
    return {**os.environ, "PYTHONPATH": str(site), "SSLKIT_CACHE": str(folder / "cache")}


def train(values: dict[str, str], folder: Path, data: Path, task: str, steps: int) -> dict[str, torch.Tensor]:
    """Train a task and return the tensors of its checkpoint."""
    out = folder / "run" / task
    words = ["pretrain", task, "--data", str(data), "--out", str(out), "--steps", str(steps), "--batch-size", "64"]
    subprocess.run(
        [sys.executable, "-c", _RUN, *words, "--size", "16", "--workers", "0", "--json"],
        cwd=folder,
        env=values,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return load_file(out / "model.safetensors")


def main() -> None:
    """Compare and print a line per task; exit code 1 if any differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ref")
    parser.add_argument("--tasks", default="rotation,simclr,deepcluster")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    different = 0
    with tempfile.TemporaryDirectory() as scratch:
        here, there, old = Path(scratch, "here"), Path(scratch, "there"), Path(scratch, "tree")
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(old), arguments.ref], check=True)
        try:
            current = shutil.copytree(
                ROOT, Path(scratch, "current"), ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info")
            )
            values = {}
            for folder, tree in ((here, current), (there, old)):
                folder.mkdir()
                values[folder] = environment(Path(tree), folder)
            subprocess.run(
                [sys.executable, "-c", _RUN, "demo", "--images-only", "--out", str(Path(scratch, "digits")), "--json"],
                env=values[here],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            data = Path(scratch, "digits", "images")
            for task in arguments.tasks.split(","):
                new, reference = (train(values[folder], folder, data, task, arguments.steps) for folder in (here, there))
                unequal = sorted(
                    name
                    for name in new.keys() | reference.keys()
                    if name not in new or name not in reference or not torch.equal(new[name], reference[name])
                )
                different += bool(unequal)
                print(json.dumps({"task": task, "tensors": len(reference), "different": unequal}))
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(old)], check=True)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
