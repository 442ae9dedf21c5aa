"""Load data sets by reference."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from mooring.config import DataFields
from mooring.data.bundled import load_bundled
from mooring.data.catalogue import NAMED
from mooring.data.hub import load_hub_rows
from mooring.data.named import load_named
from mooring.data.references import Reference, References, parse_reference, parse_references
from mooring.data.rows import Row, read_rows, to_prompts
from mooring.data.splits import draw, draw_evenly, split_prompts
from mooring.errors import DataError
from mooring.files import expanded
from mooring.records import Half, Prompt, Split

OnNote = Callable[[str], object]
"""Receives a line about the fields of a file or a set on the hub that are not read."""


def load_prompts(
    refs: References,
    *,
    split: Split = "test",
    seed: int = 42,
    on_note: OnNote | None = None,
    fields: DataFields | None = None,
) -> list[Prompt]:
    """Load prompts, with or without reference responses.

    Args:
        refs: One reference or several, joined in order: a file (`data/mine.jsonl`), a named set (`advbench`;
            `openfunctions:train` for one part of it), a bundled set (`bundled:harmful`) or a data set on the hub
            (`owner/name`, with `@config` and `:split` if needed). `#500` at the end draws 500 rows by seed, `#500/lang`
            draws them evenly over the values of that field, and `#max500` accepts a set that has fewer.
        split: Which split of a set that has its own, unless the reference names one. Other sets are loaded whole.
        seed: Seed of the draw. `bundled:tools#500` is generated, not drawn, and does not depend on it.
        on_note: Receives a line about the fields of a file or a set on the hub that are not read.
        fields: Which fields of a file or a set on the hub hold prompt, response and conversation.

    Raises:
        DataError: A set is missing, empty, malformed, or has fewer rows than requested (`data.too_few_rows`).
    """
    loaded = [_load(ref, split, seed, on_note, fields) for ref in parse_references(refs)]
    joined = [prompt for prompts in loaded for prompt in prompts]
    if max(Counter(p.id for p in joined).values(), default=0) < 2:
        return joined
    return [
        dataclasses.replace(prompt, id=f"{number}:{prompt.id}")
        for number, prompts in enumerate(loaded, 1)
        for prompt in prompts
    ]


def load_examples(
    refs: References,
    *,
    split: Split = "tune",
    seed: int = 42,
    on_note: OnNote | None = None,
    fields: DataFields | None = None,
) -> list[Prompt]:
    """Load prompts that all have a reference response; arguments as in `load_prompts`.

    Raises:
        DataError: As `load_prompts`, or one has no response (`data.no_reference`).
    """
    return _with_references(load_prompts(refs, split=split, seed=seed, on_note=on_note, fields=fields))


def load_splits(
    ref: str | Reference,
    validation_share: float = 0.5,
    seed: int = 42,
    limit: int | None = None,
    *,
    references: bool = False,
    on_note: OnNote | None = None,
    fields: DataFields | None = None,
) -> dict[Half, list[Prompt]]:
    """Load a set as two splits that share no prompt: λ is chosen on `validation` and reported on `test`.

    Args:
        ref: As in `load_prompts`. If a set has its own splits, `#N` applies to each of them; any other set, or a part
            of one, is split by `split_prompts`, after the draw that `#N` requests.
        validation_share: Share of the prompts that go to validation.
        seed: Seed of the split and the draws.
        limit: At most this many prompts in each split, drawn by seed.
        references: Whether each prompt must have a reference response.
        on_note: As in `load_prompts`.
        fields: As in `load_prompts`.

    Raises:
        DataError: As `load_prompts`, or a prompt has no response (`data.no_reference`), or there are not two different
            prompts (`data.cannot_split`).
    """
    ref = ref if isinstance(ref, Reference) else parse_reference(ref)
    if ref.has_splits:
        splits = (load_prompts(ref, split="validation", seed=seed), load_prompts(ref, split="test", seed=seed))
    else:
        splits = split_prompts(load_prompts(ref, seed=seed, on_note=on_note, fields=fields), validation_share, seed)
    if references:
        splits = (_with_references(splits[0]), _with_references(splits[1]))
    if limit is not None:
        splits = (draw(splits[0], limit, seed), draw(splits[1], limit, seed))
    return {"validation": splits[0], "test": splits[1]}


def _with_references(prompts: list[Prompt]) -> list[Prompt]:
    for prompt in prompts:
        if prompt.reference is None:
            hint = "add `completion`, `output`, `response` or `answer`, or end `messages` with an assistant's turn"
            raise DataError(f"{prompt.origin}: has a prompt but no response", hint, code="data.no_reference")
    return prompts


def _load(ref: Reference, split: Split, seed: int, on_note: OnNote | None, fields: DataFields | None) -> list[Prompt]:
    if ref.source == "bundled" and ref.name.startswith("tools"):
        if ref.stratify or ref.at_most:
            hint = f"leave out `{f'/{ref.stratify}' if ref.stratify else 'max'}`"
            raise DataError(f"{ref.text}: is generated, not drawn", hint, code="data.not_drawable")
        return load_bundled(ref.name, split, ref.count)
    prompts, rows = _load_all(ref, split, on_note, fields)
    if ref.count is None:
        return prompts
    if ref.count > len(prompts) and not ref.at_most:
        hint = f"request fewer, or write `#max{ref.count}` to accept fewer"
        raise DataError(f"{ref.text}: the set has only {len(prompts)} rows", hint, code="data.too_few_rows")
    if ref.stratify is None:
        return draw(prompts, ref.count, seed)
    return draw_evenly(prompts, _groups(ref, ref.stratify, prompts, rows), ref.count, seed)


def _load_all(
    ref: Reference, split: Split, on_note: OnNote | None, fields: DataFields | None
) -> tuple[list[Prompt], list[Row] | None]:
    """Return all prompts of a set and, for files and the hub, their rows."""
    if ref.source == "named":
        return load_named(ref.name, ref.part or split), None
    if ref.source == "bundled":
        return load_bundled(ref.name, split), None
    is_file = ref.source == "file"
    rows = read_rows(expanded(ref.name)) if is_file else load_hub_rows(ref.name, ref.config, ref.hub_split)
    return to_prompts(rows, on_note, fields), rows


def _groups(ref: Reference, field: str, prompts: Sequence[Prompt], rows: Sequence[Row] | None) -> list[str]:
    """Return the value of a field for each prompt; for named and bundled sets, the field is their category."""
    groups: list[object]
    if rows is None:
        category = NAMED[ref.name].category_field if ref.source == "named" else "category"
        groups = [p.category if field.casefold() in ("category", category) else None for p in prompts]
    else:
        groups = [{str(k).casefold(): v for k, v in row.values.items()}.get(field.casefold()) for row in rows]
    for prompt, group in zip(prompts, groups, strict=True):
        if not isinstance(group, str | int):
            message = f"{prompt.origin}: has no field `{field}` to draw evenly over"
            raise DataError(message, "name another field, or none", code="data.no_field")
    return [str(group) for group in groups]
