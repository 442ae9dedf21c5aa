"""The system's own Chromium, driven by Playwright; never the build that Playwright would download."""

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, BrowserContext, Request, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A fresh headless Chromium with an empty profile, ended with the block. Its sandbox is off: root has none.

    Raises:
        FileNotFoundError: There is no Chromium.
    """
    if CHROMIUM is None:
        raise FileNotFoundError("Chromium is not installed: apt install chromium")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False) as browser,
    ):
        yield browser


@dataclasses.dataclass
class Heard:
    """What the pages of a context did besides showing themselves.

    Attributes:
        asked: The address of every request, those that the page's policy refused too.
        refused: The addresses that the policy refused.
        said: Console lines, exceptions, dialogs, windows and WebSockets opened.
    """

    asked: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)

    def listen(self, context: BrowserContext) -> None:
        """Hear all of a context, and let no request of it leave the machine."""

        def failed(request: Request) -> None:
            if request.failure == "csp":
                self.refused.append(request.url)

        context.route(re.compile("^(?!file:)"), lambda route: route.abort())
        context.on("request", lambda request: self.asked.append(request.url))
        context.on("requestfailed", failed)
        context.on("console", lambda message: self.said.append(f"console: {message.text}"))
        context.on("weberror", lambda error: self.said.append(f"exception: {error.error}"))
        context.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        context.on("page", lambda page: page.on("websocket", lambda socket: self.said.append(f"socket: {socket.url}")))
        context.on("page", lambda page: page.on("popup", lambda popup: self.said.append(f"window: {popup.url}")))
