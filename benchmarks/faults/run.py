"""Break what can break around a run, and see whether anything is lost: `python benchmarks/faults/run.py SCRATCH`.

Takes minutes, `--long` an hour; `--only kills,disk` some of them. SCRATCH is emptied of what the campaign wrote. Prints a
Markdown table; exit code 1 if a promise was broken.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from disk import full_disks, two_runs
from endurance import long_run
from hostile import hostile_files
from images import mutated_images
from kills import chains, signals
from promises import Promise, digits

CAMPAIGN: dict[str, Callable[[Path, Path, bool], list[Promise]]] = {
    "kills": chains,
    "signals": signals,
    "disk": full_disks,
    "folders": two_runs,
    "images": mutated_images,
    "hostile": hostile_files,
    "endurance": long_run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--only", default=",".join(CAMPAIGN), help=f"some of {', '.join(CAMPAIGN)}")
    parser.add_argument("--long", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=arguments.scratch))
    os.environ["SSLKIT_CACHE"] = str(folder / "cache")
    broken = 0
    try:
        data = digits(folder / "digits")
        print("| what was done | what was promised | kept |\n|---|---|---|", flush=True)
        for name in arguments.only.split(","):
            inside = folder / name
            inside.mkdir()
            for promise in CAMPAIGN[name](inside, data, arguments.long):
                print(f"| {promise.done} | {promise.promised} | {promise.kept} of {promise.times} |", flush=True)
                broken += promise.times - promise.kept
                for line in promise.notes:
                    print(f"<!-- {line} -->", flush=True)
            shutil.rmtree(inside)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
