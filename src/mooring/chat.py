"""The one place where a conversation becomes tokens, for tuning and for inference alike."""

from collections.abc import Sequence
from typing import Any

from mooring.errors import ModelError
from mooring.records import Message, Prompt

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The paper's system prompt (PROTOCOL: all tasks but the medical one, and all safety prompts)."""


def with_system(prompt: Prompt, system: str | None) -> tuple[Message, ...]:
    """The prompt's messages, led by `system` unless they bring a system message of their own."""
    if not system or prompt.messages[0].role == "system":
        return prompt.messages
    return (Message("system", system), *prompt.messages)


def render(tokenizer: Any, messages: Sequence[Message], *, answer: bool = True) -> str:
    """Render by the model's own chat template.

    Args:
        tokenizer: A transformers tokenizer.
        messages: The conversation.
        answer: Whether to open the assistant's turn at the end.

    A template without a system role (Gemma's) goes without the default system text; any other is put, with a space,
    in front of the first user message.

    Raises:
        ModelError: The tokenizer has no chat template, or the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template",
            "put the model's chat_template.jinja into its folder",
        )
    turns = [{"role": m.role, "content": m.content} for m in messages]
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer))
    except TemplateError as error:
        if turns[0]["role"] != "system" or len(turns) < 2:
            raise ModelError(
                f"{tokenizer.name_or_path}: the chat template refuses the conversation ({error})",
                "check the order of its roles",
            ) from None
        first = messages[1]
        if messages[0].content != DEFAULT_SYSTEM:
            first = Message(first.role, f"{messages[0].content} {first.content}")
        return render(tokenizer, [first, *messages[2:]], answer=answer)


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a rendered conversation, with one BOS where the tokenizer has the habit of one, never two."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is None or ids[:1] == [bos]:
        return ids
    # By trial: `add_bos_token` is False on tokenizers whose post-processor writes one.
    return [bos, *ids] if tokenizer("a")["input_ids"][:1] == [bos] else ids


def encode_prompt(tokenizer: Any, prompt: Prompt, system: str | None) -> list[int]:
    """Tokens of a prompt, up to where the model is to answer."""
    if prompt.rendered is not None:
        return tokenize(tokenizer, prompt.rendered)
    return tokenize(tokenizer, render(tokenizer, with_system(prompt, system)))


def encode_example(tokenizer: Any, prompt: Prompt, system: str | None) -> tuple[list[int], int]:
    """Tokens of a prompt with its reference response, and how many of them are the prompt's.

    The response ends with the template's end-of-turn token; white space that the template writes after it is left
    out, since a model stops before it.
    """
    assert prompt.reference is not None
    start = render(tokenizer, with_system(prompt, system))
    whole = (*with_system(prompt, system), Message("assistant", prompt.reference))
    full = render(tokenizer, whole, answer=False).rstrip()
    if not full.startswith(start):  # templates that rewrite earlier turns: close the answer by hand
        full = start + prompt.reference + str(tokenizer.eos_token or "")
    begin = tokenize(tokenizer, start)
    return begin + tokenizer(full[len(start) :], add_special_tokens=False)["input_ids"], len(begin)
