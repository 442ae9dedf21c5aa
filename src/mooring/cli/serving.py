"""Serve a page to a browser on this machine."""

import contextlib
import webbrowser
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mooring.pipeline.loopback import LoopbackServer


def serve_until_stopped(server: "LoopbackServer", *, browser: bool) -> None:
    """Serve until the page or Ctrl-C ends it.

    Args:
        server: The server, which already listens.
        browser: Whether to open its page in a browser.
    """
    if browser:
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(server.url)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve()
