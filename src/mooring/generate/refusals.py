"""What to tell the user when a server will not answer a request."""

from collections.abc import Mapping, Sequence
from typing import Any

from mooring.errors import DataError, ModelError, UserError
from mooring.generate.dialect import CONTEXT, NEUTRAL, refused_fields
from mooring.generate.rows import name
from mooring.generate.wire import Refused, short
from mooring.records import Prompt


def explained(
    refusal: Refused, prompt: Prompt, body: Mapping[str, Any], path: str, base: str, models: Sequence[str]
) -> UserError:
    """A refusal as an error that names what is to be mended, and repeats no prompt.

    Args:
        refusal: What the server answered.
        prompt: What was asked.
        body: The request's body.
        path: The request's path.
        base: The server's address.
        models: Those that the server lists, if it does.
    """
    text = short(without_prompt(refusal.text, prompt))
    if CONTEXT.search(refusal.text) or refusal.status == 413:
        return DataError(
            f"{name(prompt)}: does not fit the model's context ({text})",
            "shorten it, or lower generate.max_new_tokens",
        )
    if refusal.status in (404, 405):
        model = body["model"]
        if models and model not in models:
            return ModelError(f"{base}: has no model {model!r}", f"it has: {', '.join(models[:8])}")
        return ModelError(
            f"{base}/{path}: {refusal.status} for the model {model!r} ({text})",
            "is the model's name right, and does the address end in /v1?",
        )
    if named := sorted(refused_fields(refusal.text, body)):
        values = ", ".join(f"{field} {body[field]}" for field in named if body[field] != NEUTRAL[field])
        return ModelError(f"{base}: refuses {values} ({text})", "set it to what changes nothing, or use vLLM")
    return DataError(f"{name(prompt)}: {base} refuses the request ({refusal.status}: {text})", "mend that")


def without_prompt(text: str, prompt: Prompt) -> str:
    """What a server says, without the prompt, which some repeat."""
    for content in (prompt.rendered, *(message.content for message in prompt.messages)):
        if content and len(content) > 8:
            text = text.replace(content, "…").replace(repr(content)[1:-1], "…")
    return text
