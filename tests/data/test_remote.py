"""Shards on a server: the samples of local ones, read by ranges, with nothing secret written down."""

import io
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslkit.contract.errors import SslkitError
from sslkit.data import remote
from sslkit.data.loader import Loader
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec
from tests.server import Server, serve

Run = Callable[..., Any]


def shard(file: Path, numbers: range, level: int = 0) -> None:
    with tarfile.open(file, "w") as tar:
        for number in numbers:
            stream = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), (3 * number + level) % 256, np.uint8)).save(stream, "PNG")
            for name, content in ((f"{number:03}.png", stream.getvalue()), (f"{number:03}.cls", str(number % 3).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(3):
        shard(folder / f"part-{number}.tar", range(16 * number, 16 * number + 16))
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    with serve(folder) as running:
        yield running


def spec(server: Server, **values: Any) -> DataSpec:
    return DataSpec(data=f"wds:{server.address}/part-{{0..2}}.tar", size=16, label="cls", **values)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_those_of_local_shards(server: Server, workers: int) -> None:
    source = ImageSource.open(spec(server))
    local = ImageSource.open(DataSpec(data=f"wds:{server.folder}/part-{{0..2}}.tar", size=16, label="cls"))
    loaded = list(Loader(source, workers, substitute=False)([np.arange(24), np.arange(24, 48)]))
    assert np.concatenate([raw["canvas"][:, 0, 0, 0] for raw in loaded]).tolist() == [3 * number % 256 for number in range(48)]
    assert source.index.fingerprint() == local.index.fingerprint() and source.find_labels().values.tolist() == [0, 1, 2] * 16
    sent = sum(server.requests.values())
    again = ImageSource.open(spec(server))  # the index and the canvases come from the cache
    (raw,) = Loader(again, 0, substitute=False)([np.arange(48)])
    assert raw["canvas"][5, 0, 0, 0] == 15 and again.workers("auto") == (0, "all canvases are cached")
    assert server.requests["HEAD"] == 6 and sum(server.requests.values()) - sent == 3 + 48 + 48  # looks at sizes and ranges


def test_parts_are_fetched_ahead_within_bounds(server: Server) -> None:
    index = ImageSource.read_index(spec(server).data or "", spec(server))
    before = server.connections
    index.prefetch(range(48))
    lines = remote._connections()
    assert len(lines.pending) == remote._PREFETCHED
    for row in (0, 1, 47):  # also one that was not fetched yet
        with index.open(row) as stream:
            assert Image.open(stream).getpixel((0, 0))[0] == 3 * row % 256  # type: ignore[index]
    assert server.connections - before <= remote._PREFETCHED + 1  # each is used again
    index.prefetch([3])
    assert len(lines.pending) == 1


def test_a_shard_that_changes_is_noticed(server: Server) -> None:
    source = ImageSource.open(spec(server, cache="off"))
    shard(server.folder / "part-1.tar", range(16, 32), level=1)
    _, broken = source.read(np.array([3, 20]))
    assert list(broken) == [1] and broken[1].startswith("changed since it was indexed")
    arrays, broken = ImageSource.open(spec(server, cache="off")).read(np.array([3, 20]))
    assert not broken and arrays["canvas"][:, 0, 0, 0].tolist() == [9, 61]


def test_a_busy_server_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageSource.open(spec(server, cache="off"))
    server.failures = 2
    assert not source.read(np.arange(4))[1]
    monkeypatch.setattr(remote, "_WAIT", 0)
    server.failures = 1000
    _, broken = source.read(np.arange(2))
    assert broken == {0: "the server answers 503 Service Unavailable", 1: "the server answers 503 Service Unavailable"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"without": ("ETag",)}, "the server gives no length or no strong ETag"),
        ({"without": ("Range",)}, "the server sends whole files only"),
        ({"redirect": "https://elsewhere.example/x.tar?sig=secret"}, "the server redirects to elsewhere.example .name that"),
    ],
)
def test_servers_that_cannot_serve(server: Server, change: dict[str, Any], message: str) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(SslkitError, match=message) as raised:
        ImageSource.open(spec(server))
    assert "secret" not in str(raised.value)


