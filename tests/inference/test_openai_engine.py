"""The engine on a server: its requests, its parsing of responses, and its handling of every failure."""

import contextlib
import hashlib
import itertools
import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from fake_server import Act, FakeClock, FakeServer, answer, error, fake_server, hung_up, raw, slow, truncated

from mooring.chat import DEFAULT_SYSTEM, pinned
from mooring.errors import DataError, ModelError, RecipeError, UserError
from mooring.inference.cost import estimate
from mooring.inference.encode import response_seed
from mooring.inference.openai import OpenAIEngine
from mooring.inference.retry import WORKER, Clock, RateLimit, RequestLimits, Retrier, StoppedError, in_parallel
from mooring.inference.server import TransientError, retry_after
from mooring.inference.store import complete_to_file
from mooring.records import Completion, Message, Prompt, sample_key
from mooring.sampling import SamplingParams

KEY = "sk-a-secret-that-nobody-may-see"
GREEDY = SamplingParams(max_tokens=16)


def prompts(count: int = 3) -> list[Prompt]:
    return [
        Prompt(id=f"p{i}", messages=(Message("user", f"question number {i}"),), origin=f"set.jsonl:{i + 1}")
        for i in range(count)
    ]


def rendered(text: str = "<s>[INST] judge this [/INST]") -> Prompt:
    return Prompt(id="r", messages=(Message("user", "unused"),), rendered=text)


def engine(server: FakeServer, **changes: Any) -> OpenAIEngine:
    """An engine with one request at a time; `changes` are its arguments, or fields of its limits."""
    limits = {field.name: changes.pop(field.name) for field in fields(RequestLimits) if field.name in changes}
    limits = {"concurrency": 1, "timeout": 5.0} | limits
    return OpenAIEngine(server.url, "m", limits=RequestLimits(**limits), **{"clock": server.clock} | changes)


def answers(asked: OpenAIEngine, what: list[Prompt], settings: SamplingParams = GREEDY) -> dict[str, Completion]:
    return {c.key: c for batch in asked.complete(what, settings) for c in batch}


