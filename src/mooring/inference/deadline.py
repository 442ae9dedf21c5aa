"""A limit on how long an HTTP request takes in all, whatever its server sends meanwhile."""

import contextlib
import socket
import threading
from typing import Any


class Deadline:
    """Ends the connections of one request when its time is up.

    A client's own timeouts count from the last byte, so that a server which sends a byte now and then, of its headers
    or of its body, would hold a request forever. Used as a context manager around the request, with `extension` as its
    extension `trace` (httpx2), which is called for each connection.

    Attributes:
        expired: Whether the time was up before the request ended.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._expire)
        self._timer.daemon = True

    def __enter__(self) -> "Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def extension(self, event: str, info: dict[str, Any]) -> None:
        """Remember the socket of a connection that was made."""
        if event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete")):
            made = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._sockets.append(made)
                expired = self.expired
            if expired:
                _end(made)

    def _expire(self) -> None:
        with self._lock:
            self.expired, sockets = True, list(self._sockets)
        for each in sockets:
            _end(each)


def _end(connection: socket.socket) -> None:
    """End a connection: the thread that waits for its bytes wakes up, as it would not if the socket were closed."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