def test_what_is_not_there_is_one_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SslkitError, match=r"--data: http://127.0.0.1:\d+/part-3.tar: the server answers 404 Not Found"):
        ImageSource.open(DataSpec(data=f"wds:{server.address}/part-{{0..3}}.tar"))
    monkeypatch.setattr(remote, "_TRIES", 1)
    with pytest.raises(
        SslkitError, match=r"--data: http://127.0.0.1:1/x.tar: the server does not answer \(ConnectionRefusedError"
    ):
        ImageSource.open(DataSpec(data="wds:http://127.0.0.1:1/x.tar"))
    (server.folder / "text.tar").write_bytes(b"x" * 2000)
    with pytest.raises(SslkitError, match=r"text\.tar is no tar file that can be read"):
        ImageSource.open(DataSpec(data=f"wds:{server.address}/text.tar"))


def test_nothing_secret_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Run, quick: list[str]
) -> None:
    monkeypatch.setenv("SSLKIT_HTTP_HEADER", "Authorization: Bearer unspoken-1")
    monkeypatch.setenv("SSLKIT_HTTP_QUERY", "sig=unspoken-2")
    run, data = tmp_path / "run", f"wds:{server.address}/part-{{0..2}}.tar"
    ran = sslkit("pretrain", "rotation", "--data", data, "--label", "cls", *quick, "--steps", 2, "--out", run)
    assert ran.code == 0, ran.err
    knn = sslkit("knn", "--ckpt", run / "model.safetensors", "--no-baselines")
    report = sslkit("report", run, "--out", tmp_path / "report.html")
    assert knn.code == 0 and report.code == 0
    assert all(headers["Authorization"] == "Bearer unspoken-1" for headers in server.headers) and server.queries == {
        "sig=unspoken-2"
    }
    monkeypatch.setenv("SSLKIT_HTTP_QUERY", "sig=unspoken-2&more")
    (server.folder / "part-1.tar").unlink()
    failed = sslkit("knn", "--ckpt", run / "model.safetensors", "--reindex")
    assert failed.code == 2 and "404" in failed.err
    for text in (ran.out, ran.err, knn.out, knn.err, report.err, failed.err):
        assert "unspoken" not in text
    for file in (path for folder in (run, tmp_path / "cache") for path in folder.rglob("*") if path.is_file()):
        assert b"unspoken" not in file.read_bytes(), file
    assert "unspoken" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("header", ["", "Authorization", "Authorization:", "A b: c", "A: b\r\nC: d"])
def test_a_header_that_is_none(server: Server, header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKIT_HTTP_HEADER", header)
    with pytest.raises(SslkitError, match="SSLKIT_HTTP_HEADER is not a header"):
        ImageSource.open(spec(server))


def test_connections_that_were_open_for_too_long_are_replaced(server: Server) -> None:
    source = ImageSource.open(spec(server, cache="off"))
    source.read(np.arange(40))
    lines = remote._connections()
    idle = [line for kept in lines.idle.values() for line in kept]
    assert len(idle) > 3
    for line in idle:
        line.sock.shutdown(socket.SHUT_RDWR)  # as the server does after some time
    began = time.monotonic()
    assert not source.read(np.arange(6))[1]
    assert time.monotonic() - began < 10  # no wait for each of them


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://h:abc/x.tar", "is not an address"),
        ("http://[::1/x.tar", "is not an address"),
        ("http://h:99999/x.tar", "is not an address"),
    ],
)
def test_addresses_that_are_none(address: str, message: str) -> None:
    with pytest.raises(SslkitError, match=f"--data: .*{message}"):
        ImageSource.open(DataSpec(data=f"wds:{address}"))


@pytest.mark.parametrize("query", ["a b", "sig=€", "a\nb"])
def test_a_query_that_is_none(server: Server, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKIT_HTTP_QUERY", query)
    with pytest.raises(SslkitError, match="SSLKIT_HTTP_QUERY is not a query string"):
        ImageSource.open(spec(server))


def test_an_address_without_the_prefix_is_told_it() -> None:
    with pytest.raises(SslkitError, match=r"names shards \(write wds:http://h/x\.tar\)"):
        ImageSource.open(DataSpec(data="http://h/x.tar"))
