"""Conversations to tokens, for tuning and inference."""

from collections.abc import Sequence
from typing import Any

from mooring.errors import ModelError
from mooring.records import Message, Prompt

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The paper's system prompt, for all prompts except those of its medical task."""
PINNED = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Arguments of all templates besides the conversation. Models are measured without thinking (Qwen3); the date is the
default of Llama 3.1's template, so that a prompt is the same on any day."""
PROBE = "\u2042mooring\u2042"
"""A text that occurs in no template."""


def with_system(prompt: Prompt, system: str | None) -> tuple[Message, ...]:
    """The prompt's messages, with `system` first unless they begin with a system message."""
    if not system or prompt.messages[0].role == "system":
        return prompt.messages
    return (Message("system", system), *prompt.messages)


def render(tokenizer: Any, messages: Sequence[Message], *, answer: bool = True) -> str:
    """Render by the model's own chat template.

    For a template without a system role (Gemma's raises, the first Phi-3's omits the text), the default system text is
    omitted, and any other is put, with a space, before the first user message.

    Args:
        tokenizer: A transformers tokenizer.
        messages: The conversation.
        answer: Whether to begin the assistant's turn at the end.

    Raises:
        ModelError: The tokenizer has no chat template, or the template refuses the conversation.
    """
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        hint = "put the model's chat_template.jinja into its folder"
        raise ModelError(f"{name}: the tokenizer has no chat template", hint, code="model.no_chat_template")
    if messages[0].role == "system" and not has_system_role(tokenizer):
        messages = fold_system(messages)
    try:
        return _apply(tokenizer, messages, answer)
    except _refusals() as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        problem = f"{name}: the chat template refuses the conversation ({reason})"
        raise ModelError(problem, "check the order of its roles", code="model.conversation_refused") from None


def has_system_role(tokenizer: Any) -> bool:
    """Whether the chat template renders a system message; found by trial."""
    try:
        return PROBE in _apply(tokenizer, [Message("system", PROBE), Message("user", "a")], True)
    except _refusals():
        return False


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """A conversation without its system message; text other than the default moves to the first user turn."""
    system, turns = messages[0].content.removeprefix(f"{DEFAULT_SYSTEM}\n"), list(messages[1:])
    first = next((i for i, message in enumerate(turns) if message.role == "user"), None)
    if first is None:
        return list(messages)
    if system.strip() not in ("", DEFAULT_SYSTEM):
        turns[first] = Message("user", f"{system} {turns[first].content}")
    return turns


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a rendered conversation, with exactly one BOS if the tokenizer adds one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    while ids[:2] == [bos, bos]:  # a template or a rendered text that contains it, too
        ids = ids[1:]
    if ids[:1] == [bos]:
        return ids
    # By trial: `add_bos_token` is False on tokenizers that add it in a post-processor.
    return [bos, *ids] if tokenizer("a")["input_ids"][:1] == [bos] else ids


def encode_prompt(tokenizer: Any, prompt: Prompt, system: str | None) -> list[int]:
    """Tokens of a prompt, up to the beginning of the answer."""
    if prompt.rendered is not None:
        return tokenize(tokenizer, prompt.rendered)
    return tokenize(tokenizer, render(tokenizer, with_system(prompt, system)))


def encode_example(tokenizer: Any, prompt: Prompt, system: str | None) -> tuple[list[int], int]:
    """Tokens of a prompt with its reference response, and how many of them are the prompt's.

    The response ends with the template's end-of-turn token, or with EOS if it has none; text of the template after that
    is omitted, since a model stops before it.
    """
    assert prompt.reference is not None
    start = render(tokenizer, with_system(prompt, system))
    whole = (*with_system(prompt, system), Message("assistant", prompt.reference))
    full, tail = render(tokenizer, whole, answer=False), turn_tail(tokenizer)
    if tail is not None and full.startswith(start) and full.endswith(tail):
        response = full[len(start) : len(full) - len(tail)] + end_of_turn(tokenizer, tail)
    else:  # templates that rewrite earlier turns or answers
        response = prompt.reference + end_of_turn(tokenizer, tail or "")
    begin = tokenize(tokenizer, start)
    return begin + tokenizer(response, add_special_tokens=False)["input_ids"], len(begin)


def turn_tail(tokenizer: Any) -> str | None:
    """The text of the chat template after a last response, found by trial; None if it does not contain the response."""
    text = render(tokenizer, [Message("user", "a"), Message("assistant", PROBE)], answer=False)
    return text.rpartition(PROBE)[2] if PROBE in text else None


def end_of_turn(tokenizer: Any, tail: str) -> str:
    """A tail up to its first special token, which ends the turn; with EOS if it has none."""
    tokens = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    # The first one, and the longer of two at the same position. Some vocabularies have blanks as added tokens.
    ends = [(tail.index(token), -len(token)) for token in tokens if token.strip() and token in tail]
    if ends:
        place, size = min(ends)
        return tail[: place - size]
    return tail.rstrip() + str(tokenizer.eos_token or "")


def _apply(tokenizer: Any, messages: Sequence[Message], answer: bool) -> str:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer, **PINNED))


def _refusals() -> tuple[type[Exception], ...]:
    """Exceptions of a template that cannot render a conversation."""
    from jinja2 import TemplateError

    return (TemplateError, TypeError, ValueError)
