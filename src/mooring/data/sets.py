"""Data sets by reference: a file, a named set, a bundled one, or an id on the hub."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mooring.data.bundled import BUNDLED, load_bundled
from mooring.data.hub import HUB_ID, load_hub_rows
from mooring.data.named import NAMED, Part, load_named
from mooring.data.references import Reference, is_named, nearest, parse, unknown
from mooring.data.rows import Row, is_data_file, read_rows, to_prompts
from mooring.data.splits import draw, draw_evenly, split_prompts
from mooring.errors import DataError
from mooring.records import Half, Prompt, Split

_PARTS: dict[Split, Part] = {"tune": "train", "validation": "validation", "test": "test"}


def load_prompts(refs: str | Sequence[str], *, split: Split = "test", seed: int = 42) -> list[Prompt]:
    """Prompts, with or without references.

    Args:
        refs: One reference or several, joined in order. A reference is a file (`data/mine.jsonl`), a named set
            (`advbench`; `openfunctions:train` where it is split), a bundled set (`bundled:harmful`) or a data set on
            the hub (`owner/name`, with `@config` and `:split` where it needs them). With `#500` at its end it is so
            many of the rows, drawn by seed; with `#500/lang` drawn evenly over the values of that field; with `#max500`
            all of them where the set has no more.
        split: Which part of a bundled set, or of a named set that is split and names no part: `tune` is its training
            part. Other sets are taken whole.
        seed: Of the draw. `bundled:tools#500` is made, not drawn, and does not depend on it.

    Raises:
        DataError: A set cannot be had, is empty, malformed, or has fewer rows than were asked for.
    """
    loaded = [_load(ref, split, seed) for ref in ([refs] if isinstance(refs, str) else refs)]
    joined = [prompt for prompts in loaded for prompt in prompts]
    if max(Counter(p.id for p in joined).values(), default=0) < 2:
        return joined
    return [
        dataclasses.replace(prompt, id=f"{number}:{prompt.id}")
        for number, prompts in enumerate(loaded, 1)
        for prompt in prompts
    ]


def load_examples(refs: str | Sequence[str], *, split: Split = "tune", seed: int = 42) -> list[Prompt]:
    """Prompts that all have a reference response, to tune on or to score against; arguments as in `load_prompts`.

    Raises:
        DataError: As `load_prompts`, or one has no response.
    """
    return _with_references(load_prompts(refs, split=split, seed=seed))


def load_halves(
    ref: str, validation_share: float = 0.5, seed: int = 42, limit: int | None = None, *, references: bool = False
) -> dict[Half, list[Prompt]]:
    """The half on which λ is chosen and the half that is reported on. They share no prompt.

    Args:
        ref: As in `load_prompts`. A bundled set, or a named one that is split, brings its own halves, and `#N` counts
            for each of them; any other set, or a part of one, is split by `split_prompts`, after the draw that `#N`
            asks for.
        validation_share: Share of the prompts that go to validation.
        seed: Of the split and the draws.
        limit: At most so many prompts in each half, drawn by seed.
        references: Whether each prompt must have a reference response.

    Raises:
        DataError: As `load_prompts`, or one has no response, or there are not two different prompts.
    """
    if parse(ref).is_split:
        halves = (load_prompts(ref, split="validation", seed=seed), load_prompts(ref, split="test", seed=seed))
    else:
        halves = split_prompts(load_prompts(ref, seed=seed), validation_share, seed)
    if references:
        halves = (_with_references(halves[0]), _with_references(halves[1]))
    if limit is not None:
        halves = (draw(halves[0], limit, seed), draw(halves[1], limit, seed))
    return {"validation": halves[0], "test": halves[1]}


def _with_references(prompts: list[Prompt]) -> list[Prompt]:
    for prompt in prompts:
        if prompt.reference is None:
            raise DataError(
                f"{prompt.origin}: has a prompt but no response",
                "add `completion`, `output`, `response` or `answer`, or an assistant's turn at the end of `messages`",
            )
    return prompts


def _load(text: str, split: Split, seed: int) -> list[Prompt]:
    """One reference, its `#N` obeyed."""
    ref = parse(text)
    if ref.name in ("bundled:tools", "bundled:tools-simple"):
        if ref.field or ref.at_most:
            odd = f"/{ref.field}" if ref.field else "max"
            raise DataError(f"{text}: is made, not drawn", f"leave out `{odd}`")
        return load_bundled(ref.name.removeprefix("bundled:"), split, ref.count)
    prompts, rows = _whole(ref, split)
    if ref.count is None:
        return prompts
    if ref.count > len(prompts) and not ref.at_most:
        hint = f"ask for fewer, or write `#max{ref.count}` for at most so many"
        raise DataError(f"{text}: the set has only {len(prompts)} rows", hint)
    if ref.field is None:
        return draw(prompts, ref.count, seed)
    return draw_evenly(prompts, _groups(ref.field, ref.name, prompts, rows), ref.count, seed)


def _groups(field: str, name: str, prompts: list[Prompt], rows: list[Row] | None) -> list[str]:
    """The value of a field, for each prompt; of a set that has no rows of its own form, its category."""
    groups: list[object]
    if rows is None:
        own = NAMED[name].group if name in NAMED else "category"
        groups = [p.category if field.casefold() in ("category", own) else None for p in prompts]
    else:
        groups = [{str(k).casefold(): v for k, v in row.values.items()}.get(field.casefold()) for row in rows]
    for prompt, group in zip(prompts, groups, strict=True):
        if not isinstance(group, str | int):
            raise DataError(f"{prompt.origin}: has no field `{field}` to draw evenly over", "name another, or none")
    return [str(group) for group in groups]


def _whole(ref: Reference, split: Split) -> tuple[list[Prompt], list[Row] | None]:
    """All prompts of the set of this name, and their rows where they come as they lie in a file or on the hub."""
    name = ref.name
    if is_named(name):
        return load_named(name, ref.part or _PARTS[split]), None
    if name.startswith("bundled:"):
        bundled = name.removeprefix("bundled:")
        if bundled not in BUNDLED:
            raise DataError(f"{name}: no such bundled set", nearest(name, [f"bundled:{b}" for b in BUNDLED]))
        return load_bundled(bundled, split), None
    path = Path(name).expanduser()
    if path.exists() or is_data_file(name) or name.startswith(("/", "./", "../", "~")):
        rows = read_rows(path)
    elif match := HUB_ID.fullmatch(name):
        rows = load_hub_rows(match["id"], match["config"], match["split"])
    else:
        raise unknown(name)
    return to_prompts(rows), rows
