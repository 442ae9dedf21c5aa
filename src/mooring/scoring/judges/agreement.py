"""The agreement of two judges."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from mooring.errors import DataError
from mooring.export import Record
from mooring.records import Verdict
from mooring.stats import cohen_kappa


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agreement(Record):
    """The agreement of two judges on whether the same responses are harmful.

    Attributes:
        kappa: Cohen's κ; None if it is undefined.
        same: Responses on which both agree.
        n: Responses that both could judge.
        missed: Responses left out because at least one judge missed.
        disagreements: Ids of the prompts on which they disagree, in the order of the first judge's verdicts.
    """

    kappa: float | None
    same: int
    n: int
    missed: int
    disagreements: tuple[str, ...]


def measure_agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> Agreement:
    """Compare two judges' verdicts on harm.

    The prompts may be in any order, but several responses to a prompt must be in the same order for both.

    Raises:
        DataError: They judged different prompts, or different numbers of responses (`data.judged_by_one`).
    """
    left, right = _numbered(first), _numbered(second)
    if differing := left.keys() ^ right.keys():
        raise DataError(
            f"prompt {min(differing)[0]}: only one of two judges judged it",
            "judge the same completions with both",
            code="data.judged_by_one",
        )
    pairs = [(key, left[key].harmful, right[key].harmful) for key in left]
    both = [(key, a, b) for key, a, b in pairs if a is not None and b is not None]
    return Agreement(
        kappa=cohen_kappa([a for _, a, _ in both], [b for _, _, b in both]),
        same=sum(a == b for _, a, b in both),
        n=len(both),
        missed=len(pairs) - len(both),
        disagreements=tuple(key[0] for key, a, b in both if a != b),
    )


def _numbered(verdicts: Sequence[Verdict]) -> dict[tuple[str, int], Verdict]:
    """Verdicts by prompt and number of the response."""
    seen: Counter[str] = Counter()
    numbered = {}
    for verdict in verdicts:
        numbered[verdict.prompt_id, seen[verdict.prompt_id]] = verdict
        seen[verdict.prompt_id] += 1
    return numbered
