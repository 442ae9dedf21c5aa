"""A small OpenAI-compatible server on loopback that answers as a test says, for tests of what can go wrong."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mooring.inference.retry import Clock
from served import served

Act = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: "FakeServer"

    def do_GET(self) -> None:
        """The list of models, or of llama.cpp's adapters; or what a test says."""
        if self.server.answer_get:
            return self.server.answer_get(self)
        if self.path == "/lora-adapters" and self.server.adapters is not None:
            self.reply(200, self.server.adapters)
        elif self.server.models is None or self.path != "/v1/models":
            self.reply(404, {"detail": "Not Found"})
        else:
            self.reply(200, {"object": "list", "data": self.server.models})

    def do_POST(self) -> None:
        """The next act of the script, or an answer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.seen)
            self.server.seen.append({"path": self.path, "headers": dict(self.headers), "body": body})
            self.server.times.append(self.server.clock.now())
            act = self.server.script(number, body)
        (act or answer())(self, body)

    def reply(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        """Send JSON, or bytes as they are."""
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class FakeServer(ThreadingHTTPServer):
    """See `fake_server`."""

    daemon_threads = True

    def __init__(
        self, script: Callable[[int, dict[str, Any]], Act | None], models: list[dict[str, Any]] | None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.models = script, models
        self.adapters: list[dict[str, Any]] | None = None
        self.answer_get: Callable[[Handler], None] | None = None
        self.seen: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.clock = FakeClock()

    @property
    def url(self) -> str:
        """Its base."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class FakeClock(Clock):
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        """Seconds so far."""
        return self.time

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        """Pass the time at once."""
        self.slept.append(seconds)
        self.time += seconds


def answer(text: str | None = None, finish: str = "stop", **changes: Any) -> Act:
    """An ordinary answer; without a text, the last message in capitals."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        said = body["messages"][-1]["content"].upper() if "messages" in body else body["prompt"].upper()
        said = said if text is None else text
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= (
            {"message": {"role": "assistant", "content": said} | changes} if "messages" in body else {"text": said}
        )
        handler.reply(200, {"choices": [choice], "usage": {"completion_tokens": len(said.split())}})

    return act


def error(status: int, message: str = "no", headers: dict[str, str] | None = None, **fields: Any) -> Act:
    """An error in OpenAI's form."""
    return lambda handler, body: handler.reply(status, {"error": {"message": message, **fields}}, headers)


def raw(data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Act:
    """These bytes, whatever they are."""
    return lambda handler, body: handler.reply(status, data, headers)


def truncated(handler: Handler, body: dict[str, Any]) -> None:
    """Half of the promised body, and the connection is closed."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')


def hung_up(handler: Handler, body: dict[str, Any]) -> None:
    """No answer: the connection is reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    handler.connection.close()


def slow(seconds: float) -> Act:
    """An answer that comes late."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            answer()(handler, body)

    return act


@contextlib.contextmanager
def fake_server(
    script: Callable[[int, dict[str, Any]], Act | None] | list[Act | None] | None = None,
    models: list[dict[str, Any]] | None = None,
) -> Iterator[FakeServer]:
    """A server while the block runs.

    Args:
        script: What to do with each POST: acts in order, answers after the last; or a function of the request's
            number and body. `None` is an answer.
        models: What `/v1/models` lists; `None` has no such path.
    """
    acts = script
    if callable(acts):
        chosen = acts
    else:
        listed = list(acts or [])
        chosen = lambda number, body: listed[number] if number < len(listed) else None  # noqa: E731
    with served(FakeServer(chosen, models)) as server:
        yield server
