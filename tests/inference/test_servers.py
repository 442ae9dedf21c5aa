"""Several servers of one model: they share the work, and one that is down loses nothing."""

import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_server import Act, FakeClock, answer, error, fake_server, hung_up

from mooring.config import Runner
from mooring.errors import ModelError
from mooring.inference.load import load_engine
from mooring.inference.openai import OpenAIEngine
from mooring.inference.retry import RequestLimits
from mooring.records import Completion, Message, Prompt
from mooring.sampling import SamplingParams

GREEDY = SamplingParams(max_tokens=16)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message("user", f"question number {i}"),)) for i in range(count)]


def answers(engine: OpenAIEngine, asked: list[Prompt]) -> dict[str, Completion]:
    return {c.key: c for batch in engine.complete(asked, GREEDY) for c in batch}


def engine_on(*urls: str, concurrency: int = 1, clock: FakeClock | None = None) -> OpenAIEngine:
    return OpenAIEngine(urls, "m", limits=RequestLimits(concurrency=concurrency), clock=clock or FakeClock())


def test_servers_share_the_work() -> None:
    """Each holds its request until the other has one too: neither can do all of it alone."""
    together = threading.Barrier(2, timeout=10)

    def meet(number: int, body: object) -> Act | None:
        if number == 0:
            return lambda handler, body: (together.wait(), answer()(handler, body))[1]
        return None

    with fake_server(meet) as one, fake_server(meet) as two:
        made = answers(engine_on(one.url, two.url), prompts(12))
    asked = Counter(str(r["body"]["messages"][-1]["content"]) for server in (one, two) for r in server.seen)
    assert made.keys() == {f"p{i}" for i in range(12)}
    assert set(asked.values()) == {1}
    assert one.seen
    assert two.seen


def test_the_concurrency_is_that_of_each_server() -> None:
    now, most = Counter[int](), Counter[int]()
    lock, both = threading.Lock(), {1: threading.Event(), 2: threading.Event()}

    def count(handler: object, body: object, at: int) -> None:
        with lock:
            now[at] += 1
            most[at] = max(most[at], now[at])
            if now[at] == 2:
                both[at].set()
        both[at].wait(10)  # until a second request is in flight, which a loaded machine may send late
        threading.Event().wait(0.02)
        with lock:
            now[at] -= 1

    def script(at: int) -> Act:
        return lambda handler, body: (count(handler, body, at), answer()(handler, body))[1]

    with fake_server(lambda n, b: script(1)) as one, fake_server(lambda n, b: script(2)) as two:
        answers(engine_on(one.url, two.url, concurrency=2), prompts(20))
    assert most == {1: 2, 2: 2}


@pytest.mark.parametrize("failure", [hung_up, error(503)])
def test_another_server_takes_the_requests_of_one_that_is_down(failure: Act) -> None:
    clock = FakeClock()
    with fake_server(lambda n, b: failure) as down, fake_server() as up:
        made = answers(engine_on(down.url, up.url, clock=clock), prompts(6))
    assert made.keys() == {f"p{i}" for i in range(6)}
    assert len(up.seen) == 6
    if failure is not hung_up:  # set aside, not asked for every prompt
        assert len(down.seen) <= 2


def test_a_server_that_comes_back_is_used_again() -> None:
    clock = FakeClock()

    def later(number: int, body: object) -> Act | None:
        return error(503) if number == 0 else None

    def passing(handler: object, body: object) -> None:
        clock.time += 2
        answer()(handler, body)  # type: ignore[arg-type]

    with fake_server(later) as back, fake_server(lambda n, b: passing) as up:
        answers(engine_on(back.url, up.url, clock=clock), prompts(30))
    assert len(back.seen) > 2


def test_all_servers_down_are_waited_for() -> None:
    clock = FakeClock()

    def script(number: int, body: object) -> Act | None:
        return None if number == 0 or clock.time > 60 else error(503)

    with fake_server(script) as one, fake_server(script) as two:
        made = answers(engine_on(one.url, two.url, clock=clock), prompts(6))
    assert len(made) == 6
    assert clock.time > 60


def test_an_error_names_the_server_that_failed() -> None:
    with (
        fake_server(lambda n, b: error(500, "out of memory")) as broken,
        fake_server() as up,
        pytest.raises(ModelError, match="out of memory") as caught,
    ):
        answers(engine_on(broken.url, up.url), prompts(8))
    assert broken.url in str(caught.value)
    assert up.url not in str(caught.value)


def test_each_named_server_gets_the_key_and_no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with fake_server() as elsewhere:
        moved: Act = lambda handler, body: handler.reply(307, {}, {"Location": elsewhere.url + "/chat/completions"})  # noqa: E731
        with fake_server(lambda n, b: moved) as one, fake_server() as two, pytest.raises(ModelError) as caught:
            answers(engine_on(one.url, two.url), prompts(8))
    assert caught.value.code == "model.server_redirects"
    assert not elsewhere.seen
    assert all(request["headers"]["Authorization"] == "Bearer sk-secret" for s in (one, two) for request in s.seen)


def test_a_recipe_names_one_server_or_several() -> None:
    def runner(url: object) -> Runner:
        return Runner.model_validate({"engine": "openai", "base_url": url})

    assert runner("http://a/v1").base_url == ("http://a/v1",)
    loaded = load_engine("m", runner(["http://a:1", "http://b:1/v1", "http://a:1/v1/"]), None)
    assert isinstance(loaded, OpenAIEngine)
    assert loaded.servers.base == "http://a:1/v1, http://b:1/v1"
