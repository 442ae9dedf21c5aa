"""Splits and draws of prompts by hash: independent of the order of the rows."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

from mooring.data.rows import alike, content
from mooring.errors import DataError
from mooring.records import Prompt


def split_prompts(prompts: Sequence[Prompt], validation: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Split into (validation, test).

    Prompts that are `alike` go to the same side, so that λ is not chosen on a prompt that is reported on. The side
    depends only on the seed and the texts of the set; both sides keep the given order.

    Args:
        prompts: The set.
        validation: Share of the different prompts that go to validation, in (0, 1); each side gets at least one.
        seed: Seed of the split.

    Raises:
        DataError: There are not two different prompts (`data.cannot_split`).
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation is {validation}, not between 0 and 1")
    keys = [alike(p) for p in prompts]
    ranks: dict[str, bytes] = {}
    for key, prompt in zip(keys, prompts, strict=True):
        rank = _rank(seed, "split", content(prompt))
        ranks[key] = min(rank, ranks.get(key, rank))
    if len(ranks) < 2:
        where = prompts[0].origin if prompts else "the set"
        what = "one prompt" if ranks else "no prompt"
        message = f"{where}: {what} cannot be split in two"
        raise DataError(message, "give at least two different prompts", code="data.cannot_split")
    count = min(max(round(validation * len(ranks)), 1), len(ranks) - 1)
    return _partition(prompts, keys, set(sorted(ranks, key=ranks.__getitem__)[:count]))


def draw(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """Draw `count` prompts, or all if there are no more; they keep their order. A smaller draw is part of a larger."""
    ranks = _draw_ranks(prompts, seed)
    chosen = sorted(range(len(prompts)), key=ranks.__getitem__)[:count]
    return [prompts[index] for index in sorted(chosen)]


def draw_evenly(prompts: Sequence[Prompt], groups: Sequence[str], count: int, seed: int) -> list[Prompt]:
    """Draw like `draw`, as evenly over groups as their sizes allow; `groups` names the group of each prompt.

    The groups take turns, in an order that depends on the seed, until there are enough prompts; exhausted groups are
    skipped.
    """
    ranks = _draw_ranks(prompts, seed)
    turns: Counter[str] = Counter()
    order = {}
    for index in sorted(range(len(prompts)), key=ranks.__getitem__):
        order[index] = (turns[groups[index]], _rank(seed, "group", groups[index]))
        turns[groups[index]] += 1
    return [prompts[index] for index in sorted(sorted(order, key=order.__getitem__)[:count])]


def hold_out(
    prompts: Sequence[Prompt], count: int, seed: int, group: Callable[[Prompt], str] = content
) -> tuple[list[Prompt], list[Prompt]]:
    """Split into (held out, rest); both sides keep the given order, and a group stays on one side.

    Fewer than `count` are held out if no group fits in what is left.
    """
    keys = [group(p) for p in prompts]
    sizes = Counter(keys)
    held_out: set[str] = set()
    left = count
    for key in sorted(sizes, key=lambda key: _rank(seed, "split", key)):
        if sizes[key] <= left:
            held_out.add(key)
            left -= sizes[key]
    return _partition(prompts, keys, held_out)


def _partition(prompts: Sequence[Prompt], keys: Sequence[str], chosen: set[str]) -> tuple[list[Prompt], list[Prompt]]:
    pairs = list(zip(prompts, keys, strict=True))
    return [p for p, key in pairs if key in chosen], [p for p, key in pairs if key not in chosen]


def _draw_ranks(prompts: Sequence[Prompt], seed: int) -> list[bytes]:
    return [_rank(seed, "draw", content(p), p.reference or "", p.id) for p in prompts]


def _rank(seed: int, *parts: str) -> bytes:
    text = "\0".join((str(seed), *parts))
    return hashlib.sha256(text.encode()).digest()
