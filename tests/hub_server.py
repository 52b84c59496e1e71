"""A server that speaks as little of the Hub's API as huggingface_hub needs to read and to upload a repository."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub.constants
import pytest

COMMIT, NEW_COMMIT = "a" * 40, "b" * 40


@dataclass
class Hub:
    """Files of repositories, by name and path, all at one commit; and what was requested."""

    repositories: dict[str, dict[str, bytes]]
    private: set[str] = field(default_factory=set)
    address: str = ""
    requests: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # by path: what is claimed in place of the true size


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        files = self.hub.repositories.get(name)
        revision = parts[5] if api and len(parts) > 5 else parts[3] if not api and len(parts) > 3 else "main"
        if parts == ["api", "whoami-v2"]:
            self.answer(200, {"name": "me"}) if self.headers["Authorization"] else self.answer(401)
        elif files is None:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif revision not in ("main", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif api:
            siblings = [{"rfilename": file} for file in files]
            self.answer(200, {"id": name, "sha": COMMIT, "private": name in self.hub.private, "siblings": siblings})
        elif parts[4] not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        else:
            content = files[parts[4]]
            size = self.hub.sizes.get(parts[4], len(content))
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(200, content, ETag=etag, X_Repo_Commit=COMMIT, X_Linked_Size=str(size))

    def do_POST(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[-1] == "validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif parts[-1] == "create":
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}"
            self.hub.repositories[name] = {}
            if values.get("private") or values.get("visibility") == "private":
                self.hub.private.add(name)
            self.answer(200, {"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        elif parts[-2] == "preupload":
            modes = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        else:
            name = "/".join(parts[2:4])
            repository = self.hub.repositories[name]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repository[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                200, {"success": True, "commitOid": NEW_COMMIT, "commitUrl": f"{self.hub.address}/{name}/commit/{NEW_COMMIT}"}
            )


@contextmanager
def serve_hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Serve repositories on the loopback interface, in a thread, until the block ends."""
    hub = Hub(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let huggingface_hub use a server in place of the Hub; it reads HF_ENDPOINT only when it is imported."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
