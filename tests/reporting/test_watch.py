"""`sslkit watch` serves whole lines, from where a browser left off, to browsers of this machine that know the token."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from sslkit.contract.result import Data, Metric, Result, Row
from sslkit.reporting.live_run import LogFollower, SummaryReader, find_runs
from sslkit.reporting.previews import preview_steps, read_preview
from sslkit.reporting.watch import WatchServer

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def write_run(folder: Path, steps: int | None = 20, lines: int = 0, **spec: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps({"task": "rotation", "data": "/secret/pictures", "steps": steps, **spec}))
    with open(folder / "metrics.jsonl", "w") as stream:
        stream.writelines(line(step) for step in range(lines))
    return folder


def line(step: int) -> str:
    return json.dumps({"loss": 1 / (step + 1), "accuracy": 0.5, "seconds": step + 1.0, "epoch": 0, "step": step}) + "\n"


@contextmanager
def served(folder: Path) -> Iterator[WatchServer]:
    with WatchServer(folder, seconds=0.02) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server: WatchServer, path: str, host: str | None = "127.0.0.1", method: str = "GET") -> HTTPResponse:
    """Return the answer for a path behind the token, if it does not begin with a slash."""
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.putrequest(method, path if path.startswith("/") else f"/{server.token}/{path}", skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    return connection.getresponse()


def raw_status(server: WatchServer, path: str) -> int:
    """Return the status for a path that `HTTPConnection` would not send."""
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return int(connection.makefile().readline().split()[1])


class Events:
    """A stream of events, read as a browser does."""

    def __init__(self, server: WatchServer, run: str, last: str = "") -> None:
        request = urllib.request.Request(f"{server.url}events?run={run}", headers={"Last-Event-ID": last} if last else {})
        self.answer = urllib.request.urlopen(request, timeout=20)
        self.position = last

    def read(self, wanted_event: str) -> Any:
        """Return the data of the next event of a kind."""
        kind, data = "", ""
        while True:
            text = self.answer.readline().decode()
            assert text, "the stream ended"
            name, _, value = text.rstrip("\n").partition(": ")
            if name == "id":
                self.position = value
            elif name == "event":
                kind = value
            elif name == "data":
                data = value
            elif text == "\n" and kind == wanted_event:
                return json.loads(data)


def summarize(run: Path) -> dict[str, Any]:
    return SummaryReader(run.name, run).read()


def steps_of(lines: list[dict[str, Any]]) -> list[int]:
    return [each["step"] for each in lines]


def test_only_browsers_of_this_machine_that_know_the_token(tmp_path: Path) -> None:
    with served(write_run(tmp_path / "run")) as server:
        assert server.server_address[0] == "127.0.0.1"
        for host in ("127.0.0.1", "localhost:80", "LOCALHOST"):  # any port: ssh -L has another
            assert get(server, "", host).status == 200
        for host in ("evil.example", "localhost.evil.example", "192.168.0.1", "[::1]", "", None):
            assert get(server, "", host).status == 403, host
        for path in (
            "/",
            "/wrong/",
            f"/{server.token}",
            f"/{server.token[:-1]}/",
            "/favicon.ico",
            "/%C3%A4/",
        ):
            assert get(server, path).status == 404, path
        for path in ("page", "*", "http://[/"):
            assert raw_status(server, path) == 400, path
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            assert get(server, "", method=method).status == 501


def test_only_a_fixed_list_of_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a", lines=2)
    (tmp_path / "runs" / "secret.txt").write_text("secret")
    (run / "previews").mkdir()
    (run / "previews" / "step-3.png").write_bytes(PNG)
    (run / "previews" / "step-4.png").write_text("no picture")
    (tmp_path / "elsewhere.png").write_bytes(PNG)
    (run / "previews" / "step-5.png").symlink_to(tmp_path / "elsewhere.png")
    with served(tmp_path / "runs") as server:
        answer = get(server, "preview?run=a&step=3")
        assert (answer.status, answer.read(), answer.headers["Content-Type"]) == (200, PNG, "image/png")
        for path in (
            "spec.json", "a/spec.json", "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "preview", "preview?run=a",
            "preview?run=a&step=4", "preview?run=a&step=5", "preview?run=a&step=6", "preview?run=a&step=../../spec",
            "preview?run=../runs/a&step=3", "preview?run=a/&step=3", "preview?run=a&step=-3", "preview?run=a&step=%C2%B3",
            "preview?run=..&step=3", "events?run=..", "events?run=/etc", "events/", "events?run=b",
        ):  # fmt: skip
            assert get(server, path).status == 404, path
        page = get(server, "")
        policy, source = page.headers["Content-Security-Policy"], page.read().decode()
        assert "default-src 'none'" in policy and "unsafe" not in policy and page.headers["Cache-Control"] == "no-store"
        assert "http://" not in source.replace("http://www.w3.org/2000/svg", "") and "https://" not in source
        assert "innerHTML" not in source and "/secret" not in source


def test_a_stream_goes_on_where_it_was(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines=2)
    with served(run) as server:
        events = Events(server, "run")
        (overview,) = events.read("runs")
        assert (overview["name"], overview["step"], overview["steps"], overview["data"]) == ("run", 2, 20, "pictures")
        titles = {chart["title"]: chart for chart in events.read("charts")}
        assert titles["Loss"]["names"] == {"loss": "Loss"} and titles["Accuracy"]["share"]
        assert steps_of(events.read("lines")) == [0, 1]
        with open(run / "metrics.jsonl", "a") as stream:
            stream.write(line(2))
        assert steps_of(events.read("lines")) == [2]
        with open(run / "metrics.jsonl", "a") as stream:
            stream.write(line(3))
        again = Events(server, "run", events.position)
        names = {name for chart in again.read("charts") for name in chart["names"]}
        assert "accuracy" in names and steps_of(again.read("lines")) == [3]
        offset, _, number = again.position.partition("-")
        assert int(offset) == (run / "metrics.jsonl").stat().st_size and number == str((run / "metrics.jsonl").stat().st_ino)


def test_a_resumed_run_begins_the_stream_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines=3)
    with served(run) as server:
        events = Events(server, "run")
        events.read("lines")
        (run / "new").write_text(line(0))
        (run / "new").replace(run / "metrics.jsonl")  # as a logger does that drops lines
        events.read("restart")
        assert steps_of(events.read("lines")) == [0]
        late = Events(server, "run", "10000-1")
        late.read("restart")
        assert steps_of(late.read("lines")) == [0]


def test_half_lines_wait_and_foreign_ones_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    follower = LogFollower(file)
    assert follower.read() == [] and not follower.restarted
    file.write_text(line(0) + line(1)[:20])
    assert steps_of(follower.read()) == [0] and follower.read() == []
    with open(file, "a") as stream:
        stream.write(line(1)[20:])
    assert steps_of(follower.read()) == [1]
    with open(file, "a") as stream:
        foreign = [
            "[1]",
            '"x"',
            "{",
            '{"step": "<b>"}',
            "[" * 100_000,
            '{"step": 1e999, "loss": NaN}',
            '{"step": 9' + "9" * 500 + "}",
        ]
        stream.write("\n".join([*foreign, '{"step": 2, "loss": NaN, "x": 1e999, "y": "<script>", "alarms": ["<b>"]}', ""]))
    assert follower.read() == [{"step": 2, "alarms": ["<b>"]}]
    with open(file, "a") as stream:
        stream.write("x" * 2**20 + "\n" + line(3))
    assert [steps for _ in range(3) for steps in steps_of(follower.read())] == [3]


def test_a_run_that_starts_later(tmp_path: Path) -> None:
    with served(tmp_path / "runs") as server:
        events = Events(server, "")
        assert events.read("runs") == []
        write_run(tmp_path / "runs" / "late")
        (overview,) = events.read("runs")
        assert (overview["name"], overview["state"]) == ("late", "waiting")
        late = Events(server, "late")
        (tmp_path / "runs" / "late" / "metrics.jsonl").write_text(line(0))
        assert steps_of(late.read("lines")) == [0]
        (overview,) = events.read("runs")
        assert (overview["state"], overview["left"]) == ("running", 19)


def test_runs_are_listed_by_what_they_hold(tmp_path: Path) -> None:
    finished = write_run(tmp_path / "compare" / "a", steps=3, lines=3)
    parent = write_run(tmp_path / "tuned")
    (parent / "metrics.jsonl").unlink()
    write_run(parent / "10%-seed0", lines=1, steps=None)
    write_run(finished / "inside", lines=1)  # of a run, not a run beside it
    (tmp_path / "images" / "cat").mkdir(parents=True)
    assert set(find_runs(tmp_path)) == {"compare/a", "tuned", "tuned/10%-seed0"}
    assert set(find_runs(finished)) == {"a"} and set(find_runs(parent)) == {"tuned", "10%-seed0"}
    assert summarize(finished)["state"] == "finished"
    (finished / "spec.json").write_text("[")
    assert summarize(finished)["task"] == "" and read_preview(finished, 0) is None


@pytest.mark.parametrize(
    ("file", "content", "state"),
    [
        ("results.jsonl", b"\xff\xfe", "unreadable"),
        ("metrics.jsonl", b'{"step": -1, "seconds": 2}\n', "running"),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(file: str, content: bytes, state: str, tmp_path: Path) -> None:
    write_run(tmp_path / "good", lines=1)
    damaged = write_run(tmp_path / "damaged", lines=1)
    (damaged / file).write_bytes(content)
    with served(tmp_path) as server:
        states = {run["name"]: run["state"] for run in Events(server, "good").read("runs")}
    assert states == {"good": "running", "damaged": state}


def test_a_result_without_a_value_is_unreadable(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines=1)
    result = Result("knn", None, {}, "model.safetensors", "", Data(), [Row("a", [Metric("top-1", 0.5)])])
    text = json.dumps(asdict(result))
    (run / "results.jsonl").write_text(text + "\n")
    assert summarize(run)["state"] == "running"
    (run / "results.jsonl").write_text(text.replace('"value": 0.5', '"value": null') + "\n")
    assert summarize(run)["state"] == "unreadable"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="no folder is closed to this user")
def test_a_folder_without_permission_is_no_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", lines=1)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o600)
    assert set(find_runs(tmp_path)) == {"run"}


def test_an_error_of_the_server_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with WatchServer(tmp_path) as server:
        for error in (PermissionError("closed"), PermissionError("closed"), BrokenPipeError("left")):
            try:
                raise error
            except OSError:
                server.handle_error(None, None)
    printed = capsys.readouterr().err
    assert printed.count("PermissionError: closed") == 1 and "left" not in printed


def test_files_are_read_again_only_when_they_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslkit.reporting import live_run

    opened: list[Path] = []
    monkeypatch.setattr(live_run, "read_results", lambda file: opened.append(file) or [])
    run = write_run(tmp_path / "run", lines=1)
    reader = SummaryReader("run", run)
    assert reader.read() == reader.read() and len(opened) == 1
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write(line(1))
    assert reader.read()["step"] == 2 and len(opened) == 2
    os.utime(run / "metrics.jsonl", (0, 0))
    assert reader.read()["state"] == "silent"


def test_many_browsers_make_one_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslkit.reporting import watch

    searches: list[Path] = []

    def search(folder: Path) -> dict[str, Path]:
        searches.append(folder)
        time.sleep(0.05)
        return {}

    monkeypatch.setattr(watch, "find_runs", search)
    with WatchServer(tmp_path) as server:
        threads = [threading.Thread(target=server.listing) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(searches) == 1


def test_an_extended_run_is_not_finished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3, lines=3)
    assert summarize(run)["state"] == "finished"
    write_run(run, steps=3, lines=5)
    assert (summarize(run)["state"], summarize(run)["steps"]) == ("running", None)
    (run / "training.json").write_text('{"steps": 6, "loss_terms": ["a", "b"]}')
    assert (summarize(run)["state"], summarize(run)["steps"], summarize(run)["left"]) == ("running", 6, 1)


def test_previews_are_those_with_a_number(tmp_path: Path) -> None:
    (tmp_path / "previews").mkdir()
    for name in ("step-10", "step-2", "step-10 copy", "step-x", "step-"):
        (tmp_path / "previews" / f"{name}.png").write_bytes(PNG)
    assert preview_steps(tmp_path) == [2, 10] and read_preview(tmp_path, 2) == PNG


def test_what_cannot_be_watched(tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    ran = sslkit("watch")
    assert ran.code == 2 and "RUN is missing" in ran.err
    ran = sslkit("watch", tmp_path / "no" / "where")
    assert ran.code == 2 and "no does not exist" in ran.err
    (tmp_path / "file").touch()
    ran = sslkit("watch", tmp_path / "file")
    assert ran.code == 2 and "is a file" in ran.err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = sslkit("watch", tmp_path, "--port", taken.getsockname()[1])
        assert ran.code == 2 and ran.err.startswith("error: --port: cannot listen on port")


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_ctrl_c_ends_with_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run", lines=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "sslkit", "watch", str(tmp_path / "run"), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    url = next(word for word in first.split() if word.startswith("http://127.0.0.1:"))
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.status == 200
    assert urllib.request.urlopen(f"{url}events?run=run", timeout=20).readline() == b"event: runs\n"  # still open when it ends
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "" and json.loads(out) == {"run": str(tmp_path / "run"), "url": url}
