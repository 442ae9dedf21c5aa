"""Prompts and examples as rows of tokens that fit a model's context: the same for every engine that takes tokens."""

from collections.abc import Sequence
from typing import Any

from mooring.chat import encode_example, encode_prompt
from mooring.errors import DataError
from mooring.inference.engine import check_prompts
from mooring.records import Prompt


def prompt_rows(
    tokenizer: Any, prompts: Sequence[Prompt], system: str | None, new: int, context: int | None
) -> list[list[int]]:
    """The tokens of each prompt.

    Args:
        tokenizer: A transformers tokenizer.
        prompts: What is asked.
        system: System prompt for prompts that bring none.
        new: Most tokens of a response.
        context: Most tokens of prompt and response together; `None` where the model names no limit.

    Raises:
        DataError: There are no prompts, an id occurs twice, or one does not fit.
    """
    check_prompts(prompts)
    rows = [encode_prompt(tokenizer, prompt, system) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        _fits(prompt, len(row), new, context, "lower generate.max_tokens")
    return rows


def example_rows(
    tokenizer: Any, examples: Sequence[Prompt], system: str | None, context: int | None, spare: int = 0
) -> list[tuple[list[int], int]]:
    """The tokens of each prompt with its reference, and how many of them are the prompt's.

    Args:
        tokenizer: As in `prompt_rows`, and so with the arguments that are not named here.
        examples: Prompts with references.
        system: As there.
        context: As there.
        spare: Tokens that the engine writes besides.

    Raises:
        DataError: As there, or a prompt has no reference.
    """
    check_prompts(examples)
    rows = []
    for example in examples:
        if example.reference is None:
            raise DataError(f"{name(example)}: has no reference", "the response loss needs one for each prompt")
        row, start = encode_example(tokenizer, example, system)
        _fits(example, len(row), spare, context, "leave it out")
        rows.append((row, start))
    return rows


def name(prompt: Prompt) -> str:
    """What an error message calls a prompt."""
    return prompt.origin or f"prompt {prompt.id}"


def _fits(prompt: Prompt, tokens: int, new: int, context: int | None, hint: str) -> None:
    if context and tokens + new > context:
        asked = f"{tokens} tokens" + (f" and {new} new ones" if new else "")
        raise DataError(
            f"{name(prompt)}: {asked} do not fit the model's context of {context}", f"shorten it, or {hint}"
        )
