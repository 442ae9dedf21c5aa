"""From prompts to token rows that fit the context, and back to completions: shared by all engines that take tokens."""

import hashlib
import itertools
from collections.abc import Collection, Sequence
from typing import Any

from mooring.chat import encode_example, encode_prompt
from mooring.errors import DataError
from mooring.inference.engine import check_prompts
from mooring.records import Completion, Message, Prompt
from mooring.thinking import Thinking, is_open, split_thoughts


def encode_prompts(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    system: str | None,
    max_tokens: int,
    context: int | None,
    thinking: Thinking | None = None,
) -> list[list[int]]:
    """Tokenize prompts.

    Raises DataError if one does not fit a `context` of so many tokens, with `max_tokens` of response; None is no limit.
    """
    check_prompts(prompts)
    rows = [encode_prompt(tokenizer, prompt, system, thinking) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        _check_fit(prompt, len(row), max_tokens, context, "lower generate.max_tokens")
    return rows


def encode_examples(
    tokenizer: Any,
    examples: Sequence[Prompt],
    system: str | None,
    context: int | None,
    reserve: int = 0,
    thinking: Thinking | None = None,
) -> list[tuple[list[int], int]]:
    """Tokenize prompts with their references: for each, its tokens and how many of them belong to the prompt.

    Raises DataError if a reference is missing, or an example and `reserve` generated tokens do not fit the context.
    """
    check_prompts(examples)
    rows = []
    for example in examples:
        if example.reference is None:
            hint = "the response loss needs one for each prompt"
            raise DataError(f"{name_of(example)}: has no reference", hint, code="data.no_reference")
        row, start = encode_example(tokenizer, example, system, thinking)
        _check_fit(example, len(row), reserve, context, "leave it out")
        rows.append((row, start))
    return rows


def decode_completion(
    tokenizer: Any,
    tokens: list[int],
    stops: Collection[int],
    prompt_id: str,
    sample: int = 0,
    prompt: Sequence[int] = (),
    prefill: int = 0,
) -> Completion:
    """A completion from the tokens of a response; it is finished by `stop` if the last one is a stop token.

    Args:
        tokenizer: The model's tokenizer.
        tokens: The tokens of the response.
        stops: Tokens that end a response.
        prompt_id: The prompt's id.
        sample: Which of several answers to the same prompt.
        prompt: The tokens of the prompt, which may open a block of thoughts at its end.
        prefill: How many tokens at the end of the prompt are the beginning of the answer.
    """
    stopped = bool(tokens) and tokens[-1] in stops
    body = tokens[:-1] if stopped else tokens
    thoughts, text = decode_parts(tokenizer, body, prompt)
    prefix = ""
    if prefill:
        first = list(prompt[-prefill:])
        prefix = tokenizer.decode(first, skip_special_tokens=True)
        whole = tokenizer.decode([*first, *body], skip_special_tokens=True)
        if thoughts is None and whole.startswith(prefix):  # decoded alone, the text may lose a blank at its beginning
            text = whole[len(prefix) :]
    finish: Any = "stop" if stopped else "length"
    return Completion(
        prompt_id=prompt_id,
        text=text,
        tokens=len(tokens),
        finish=finish,
        sample=sample,
        thoughts=thoughts,
        prefill=prefix,
    )


def decode_parts(tokenizer: Any, tokens: Sequence[int], prompt: Sequence[int] = ()) -> tuple[str | None, str]:
    """The thoughts and the answer in the tokens of a response, without special tokens.

    The marks of thoughts are special tokens of some vocabularies (gpt-oss, Magistral, Gemma 4), so they are looked for
    before these are removed.
    """
    marked = tokenizer.decode(tokens, skip_special_tokens=False)
    parts = split_thoughts(marked, opened=opens_block(tokenizer, prompt))
    if parts.thoughts is None and parts.answer == marked:
        return None, tokenizer.decode(tokens, skip_special_tokens=True)
    special = sorted(map(str, tokenizer.all_special_tokens), key=len, reverse=True)

    def plain(text: str) -> str:
        for token in special:
            text = text.replace(token, "")
        return text.strip()

    return None if parts.thoughts is None else plain(parts.thoughts), plain(parts.answer)


def opens_block(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether the tokens of a prompt end with the beginning of a block of thoughts."""
    return is_open(tokenizer.decode(list(prompt[-16:]), skip_special_tokens=False)) if prompt else False


def stop_tokens(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a response: those of the generation config, of the tokenizer, and the template's end of turn."""
    stops: set[int] = set()
    for value in (generation_config.eos_token_id, tokenizer.eos_token_id):
        stops.update([value] if isinstance(value, int) else value or [])
    if tokenizer.chat_template:
        example = Prompt(id="", messages=(Message("user", "a"),), reference="a")
        row, start = encode_example(tokenizer, example, system=None)
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        stops.update(itertools.takewhile(special.__contains__, reversed(row[start:])))
    return frozenset(stops)


def response_seed(seed: int, key: str) -> int:
    """The 31-bit seed of one response's sampling: a function of the seed and the response's key (`sample_key`)."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:4], "big") >> 1


def name_of(prompt: Prompt) -> str:
    """How error messages refer to a prompt."""
    return prompt.origin or f"prompt {prompt.id}"


def _check_fit(prompt: Prompt, tokens: int, new: int, context: int | None, hint: str) -> None:
    if context and tokens + new > context:
        size = f"{tokens} tokens" + (f" and {new} new ones" if new else "")
        what = f"{name_of(prompt)}: {size} do not fit the model's context of {context}"
        raise DataError(what, f"shorten it, or {hint}", code="data.context_exceeded")
