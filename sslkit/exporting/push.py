"""`sslkit push`: upload a run or an exported folder to the Hugging Face Hub, after listing what will be uploaded."""

import getpass
import json
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

from huggingface_hub import CommitOperationAdd, HfApi, errors

from sslkit.console import say, stderr
from sslkit.contract.errors import SslkitError
from sslkit.contract.exporter import Exporter, ExportJob, Settings
from sslkit.engine.checkpoint import read_model
from sslkit.engine.hub import HubAddress, hide_credentials, hub_api, hub_errors
from sslkit.engine.run_folder import MODEL, holds_run
from sslkit.exporting.card import Card, write_card
from sslkit.exporting.description import describe_export, find_input_guide
from sslkit.exporting.export import build_job
from sslkit.specs.use import ExportSpec, PushSpec

_CARD = "README.md"
_SUFFIXES = (".safetensors", ".json", ".md", ".onnx", ".pt2", ".txt")  # nothing that is unpickled
_TEXT = (".json", ".md", ".txt", ".safetensors")  # of the last, the header
_ROOTS = rb"home|Users|Volumes|root|tmp|mnt|media|scratch|srv|gpfs|lustre|work|data|nfs|private/var"
_PATH = re.compile(  # after a quote, a blank or the like: /x/y, file:///x/y, C:\x, C:/x, \\x\y, as it is or escaped in JSON
    rb"""(?:\A|(?<=[\s"'`=:(\[,>])|(?<=file://)|(?<=\\[nrt]))"""
    rb"""(?:/[^\s/"'`<>|\\]+/[^\s/"'`<>|]+|[A-Za-z]:[\\/]+[\w\x80-\xff][^\s"'`<>|]*|\\{2,}[\w.-]+\\+[\w.$-]+)"""
)
# Of binary files less is a path: random bytes and the names of layers may look like one.
_PATH_IN_BINARY = re.compile(rb"(?<![\w.:/])/(?:" + _ROOTS + rb")/[\w.-]+|[A-Za-z]:\\+Users\\+[\w. -]+")
_START = re.compile(rb"hf_hub:[\w.-]+/[\w.-]+@[0-9a-f]{40}")
_GENERIC_NAMES = {
    *("root", "user", "admin", "ubuntu", "debian", "runner", "localhost", "nobody"),
    *("sslkit", "jovyan", "ec2-user", "app"),  # of containers and clouds
}


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
    with collect_files(spec) as files:
        private = [line for name, file in files.items() for line in find_private(name, file)]
        starts = [line for name, file in files.items() for line in _find_starts(name, file)]
        repository = _look_up(api, address)
        _check_visibility(spec, repository)
        sizes = {name: file.stat().st_size for name, file in files.items()}
        kind = "which is" if repository.exists else "a new repository,"
        visibility = "public" if repository.public or spec.public else "private"
        say(f"to {spec.repository} on {hide_credentials(api.endpoint)}, {kind} {visibility}:")
        for name, size in sizes.items():
            replaced = ", replaces the file there" if name in repository.files else ""
            say(f"  {name:<24} {size:>15,} bytes{replaced}")
        for line in private or ["no absolute path, host name or user name was recognized"]:
            say(f"  {line}", style="red" if private else None)
        for line in starts:
            say(f"  {line}")
        _confirm(spec, private)
        commit = _upload(api, address, files, None if repository.exists else not spec.public)
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
        return {"library_name": "sslkit", "tags": ["sslkit", "self-supervised-learning"], **job.license_entry}


@contextmanager
def collect_files(spec: PushSpec) -> Iterator[dict[str, Path]]:
    """Yield the files that go, by name; of a run its checkpoint, and a card written for it."""
    source = Path(spec.source)
    if not source.is_dir():
        raise SslkitError(f"{source} is not a folder", "name a run, or a folder of sslkit export --to hf")
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
    if spec.encoder is not None:
        raise SslkitError(f"{folder} is not a run", "leave it out", flag="encoder")
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
    job = build_job(ExportSpec(ckpt=str(file), license=spec.license, encoder=spec.encoder), checkpoint, exporter)
    guide = find_input_guide(job, checkpoint)
    job = replace(job, description=describe_export(job, exporter, guide))
    name = Path(spec.repository.partition("/")[2])
    write_card(Card(name, exporter, job, checkpoint, {"input": job.input}, 0.0, guide), path)


