"""A server of one page: on this machine alone, for those who know its token."""

import hmac
import ipaddress
import json
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mooring.errors import OutputError, UserError

_LARGEST = 4096
"""Bytes of a request's body: an id, a label and a name."""


class LoopbackServer:
    """Serves a page, and passes on what it sends.

    Every request needs the token, which is in the address that `url` gives, and a Host header that names this server,
    so that no other page can read or write through the browser (DNS rebinding, cross-site requests). What the page
    sends is taken only as JSON with the token in a header of its own, which a page of another origin may not send, and
    an Origin that is this server's, if there is one.

    Args:
        page: The page, made for each request.
        actions: By path, what receives the JSON that the page sends there; it raises ValueError for anything else.
        host: An address of this machine's loopback interface.
        port: A port; 0 takes a free one.

    Raises:
        UserError: `host` is not a loopback address (`usage.not_loopback`).
        OutputError: The port is in use, or may not be used (`output.port`).
    """

    def __init__(
        self,
        page: Callable[[], str],
        actions: Mapping[str, Callable[[Any], object]] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        if not _is_loopback(host):
            raise UserError(
                f"host: {host} is not a loopback address",
                "answers to harmful requests are served on this machine alone: 127.0.0.1",
                code="usage.not_loopback",
            )
        self.token = secrets.token_urlsafe(24)
        self.page, self.actions = page, dict(actions or {})
        try:
            self._server = _Server(self, (host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"{host}:{port}: {reason}", "choose another port, or 0", code="output.port") from None
        name = f"[{host}]" if ":" in host else host
        self.origin = f"http://{name}:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """The address of the page, with the token."""
        return f"{self.origin}/?token={self.token}"

    def serve(self) -> None:
        """Serve until the page says that it is done, or `stop` is called."""
        try:
            self._server.serve_forever(poll_interval=0.1)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """Stop serving; may be called from any thread but the one that serves."""
        self._server.shutdown()

    def admits(self, token: str) -> bool:
        """Whether a token is this server's."""
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    """The socket, and whose page it serves."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As it was, but for a browser that goes away in the middle of an answer, which is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def __init__(self, owner: LoopbackServer, address: tuple[str, int]) -> None:
        self.owner = owner
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "mooring"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        if not self._named():
            return
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self._answer(HTTPStatus.BAD_REQUEST, "no address")
            return
        if parts.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, "no such page")
        elif not self.server.owner.admits("".join(parse_qs(parts.query).get("token", [""])[:1])):
            self._answer(HTTPStatus.FORBIDDEN, "open the address that the command printed: it has a token")
        else:
            self._page()

    def _page(self) -> None:
        try:
            page = self.server.owner.page()
        except UserError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        else:
            self._answer(HTTPStatus.OK, page, "text/html")

    def do_POST(self) -> None:
        if not self._named() or not self._own():
            return
        if self.path == "/done":
            self._answer(HTTPStatus.OK, "done")
            threading.Thread(target=self.server.owner.stop, daemon=True).start()
        elif self.path in self.server.owner.actions:
            try:
                self.server.owner.actions[self.path](self._body())
            except ValueError as error:
                self._answer(HTTPStatus.BAD_REQUEST, str(error))
            except UserError as error:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            else:
                self._answer(HTTPStatus.OK, "saved")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "no such page")

    def _named(self) -> bool:
        """Whether the request is to this server by its own name; answers it if not."""
        port = urlsplit(self.server.owner.origin).port
        allowed = {urlsplit(self.server.owner.origin).netloc, f"localhost:{port}", f"127.0.0.1:{port}"}
        if self.headers.get("Host") in allowed:
            return True
        self._answer(HTTPStatus.FORBIDDEN, "not this server's name")
        return False

    def _own(self) -> bool:
        """Whether a request that writes comes from the page of this server; answers it if not."""
        origin, host = self.headers.get("Origin"), self.headers.get("Host")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        same = origin is None or origin == f"http://{host}"
        if same and kind == "application/json" and self.server.owner.admits(self.headers.get("X-Mooring-Token", "")):
            return True
        self._answer(HTTPStatus.FORBIDDEN, "not from this server's page")
        return False

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or not 0 < int(length) <= _LARGEST:
            raise ValueError("too large, or empty")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise ValueError("not JSON") from None

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: requests have the token in their address."""
