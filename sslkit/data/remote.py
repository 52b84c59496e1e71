"""Parts of files over HTTP: of shards that lie on a server, read by ranges and recognized by their ETag.

Nothing secret stands in an address, so that none is written to a spec, a log or a report: a header and a query string for all
requests come from the environment.
"""

import http.client
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import BinaryIO
from urllib.parse import quote, urlsplit

from sslkit.contract.errors import SslkitError, UnreadableSampleError

HEADER, QUERY = "SSLKIT_HTTP_HEADER", "SSLKIT_HTTP_QUERY"

_PREFETCHED = 16  # parts that are asked for at once: where an answer takes 50 ms, they are 300 a second
_SECONDS = 30  # without an answer
_TRIES, _WAIT = 4, 0.5  # of a request that is not answered; seconds before the second, twice as long before each other
_BUSY = (429, 500, 502, 503, 504)
_BROKEN = (OSError, http.client.HTTPException)  # what a connection raises


@dataclass(frozen=True)
class Version:
    """The state of a file on a server."""

    etag: str
    size: int

    def stamp(self) -> tuple[int, int]:
        """Return two numbers by which a changed file is recognized, as modification time and inode are of a local one."""
        return int.from_bytes(blake2b(self.etag.encode(), digest_size=7).digest(), "big"), self.size


@dataclass(frozen=True)
class Part:
    """Some bytes of a file on a server."""

    url: str
    etag: str
    offset: int
    size: int


def is_remote(address: str) -> bool:
    """Return whether an address is one on a server."""
    return "://" in address