def find_private(name: str, file: Path) -> Iterator[str]:
    """Yield a line for each kind of thing in a file that names this machine or its user: paths, host, user.

    Of a safetensors file the header is read: tensors are numbers.
    """
    path = _search(file, _PATH if file.suffix.lower() in _TEXT else _PATH_IN_BINARY)
    if path is not None:
        yield f"{name} holds a path: {path}"
    for kind, word in _names_of_machine().items():
        # As it is, or escaped in JSON, which may be inside JSON.
        escaped = re.escape(json.dumps(word)[1:-1].encode()).replace(rb"\\", rb"\\+")
        either = re.escape(word.encode()) + rb"|" + escaped
        if _search(file, re.compile(rb"(?<![\w-])(?:" + either + rb")(?![\w-])")) is not None:
            yield f"{name} holds the {kind}: {word}"


def _find_starts(name: str, file: Path) -> Iterator[str]:
    """Yield a line if a file names a repository of the Hub, by which weights were initialized: it may be private."""
    start = _search(file, _START)
    if start is not None:
        yield f"{name} names the initial weights: {start}"


def _search(file: Path, pattern: re.Pattern[bytes]) -> str | None:
    """Return the first match in a file, or in the header of a safetensors file."""
    if not file.stat().st_size:
        return None
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start, end = 0, len(content)
        if file.suffix.lower() == ".safetensors" and end >= 8:
            start, end = 8, min(end, 8 + struct.unpack("<Q", content[:8])[0])
        match = pattern.search(content, start, end)
        return None if match is None else match[0].decode(errors="replace")


def _names_of_machine() -> dict[str, str]:
    """Return host and user name, unless they are of a kind that tells nothing."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = ""
    names = {"host name": platform.node(), "user name": user}
    return {kind: name for kind, name in names.items() if len(name) > 3 and name.lower() not in _GENERIC_NAMES}


@dataclass(frozen=True)
class _Repository:
    """A repository as the Hub has it."""

    exists: bool
    public: bool = False
    files: frozenset[str] = frozenset()


def _look_up(api: HfApi, address: HubAddress) -> _Repository:
    """Return the state of a repository; raises SslkitError if nobody is logged in."""
    with hub_errors(address):
        api.whoami()  # without, a repository that exists looks like none
    try:
        with hub_errors(address):
            info = api.model_info(address.repository)
    except SslkitError as error:
        if type(error.__cause__) is not errors.RepositoryNotFoundError:  # but a gated one
            raise
        return _Repository(exists=False)
    return _Repository(True, not info.private, frozenset(file.rfilename for file in info.siblings or []))


def _check_visibility(spec: PushSpec, repository: _Repository) -> None:
    """Raise SslkitError if a repository is public and that was not confirmed, or private against `spec.public`."""
    if spec.public and repository.exists and not repository.public:
        raise SslkitError(f"{spec.repository} is private", "change that on the Hub, or leave it out", flag="public")
    if spec.yes and repository.public and not spec.public:
        raise SslkitError(f"{spec.repository} is public", "add --public, or rerun without --yes to confirm", flag="yes")


def _confirm(spec: PushSpec, private: list[str]) -> None:
    """Ask on the terminal; raises SslkitError for anything but a yes."""
    if spec.yes and private:
        raise SslkitError("files contain a path, host name or user name", "rerun without --yes to confirm", flag="yes")
    if spec.yes:
        return
    if not sys.stdin.isatty():
        raise SslkitError("cannot ask for confirmation: stdin is not a terminal", "add --yes")
    try:
        answer = stderr.input("Upload these files? [y/N] ", markup=False)
    except EOFError:  # Ctrl-D
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise SslkitError("not confirmed: nothing was uploaded")


def _upload(api: HfApi, address: HubAddress, files: dict[str, Path], make_private: bool | None) -> str:
    """Upload files in one commit and return it; unless `make_private` is None, make the repository first."""
    operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    with hub_errors(address):
        if make_private is not None:
            api.create_repo(address.repository, private=make_private, exist_ok=True)
        return api.create_commit(address.repository, operations, commit_message="Upload with sslkit").oid
