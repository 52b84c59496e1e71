"""`sslkit push`: upload a run or an exported folder to the Hugging Face Hub, after showing what goes."""

import getpass
import mmap
import platform
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from sslkit.console import say, stderr
from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import Exporter, ExportJob, Settings
from sslkit.engine.checkpoint import read_model
from sslkit.engine.hub import HubAddress, hub_api, reported
from sslkit.engine.run_folder import MODEL, holds_run
from sslkit.exporting.card import Card, write_card
from sslkit.exporting.description import describe_export, find_input_guide
from sslkit.exporting.export import build_job
from sslkit.specs.use import ExportSpec, PushSpec

_CARD = "README.md"
_SUFFIXES = (".safetensors", ".json", ".md", ".onnx", ".pt2", ".txt")  # nothing that is unpickled
_PATH = re.compile(rb"(?<![\w.:/])/(?:home|Users|root|tmp|mnt|media|scratch|srv)/[\w.-]+|[A-Za-z]:\\{1,2}Users\\{1,2}[\w. -]+")
_OF_NOBODY = {"root", "user", "admin", "ubuntu", "debian", "runner", "localhost", "nobody"}


@dataclass(frozen=True)
class PushResult:
    """The output of `sslkit push --json`."""

    repository: str
    commit: str
    files: dict[str, int]  # bytes by name


def push(spec: PushSpec) -> PushResult:
    """Upload the checkpoint of a run with a card, or the files of a folder, to a repository of the Hub.

    Files, sizes, visibility and whatever names this machine or its user are printed before; without `spec.yes` the user is
    asked. Raises SslkitError if anything cannot be uploaded, or is not confirmed.
    """
    address, api = HubAddress(spec.repository, "main"), hub_api()
    with _collected(spec) as files:
        private = [line for name, file in files.items() for line in find_private(name, file)]
        exists, visibility = _look_up(api, address, spec.public)
        sizes = {name: file.stat().st_size for name, file in files.items()}
        say(f"to {spec.repository} on {api.endpoint}, {'which is' if exists else 'a new repository,'} {visibility}:")
        for name, size in sizes.items():
            say(f"  {name:<24} {size:>15,} bytes")
        for line in private or ["no path, host name or user name is in these files"]:
            say(f"  {line}", style="red" if private else None)
        _confirm(spec, private)
        commit = _upload(api, address, files, None if exists else visibility == "private")
    return PushResult(spec.repository, commit, sizes)


class _CheckpointCard(Exporter):
    """The checkpoint of a run as it is, for the card."""

    files: ClassVar = (_CARD, MODEL)
    normalizes = True

    def loading(self, name: str, settings: Settings, output: str) -> list[str]:
        """Return lines that need sslkit."""
        return ["import sslkit", "", f'encoder = sslkit.load("{MODEL}")', f"features = encoder({settings['input']})"]

    def front_matter(self, job: ExportJob) -> dict[str, Any]:
        """Return the library, the tags and the license, by which the Hub lists a model."""
        license = {"license": job.license.lower()} if job.license else {}
        return {"library_name": "sslkit", "tags": ["sslkit", "self-supervised-learning"], **license}


@contextmanager
def _collected(spec: PushSpec) -> Iterator[dict[str, Path]]:
    """Yield the files that go, by name; of a run its checkpoint, and a card written for it."""
    source = Path(spec.source)
    if not source.is_dir():
        raise SslkitError(f"{source} is no folder", "name a run, or a folder of sslkit export --to hf")
    if not holds_run(source):
        yield _folder_files(source, spec)
        return
    if not (source / MODEL).is_file():
        raise SslkitError(f"the run in {source} has no {MODEL} yet", "wait for its first checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder, _CARD)
        _write_checkpoint_card(source / MODEL, spec, card)
        yield {_CARD: card, MODEL: source / MODEL}


def _folder_files(folder: Path, spec: PushSpec) -> dict[str, Path]:
    if spec.license is not None:
        raise SslkitError(f"{folder} has a {_CARD} of its own", "change the license there", flag="license")
    files = {file.name: file for file in sorted(folder.iterdir())}
    for name, file in files.items():
        if file.is_symlink() or not file.is_file() or file.suffix.lower() not in _SUFFIXES:
            raise SslkitError(f"{file} is not one of an export", f"expected files of {', '.join(_SUFFIXES)}")
        if name.startswith("."):
            raise SslkitError(f"{file} is hidden", "remove it")
    if _CARD not in files:
        raise SslkitError(f"{folder} has no {_CARD}", "sslkit export --to hf writes one")
    return files


def _write_checkpoint_card(file: Path, spec: PushSpec, path: Path) -> None:
    checkpoint, exporter = read_model(file), _CheckpointCard()
    job = build_job(ExportSpec(ckpt=str(file), license=spec.license), checkpoint, exporter)
    guide = find_input_guide(job, checkpoint)
    job = replace(job, description=describe_export(job, exporter, guide))
    name = Path(spec.repository.partition("/")[2])
    write_card(Card(name, exporter, job, checkpoint, {"input": job.input}, 0.0, guide), path)


def find_private(name: str, file: Path) -> Iterator[str]:
    """Yield a line for each kind of thing in a file that names this machine or its user: paths, host, user.

    Of a safetensors file the header is read: tensors are numbers.
    """
    if not file.stat().st_size:
        return
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = len(content)
        if file.suffix.lower() == ".safetensors" and end >= 8:
            end = min(end, 8 + struct.unpack("<Q", content[:8])[0])
        path = _PATH.search(content, 0, end)
        if path is not None:
            yield f"{name} holds a path: {path[0].decode(errors='replace')}"
        for kind, word in _names_of_machine().items():
            if re.compile(rb"(?<![\w-])" + re.escape(word.encode()) + rb"(?![\w-])").search(content, 0, end):
                yield f"{name} holds the {kind}: {word}"


def _names_of_machine() -> dict[str, str]:
    """Return host and user name, unless they are of a kind that tells nothing."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = ""
    names = {"host name": platform.node(), "user name": user}
    return {kind: name for kind, name in names.items() if len(name) > 3 and name.lower() not in _OF_NOBODY}


def _look_up(api: Any, address: HubAddress, public: bool) -> tuple[bool, str]:
    """Return whether the repository exists, and whether it is, or will be, public or private."""
    try:
        with reported(address):
            info = api.model_info(address.repository)
    except SslkitError as error:
        if type(error.__cause__).__name__ != "RepositoryNotFoundError":
            raise
        return False, "public" if public else "private"
    return True, "private" if info.private else "public"


def _confirm(spec: PushSpec, private: list[str]) -> None:
    """Ask on the terminal; raises SslkitError for anything but a yes."""
    if spec.yes and private:
        raise SslkitError("not confirmed for files that name this machine or its user", "upload without it", flag="yes")
    if spec.yes:
        return
    if not sys.stdin.isatty():
        raise SslkitError("nobody is there to confirm the upload", "add --yes")
    answer = stderr.input("Upload these files? [y/N] ", markup=False)
    if answer.strip().lower() not in ("y", "yes"):
        raise SslkitError("not confirmed: nothing was uploaded")


def _upload(api: Any, address: HubAddress, files: dict[str, Path], make_private: bool | None) -> str:
    """Upload files in one commit and return it; unless `make_private` is None, make the repository first."""
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    with reported(address):
        if make_private is not None:
            api.create_repo(address.repository, private=make_private, exist_ok=True)
        commit: str = api.create_commit(address.repository, operations, commit_message="Upload with sslkit").oid
    return commit
