"""Repositories of the Hugging Face Hub: weights as safetensors, always at a commit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import huggingface_hub
from huggingface_hub import HfApi, errors

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.specs.use import REPOSITORY

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_ADDRESS = re.compile(rf"hf_hub:({REPOSITORY})(?:@([A-Za-z0-9_./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HTTPError = errors.HTTPError  # type: ignore[attr-defined]  # of the HTTP library, which depends on the version
_MAX_SIZES = {WEIGHTS: 2**35, CONFIG: 2**20}  # bytes


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
            raise SslkitError(f"{text} is not a Hub address", "expected hf_hub:OWNER/NAME@COMMIT", flag="init")
        return cls(match[1], match[2] or "main")

    def __str__(self) -> str:
        return f"hf_hub:{self.repository}@{self.revision}"

    def with_commit(self) -> "HubAddress":
        """Return the address with the commit that its revision names now; raises SslkitError if it cannot be looked up."""
        if _COMMIT.fullmatch(self.revision):
            return self
        with hub_errors(self, "init"):
            info = hub_api().model_info(self.repository, revision=self.revision)
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise SslkitError(f"the Hub names no commit of {self}", "add @COMMIT", flag="init")
        return HubAddress(self.repository, info.sha)

    def download(self, name: str) -> Path | None:
        """Return the path of a file in the Hub's cache, downloaded if it is not there; None if the repository has none.

        Raises SslkitError if the file is too large, or the Hub cannot be reached.
        """
        place: dict[str, Any] = {"repo_id": self.repository, "filename": name, "revision": self.revision}
        cached = huggingface_hub.try_to_load_from_cache(**place)
        if isinstance(cached, str):
            return Path(cached)
        if cached is huggingface_hub._CACHED_NO_EXIST:
            return None
        with hub_errors(self, "init"):
            try:
                size = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(**place)).size
            except errors.EntryNotFoundError:
                with suppress(errors.EntryNotFoundError):
                    huggingface_hub.hf_hub_download(**place)  # marks in the cache that there is none
                return None
            if size is None or size > _MAX_SIZES[name]:
                actual, limit = ("of unknown size" if size is None else _readable(size)), _readable(_MAX_SIZES[name])
                raise SslkitError(f"{name} of {self} is {actual}; the limit is {limit}", flag="init")
            say(f"  {'init':<14} downloading {name} of {self}: {size / 1e6:,.1f} MB")
            return Path(huggingface_hub.hf_hub_download(**place))


def is_hub_address(init: str) -> bool:
    """Return whether the value of `--init` names a repository of the Hub."""
    return init.replace("-", "_").startswith("hf_hub:")


def hub_api() -> HfApi:
    """Return huggingface_hub's client."""
    return HfApi(library_name="sslkit")


@contextmanager
def hub_errors(address: HubAddress, flag: str | tuple[str, ...] = ()) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line."""
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise SslkitError("not logged in to the Hub", "log in: hf auth login", flag=flag) from error
    except errors.RevisionNotFoundError as error:
        raise SslkitError(f"{address.repository} has no revision {address.revision}", flag=flag) from error
    except errors.RepositoryNotFoundError as error:  # also of gated ones
        hint = "check the name; for a private or gated one log in: hf auth login"
        raise SslkitError(f"{address.repository} not found on the Hub, or no access", hint, flag=flag) from error
    except errors.HfHubHTTPError as error:
        hint = "log in: hf auth login" if error.response.status_code == 401 else ""
        raise SslkitError(
            f"the Hub rejected the request for {address.repository}: {_reason(error)}", hint, flag=flag
        ) from error
    except (OSError, ValueError, _HTTPError, errors.EntryNotFoundError) as error:
        raise SslkitError(f"{address.repository} cannot be reached: {_reason(error)}", flag=flag) from error


def hide_credentials(text: str) -> str:
    """Return a text without what stands before the host in its URLs, such as `user:password@`."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def _reason(error: Exception) -> str:
    return hide_credentials(str(error).strip().partition("\n")[0]) or type(error).__name__


def _readable(size: int) -> str:
    return f"{size / 2**30:,.0f} GB" if size >= 2**30 else f"{size / 2**20:,.0f} MB"
