"""How a prompt is put to an OpenAI-compatible server, and how its answer is read: pure, and forgiving of dialects.

OpenAI's own fields know neither a repetition penalty nor top-k; servers add them under their own names, refuse what
they do not know, or drop it unseen:

- vLLM and SGLang: `repetition_penalty`, `top_k`, `min_p`. Sent even where they change nothing, since vLLM otherwise
  takes them from the checkpoint's own generation config.
- llama.cpp: `repeat_penalty`, over the last `repeat_last_n` tokens; −1 is all of them.
- `transformers serve`: refuses unknown fields, but takes a whole generation config as JSON.
- Anything else is asked as vLLM is. What it refuses by name is left out where it would change nothing.

Templates are told the same as in this process (`chat.PINNED`), by `chat_template_kwargs`, which all of these know.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from mooring.chat import PINNED, fold_system, with_system
from mooring.generate.engine import Settings
from mooring.generate.retry import Passing
from mooring.records import Completion, Prompt, sample_key

BOS = ("<|begin_of_text|>", "<s>", "<bos>")
"""What begins a text in the models that have such a token. Servers add it to the text of a completion themselves."""
CONTEXT = re.compile(
    r"context[ _](length|size|window)|maximum (model|context) length|exceed_context_size|max_model_len"
    r"|(prompt|input|request) is too (long|large)|longer than the model",
    re.IGNORECASE,
)
"""How servers say that a prompt does not fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """What a server is known to understand.

    Attributes:
        penalty: The field for the repetition penalty.
        limit: The field for the most new tokens.
        config: Whether sampling goes into one `generation_config`, as `transformers serve` has it.
        system: Whether the chat template has a system role.
        left_out: Fields that the server does not know and that would change nothing.
    """

    penalty: Literal["repetition_penalty", "repeat_penalty"] = "repetition_penalty"
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    config: bool = False
    system: bool = True
    left_out: frozenset[str] = frozenset()


def answer_seed(seed: int, key: str) -> int:
    """The seed of one answer's sampling, of 31 bits: a function of the seed and the answer's key (`sample_key`)."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:4], "big") >> 1


def request(
    prompt: Prompt, sample: int, settings: Settings, *, model: str, system: str | None, dialect: Dialect
) -> tuple[str, dict[str, Any]]:
    """What to send for one answer.

    Returns:
        The path under the server's base, and the JSON body: a chat, or a plain completion where `prompt.rendered`
        says the whole text.
    """
    body: dict[str, Any] = {"model": model}
    if prompt.rendered is not None:
        path = "completions"
        body["prompt"] = without_bos(prompt.rendered)
    else:
        path = "chat/completions"
        messages = list(with_system(prompt, system))
        if messages[0].role == "system" and not dialect.system:
            messages = fold_system(messages)
        body["messages"] = [{"role": m.role, "content": m.content} for m in messages]
        if "chat_template_kwargs" not in dialect.left_out:
            body["chat_template_kwargs"] = dict(PINNED)
    limit = dialect.limit if path == "chat/completions" else "max_tokens"
    body |= {limit: settings.max_new_tokens, "temperature": settings.temperature}
    if settings.temperature:
        body |= {"top_p": settings.top_p, "seed": answer_seed(settings.seed, sample_key(prompt.id, sample))}
    return path, body | sampling(settings, dialect)


def sampling(settings: Settings, dialect: Dialect) -> dict[str, Any]:
    """The fields that OpenAI's API does not have."""
    if dialect.config:
        config: dict[str, Any] = {"do_sample": settings.temperature > 0}
        config["repetition_penalty"] = settings.repetition_penalty
        if settings.temperature:
            config |= {"top_k": settings.top_k, "min_p": 0.0}
        return {"generation_config": json.dumps(config)}
    fields: dict[str, Any] = {dialect.penalty: settings.repetition_penalty}
    if dialect.penalty == "repeat_penalty":
        fields["repeat_last_n"] = -1
    if settings.temperature:
        fields |= {"top_k": settings.top_k or -1, "min_p": 0.0}
    return {name: value for name, value in fields.items() if name not in dialect.left_out}


NEUTRAL: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": -1,
    "top_k": -1,
    "min_p": 0.0,
    "chat_template_kwargs": PINNED,
}
"""Fields outside OpenAI's API, with the values that a server which does not know them can do without."""


def without_bos(text: str) -> str:
    """A text without the tokens that begin it: the server adds one itself, and two would be one too many."""
    while found := next((bos for bos in BOS if text.startswith(bos)), ""):
        text = text.removeprefix(found)
    return text


def adapted(dialect: Dialect, refusal: str, body: Mapping[str, Any]) -> Dialect | None:
    """The dialect to try next, after the server refused a body; `None` where no other would help.

    Args:
        dialect: The one that the body was written in.
        refusal: What the server says.
        body: What was sent.
    """
    if CONTEXT.search(refusal):
        return None
    if "Unexpected fields in the request" in refusal and not dialect.config:
        return dataclasses.replace(dialect, config=True)
    if "max_completion_tokens" in refusal and "max_tokens" in body and "messages" in body:
        return dataclasses.replace(dialect, limit="max_completion_tokens")
    if re.search(r"system role", refusal, re.IGNORECASE) and dialect.system and "messages" in body:
        return dataclasses.replace(dialect, system=False)
    named = refused_fields(refusal, body)
    if named and all(body[name] == NEUTRAL[name] for name in named):
        return dataclasses.replace(dialect, left_out=dialect.left_out | named)
    return None


def refused_fields(refusal: str, body: Mapping[str, Any]) -> frozenset[str]:
    """Those of the fields outside OpenAI's API that a refusal names."""
    return frozenset(name for name in NEUTRAL if name in body and re.search(rf"\b{name}\b", refusal))


def read_answer(data: Any, prompt_id: str, sample: int) -> Completion:
    """A completion from a server's JSON. Anything but `length` that ended it counts as a stop, with what text came.

    Tokens that the server does not count are 0.

    Raises:
        Passing: It is not the JSON of an answer.
    """
    try:
        choice = data["choices"][0]
        message = choice.get("message", choice)
        text = choice["text"] if message is choice else message.get("content")
        # OpenAI's models put a refusal into a field of its own.
        text = text or message.get("refusal") or ""
        tokens = (data.get("usage") or {}).get("completion_tokens") or 0
        if not isinstance(text, str) or not isinstance(tokens, int):
            raise TypeError
        finish: Literal["stop", "length"] = "length" if choice.get("finish_reason") == "length" else "stop"
    except (LookupError, TypeError, AttributeError):
        raise Passing("answers in a form that is not OpenAI's") from None
    return Completion(prompt_id=prompt_id, text=text, tokens=tokens, finish=finish, sample=sample)
