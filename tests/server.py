"""A server of files on this machine, as shards lie on one: ranges, ETags, connections that stay open, no Nagle's delay."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Server:
    """Files below a folder, and what went over the wire."""

    folder: Path
    address: str = ""
    requests: Counter[str] = field(default_factory=Counter)  # by method
    connections: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    queries: set[str] = field(default_factory=set)
    failures: int = 0  # how many of the next requests for a range are answered by 503
    without: tuple[str, ...] = ()  # headers that are left out, and "Range" if it is ignored
    redirect: str = ""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until the client hangs up."""
        self.connections += 1
        try:
            while True:
                request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines)
                method, target, _ = request.split(" ")
                self.requests[method] += 1
                self.headers.append(headers)
                self.queries.add(urlsplit(target).query)
                status, answer, content = self.answer(urlsplit(target).path, headers)
                answer["Content-Length"] = str(len(content))
                kept = [f"{name}: {value}" for name, value in answer.items() if name not in self.without]
                writer.write("\r\n".join([f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *kept, "", ""]).encode())
                if method == "GET":
                    writer.write(content)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content."""
        file = self.folder / path.lstrip("/")
        if self.redirect:
            return 302, {"Location": self.redirect}, b""
        if not file.is_file():
            return 404, {}, b""
        state = file.stat()
        etag = f'"{state.st_mtime_ns}-{state.st_size}"'
        if headers.get("If-Match", etag) != etag:
            return 412, {}, b""
        if "Range" not in headers or "Range" in self.without:
            return 200, {"ETag": etag}, file.read_bytes()
        if self.failures:
            self.failures -= 1
            return 503, {}, b""
        first, last = map(int, headers["Range"].removeprefix("bytes=").split("-"))
        with open(file, "rb") as stream:
            stream.seek(first)
            content = stream.read(last + 1 - first)
        return 206, {"ETag": etag, "Content-Range": f"bytes {first}-{last}/{state.st_size}"}, content


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder, in a thread, until the block ends."""
    server, ready = Server(folder), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        listening = await asyncio.start_server(server.talk, "127.0.0.1", 0)
        server.address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        ready.set()
        async with listening:
            await stop.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
