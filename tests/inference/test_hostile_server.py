"""A server that floods, drips or lies: each request ends in time, in bounded memory, in an answer or in one line."""

import contextlib
import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_server import Act, FakeServer, Handler, answer, error, fake_server, raw

from mooring.cli import main
from mooring.errors import ModelError, UserError
from mooring.inference.openai import OpenAIEngine
from mooring.inference.retry import RequestLimits
from mooring.inference.server import retry_after
from mooring.records import Completion, Message, Prompt
from mooring.sampling import SamplingParams

PROMPT = Prompt(id="p", messages=(Message("user", "Hello"),), origin="set.jsonl:1")


def flooded(first: bytes, again: bytes, pause: float = 0.0) -> Act:
    """Bytes, then others over and over, until the client hangs up."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            handler.connection.sendall(first)
            for _ in range(100_000_000):
                handler.connection.sendall(again)
                if pause:
                    time.sleep(pause)

    return act


def said(**changes: Any) -> bytes:
    """An answer in the format of OpenAI's API, with other values at the top."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 1}} | changes).encode()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(b" " * 2**27)
ACTS: dict[str, Act] = {
    "slow body": flooded(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" ", 0.05),
    "slow headers": flooded(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.05),
    "slow error": flooded(b"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n", b" ", 0.05),
    "endless interim responses": flooded(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
    "endless headers": flooded(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000),
    "endless header": flooded(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 2**16),
    "endless chunks": flooded(CHUNKED, b"10000\r\n" + b" " * 2**16 + b"\r\n"),
    "endless error": flooded(CHUNKED.replace(b"200", b"400"), b"10000\r\n" + b" " * 2**16 + b"\r\n"),
    "absurd chunk size": flooded(CHUNKED + b"f" * 300 + b"\r\n", b" " * 2**16),
    "absurd length": flooded(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n", b" "),
    "compressed": raw(BOMB, headers={"Content-Encoding": "gzip"}),
    "not compressed": raw(b"no", headers={"Content-Encoding": "gzip"}),
    "deeply nested": raw(b"[" * 200_000),
    "deeply nested error": raw(b'{"a":' * 200_000, 400),
    "long integer": raw(said(usage={"completion_tokens": 0}).replace(b": 0", b": 1" + b"0" * 5000)),
    "negative tokens": raw(said(usage={"completion_tokens": -5})),
    "absurd tokens": raw(said(usage={"completion_tokens": 10**290})),
    "true tokens": raw(said(usage={"completion_tokens": True})),
    "redirect without a place": raw(b"", 302),
    "bad redirect": raw(b"", 302, {"Location": "http://[::1"}),
    "dates that are none": error(429, headers={"Retry-After": "Thu, 99 Foo 99999 77:77:77 +99999999"}),
    "no date": error(503, headers={"Retry-After": "inf"}),
}


def complete(server: FakeServer, **limits: Any) -> list[Completion]:
    """The answer to one prompt."""
    chosen = RequestLimits(**{"retries": 0, "timeout": 1.0, **limits})
    engine = OpenAIEngine(server.url, "m", limits=chosen, clock=server.clock, system=None)
    return [each for batch in engine.complete([PROMPT], SamplingParams(max_tokens=8)) for each in batch]


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())
def test_a_hostile_response_is_an_error_in_one_line(act: Act) -> None:
    with fake_server(lambda number, body: act) as server, pytest.raises(UserError) as caught:
        complete(server)
    assert caught.value.code in ("model.server_unavailable", "model.server_redirects", "data.request_rejected")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_request_ends_although_bytes_keep_coming() -> None:
    """Real time: a response of which a byte arrives every 50 ms is cancelled after a second, and the next one taken."""
    ended = threading.Event()

    def drip(handler: Handler, body: dict[str, Any]) -> None:
        ACTS["slow body"](handler, body)
        ended.set()

    with fake_server([drip]) as server:
        assert complete(server, retries=1)[0].text == "HELLO"
        assert ended.wait(20)


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "1e400", "Thu, 99 Foo", "Thu, 01 Jan 2026 00:00:00 +9999999999"]
)
def test_a_malformed_retry_after_is_none(value: str) -> None:
    assert retry_after(value) is None


def test_a_server_that_asks_for_more_patience_than_there_is_while_down_is_given_up() -> None:
    acts = [answer(), error(503, headers={"Retry-After": "1e15"})]
    with fake_server(acts) as server:
        engine = OpenAIEngine(server.url, "m", limits=RequestLimits(), clock=server.clock, system=None)
        others = [PROMPT, Prompt(id="q", messages=(Message("user", "Hi"),))]
        with pytest.raises(ModelError):
            list(engine.complete(others, SamplingParams(max_tokens=8)))
    assert server.clock.time < 600


@pytest.mark.parametrize(
    "act",
    [answer("lone \ud800 surrogate \udfff"), answer("\x1b]0;title\x07\x1b[31mred\u202e")],
    ids=["surrogates", "controls"],
)
def test_any_text_of_a_server_is_kept_and_never_acts_on_the_terminal(
    act: Act, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "c.jsonl"
    prompts.write_text('{"prompt": "Hello"}\n')
    with fake_server([act], models=[{"id": "m\x1b[31m"}]) as server, pytest.raises(SystemExit) as ended:
        main(["generate", server.url, str(prompts), "--engine", "openai", "--base-url", server.url, "--out", str(out)])
    printed = "".join(capsys.readouterr())
    assert "\x1b[31mred" not in printed
    assert "\x1b]0;" not in printed
    assert ended.value.code in (0, 2), printed


@contextlib.contextmanager
def _listening() -> Iterator[str]:
    """The address of a socket that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}/v1"


def test_a_server_that_says_nothing_is_given_up() -> None:
    with _listening() as url:
        engine = OpenAIEngine(url, "m", limits=RequestLimits(retries=0, timeout=0.5), system=None)
        with pytest.raises(ModelError) as caught:
            list(engine.complete([PROMPT], SamplingParams(max_tokens=8)))
    assert caught.value.code == "model.server_unavailable"


def test_a_judge_that_cannot_be_read_is_an_error_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.dumps({"prompt": f"Question {n}", "response": f"Answer {n}"}) for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    files = [str(tmp_path / "rows.jsonl")] * 2
    with fake_server(lambda number, body: answer("banana"), models=[{"id": "m"}]) as server:
        judge = ["--judges", "llm", "--judge-model", "m", "--judge-engine", "openai", "--judge-base-url", server.url]
        with pytest.raises(SystemExit) as ended:
            main(["score", *files, *judge, "--json"])
    printed = capsys.readouterr()
    assert ended.value.code == 2, printed.err
    assert json.loads(printed.out)["error"]["code"] == "model.judge_unreadable"
    assert "none of its 20 answers can be read" in printed.err
