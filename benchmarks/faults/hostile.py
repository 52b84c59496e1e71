"""Files made to do harm: refused in one line; nothing is executed, nothing written elsewhere."""

import io
import json
import pickle
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from promises import TINY, Promise, ran
from safetensors.torch import load_file, save_file

from sslkit.engine.checkpoint import read_model


class Harm:
    """Touch a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.canary,)


def hostile_files(folder: Path, data: Path, long: bool) -> list[Promise]:
    """Give hostile files in the place of checkpoints, runs, data and specs."""
    refused = Promise("checkpoints, runs, data and specs made to do harm", "exit code 2, one line of error")
    harmless = Promise("the same", "nothing was executed, nothing written outside the output")
    run, canary, out = folder / "run", folder / "canary", folder / "out"
    assert ran("pretrain", "rotation", "--data", data, *TINY, "--steps", 2, "--out", run)[0] == 0
    cases = {**checkpoints(folder, run, data, canary), **runs(folder, run, canary), **others(folder, data, canary)}
    for name, words in cases.items():
        outside = {file for file in folder.rglob("*") if out not in file.parents}
        code, errors = ran(*words)
        refused.check(code == 2 and len(errors) == 1, f"{name}: code {code}, {errors}")
        new = {file for file in folder.rglob("*") if out not in file.parents} - outside - {folder / "out"}
        new = {file for file in new if file.name != "lock"}
        harmless.check(not canary.exists() and not new, f"{name}: {canary.exists()}, {new}")
        canary.unlink(missing_ok=True)
    climbs = Promise(
        "a tar with absolute names, and names that climb", "its images are read where they lie, nothing is unpacked"
    )
    tar = shard(folder / "shard.tar")
    code, errors = ran("pretrain", "rotation", "--data", f"wds:{tar}", *TINY, "--steps", 2, "--out", folder / "tarred")
    written = [place / "climbed.png" for place in (folder, folder.parent, Path(tempfile.gettempdir()))]
    climbs.check(code == 0 and not any(file.exists() for file in written), f"code {code}, {errors}")
    return [refused, harmless, climbs]


def checkpoints(folder: Path, run: Path, data: Path, canary: Path) -> dict[str, list[Any]]:
    """Return commands that read hostile checkpoints."""
    tensors, known = load_file(run / "model.safetensors"), read_model(run / "model.safetensors").metadata
    whole = (run / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])

    def forged(change: Callable[[dict[str, Any]], None]) -> bytes:
        new = json.loads(json.dumps(header))
        change(new)
        text = json.dumps(new).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    def described(**changes: Any) -> bytes:
        file = folder / "described.safetensors"
        save_file(tensors, file, {"sslkit": json.dumps({**known, **changes})})
        data = file.read_bytes()
        file.unlink()
        return data

    def claimed(text: str) -> bytes:
        return forged(lambda new: new["__metadata__"].update(sslkit=text))

    first = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    bytes_of = header[first]["data_offsets"][1] - header[first]["data_offsets"][0]
    contents = {
        "a pickle": pickle.dumps(Harm(canary)),
        "a torch.save": torch_saved(Harm(canary)),
        "nothing": b"",
        "a header of 2**63 bytes": struct.pack("<Q", 2**63) + whole[8:],
        "a header that is no JSON": struct.pack("<Q", 4) + b"{{{{",
        "a header of 100,000 brackets": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "a tensor of 2**60 values": forged(lambda new: new[first].update(shape=[2**30, 2**30])),
        "tensors that overlap": forged(lambda new: new[first].update(data_offsets=[0, bytes_of])),
        "a tensor beyond the end": forged(lambda new: new[first].update(data_offsets=[2**40, 2**41])),
        "a negative offset": forged(lambda new: new[first].update(data_offsets=[-8, 8])),
        "an unknown type": forged(lambda new: new[first].update(dtype="object")),
        "cut off": whole[: len(whole) // 2],
        "metadata of 20 megabytes": described(task="x" * 20_000_000),
        "metadata of 100,000 brackets": claimed("[" * 100_000),
        "metadata that is a list": claimed("[1, 2]"),
        "metadata of numbers": described(recipe=7, size="large"),
        "a size of 10**9": described(size=10**9),
        "a size below 0": described(size=-1),
        "a recipe that is os:system": described(recipe={**known["recipe"], "name": "os:system"}),
        "a recipe that is builtins:eval": described(recipe={**known["recipe"], "name": "builtins:eval"}),
        "a recipe of the hub": described(recipe={**known["recipe"], "name": "hf_hub:timm/resnet18.a1_in1k"}),
        "a recipe that climbs": described(recipe={**known["recipe"], "name": "../../evil:make"}),
        "a recipe with wrong options": described(recipe={**known["recipe"], "options": {"width": "__import__('os')"}}),
        "a recipe in a recipe, 200 deep": described(recipe=nested(known["recipe"], 200)),
        "another format": described(format=10**6),
        "a list for a task": described(task=["rotation"]),
    }
    commands = {}
    for number, (name, content) in enumerate(contents.items()):
        file = folder / "checkpoints" / f"{number}.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        commands[name] = ["embed", "--ckpt", file, "--data", data, "--out", folder / "out.npz"]
    return commands


def nested(recipe: dict[str, Any], depth: int) -> dict[str, Any]:
    """Return a recipe of an encoder that selects from one that selects from one, and so on."""
    for _ in range(depth):
        recipe = {"select": "l", "encoder": recipe}
    return recipe


def torch_saved(task: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({"task": task}, stream)
    return stream.getvalue()


def runs(folder: Path, run: Path, canary: Path) -> dict[str, list[Any]]:
    """Return commands that go on with hostile runs."""
    spec = json.loads((run / "spec.json").read_text())
    resume = torch.load(run / "resume.pt", weights_only=True)
    changed = {
        "resume.pt is a pickle": ("resume.pt", pickle.dumps(Harm(canary))),
        "resume.pt holds an object": ("resume.pt", torch_saved(Harm(canary))),
        "resume.pt is cut off": ("resume.pt", (run / "resume.pt").read_bytes()[:2000]),
        "resume.pt holds words for numbers": ("resume.pt", saved({**resume, "step": "many"})),
        "resume.pt holds a list": ("resume.pt", saved([1, 2])),
        "resume.pt of another task": ("resume.pt", saved({**resume, "task": {"a": torch.zeros(3)}})),
        "spec.json is no JSON": ("spec.json", b"{"),
        "spec.json is a list": ("spec.json", b"[]"),
        "spec.json of 100,000 brackets": ("spec.json", b"[" * 100_000),
        "spec.json with unknown keys": ("spec.json", json.dumps({**spec, "hook": "os.system"}).encode()),
        "spec.json with a task that climbs": ("spec.json", json.dumps({**spec, "task": "../../../etc/passwd"}).encode()),
        "spec.json with an encoder of os": ("spec.json", json.dumps({**spec, "encoder": "os:system"}).encode()),
        "spec.json in zeros": ("spec.json", bytes(1000)),
    }
    commands = {}
    for number, (name, (file, content)) in enumerate(changed.items()):
        copy = folder / "runs" / str(number)
        shutil.copytree(run, copy)
        (copy / file).write_bytes(content)
        commands[name] = ["pretrain", "rotation", "--resume", "--out", copy]
    return commands


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def others(folder: Path, data: Path, canary: Path) -> dict[str, list[Any]]:
    """Return commands that read hostile data and spec files."""
    objects = np.array([Harm(canary)] * 40, dtype=object)
    np.save(folder / "objects.npy", objects)
    np.savez(folder / "objects.npz", train_images=objects, train_labels=objects)
    (folder / "pickle.npy").write_bytes(pickle.dumps(Harm(canary)))
    (folder / "forged.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 9, 9, 3), }".ljust(117)
        + b"\n"
    )
    (folder / "nul.txt").write_bytes(b"a\0b.png\n" * 40)
    (folder / "binary.csv").write_bytes(bytes(range(256)) * 10)
    (folder / "unknown.toml").write_text("hook = 'os.system'\n")
    (folder / "deep.toml").write_text("options = " + "[" * 5000 + "]" * 5000)
    (folder / "deep.json").write_text('{"options": ' + "[" * 100_000 + "]" * 100_000 + "}")
    (folder / "cut.tar").write_bytes(shard(folder / "whole.tar").read_bytes()[:700])
    (folder / "compressed.tar").write_bytes(b"\x1f\x8b\x08" + bytes(1000))
    how = [*TINY, "--steps", 2, "--out", folder / "out"]
    commands: dict[str, list[Any]] = {
        name: ["pretrain", "rotation", "--data", folder / name, *how]
        for name in ("objects.npy", "objects.npz", "pickle.npy", "forged.npy", "nul.txt", "binary.csv")
    }
    commands |= {
        name: ["pretrain", "rotation", "--data", f"wds:{folder / name}", *how] for name in ("cut.tar", "compressed.tar")
    }
    commands |= {
        name: ["pretrain", "rotation", "--data", data, "--spec", folder / name, *how]
        for name in ("unknown.toml", "deep.toml", "deep.json")
    }
    return commands


def shard(file: Path) -> Path:
    """Write a tar whose members would lie elsewhere if somebody unpacked them."""
    with tarfile.open(file, "w") as tar:
        for number in range(40):
            stream = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), number, dtype=np.uint8)).save(stream, "PNG")
            name = ("../climbed.png", f"{tempfile.gettempdir()}/climbed.png", f"{number}.png")[min(number, 2)]
            member = tarfile.TarInfo(name)
            member.size = stream.tell()
            tar.addfile(member, io.BytesIO(stream.getvalue()))
    return file
