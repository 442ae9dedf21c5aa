"""Several servers of one model: each request goes to the one that is least busy and responds."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mooring.inference.retry import Clock, RequestLimits, Retrier
from mooring.inference.server import Server, TransientError

T = TypeVar("T")
SET_ASIDE = 5.0
"""Seconds for which a server that is down gets no requests while another one responds."""


class Servers:
    """One server, or several of the same model that share the requests of all engines that use this object.

    Args:
        base_urls: Addresses such as `http://localhost:8000/v1`; each gets the API key, and no other host does.
        key_env: Name of the environment variable that holds the API key.
        limits: How many requests are made, and how long each is tried.
        clock: Replaced in tests.

    Raises:
        RecipeError: An address is not an http address, or contains credentials.
    """

    def __init__(
        self, base_urls: Sequence[str], key_env: str, limits: RequestLimits, clock: Clock | None = None
    ) -> None:
        servers = [Server(url, key_env, limits.timeout) for url in base_urls]
        self.all = tuple({server.base: server for server in servers}.values())
        self.concurrency = limits.concurrency * len(self.all)
        self.clock = clock or Clock()
        self.retrier = Retrier(limits, self.clock)
        self._most = limits.concurrency
        self._busy = dict.fromkeys(self.all, 0)
        self._down_at: dict[Server, float] = {}
        self._free = threading.Condition()

    @property
    def base(self) -> str:
        """The addresses."""
        return ", ".join(server.base for server in self.all)

    def call(self, request: Callable[[Server], T], stop: threading.Event) -> T:
        """Make a request, repeated until it succeeds or `retry` gives up; errors as `Retrier.call`."""
        return self.retrier.call(lambda: self.once(request), stop)

    def once(self, request: Callable[[Server], T]) -> T:
        """Make a request of the least busy server, and of the next one if that is down.

        Raises:
            TransientError: It may succeed later. With `down` set, no server responds.
            ServerError: The server rejects the request.
        """
        tried: dict[Server, TransientError] = {}
        while len(tried) < len(self.all):
            with self._least_busy(tried) as server:
                try:
                    result = request(server)
                except TransientError as error:
                    if not error.down:
                        raise
                    tried[server] = error
                    self._down_at[server] = self.clock.now()
                else:
                    self._down_at.pop(server, None)
                    return result
        raise next(reversed(tried.values()))

    @contextlib.contextmanager
    def _least_busy(self, tried: dict[Server, TransientError]) -> Iterator[Server]:
        """Wait for a server that can take one more request, and count it."""
        with self._free:
            while not (ready := [s for s in self.all if s not in tried and self._busy[s] < self._most]):
                self._free.wait()
            server = min(ready, key=lambda s: (self._is_aside(s), self._busy[s]))
            self._busy[server] += 1
        try:
            yield server
        finally:
            with self._free:
                self._busy[server] -= 1
                self._free.notify_all()

    def _is_aside(self, server: Server) -> bool:
        return self.clock.now() - self._down_at.get(server, -SET_ASIDE) < SET_ASIDE
