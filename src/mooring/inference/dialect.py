"""Request bodies for OpenAI-compatible servers, which differ in the fields that they know, and their responses."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from mooring.calls import answer_parts, as_turn
from mooring.chat import fold_system, pinned, with_system
from mooring.inference.encode import response_seed
from mooring.inference.server import TransientError
from mooring.records import Completion, Prompt, sample_key
from mooring.sampling import SamplingParams
from mooring.thinking import Thinking

PREFILLING = ("vllm", "sglang")
"""Servers, by the owner of their models, that continue an answer (`continue_final_message`); others ignore it."""
BOS = re.compile(r"^(<\|begin_of_text\|>|<s>|<bos>)+")
"""Beginning-of-sequence tokens. Servers prepend theirs to the text of a completion, so a rendered prompt has none."""
CONTEXT = re.compile(
    r"context[ _](length|size|window)|maximum (model|context) length|exceed_context_size|max_model_len"
    r"|(prompt|input|request) is too (long|large)|longer than the model",
    re.IGNORECASE,
)
"""Messages of servers about a prompt that does not fit."""
LONGEST = 1 << 17
"""llama.cpp penalizes the last 64 tokens by default. Its newer versions refuse −1, which meant all of them, and all
allocate as many entries as they are asked for."""
NEUTRAL: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "chat_template_kwargs": pinned(),
}
"""Fields outside OpenAI's API, with the values at which they can be omitted if a server does not know them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """The fields that a server is known to accept.

    Attributes:
        penalty: Name of the repetition penalty; llama.cpp has another than vLLM.
        limit: Name of the maximum number of new tokens of a chat.
        generation_config: Whether sampling fields go into one `generation_config`, as in `transformers serve`.
        system: Whether the chat template has a system role.
        omitted: Fields of `NEUTRAL` that the server does not know.
    """

    penalty: Literal["repetition_penalty", "repeat_penalty"] = "repetition_penalty"
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    generation_config: bool = False
    system: bool = True
    omitted: frozenset[str] = frozenset()


def request_body(
    prompt: Prompt,
    sample: int,
    params: SamplingParams,
    *,
    model: str,
    system: str | None,
    dialect: Dialect,
    thinking: Thinking | None = None,
) -> tuple[str, dict[str, Any]]:
    """The path under the server's base and the JSON body for one response: a chat, or a completion of rendered text.

    A prompt's whole `prefill` is the beginning of the answer, by the fields of vLLM and SGLang.
    """
    body: dict[str, Any] = {"model": model}
    if prompt.rendered is not None:
        path, limit = "completions", "max_tokens"
        body["prompt"] = BOS.sub("", prompt.rendered) + (prompt.prefill or "")
    else:
        path, limit = "chat/completions", dialect.limit
        messages = list(with_system(prompt, system))
        if messages[0].role == "system" and not dialect.system:
            messages = fold_system(messages)
        body["messages"] = [as_turn(message, arguments_as_text=True) for message in messages]
        body |= {"tools": list(prompt.tools)} if prompt.tools else {}
        if prompt.prefill:
            body["messages"].append({"role": "assistant", "content": prompt.prefill})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        if "chat_template_kwargs" not in dialect.omitted:
            body["chat_template_kwargs"] = pinned(thinking)
    body |= {limit: params.max_tokens, "temperature": params.temperature}
    if params.temperature:
        body |= {"top_p": params.top_p, "seed": response_seed(params.seed, sample_key(prompt.id, sample))}
    return path, body | _sampling_fields(params, dialect)


def _sampling_fields(params: SamplingParams, dialect: Dialect) -> dict[str, Any]:
    """The fields that OpenAI's API does not have."""
    if dialect.generation_config:
        config = {"do_sample": params.temperature > 0, "repetition_penalty": params.repetition_penalty}
        config |= {"top_k": params.top_k, "min_p": 0.0} if params.temperature else {}
        return {"generation_config": json.dumps(config)}
    fields: dict[str, Any] = {dialect.penalty: params.repetition_penalty}
    if dialect.penalty == "repeat_penalty" and params.repetition_penalty != 1:
        fields["repeat_last_n"] = LONGEST
    if params.temperature:
        fields |= {"top_k": params.top_k or -1, "min_p": 0.0}
    return {name: value for name, value in fields.items() if name not in dialect.omitted}


def adapt(dialect: Dialect, error: str, body: Mapping[str, Any]) -> Dialect | None:
    """The dialect to try after a server's error message about a body; None if no other would help."""
    if CONTEXT.search(error):
        return None
    if "Unexpected fields in the request" in error and not dialect.generation_config:
        return dataclasses.replace(dialect, generation_config=True)
    if "max_completion_tokens" in error and "max_tokens" in body and "messages" in body:
        return dataclasses.replace(dialect, limit="max_completion_tokens")
    if re.search(r"system role", error, re.IGNORECASE) and dialect.system and "messages" in body:
        return dataclasses.replace(dialect, system=False)
    rejected = rejected_fields(error, body)
    if rejected and all(body[field] == NEUTRAL[field] for field in rejected):
        return dataclasses.replace(dialect, omitted=dialect.omitted | rejected)
    return None


def rejected_fields(error: str, body: Mapping[str, Any]) -> frozenset[str]:
    """The fields of `NEUTRAL` in a body that a server's message names."""
    return frozenset(field for field in NEUTRAL if field in body and re.search(rf"\b{field}\b", error))


def parse_completion(data: Any, prompt_id: str = "", sample: int = 0) -> Completion:
    """A completion from a server's JSON; raises TransientError for any other JSON.

    Any finish reason other than `length` counts as `stop`. `tokens` is 0 if the server does not report usage. Thoughts
    that the server's parser took out of the text are in a field of their own, or in parts of the content.
    """
    try:
        choice = data["choices"][0]
        message = choice.get("message", choice)
        text, thoughts = (choice["text"], None) if message is choice else answer_parts(message)
        tokens = (data.get("usage") or {}).get("completion_tokens") or 0
        if not isinstance(text, str) or type(tokens) is not int or not 0 <= tokens < 2**31:
            raise TypeError
        finish: Literal["stop", "length"] = "length" if choice.get("finish_reason") == "length" else "stop"
    except (LookupError, TypeError, AttributeError, ValueError):
        raise TransientError("does not respond in the format of OpenAI's API") from None
    return Completion(
        prompt_id=prompt_id,
        text=text if thoughts is None else text.strip(),
        tokens=tokens,
        finish=finish,
        sample=sample,
        thoughts=thoughts and thoughts.strip(),
    )