@contextlib.contextmanager
def fails(kind: type[UserError], code: str, message: str | None = None) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect an error with this code, in one line, with this pattern in it."""
    with pytest.raises(kind, match=message) as caught:
        yield caught
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def bodies(server: FakeServer) -> list[dict[str, Any]]:
    return [request["body"] for request in server.seen]


# What is sent, and what is read


def test_a_chat_has_the_system_prompt_and_is_greedy() -> None:
    with fake_server() as server:
        made = answers(engine(server), prompts(1))
    assert server.seen[0]["path"] == "/v1/chat/completions"
    assert bodies(server) == [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": DEFAULT_SYSTEM},
                {"role": "user", "content": "question number 0"},
            ],
            "max_tokens": 16,
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "chat_template_kwargs": pinned(),
        }
    ]
    assert made == {"p0": Completion(prompt_id="p0", text="QUESTION NUMBER 0", tokens=3, finish="stop")}


def test_a_prompt_with_a_system_message_of_its_own_gets_no_other() -> None:
    own = Prompt(id="a", messages=(Message("system", "Be brief."), Message("user", "question")))
    with fake_server() as server:
        answers(engine(server), [own])
        answers(engine(server, system=None), prompts(1))
    assert [[m["role"] for m in body["messages"]] for body in bodies(server)] == [["system", "user"], ["user"]]
    assert bodies(server)[0]["messages"][0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("text", "sent"),
    [("<s>[INST] a", "[INST] a"), ("<|begin_of_text|><|begin_of_text|>a", "a"), ("<|im_start|>a", "<|im_start|>a")],
)
def test_a_rendered_prompt_is_sent_unchanged_with_one_bos(text: str, sent: str) -> None:
    with fake_server() as server:
        made = answers(engine(server), [rendered(text)])
    assert server.seen[0]["path"] == "/v1/completions"
    assert bodies(server)[0]["prompt"] == sent
    assert "messages" not in bodies(server)[0]
    assert made["r"].text == sent.upper()


def test_sampling_settings_are_sent_and_each_answer_has_its_own_seed() -> None:
    settings = SamplingParams(max_tokens=8, temperature=0.6, top_p=0.9, top_k=50, n=3, seed=7)
    with fake_server() as server:
        made = answers(engine(server, concurrency=4), prompts(4), settings)
    assert sorted(made) == sorted(sample_key(f"p{i}", n) for i in range(4) for n in range(3))
    sent = {(b["messages"][-1]["content"], b["seed"]) for b in bodies(server)}
    assert sent == {
        (f"question number {i}", response_seed(7, sample_key(f"p{i}", n))) for i in range(4) for n in range(3)
    }
    assert len({seed for _, seed in sent}) == 12
    assert {(b["temperature"], b["top_p"], b["top_k"], b["min_p"]) for b in bodies(server)} == {(0.6, 0.9, 50, 0.0)}


@settings(max_examples=20)
@given(st.integers(), st.text())
def test_a_seed_is_31_bits_of_a_digest(seed: int, key: str) -> None:
    text = f"{seed}\0{key}".encode()
    assert response_seed(seed, key) == int(hashlib.sha256(text).hexdigest()[:8], 16) // 2 < 2**31


def test_extra_fields_go_into_every_request_and_the_record() -> None:
    with fake_server() as server:
        asked = engine(server, extra_body={"max_tokens": 3, "chat_template_kwargs": {"enable_thinking": False}})
        answers(asked, prompts(1))
        assert asked.about["extra_body"]["max_tokens"] == 3
    assert bodies(server)[0]["max_tokens"] == 3
    assert bodies(server)[0]["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("act", "text", "finish"),
    [
        (answer("cut", "length"), "cut", "length"),
        (answer("so far", "content_filter"), "so far", "stop"),
        (answer(""), "", "stop"),
        (answer("x", content=None), "", "stop"),
        (answer("x", content=None, refusal="I will not."), "I will not.", "stop"),
        (raw(b'{"choices": [{"message": {"content": "no usage"}}]}'), "no usage", "stop"),
    ],
)
def test_answers_are_read(act: Act, text: str, finish: str) -> None:
    with fake_server([act]) as server:
        made = answers(engine(server), prompts(1))["p0"]
    assert (made.text, made.finish) == (text, finish)


def test_finished_prompts_are_not_generated_again() -> None:
    settings = SamplingParams(max_tokens=8, temperature=1.0, n=2)
    with fake_server() as server:
        done = {sample_key("p0"), sample_key("p1", 1)}
        made = [c for b in engine(server).complete(prompts(2), settings, done=done) for c in b]
        assert list(engine(server).complete(prompts(1), GREEDY, done={"p0"})) == []
    assert {c.key for c in made} == {sample_key("p0", 1), sample_key("p1")}
    assert len(server.seen) == 2


def test_the_longest_prompt_is_sent_first() -> None:
    what = [*prompts(2), Prompt(id="long", messages=(Message("user", "word " * 50),))]
    with fake_server() as server:
        answers(engine(server), what)
    assert bodies(server)[0]["messages"][-1]["content"] == "word " * 50


def test_concurrency_limits_simultaneous_requests() -> None:
    meet = threading.Barrier(4, timeout=5)
    now, most, lock = 0, 0, threading.Lock()

    def together(handler: Any, body: Any) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        meet.wait()  # passes only where four are here
        with lock:
            now -= 1
        answer()(handler, body)

    with fake_server(lambda number, body: together) as server:
        assert len(answers(engine(server, concurrency=4), prompts(12))) == 12
    assert most == 4


def test_about_names_the_server_and_omits_the_concurrency() -> None:
    with fake_server(models=[{"id": "m", "owned_by": "vllm"}]) as server:
        assert dict(engine(server, concurrency=3).about) == {
            "engine": "openai",
            "base_url": server.url,
            "model": "m",
            "server": "vllm",
            "system": DEFAULT_SYSTEM,
        }
    with fake_server() as server:
        assert engine(server).about["server"] is None


def test_the_only_model_needs_no_name_and_one_of_several_does() -> None:
    with fake_server(models=[{"id": "only"}]) as server:
        assert OpenAIEngine(server.url).about["model"] == "only"
    with (
        fake_server(models=[{"id": "a"}, {"id": "b"}]) as server,
        fails(ModelError, "model.not_named", "it has: a, b"),
    ):
        _ = OpenAIEngine(server.url).about


def test_likelihood_is_refused_in_one_line() -> None:
    with fails(DataError, "data.likelihood_unavailable"):
        OpenAIEngine("http://localhost:1").likelihood(prompts(1))


# Dialects


def refuses(*fields: str, form: str = "Unrecognized request arguments supplied: {}") -> Any:
    def script(number: int, body: dict[str, Any]) -> Act | None:
        known = [field for field in fields if field in body]
        return error(400, form.format(", ".join(known))) if known else None

    return script


def test_rejected_fields_with_neutral_values_are_omitted() -> None:
    settings = SamplingParams(max_tokens=8, temperature=1.0)
    fields = {"repetition_penalty", "top_k", "min_p", "chat_template_kwargs"}
    with fake_server(refuses(*fields)) as server:
        assert len(answers(engine(server), prompts(3), settings)) == 3
    assert len(server.seen) == 4  # learnt once
    assert not fields & set(bodies(server)[-1])


def test_a_rejected_penalty_is_an_error_and_not_dropped() -> None:
    with (
        fake_server(refuses("repetition_penalty")) as server,
        fails(ModelError, "model.sampling_unsupported", r"repetition_penalty 1\.2"),
    ):
        answers(engine(server), prompts(1), SamplingParams(repetition_penalty=1.2))


def test_transformers_serve_gets_a_generation_config() -> None:
    def script(number: int, body: dict[str, Any]) -> Act | None:
        odd = {"repetition_penalty", "top_k", "min_p"} & set(body)
        return raw(json.dumps({"detail": f"Unexpected fields in the request: {odd}"}).encode(), 422) if odd else None

    with fake_server(script) as server:
        asked = engine(server)
        answers(asked, prompts(2), SamplingParams(repetition_penalty=1.2))
        answers(asked, prompts(1), SamplingParams(temperature=0.5, top_k=5))
    sent = [json.loads(body["generation_config"]) for body in bodies(server)[1:]]
    assert sent[0] == sent[1] == {"do_sample": False, "repetition_penalty": 1.2}
    assert sent[2] == {"do_sample": True, "repetition_penalty": 1.0, "top_k": 5, "min_p": 0.0}


def test_llama_cpp_gets_repeat_penalty() -> None:
    with fake_server(models=[{"id": "m", "owned_by": "llamacpp"}]) as server:
        answers(engine(server), prompts(1), SamplingParams(repetition_penalty=1.2))
    assert (bodies(server)[0]["repeat_penalty"], bodies(server)[0]["repeat_last_n"]) == (1.2, 131072)
    assert "repetition_penalty" not in bodies(server)[0]


def test_max_completion_tokens_is_sent_if_required() -> None:
    refusal = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."

    def script(number: int, body: dict[str, Any]) -> Act | None:
        return error(400, refusal) if "max_tokens" in body else None

    with fake_server(script) as server:
        answers(engine(server), prompts(2))
    assert [body.get("max_completion_tokens") for body in bodies(server)] == [None, 16, 16]


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize(
    ("system", "sent"), [(DEFAULT_SYSTEM, "question number 0"), ("Be a doctor.", "Be a doctor. question number 0")]
)
def test_a_template_without_a_system_role(status: int, system: str, sent: str) -> None:
    def script(number: int, body: dict[str, Any]) -> Act | None:
        return error(status, "System role not supported") if body["messages"][0]["role"] == "system" else None

    with fake_server(script) as server:
        answers(engine(server, system=system), prompts(1))
    assert bodies(server)[-1]["messages"] == [{"role": "user", "content": sent}]
    assert not server.clock.slept


def test_a_template_that_fails_on_a_system_message_is_detected() -> None:
    def script(number: int, body: dict[str, Any]) -> Act | None:
        return raw(b"Internal Server Error", 500) if body["messages"][0]["role"] == "system" else None

    with fake_server(script) as server:
        made = answers(engine(server, system="Be a doctor."), prompts(3))
    assert {c.text for c in made.values()} == {f"BE A DOCTOR. QUESTION NUMBER {i}" for i in range(3)}
    assert len(server.seen) == 3 + 3
    assert not server.clock.slept


def test_a_transient_error_keeps_the_system_message() -> None:
    for script in ([error(500)], [error(500)] * 3, [error(500), None, None], [error(500), None, error(429)]):
        with fake_server(script) as server:
            answers(engine(server), prompts(2))
        assert bodies(server)[-1]["messages"][0] == {"role": "system", "content": DEFAULT_SYSTEM}
    with fake_server([error(500), None, None, error(500)]) as server:
        answers(engine(server), prompts(1))
    assert len(server.seen) == 5  # found out once that the template is not to blame


# What can go wrong


def test_busy_servers_are_retried_after_retry_after() -> None:
    with fake_server([error(429, headers={"Retry-After": "17"}), error(503, headers={"Retry-After": "3"})]) as server:
        assert len(answers(engine(server), prompts(1))) == 1
    assert server.times[1] - server.times[0] >= 17
    assert server.times[2] - server.times[1] >= 3


def test_retry_after_pauses_all_requests() -> None:
    class Impatient(FakeClock):
        """Whoever was told to wait does not; all others do."""

        def sleep(self, seconds: float, stop: threading.Event) -> None:
            if self.slept:
                super().sleep(seconds, stop)
            else:
                self.slept.append(seconds)

    clock, stop = Impatient(), threading.Event()
    retrier = Retrier(RequestLimits(), clock)
    busy = iter([TransientError("busy", retry_after=60.0)])

    def request() -> float:
        for trouble in busy:
            raise trouble
        return clock.now()

    assert retrier.call(request, stop) == 60.0
    retrier.rate.acquire(stop)
    assert clock.now() == 60.0


def test_a_retry_after_longer_than_the_patience_is_an_error() -> None:
    with (
        fake_server([error(429, "quota of today", {"Retry-After": "86400"})]) as server,
        fails(ModelError, "model.server_unavailable", r"429 \(quota of today\) at set\.jsonl:1"),
    ):
        answers(engine(server), prompts(1))
    assert server.clock.time < 600


@pytest.mark.parametrize(
    "act",
    [
        error(500),
        error(408),
        error(409),
        truncated,
        raw(b"<html>"),
        raw(b"[1, 2]"),
        raw(b'{"choices": []}'),
        raw(b'{"choices": [{"message": {"content": 7}}]}'),
    ],
    ids=["500", "408", "409", "truncated", "html", "list", "none", "number"],
)
def test_failures_are_retried_with_growing_waits_and_then_reported(act: Act) -> None:
    with fake_server([act, act, act]) as server:
        assert answers(engine(server, retries=3, system=None), prompts(1))["p0"].text == "QUESTION NUMBER 0"
        waits = server.clock.slept
    assert len(waits) == 3
    assert all(0.25 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits))
    with fake_server([act, act, act]) as server, fails(ModelError, "model.server_unavailable", r"at set\.jsonl:1"):
        answers(engine(server, retries=2, system=None), prompts(1))
    assert len(server.seen) == 3


def test_a_slow_response_times_out_and_is_retried() -> None:
    with fake_server([slow(1.0)]) as server:
        assert len(answers(engine(server, timeout=0.2), prompts(1))) == 1
        assert len(server.seen) == 2
    with fake_server([slow(1.0)]) as server, fails(ModelError, "model.server_unavailable", r"within 0\.2 s"):
        answers(engine(server, timeout=0.2, retries=0), prompts(1))


def test_a_server_that_went_down_is_waited_for_up_to_the_patience() -> None:
    with fake_server(lambda number, body: hung_up if 1 <= number <= 40 else None) as server:
        assert len(answers(engine(server, retries=2), prompts(2))) == 2
    assert 40 < server.clock.time < 600
    with (
        fake_server(lambda number, body: hung_up if number else None) as server,
        fails(ModelError, "model.server_unavailable", "to resume"),
    ):
        answers(engine(server, patience=100), prompts(2))
    assert 100 <= server.clock.time < 110


def test_a_server_that_never_responded_is_given_up_soon() -> None:
    with fake_server() as server:
        gone = server.url
    clock = server.clock
    with fails(ModelError, "model.server_unavailable", "is it running"):
        _ = OpenAIEngine(gone, "m", limits=RequestLimits(retries=2), clock=clock).about
    assert len(clock.slept) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_bad_key_is_one_line_that_names_the_variable_and_shows_no_key(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with fake_server(lambda number, body: error(status, f"Incorrect API key provided: {KEY}")) as server:
        monkeypatch.setenv("MY_KEY", KEY)
        with fails(ModelError, "model.key_rejected", rf"\({status}\).* MY_KEY") as bad:
            answers(engine(server, key_env="MY_KEY"), prompts(2))
        monkeypatch.delenv("MY_KEY")
        with fails(ModelError, "model.key_missing", rf"\({status}\).* MY_KEY"):
            answers(engine(server, key_env="MY_KEY"), prompts(1))
    assert server.seen[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in server.seen[-1]["headers"]
    assert KEY not in str(bad.value) + caplog.text


def test_the_key_is_in_no_record_and_no_other_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_server() as server:
        complete_to_file(engine(server), prompts(2), GREEDY, tmp_path / "out.jsonl")
        assert KEY not in (tmp_path / "out.jsonl").read_text()
        assert KEY not in repr(vars(engine(server)))
    with fake_server([error(400, f"strange header {KEY}")]) as server, pytest.raises(DataError) as bad:
        answers(engine(server), prompts(1))
    assert KEY not in str(bad.value)
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\u00e9")
    with fake_server() as server, fails(ModelError, "model.key_malformed", "^OPENAI_API_KEY") as bad_key:
        answers(engine(server), prompts(1))
    assert KEY not in str(bad_key.value)


def test_a_redirect_is_not_followed_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_server() as other, fake_server([raw(b"", 302, {"Location": other.url})]) as server:
        with fails(ModelError, "model.server_redirects", "302"):
            answers(engine(server), prompts(1))
        assert not other.seen


def test_an_exhausted_quota_is_not_retried() -> None:
    act = error(429, "You exceeded your current quota", code="insufficient_quota")
    with fake_server([act]) as server, fails(ModelError, "model.quota_exhausted"):
        answers(engine(server), prompts(1))
    assert len(server.seen) == 1


def test_an_unknown_model_and_a_wrong_path() -> None:
    act = error(404, "The model `m` does not exist.")
    with (
        fake_server([act], models=[{"id": "other"}]) as server,
        fails(ModelError, "model.not_on_server", "'m'.* it has: other"),
    ):
        answers(engine(server), prompts(1))
    with fake_server([act]) as server, fails(ModelError, "model.server_path", "chat/completions: 404 "):
        answers(engine(server), prompts(1))


@pytest.mark.parametrize(
    "act",
    [
        error(400, "This model's maximum context length is 256 tokens. However, you requested max_tokens 512"),
        error(400, "'max_tokens' or 'max_completion_tokens' is too large. maximum context length is 256 tokens"),
        error(400, "the request exceeds the available context size", type="exceed_context_size_error"),
        error(400, "The input (300 tokens) is longer than the model's context length (256 tokens)."),
        error(400, "too many tokens", code="context_length_exceeded"),
        error(413, "Payload Too Large"),
    ],
)
def test_a_prompt_over_the_context_is_named(act: Act) -> None:
    with (
        fake_server(lambda number, body: act if "number 1" in str(body) else None) as server,
        fails(DataError, "data.context_exceeded", r"^set\.jsonl:2: "),
    ):
        answers(engine(server), prompts(3))
    assert len(server.seen) == 2


def test_any_other_rejection_names_the_prompt_and_does_not_repeat_it() -> None:
    with (
        fake_server([error(400, "cannot read: question number 0")]) as server,
        fails(DataError, "data.request_rejected", r"^set\.jsonl:1: .*\(400: cannot read: …\)"),
    ):
        answers(engine(server), prompts(1))


def test_a_failure_loses_no_finished_response_and_none_in_progress(tmp_path: Path) -> None:
    began = threading.Event()

    def late(handler: Any, body: Any) -> None:
        began.set()
        slow(0.3)(handler, body)

    def broken(handler: Any, body: Any) -> None:
        assert began.wait(5)
        error(400, "cannot")(handler, body)

    script = [answer(), answer(), late, broken]
    path = tmp_path / "out.jsonl"
    with fake_server(script) as server:
        with fails(DataError, "data.request_rejected"):
            complete_to_file(engine(server, concurrency=2), prompts(8), GREEDY, path)
        kept = [json.loads(line)["prompt_id"] for line in (tmp_path / "out.jsonl.part").read_text().splitlines()[1:]]
        assert len(kept) == len(server.seen) - 1 >= 3
        made = complete_to_file(engine(server, concurrency=2), prompts(8), GREEDY, path)
    assert [c.prompt_id for c in made] == [f"p{i}" for i in range(8)]
    times = Counter(body["messages"][-1]["content"] for body in bodies(server))
    assert sorted(times.values()) == [1] * 7 + [2]  # only the one that failed was asked twice


def test_closing_the_stream_early_stops_requests() -> None:
    with fake_server() as server:
        stream = engine(server).complete(prompts(200), GREEDY)
        next(stream)
        stream.close()
        seen = len(server.seen)
        assert seen < 200
        for thread in threading.enumerate():
            if thread.name == WORKER:
                thread.join(5)
        assert len(server.seen) <= seen + 1


def test_the_rate_limit_spaces_requests_evenly() -> None:
    with fake_server([error(500)]) as server:
        answers(engine(server, system=None, requests_per_minute=30), prompts(5))
    assert len(server.times) == 6
    assert all(after - before >= 2 for before, after in itertools.pairwise(server.times))


def test_the_rate_limit_holds_whatever_the_concurrency() -> None:
    with fake_server([error(500)]) as server:
        answers(engine(server, system=None, requests_per_minute=30, concurrency=4), prompts(10))
    assert len(server.times) == 11
    assert server.clock.time >= 10 * 2


@pytest.mark.parametrize(
    "url", ["http://user:word@host/v1", "http://host/v1?api-key=word", "http://word@host", "http://host/#word"]
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_shown(url: str) -> None:
    with fails(RecipeError, "recipe.url_with_secret") as bad:
        OpenAIEngine(url, "m")
    assert "word" not in str(bad.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1"]
)
def test_an_invalid_base_url_is_refused(url: str) -> None:
    with fails(RecipeError, "recipe.not_a_url"):
        OpenAIEngine(url, "m")


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        (" http://host:8000/v1/ ", "http://host:8000/v1"),
        ("https://host/api/v2", "https://host/api/v2"),
    ],
)
def test_an_address_without_a_path_gets_the_usual_one(url: str, base: str) -> None:
    assert OpenAIEngine(url, "m").servers.base == base


# The parts


def test_waits_double_up_to_a_limit() -> None:
    with fake_server() as server:
        clock = server.clock
    with fails(ModelError, "model.server_unavailable"):
        _ = OpenAIEngine(server.url, "m", limits=RequestLimits(retries=12), clock=clock).about
    assert all(0.25 * 2**i <= wait <= 0.25 * 2**i + 0.25 for i, wait in enumerate(clock.slept[:7]))
    assert clock.slept[7:] == [30.0] * 5


def test_a_server_without_tls_is_not_retried_over_https() -> None:
    with fake_server() as server, fails(ModelError, "model.server_tls"):
        _ = OpenAIEngine(server.url.replace("http:", "https:"), "m", clock=server.clock).about
    assert not server.clock.slept


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("nan", None)]
)
def test_retry_after_in_seconds(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert (retry_after("Fri, 01 Jan 2100 00:00:00 GMT") or 0) > 1e8


def test_waiting_work_is_cancelled_and_the_failure_is_raised() -> None:
    def work(item: int, stop: threading.Event) -> int:
        if item == 1:
            raise ValueError("broken")
        Clock().sleep(600, stop)
        return item

    with pytest.raises(ValueError, match="broken"):
        list(in_parallel(work, [0, 1, 2], 2))


def test_the_rate_limit_stops_waiting_when_work_is_cancelled() -> None:
    limit, stop = RateLimit(1, Clock()), threading.Event()
    limit.acquire(stop)
    stop.set()
    with pytest.raises(StoppedError):
        limit.acquire(stop)


def test_the_cost_is_an_upper_bound_at_four_characters_per_token() -> None:
    what = [
        Prompt(id="a", messages=(Message("user", "x" * 401),)),
        Prompt(id="b", messages=(Message("user", "unused"),), rendered="y" * 40),
    ]
    settings = SamplingParams(max_tokens=100, temperature=1.0, n=5)
    cost = estimate(what, settings, 2.0, 10.0, system="z" * 3)
    assert (cost.requests, cost.tokens_in, cost.tokens_out_most) == (10, (101 + 10) * 5, 1000)
    assert cost.dollars == pytest.approx(555 * 2e-6 + 1000 * 1e-5)


# Answers that the prompt begins


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
def test_a_server_that_can_continues_as_many_tokens_as_the_prompt_says(owner: str, tiny_model_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    prefilled = [
        Prompt(id="p", messages=(Message("user", "Hi"),), prefill="Sure, here is all of it.", prefill_tokens=3)
    ]
    with fake_server(lambda n, body: answer(" it goes on"), models=[{"id": "m", "owned_by": owner}]) as server:
        made = answers(engine(server, tokenizer=tokenizer), prefilled)["p"]
        cut = tokenizer.decode(tokenizer("Sure, here is all of it.", add_special_tokens=False)["input_ids"][:3])
        assert bodies(server)[0]["messages"][-1] == {"role": "assistant", "content": cut}
        assert made.answer == f"{cut} it goes on"
        with fails(ModelError, "model.prefill_without_tokenizer"):
            answers(engine(server), prefilled)


def test_a_server_that_may_ignore_a_prefill_is_refused() -> None:
    prefilled = [Prompt(id="p", messages=(Message("user", "Hi"),), prefill="Sure")]
    with (
        fake_server(lambda n, body: answer("Hello"), models=[{"id": "m", "owned_by": "llamacpp"}]) as server,
        fails(ModelError, "model.prefill_unsupported", "llamacpp"),
    ):
        answers(engine(server), prefilled)