def check_address(address: str) -> None:
    """Raise SslkitError for an address of another protocol than HTTP, and for one that holds what should stay secret."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:  # a port or an address of numbers that is none
        raise SslkitError(f"{address} is not an address: {error}", flag="data") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise SslkitError(f"shards are read from disks and by http(s), not by {parts.scheme}", "copy them", flag="data")
    if "@" in parts.netloc:
        raise SslkitError("the address holds a user name", f"set {HEADER}='Authorization: ...' instead", flag="data")
    if parts.query or parts.fragment:
        raise SslkitError("the address holds a query string", f"set {QUERY} instead", flag="data")


def look_up(url: str) -> Version:
    """Return the state of a file; raises SslkitError if the server does not have it, or does not tell its versions apart."""
    try:
        answer = _request("HEAD", url)
    except UnreadableSampleError as error:
        raise SslkitError(f"{url}: {error}", flag="data") from error
    if answer.status != 200:
        raise SslkitError(f"{url}: {answer.problem}", flag="data")
    # A weak ETag may stay the same for other bytes, so that no server answers a range by it.
    if not answer.etag or answer.etag.startswith("W/") or not answer.length.isdecimal():
        raise SslkitError(f"{url}: the server gives no length or no strong ETag", "copy the shards", flag="data")
    return Version(answer.etag, int(answer.length))


@contextmanager
def stream_file(url: str, version: Version) -> Iterator[BinaryIO]:
    """Open a whole file to be read once, from beginning to end; raises SslkitError if it is not this version any more."""
    connection = _connect(url)
    try:
        _ask(connection, "GET", url, {"If-Match": version.etag})
        response = connection.getresponse()
        if response.status != 200 or response.headers.get("ETag") != version.etag:
            raise SslkitError(f"{url}: {_status(response)}", "start again", flag="data")
        yield response
    except _BROKEN as error:
        raise SslkitError(f"{url}: {_reason(error)}", "start again", flag="data") from error
    finally:
        connection.close()


def fetch(part: Part) -> bytes:
    """Return the bytes of a part, prefetched or now; raises UnreadableSampleError, also if the file has changed."""
    if not part.size:
        return b""
    lines = _connections()
    answer = lines.receive(part) or _request("GET", part.url, _range(part), part.size)
    lines.send()
    if answer.status == 412 or (answer.status == 206 and answer.etag not in ("", part.etag)):
        raise UnreadableSampleError("changed since it was indexed (start again to read it anew)")
    if answer.status == 200:
        raise UnreadableSampleError("the server sends whole files only (copy the shards)")
    if answer.status != 206 or len(answer.content) != part.size:
        raise UnreadableSampleError(answer.problem)
    return answer.content


def prefetch(parts: Iterable[Part]) -> None:
    """Ask for parts that this thread will fetch in this order, a few at a time; what was asked for before is dropped."""
    lines = _connections()
    lines.close()
    lines.waiting = iter(parts)
    lines.send()


@dataclass(frozen=True)
class _Answer:
    """What a server answered."""

    status: int
    content: bytes
    etag: str
    length: str
    problem: str  # in words, if it is not what was expected


class _Connections:
    """The connections of one thread, each with one request at most that is not answered yet.

    No thread waits for answers: they gather in the sockets while this one decodes. (Threads took turns with the decoder: 0.83
    of its speed with four, 0.54 with sixteen.)
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.idle: dict[str, list[http.client.HTTPConnection]] = {}  # by host
        self.pending: dict[Part, http.client.HTTPConnection] = {}
        self.waiting: Iterator[Part] = iter(())

    def connection(self, url: str) -> http.client.HTTPConnection:
        """Return a connection to a file's server, one that is open if there is one."""
        idle = self.idle.get(urlsplit(url).netloc)
        return idle.pop() if idle else _connect(url)

    def close_idle(self, url: str) -> None:
        """Close the open connections to a file's server: where it hung up one, it has hung up others."""
        for connection in self.idle.pop(urlsplit(url).netloc, []):
            connection.close()

    def keep(self, url: str, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        """Keep a connection for the next request, unless the server closes it or sends more than was asked for."""
        if response.isclosed() and not response.will_close:
            self.idle.setdefault(urlsplit(url).netloc, []).append(connection)
        else:
            connection.close()

    def send(self) -> None:
        """Ask for as many parts ahead as are allowed."""
        while len(self.pending) < _PREFETCHED and (part := next(self.waiting, None)) is not None:
            connection = self.connection(part.url)
            try:
                _ask(connection, "GET", part.url, _range(part))
            except _BROKEN:  # asked for again when it is needed
                connection.close()
            else:
                self.pending[part] = connection

    def receive(self, part: Part) -> _Answer | None:
        """Return the answer to a request sent ahead; None if there was none, or the server is silent or busy."""
        connection = self.pending.pop(part, None)
        if connection is None:
            return None
        try:
            answer = _read(self, part.url, connection, part.size)
        except _BROKEN:
            connection.close()
            return None
        return None if answer.status in _BUSY else answer

    def close(self) -> None:
        """Close the connections that still wait for an answer."""
        for connection in self.pending.values():
            connection.close()
        self.pending = {}

    def __del__(self) -> None:
        for connection in (*self.pending.values(), *(line for lines in self.idle.values() for line in lines)):
            connection.close()


_of_thread = threading.local()


def _connections() -> _Connections:
    """Return the connections of this thread: they do not survive a fork."""
    lines: _Connections | None = getattr(_of_thread, "lines", None)
    if lines is None or lines.pid != os.getpid():
        lines = _of_thread.lines = _Connections()
    return lines


def _header() -> dict[str, str]:
    text = os.environ.get(HEADER)
    if text is None:
        return {}
    name, colon, value = text.partition(":")
    plain = value.isprintable() and value.isascii()
    if not colon or not re.fullmatch(r"[A-Za-z0-9-]+", name) or not value.strip() or not plain:
        raise SslkitError(f"{HEADER} is not a header", "such as 'Authorization: Bearer ...'")
    return {name: value.strip()}


def _query() -> str:
    query = os.environ.get(QUERY, "")
    if not re.fullmatch(r"[!-~]*", query):
        raise SslkitError(f"{QUERY} is not a query string", "such as sig=...&se=..., without spaces")
    return query


def _range(part: Part) -> dict[str, str]:
    return {"Range": f"bytes={part.offset}-{part.offset + part.size - 1}", "If-Match": part.etag}


def _request(method: str, url: str, headers: dict[str, str] | None = None, largest: int = 0) -> _Answer:
    """Return the answer to a request, with at most `largest` bytes of content.

    A request to a server that is busy or closes the connection is repeated. Raises UnreadableSampleError, without the address,
    if the server stays silent.
    """
    lines, problem, answer = _connections(), "", None
    for attempt in range(_TRIES):
        if attempt > 1 or answer is not None:  # the first time, a connection may only have been open for too long
            time.sleep(_WAIT * 2 ** (attempt - 1))
        connection = lines.connection(url)
        try:
            _ask(connection, method, url, headers or {})
            answer = _read(lines, url, connection, largest)
        except _BROKEN as error:
            connection.close()
            lines.close_idle(url)
            problem = _reason(error)
            continue
        if answer.status not in _BUSY:
            break
    if answer is None:
        raise UnreadableSampleError(problem)
    return answer


def _read(lines: _Connections, url: str, connection: http.client.HTTPConnection, largest: int) -> _Answer:
    """Read the answer to what was asked on a connection, and keep or close that."""
    response = connection.getresponse()
    content = response.read(largest) if largest else b""
    if not response.isclosed() and response.length == 0:
        response.close()
    lines.keep(url, connection, response)
    etag, length = response.headers.get("ETag", ""), response.headers.get("Content-Length", "")
    return _Answer(response.status, content, etag, length, _status(response))


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=_SECONDS)


def _ask(connection: http.client.HTTPConnection, method: str, url: str, headers: dict[str, str]) -> None:
    """Send a request; `connection.getresponse` waits for the answer."""
    parts, query = urlsplit(url), _query()
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    connection.request(method, f"{target}?{query}" if query else target, headers={**_header(), **headers})


def _reason(error: Exception) -> str:
    return f"the server does not answer ({type(error).__name__})"


def _status(response: http.client.HTTPResponse) -> str:
    if 300 <= response.status < 400:
        target = urlsplit(response.headers.get("Location", "")).hostname or "elsewhere"
        return f"the server redirects to {target} (name that address)"
    return f"the server answers {response.status} {response.reason}".rstrip()
