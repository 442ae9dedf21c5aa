"""A Chromium to drive in tests: the DevTools protocol over a pipe, and no package besides."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
START = "import os, sys; r, w, *c = sys.argv[1:]; os.dup2(int(r), 3); os.dup2(int(w), 4); os.execv(c[0], c)"
"""Chromium reads from 3 and writes to 4. A program puts them there: in a child not yet begun, Python may use those."""
PATIENCE = 60.0
"""Seconds after which a browser that says nothing is given up; nothing is asserted about time."""


class Page:
    """One tab. Every method waits for the browser's answer.

    Attributes:
        events: What the browser told besides: requests, console lines, exceptions, dialogs.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._next, self._buffer = read, write, 0, b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol.

        Raises:
            RuntimeError: The browser refuses it.
            TimeoutError: The browser does not answer.
        """
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._next:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], PATIENCE)[0]:
                raise TimeoutError("the browser says nothing")
            found = os.read(self._read, 1 << 20)
            if not found:
                raise RuntimeError("the browser has gone")
            self._buffer += found
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def heard(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of a kind so far."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def open(self, path: Path) -> None:
        """Open a file and wait until it has loaded."""
        self.events.clear()
        self.send("Page.navigate", url=path.absolute().as_uri())
        while not self.heard("Page.loadEventFired"):
            self.events.append(self._receive())
        self.run("0")

    def run(self, script: str) -> Any:
        """The value of an expression in the page.

        Raises:
            RuntimeError: It threw.
        """
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """What an element shows."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return int(self.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def click(self, selector: str, along: float = 0.5) -> None:
        """A real click on an element, `along` of the way from its left to its right."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect(); "
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        place = {
            "x": box[0] + min(max(along, 0.01), 0.99) * box[2],
            "y": box[1] + box[3] / 2,
            "button": "left",
            "clickCount": 1,
        }
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **place)
        self.settle()

    def press(self, key: str, code: int, times: int = 1) -> None:
        """A real key, by its name and its Windows code."""
        for _ in range(times):
            text = {"text": "\r"} if key == "Enter" else {}
            for kind, more in (("keyDown", text), ("keyUp", {})):
                self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)
        self.settle()

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)
        self.settle()

    def settle(self) -> None:
        """Wait until the page has done what was put to it; `toggle` comes a task after the click."""
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")

    def look(self, width: int, dark: bool = False, media: str = "screen") -> None:
        """Set the window's width and the colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def picture(self, path: Path, whole: bool = True) -> None:
        """A screenshot, of the whole page or of what the window shows."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A fresh Chromium with an empty profile, ended with the block."""
    assert CHROMIUM, "no Chromium"
    command, from_us, to_us = [CHROMIUM, *FLAGS], os.pipe(), os.pipe()
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in (from_us[0], to_us[1])]
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, theirs), *command, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=theirs,
        )
        for end in (from_us[0], to_us[1], *theirs):
            os.close(end)
        try:
            page = Page(to_us[0], from_us[1])
            yield page
            page._session = None
            with contextlib.suppress(RuntimeError, OSError):
                page.send("Browser.close")
        finally:
            os.close(from_us[1])
            os.close(to_us[0])
            deadline = time.monotonic() + 10
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if process.poll() is None:
                process.kill()
                process.wait()
