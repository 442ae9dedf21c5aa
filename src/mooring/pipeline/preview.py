"""What Mooring understands of a data set: shapes, counts, lengths, and one example as a model sees it."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mooring.calls import as_text
from mooring.chat import DEFAULT_SYSTEM, encode_example, encode_prompt, example_texts, render, with_system
from mooring.config import DataFields
from mooring.data import load_prompts
from mooring.errors import DataError
from mooring.export import Record
from mooring.inference.folder import open_folder
from mooring.models.resolve import resolve_model
from mooring.records import Prompt, Split


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lengths(Record):
    """Lengths of texts: the median, the 95th percentile (nearest rank) and the longest."""

    median: int
    p95: int
    longest: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataPreview(Record):
    """What was understood of a data set.

    Attributes:
        ref: The data set.
        rows: How many rows it has.
        responses: How many of them have a response to train on or to compare with.
        shapes: How many rows have these turns, such as `system user assistant`, the most frequent first.
        categories: How many rows are in each category.
        unit: What lengths count: `tokens` with a model, else `characters`.
        prompt: Lengths of the prompts; of tokens, as the chat template writes them.
        response: Lengths of the responses; `None` if there is none.
        example: The shown row as the model sees it, with its special tokens; without a model, its turns.
        origin: The shown row's place.
        notes: Fields that are not read, and what else a user should know.
    """

    ref: str
    rows: int
    responses: int
    shapes: Mapping[str, int]
    categories: Mapping[str, int]
    unit: Literal["tokens", "characters"]
    prompt: Lengths
    response: Lengths | None
    example: str
    origin: str
    notes: Sequence[str] = ()


def preview(
    ref: str,
    *,
    model: str | None,
    system: str | None = DEFAULT_SYSTEM,
    row: int,
    split: Split,
    fields: DataFields | None = None,
) -> DataPreview:
    """Look at a data set; arguments and errors as in `mooring.preview_data`."""
    notes: list[str] = []
    prompts = load_prompts(ref, split=split, on_note=notes.append, fields=fields)
    if not 1 <= row <= len(prompts):
        raise DataError(f"{ref}: has no row {row}", f"name one from 1 to {len(prompts)}", code="data.no_row")
    tokenizer = None if model is None else open_folder(resolve_model(model)).load_tokenizer()
    sizes = [_size(prompt, tokenizer, system) for prompt in prompts]
    answered = [response for _, response in sizes if response is not None]
    shown = prompts[row - 1]
    if same := len(prompts) - len({(prompt.messages, prompt.reference) for prompt in prompts}):
        notes.append(f"{same} rows are the same as an earlier one")
    return DataPreview(
        ref=ref,
        rows=len(prompts),
        responses=len(answered),
        shapes=dict(Counter(map(_shape, prompts)).most_common()),
        categories=dict(Counter(prompt.category for prompt in prompts if prompt.category).most_common()),
        unit="characters" if tokenizer is None else "tokens",
        prompt=_lengths([size for size, _ in sizes]),
        response=_lengths(answered) if answered else None,
        example=_example(shown, tokenizer, system),
        origin=shown.place,
        notes=notes,
    )


def _shape(prompt: Prompt) -> str:
    """The roles of a row's turns; several of the user and the assistant in turn are written once."""
    roles = [message.role for message in prompt.messages] + ["assistant"] * (prompt.reference is not None)
    start = roles[:1] if roles[0] == "system" else []
    turns = roles[len(start) :]
    pairs = len(turns) // 2
    if pairs > 1 and turns[: 2 * pairs] == ["user", "assistant"] * pairs:
        return " ".join([*start, f"(user assistant)×{pairs}", *turns[2 * pairs :]])
    return " ".join(roles)


def _size(prompt: Prompt, tokenizer: Any, system: str | None) -> tuple[int, int | None]:
    """The lengths of a prompt and of its response."""
    if tokenizer is None:
        given = sum(len(as_text(message)) for message in prompt.messages)
        return given, None if prompt.reference is None else len(prompt.reference)
    if prompt.reference is None:
        return len(encode_prompt(tokenizer, prompt, system)), None
    tokens, begin = encode_example(tokenizer, prompt, system)
    return begin, len(tokens) - begin


def _lengths(sizes: Sequence[int]) -> Lengths:
    ordered = sorted(sizes)
    median, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
    return Lengths(median=median, p95=p95, longest=ordered[-1])


def _example(prompt: Prompt, tokenizer: Any, system: str | None) -> str:
    if tokenizer is None:
        turns = [("tools", json.dumps(tool["function"], ensure_ascii=False)) for tool in prompt.tools]
        turns += [(message.role, as_text(message)) for message in prompt.messages]
        turns += [] if prompt.reference is None else [("assistant", prompt.reference)]
        return "\n".join(f"[{role}] {text}" for role, text in turns)
    if prompt.reference is None:
        return prompt.rendered or render(tokenizer, with_system(prompt, system), tools=prompt.tools)
    return "".join(example_texts(tokenizer, prompt, system))
