"""`sslkit watch`: a live page of running and finished runs, served to browsers of this machine only.

Whoever asks has to know the token in the address, and to name this machine as the host, so that a page from elsewhere whose
name was made to point here gets nothing. It can be read only: a page, one stream of events and the pictures of a run.
"""

import hmac
import json
import math
import os
import secrets
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.engine.run_folder import METRICS
from sslkit.reporting.live_run import LogFollower, SummaryReader, describe_charts, find_runs
from sslkit.reporting.page import asset, document
from sslkit.reporting.previews import read_preview
from sslkit.specs.look import WatchSpec

_ADDRESS = "127.0.0.1"
_HOSTS = ("127.0.0.1", "localhost")  # with any port: the way here may lead through ssh
_SECONDS = 1.0  # between two looks at the files
_LOOKS = 10  # at the files between two searches for new runs
_LEFT = (ConnectionError, TimeoutError)  # the browser did
_ALIVE = 15.0  # seconds after which a line is sent that says nothing, to notice that nobody listens


@dataclass(frozen=True)
class WatchResult:
    """What `sslkit watch` was looking at."""

    run: str
    url: str


def watch(spec: WatchSpec) -> WatchResult:
    """Serve the page until Ctrl-C, as `sslkit watch` does.

    Raises SslkitError, before anything is served, for a folder that cannot come to be and a port that is taken.
    """
    folder = Path(spec.run)
    if not folder.is_dir() and (folder.exists() or not folder.absolute().parent.is_dir()):
        problem = f"{folder} is a file" if folder.exists() else f"{folder.absolute().parent} does not exist"
        raise SslkitError(problem, "name a run folder, or a folder of runs")
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise SslkitError(f"{folder} cannot be read: permission denied")
    if not folder.is_dir():
        say(f"{folder} does not exist yet: waiting for it")
    with WatchServer(folder, spec.port) as server:
        say(f"watching {folder}: {server.url} (press Ctrl-C to stop)")
        if spec.open and not webbrowser.open(server.url):
            say("could not open a browser; open the address above")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
        return WatchResult(str(folder), server.url)


@dataclass(frozen=True)
class _Listing:
    """The runs of a folder by name, and as JSON what a list says about them."""

    runs: dict[str, Path]
    summaries: str


