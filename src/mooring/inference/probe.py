"""Whether a server does what a request says: a few short requests before the first prompt."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from mooring.errors import ModelError
from mooring.inference.openai import OpenAIEngine, unavailable
from mooring.inference.server import Server, ServerError, TransientError
from mooring.records import Completion, Message, Prompt
from mooring.sampling import SamplingParams

STORY = "Write a short story about a lighthouse and the sea."
WORDS = "Repeat this ten times: yes yes yes yes yes yes yes yes yes yes"
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "for (int i = 0; i < 1024; ++i) { total += values[i]; }",
    "Zürich, Ærøskøbing and 東京 are three places; 12,345.67 is a number.",
)
"""Texts that tokenizers of different models split into different numbers of tokens."""
_REPEATS = 3
"""How often a word must occur in a response for a repetition penalty of 2 to change it."""


def ignored_settings(engine: OpenAIEngine, used: Collection[SamplingParams]) -> list[str]:
    """The settings of a request that a server does not follow, each with what was seen.

    It is asked for one token, for the same greedy response three times, for one with a repetition penalty of 2 and of
    1, and twice with the same seed; the last two only if a penalty or a temperature is used.

    Raises:
        ModelError: The server is unreachable, or does not know the model or a setting.
    """

    def ask(text: str, **changes: Any) -> Completion:
        prompt = Prompt(id="probe", messages=(Message("user", text),))
        ((completion,),) = engine.complete([prompt], SamplingParams(**{"max_tokens": 12, "temperature": 0.0} | changes))
        return completion

    found = []
    one = ask(STORY, max_tokens=1)
    if one.tokens > 1 or len(one.text.split()) > 2:
        found.append(f"max_tokens (asked for one token, it sent {max(one.tokens, len(one.text.split()))})")
    greedy = len({ask(STORY).text for _ in range(3)}) == 1
    if not greedy:
        found.append("temperature (three greedy responses to one prompt differ)")
    if greedy and any(params.repetition_penalty != 1 for params in used) and _ignores_penalty(ask):
        found.append("repetition_penalty (a penalty of 2 changes nothing)")
    if any(params.temperature for params in used):
        first, second = (ask(STORY, temperature=1.0, seed=7).text for _ in range(2))
        if first != second:
            found.append("seed (two responses with one seed differ)")
    return found


def differing_settings(engine: OpenAIEngine, used: Collection[SamplingParams]) -> list[str]:
    """The settings that a server follows in another way than transformers, each in a sentence.

    Raises:
        ModelError: The server is unreachable.
    """
    if engine.served[1] == "sglang" and any(params.repetition_penalty != 1 for params in used):
        return [
            f"{engine.servers.base}: SGLang's repetition penalty counts the tokens of the response alone, and that of "
            "the other engines those of the prompt too, so that its responses differ from theirs"
        ]
    return []


def _ignores_penalty(ask: Callable[..., Completion]) -> bool:
    """Whether a response that repeats itself stays the same under a high penalty; False if none repeats itself."""
    for text in (WORDS, STORY):
        plain = ask(text, max_tokens=48).text
        if max(Counter(plain.split()).values(), default=0) >= _REPEATS:
            return ask(text, max_tokens=48, repetition_penalty=2.0).text == plain
    return False


def check_settings(engine: OpenAIEngine, used: Collection[SamplingParams]) -> None:
    """Check that a server follows the settings of its requests.

    Raises:
        ModelError: It ignores one (`model.server_ignores_setting`), or as in `ignored_settings`.
    """
    if found := ignored_settings(engine, used):
        hint = "set the neutral value in the recipe, start the server without fixed settings, or use another one"
        raise ModelError(
            f"{engine.servers.base}: ignores {' and '.join(found)}", hint, code="model.server_ignores_setting"
        )


def check_tokenizer(engine: OpenAIEngine, count: Callable[[str], int]) -> None:
    """Check that a server counts as many tokens in a text as the model's tokenizer does, up to a constant (a BOS).

    A server that does not report the number of a prompt's tokens is not checked.

    Args:
        engine: The engine on the server.
        count: The number of tokens of a text.

    Raises:
        ModelError: They differ: it serves another model (`model.server_other_model`).
    """
    counted = [_prompt_tokens(engine, text) for text in TEXTS]
    if None in counted:
        return
    theirs: Sequence[int] = [number for number in counted if number is not None]
    ours = [count(text) for text in TEXTS]
    if len({a - b for a, b in zip(ours, theirs, strict=True)}) > 1:
        what = (
            f"{engine.servers.base}: splits a text into {theirs[-1]} tokens, and the base's tokenizer into {ours[-1]}"
        )
        raise ModelError(what, "serve the base that the run names", code="model.server_other_model")


def _prompt_tokens(engine: OpenAIEngine, text: str) -> int | None:
    """The number of a text's tokens according to the server; None if it does not say."""
    body = {"model": engine.served[0], "prompt": text, "max_tokens": 1}  # not within a request: it makes one

    def request(server: Server) -> Any:
        return server.request("completions", body)

    try:
        data = engine.servers.call(request, threading.Event())
        return int(data["usage"]["prompt_tokens"])
    except TransientError as error:
        if error.down:
            raise unavailable(engine.servers, error) from None
        return None
    except (ServerError, LookupError, TypeError, ValueError):
        return None
