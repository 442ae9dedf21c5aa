"""What a few requests tell about a server: settings that it ignores, and another model's tokenizer."""

import itertools
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_server import Act, answer, error, fake_server

from mooring.errors import ModelError
from mooring.inference.openai import OpenAIEngine
from mooring.inference.probe import check_settings, check_tokenizer, ignored_settings
from mooring.inference.retry import RequestLimits
from mooring.sampling import SamplingParams

PAPER = SamplingParams(repetition_penalty=1.2)
SAMPLED = SamplingParams(temperature=0.6)
Say = Callable[[dict[str, Any]], str]
fresh = itertools.count()


def follows(body: dict[str, Any]) -> str:
    """The text of a server that does as it is told: words that depend on the settings, as many as asked for."""
    if body["temperature"]:
        words = [f"w{body['seed']}", "and"]
    else:
        words = ["yes", "yes", "yes", f"penalty-{body['repetition_penalty']}"]
    return " ".join(words[: body["max_tokens"]])


def ignoring(setting: str, value: Any) -> Say:
    return lambda body: follows({**body, setting: value()})


def found(say: Say, *used: SamplingParams) -> list[str]:
    with fake_server(lambda n, body: answer(say(body))) as server:
        return ignored_settings(engine(server), used)


def engine(server: Any) -> OpenAIEngine:
    return OpenAIEngine(server.url, "m", limits=RequestLimits(concurrency=1), clock=server.clock)


def test_a_server_that_follows_all_settings_passes() -> None:
    assert found(follows, PAPER, SAMPLED) == []


@pytest.mark.parametrize(
    ("say", "setting"),
    [
        (ignoring("max_tokens", lambda: 100), "max_tokens (asked for one token, it sent 4)"),
        (lambda body: f"{next(fresh)}", "temperature (three greedy responses to one prompt differ)"),
        (ignoring("repetition_penalty", lambda: 1.0), "repetition_penalty (a penalty of 2 changes nothing)"),
        (ignoring("seed", lambda: random.random()), "seed (two responses with one seed differ)"),
    ],
)
def test_what_is_ignored_is_named_with_what_was_seen(say: Say, setting: str) -> None:
    assert setting in found(say, PAPER, SAMPLED)


def test_settings_that_are_not_used_are_not_checked() -> None:
    assert found(ignoring("repetition_penalty", lambda: 1.0), SamplingParams()) == []
    assert found(ignoring("seed", lambda: random.random()), PAPER) == []


def test_a_response_without_repetition_tells_nothing_about_the_penalty() -> None:
    assert found(lambda body: "no repetition here"[: 3 if body["max_tokens"] == 1 else None], PAPER) == []


def test_an_ignored_setting_is_one_line() -> None:
    with (
        fake_server(lambda n, body: answer("always the same few words")) as server,
        pytest.raises(ModelError) as caught,
    ):
        check_settings(engine(server), [PAPER])
    assert caught.value.code == "model.server_ignores_setting"
    assert server.url in str(caught.value)
    assert "\n" not in str(caught.value)


def counting(count: Callable[[str], int]) -> Act:
    def act(handler: Any, body: dict[str, Any]) -> None:
        handler.reply(200, {"choices": [{"text": ""}], "usage": {"prompt_tokens": count(body["prompt"])}})

    return act


@pytest.mark.parametrize("offset", [0, 1])
def test_the_same_tokenizer_passes_with_or_without_a_bos_token(offset: int) -> None:
    with fake_server(lambda n, body: counting(lambda text: len(text) + offset)) as server:
        check_tokenizer(engine(server), len)


def test_another_tokenizer_is_another_model() -> None:
    words = counting(lambda text: len(text.split()))
    with fake_server(lambda n, body: words) as server, pytest.raises(ModelError) as caught:
        check_tokenizer(engine(server), len)
    assert caught.value.code == "model.server_other_model"


@pytest.mark.parametrize("act", [error(404), answer("no usage"), error(400)])
def test_a_server_that_does_not_count_is_not_checked(act: Act) -> None:
    with fake_server(lambda n, body: act) as server:
        check_tokenizer(engine(server), len)