class WatchServer(ThreadingHTTPServer):
    """A server of one folder of runs on this machine; every request is answered in a thread of its own."""

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there it would let another process take the same port, and the token

    def __init__(self, folder: Path, port: int = 0, seconds: float = _SECONDS) -> None:
        self.folder, self.seconds = folder, seconds
        self.token = secrets.token_urlsafe(16)
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._readers: list[SummaryReader] = []
        self._listed = _Listing({}, "[]")
        self._looked_at = self._searched_at = -math.inf
        self._reported: set[str] = set()
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except OSError as error:
            raise SslkitError(f"cannot listen on port {port}: {error.strerror}", "choose another, or 0", flag="port") from error

    @property
    def url(self) -> str:
        """Return the address of the page, with its token."""
        return f"http://{_ADDRESS}:{self.server_address[1]}/{self.token}/"

    def listing(self) -> _Listing:
        """Return the runs of the folder; however many browsers ask, files are looked at once in `seconds`."""
        with self._lock:
            now = time.monotonic()
            if now - self._searched_at >= _LOOKS * self.seconds:
                self._search()
                self._searched_at = now
            if now - self._looked_at >= self.seconds:
                summaries = json.dumps([reader.read() for reader in self._readers])
                self._listed = _Listing({reader.name: reader.run for reader in self._readers}, summaries)
                self._looked_at = now
            return self._listed

    def _search(self) -> None:
        known = {reader.name: reader for reader in self._readers}
        self._readers = [known.get(name) or SummaryReader(name, run) for name, run in find_runs(self.folder).items()]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error, once; a browser that left is none."""
        error = sys.exc_info()[1]
        message = f"{type(error).__name__}: {error}"
        if not isinstance(error, _LEFT) and message not in self._reported:
            self._reported.add(message)
            say(f"error while serving the page: {message}")

    def shutdown(self) -> None:
        """Stop serving, streams of events included."""
        self.closing.set()
        super().shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer

    def do_GET(self) -> None:
        """Answer one of the three things that can be asked for; anything else is not there."""
        if self.headers.get("Host", "").partition(":")[0].lower() not in _HOSTS:
            self.send_error(HTTPStatus.FORBIDDEN, "This page can only be opened on the machine that serves it")
            return
        try:
            address = urlsplit(self.path)
            _, token, *names = address.path.split("/")
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        answers: dict[tuple[str, ...], Callable[[Mapping[str, str]], None]] = {
            ("",): self._send_page,
            ("events",): self._send_events,
            ("preview",): self._send_preview,
        }
        answer = answers.get(tuple(names))
        if answer is None or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        answer({name: values[-1] for name, values in parse_qs(address.query).items()})

    def _send_page(self, query: Mapping[str, str]) -> None:
        nonce = secrets.token_urlsafe(16)
        ours = f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src 'self' data:; connect-src 'self'"
        others = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        name, style = self.server.folder.resolve().name, asset("base.css", "watch.css")
        page = document(name, style, asset("watch.html"), asset("watch.js"), nonce)
        self._send(page, "text/html; charset=utf-8", f"{others}; {ours}")

    def _send_preview(self, query: Mapping[str, str]) -> None:
        run, step = self.server.listing().runs.get(query.get("run", "")), query.get("step", "")
        picture = (
            read_preview(run, int(step)) if run is not None and step.isascii() and step.isdecimal() and len(step) < 12 else None
        )
        if picture is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._send(picture, "image/png", "default-src 'none'")

    def _send(self, content: bytes, media_type: str, policy: str) -> None:
        self.send_response(HTTPStatus.OK)
        self._send_headers(media_type, policy)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_headers(self, media_type: str, policy: str) -> None:
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Security-Policy", policy)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")

    def _send_events(self, query: Mapping[str, str]) -> None:
        """Send what changes until the browser leaves: the list of runs, and of the named one charts and lines.

        Ids are positions in its log, so that a browser that comes back gets what it has not seen.
        """
        name = query.get("run", "")
        if name and name not in self.server.listing().runs:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self._send_headers("text/event-stream", "default-src 'none'")
        self.end_headers()
        stream = _EventStream(self, name, self.headers.get("Last-Event-ID", ""))
        try:
            while not self.server.closing.is_set():
                if not stream.send_changes():
                    self.server.closing.wait(self.server.seconds)
        except _LEFT:
            return

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing about each request."""


class _EventStream:
    """What one browser was sent, of the list of runs and of one run."""

    def __init__(self, handler: _Handler, name: str, position: str) -> None:
        self.handler, self.folder = handler, handler.server.listing().runs.get(name)
        self.follower = None if self.folder is None else LogFollower(self.folder / METRICS, position)
        self.names: dict[str, None] = {}  # of the numbers in the lines so far
        if self.follower is not None and position:
            earlier = LogFollower(self.follower.file)
            while lines := earlier.read():
                self.names |= dict.fromkeys(name for line in lines for name in line)
        self.charts = self.summaries = ""
        self.sent_at = time.monotonic()

    def send_changes(self) -> bool:
        """Send what is new; returns whether there may be more at once."""
        summaries = self.handler.server.listing().summaries
        if summaries != self.summaries:
            self.summaries = summaries
            self._send("runs", summaries)
        more = self._send_lines()
        if time.monotonic() - self.sent_at > _ALIVE:
            self._write(": nothing new\n\n")
        return more

    def _send_lines(self) -> bool:
        if self.follower is None or self.folder is None:
            return False
        lines = self.follower.read()
        if self.follower.restarted:
            self.names = {}
            self._send("restart", "{}")
        if not lines:
            return False
        self.names |= dict.fromkeys(name for line in lines for name in line)
        charts = json.dumps(describe_charts(self.names, self.folder))
        if charts != self.charts:
            self.charts = charts
            self._send("charts", charts)
        self._send("lines", json.dumps(lines), self.follower.position)
        return True

    def _send(self, event: str, data: str, position: str = "") -> None:
        number = f"id: {position}\n" if position else ""
        self._write(f"{number}event: {event}\ndata: {data}\n\n")

    def _write(self, message: str) -> None:
        self.handler.wfile.write(message.encode())
        self.handler.wfile.flush()
        self.sent_at = time.monotonic()
