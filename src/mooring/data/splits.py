"""Halves and draws of a prompt set, by hash: the same whatever the order of its rows."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

from mooring.data.rows import alike, content
from mooring.errors import DataError
from mooring.records import Prompt


def split_prompts(prompts: Sequence[Prompt], validation: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Split into (validation, test).

    Prompts that are `alike` land on the same side, so that nothing reported on was chosen on. Which side depends on the
    seed and the set's texts alone; both sides keep the given order.

    Args:
        prompts: The set.
        validation: Share of the different prompts that go to validation, above 0 and below 1; each side gets at least
            one.
        seed: Another seed gives another split.

    Raises:
        DataError: There are not two different prompts to split.
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
        raise DataError(f"{where}: {what} cannot be split in two", "give at least two different ones")
    count = min(max(round(validation * len(ranks)), 1), len(ranks) - 1)
    chosen = set(sorted(ranks, key=ranks.__getitem__)[:count])
    pairs = list(zip(prompts, keys, strict=True))
    return [p for p, key in pairs if key in chosen], [p for p, key in pairs if key not in chosen]


def draw(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """So many of the prompts, in their order, or all where there are no more; a smaller draw lies in a larger one."""
    ranks = [_rank(seed, "draw", content(p), p.reference or "", p.id) for p in prompts]
    chosen = sorted(range(len(prompts)), key=ranks.__getitem__)[:count]
    return [prompts[index] for index in sorted(chosen)]


def draw_evenly(prompts: Sequence[Prompt], groups: Sequence[str], count: int, seed: int) -> list[Prompt]:
    """As `draw`, as evenly over groups as their sizes allow.

    The groups take turns, in an order that the seed decides, until there are enough; one that is used up is passed
    over.

    Args:
        prompts: The set.
        groups: Each prompt's group.
        count: How many to draw.
        seed: Another seed gives another draw.
    """
    ranks = [_rank(seed, "draw", content(p), p.reference or "", p.id) for p in prompts]
    turns: Counter[str] = Counter()
    order = {}
    for index in sorted(range(len(prompts)), key=ranks.__getitem__):
        order[index] = (turns[groups[index]], _rank(seed, "group", groups[index]))
        turns[groups[index]] += 1
    return [prompts[index] for index in sorted(sorted(order, key=order.__getitem__)[:count])]


def hold_out(
    prompts: Sequence[Prompt], count: int, seed: int, same: Callable[[Prompt], str] = content
) -> tuple[list[Prompt], list[Prompt]]:
    """Split into (held out, rest), so many prompts held out; both sides keep the given order.

    Args:
        prompts: The set.
        count: How many to hold out.
        seed: Another seed holds out others.
        same: What is equal for prompts that have to stay together. Those that are too many to fit are passed over, so
            that where none stands alone fewer may be held out.
    """
    keys = [same(p) for p in prompts]
    sizes = Counter(keys)
    held: set[str] = set()
    left = count
    for key in sorted(sizes, key=lambda key: _rank(seed, "split", key)):
        if sizes[key] <= left:
            held.add(key)
            left -= sizes[key]
    pairs = list(zip(prompts, keys, strict=True))
    return [p for p, key in pairs if key in held], [p for p, key in pairs if key not in held]


def _rank(seed: int, *parts: str) -> bytes:
    text = "\0".join((str(seed), *parts))
    return hashlib.sha256(text.encode()).digest()
