"""Repositories of the Hugging Face Hub: weights as safetensors, always at a commit."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.extras import load_extra

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_ADDRESS = re.compile(r"hf_hub:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST = {WEIGHTS: 2**35, CONFIG: 2**20}  # bytes: 32 GB of weights


@dataclass(frozen=True)
class HubAddress:
    """A repository and a revision of it: a commit, a branch or a tag."""

    repository: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `hf_hub:OWNER/NAME@REVISION`; raises SslkitError for anything else."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise SslkitError(f"{text} is no address of the Hub", "expected hf_hub:OWNER/NAME@COMMIT", flag="init")
        return cls(match[1], match[2] or "main")

    def __str__(self) -> str:
        return f"hf_hub:{self.repository}@{self.revision}"

    def with_commit(self) -> "HubAddress":
        """Return the address with the commit that its revision names now; raises SslkitError if it cannot be looked up."""
        if _COMMIT.fullmatch(self.revision):
            return self
        with reported(self, "init"):
            info = hub_api().model_info(self.repository, revision=self.revision)
        if not _COMMIT.fullmatch(info.sha or ""):
            raise SslkitError(f"the Hub names no commit of {self}", "add @COMMIT", flag="init")
        return HubAddress(self.repository, info.sha)

    def download(self, name: str) -> Path | None:
        """Return the path of a file in the Hub's cache, downloaded if it is not there; None if the repository has none.

        Raises SslkitError if the file is too large, or the Hub cannot be reached.
        """
        hub = _hub()
        place = {"repo_id": self.repository, "filename": name, "revision": self.revision}
        cached = hub.try_to_load_from_cache(**place)
        if isinstance(cached, str):
            return Path(cached)
        with reported(self, "init"):
            try:
                size = hub.get_hf_file_metadata(hub.hf_hub_url(**place, endpoint=_endpoint())).size
            except hub.errors.EntryNotFoundError:
                return None
            if size is None or size > _MOST[name]:
                raise SslkitError(f"{name} of {self} has {size} bytes, at most {_MOST[name]} are read", flag="init")
            say(f"  {'init':<14} downloading {name} of {self}: {size / 1e6:,.1f} MB")
            return Path(hub.hf_hub_download(**place, endpoint=_endpoint()))


def is_hub_address(init: str) -> bool:
    """Return whether the value of `--init` names a repository of the Hub."""
    return init.replace("-", "_").startswith("hf_hub:")


def hub_api() -> Any:
    """Return huggingface_hub's client; raises SslkitError if the package is missing."""
    return _hub().HfApi(endpoint=_endpoint(), library_name="sslkit")


@contextmanager
def reported(address: HubAddress, flag: str | tuple[str, ...] = ()) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line."""
    errors = _hub().errors
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise SslkitError(f"{address.repository} has no revision {address.revision}", flag=flag) from error
    except errors.RepositoryNotFoundError as error:  # also of gated ones
        hint = "check the name; for a private or gated one log in: hf auth login"
        raise SslkitError(f"the Hub shows no repository {address.repository}", hint, flag=flag) from error
    except (OSError, ValueError, errors.HTTPError, errors.EntryNotFoundError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        answered = isinstance(error, errors.HfHubHTTPError)
        problem = f"the Hub refuses {address.repository}" if answered else f"{address.repository} cannot be reached"
        raise SslkitError(f"{problem}: {reason}", "log in: hf auth login" if "401" in reason else "", flag=flag) from error


def _hub() -> Any:
    hub = load_extra("huggingface_hub", "hf", "the Hub")
    load_extra("huggingface_hub.errors", "hf", "the Hub")
    return hub


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
