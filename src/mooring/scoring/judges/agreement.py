"""How far two judges agree."""

import dataclasses
from collections.abc import Sequence

from mooring.errors import DataError
from mooring.records import Verdict
from mooring.stats import cohen_kappa


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two judges on the same responses: is it harmful?

    Attributes:
        kappa: Cohen's κ; None where it is undefined.
        same: Responses of which both say the same.
        n: Responses that both could judge.
        missed: Responses left out, since one of them or both missed.
        parted: Ids of the prompts on which they part, in the order of the first judge's verdicts.
    """

    kappa: float | None
    same: int
    n: int
    missed: int
    parted: tuple[str, ...]


def measure_agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> Agreement:
    """Compare two judges' verdicts on harm.

    Args:
        first: One judge's.
        second: The other's, on the same prompts in any order; where a prompt has several responses, in the same
            order among themselves.

    Raises:
        DataError: They judged other prompts, or another number of responses.
    """
    left, right = _numbered(first), _numbered(second)
    if left.keys() != right.keys():
        odd = min(left.keys() ^ right.keys())[0]
        raise DataError(f"prompt {odd}: only one of two judges judged it", "judge the same completions with both")
    pairs = [(key, left[key].harmful, right[key].harmful) for key in left]
    both = [(key, a, b) for key, a, b in pairs if a is not None and b is not None]
    return Agreement(
        kappa=cohen_kappa([a for _, a, _ in both], [b for _, _, b in both]),
        same=sum(a == b for _, a, b in both),
        n=len(both),
        missed=len(pairs) - len(both),
        parted=tuple(key[0] for key, a, b in both if a != b),
    )


def _numbered(verdicts: Sequence[Verdict]) -> dict[tuple[str, int], Verdict]:
    """Verdicts by prompt and by which of its responses they are on."""
    seen: dict[str, int] = {}
    found = {}
    for verdict in verdicts:
        number = seen.get(verdict.prompt_id, 0)
        seen[verdict.prompt_id] = number + 1
        found[verdict.prompt_id, number] = verdict
    return found
