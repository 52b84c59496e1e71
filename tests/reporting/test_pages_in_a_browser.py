"""The report and the page of watch, opened in Chromium: they fit a phone, and say what they should without complaints."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslkit.reporting.watch import WatchServer
from tests.browser import chromium, needs_browser

pytestmark = [pytest.mark.slow, needs_browser]
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def run(trained: Path, digits: Path) -> Path:
    """Return a run with an evaluation."""
    from sslkit.evaluation.knn import knn
    from sslkit.specs.evaluation import KnnSpec

    knn(KnnSpec(ckpt=str(trained), workers=0))
    return trained.parent


def test_the_report(run: Path, tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    assert sslkit("report", run, "--workers", 0, "--out", tmp_path / "report.html").code == 0
    url = (tmp_path / "report.html").as_uri()
    with chromium(tmp_path / "profile") as browser:
        for width, dark in ((1280, False), (360, True)):
            browser.open(url, width, dark)
            assert browser.evaluate(FITS), width
            assert browser.evaluate(BACKGROUND) == ("rgb(18, 20, 23)" if dark else "rgb(255, 255, 255)")
            verdict = "document.querySelector('.verdict').getBoundingClientRect()"
            assert browser.evaluate(f"{verdict}.top") < 200 and browser.evaluate(f"{verdict}.width") > 300
            assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        dot = "document.querySelector('.map circle')"
        browser.evaluate(f"{dot}.dispatchEvent(new PointerEvent('pointerover', {{bubbles: true}}))")
        assert browser.evaluate("getComputedStyle(document.querySelector('.map > div')).display") == "block"
        browser.screenshot(tmp_path / "report.png")
        assert browser.messages == []


def test_the_page_of_watch(run: Path, tmp_path: Path) -> None:
    import shutil

    live = tmp_path / "runs" / "<b>live & 100%"
    shutil.copytree(run, live)
    shutil.copytree(run, tmp_path / "runs" / "other")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (live / "metrics.jsonl").write_text("".join(lines[:5]))
    with WatchServer(tmp_path / "runs", seconds=0.1) as server, chromium(tmp_path / "profile") as browser:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        browser.open(f"{server.url}#{'%3Cb%3Elive%20%26%20100%25'}", 360)
        browser.wait_for(
            "document.querySelector('#charts output') !== null && document.querySelectorAll('#previews img').length > 1"
        )
        assert browser.evaluate("document.querySelector('h1').textContent") == "<b>live & 100%"
        assert "step 5 of 12" in browser.evaluate("document.querySelector('#state').textContent")
        assert browser.evaluate(FITS)
        with open(live / "metrics.jsonl", "a") as stream:
            stream.writelines(lines[5:])
            stream.write(json.dumps({**json.loads(lines[-1]), "alarms": ["<i>loss & more"]}) + "\n")
        browser.wait_for("document.querySelector('#state').textContent.includes('step 12 of 12')")
        browser.wait_for("document.querySelector('#alarms').textContent.includes('<i>loss & more')")
        browser.wait_for("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        browser.screenshot(tmp_path / "watch.png")
        browser.evaluate("[...document.querySelectorAll('#runs a')].find(link => link.textContent === 'other').click()")
        browser.wait_for(
            "document.querySelector('h1').textContent === 'other' && document.querySelector('#charts output') !== null"
        )
        server.shutdown()
        browser.wait_for("document.querySelector('#connection').textContent.startsWith('connection lost')")
        assert [message for message in browser.messages if "net::" not in message] == []
