"""The system's Chromium, driven through a pipe: opens pages as a reader would and tells what is on them."""

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


class Browser:
    """One tab of a headless Chromium; `messages` is what its pages wrote to the console, refusals by their policy included."""

    def __init__(self, commands: Any, answers: Any) -> None:
        self._commands, self._answers, self._numbers = commands, answers, itertools.count(1)
        self.messages: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]  # type: ignore[no-any-return]
            if answer.get("method") == "Log.entryAdded":
                self.messages.append(answer["params"]["entry"]["text"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.messages.append(json.dumps(answer["params"]["exceptionDetails"]))

    def _read(self) -> dict[str, Any]:
        content = b""
        while not content.endswith(b"\0"):
            byte = self._answers.read(1)
            assert byte, "Chromium ended"
            content += byte
        return json.loads(content[:-1])  # type: ignore[no-any-return]

    def open(self, url: str, width: int = 1280, dark: bool = False) -> None:
        """Open a page in a window of some width."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"not in {seconds} s: {condition}; {self.evaluate('document.body.innerText')}"
            time.sleep(0.1)

    def screenshot(self, file: Path, top: int = 0) -> None:
        """Save a picture of the page from `top` on, at most 4,000 pixels: of much taller ones Chromium makes none."""
        width, height = self.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": top, "width": width, "height": min(height - top, 4000), "scale": 1}
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        file.write_bytes(base64.b64decode(picture))


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Start a browser that keeps its files in a folder, and end it."""
    (commands_out, commands_in), (answers_out, answers_in) = os.pipe(), os.pipe()
    # It reads from 3 and writes to 4, which may be among these numbers.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands_out, answers_in)]
    for end in (commands_out, answers_in):
        os.close(end)
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
    process = subprocess.Popen(
        [str(CHROMIUM), *flags.split(), f"--user-data-dir={folder}"],
        pass_fds=(3, 4),
        preexec_fn=lambda: [os.dup2(end, number) for number, end in enumerate(ends, 3)],  # type: ignore[arg-type,return-value]
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in ends:
        os.close(end)
    with open(commands_in, "wb") as commands, open(answers_out, "rb") as answers:
        try:
            yield Browser(commands, answers)
        finally:
            process.terminate()
            process.wait()
