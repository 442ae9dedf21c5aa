"""Bisection for the largest λ within a bound, which leaves each λ as soon as the evidence suffices.

Asks nothing itself: a generator, which yields what to ask and is sent the verdicts.
"""

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Generator, Sequence
from typing import Literal

from mooring.errors import DataError, UserError
from mooring.merge_point import BASE
from mooring.selection.explain import percent, points
from mooring.selection.limits import BISECT_SHARE, TOLERANCE, sharper, smallest_set, too_few
from mooring.stats import binomial_upper, mcnemar, quantile, tango

# --- What verdicts on some of the prompts say of the whole set: is the bound kept, and how ---


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """When a λ is within the bound.

    Attributes:
        bound: The largest rate allowed; where `paired`, the largest rise above the base's.
        confidence: Of the one-sided upper limit that is held against it; `None` holds the estimate itself.
        paired: Whether verdicts come in pairs with the base's.
    """

    bound: float
    confidence: float | None = 0.95
    paired: bool = False

    def check(self, prompts: int) -> None:
        """Raise if no outcome on this many prompts could pass.

        Raises:
            DataError: There are too few (`data.too_few_prompts`).
        """
        if self.confidence is None:
            return
        needed = smallest_set(self.bound, self.confidence, self.paired)
        if needed is None or prompts < needed:
            words = f"the base's plus {points(self.bound)}" if self.paired else percent(self.bound)
            raise too_few("asr", prompts, words, self.confidence, needed)

    def holds(self, judged: int, worse: int, better: int) -> bool:
        """Whether the upper limit is within the bound: exact for a rate, Tango's for a paired rise."""
        if not judged:
            return False
        if self.confidence is None:
            limit = (worse - better) / judged
        elif self.paired:
            limit = tango(worse, better, judged, quantile(self.confidence))[1]
        else:
            limit = binomial_upper(worse, judged, self.confidence)
        return limit <= self.bound + TOLERANCE


@dataclasses.dataclass(frozen=True, slots=True)
class Stratum:
    """Prompts of which the same is known from other λ, in a random order; some are asked already.

    Attributes:
        base: Whether the base's responses to them are harmful; false where nothing is paired.
        hits: Harmful responses so far.
        seen: Responses judged so far.
        left: Prompts not asked yet.
        prior: How likely a response was taken to be harmful before any was seen; it weighs as much as one response.
    """

    base: bool
    hits: int
    seen: int
    left: int
    prior: float = 0.5

    @property
    def alpha(self) -> float:
        """The weight of harmful responses."""
        return self.hits + self.prior

    @property
    def beta(self) -> float:
        """The weight of harmless responses."""
        return self.seen - self.hits + 1 - self.prior

    @property
    def variance(self) -> float:
        """Of the number of harmful responses among those left (beta-binomial)."""
        total = self.alpha + self.beta
        mean = self.alpha / total
        return self.left * mean * (1 - mean) * (total + self.left) / (total + 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """Verdicts at one λ so far; see `Look`."""

    rule: Rule
    judged: int
    worse: int
    better: int

    def chance(self, strata: Sequence[Stratum]) -> float:
        """The chance that the bound is kept once all prompts are judged (predictive probability).

        The harmful responses among those left are beta-binomial in each stratum, and their sum is held against what the
        rule allows. What is sure is 0 or 1.

        Args:
            strata: All prompts that count, each in one of them.
        """
        left = sum(stratum.left for stratum in strata)
        if not left:
            return float(self.rule.holds(self.judged, self.worse, self.better))
        total = self.judged + left
        back = sum(stratum.left for stratum in strata if stratum.base)
        most = _allowed(self.rule, total, self.better + back) - self.worse
        if most < 0:
            return 0.0
        worse, better = [1.0], [1.0]
        for stratum in strata:
            if not stratum.left:
                continue
            if stratum.base:
                better = _sums(better, stratum.left, stratum.beta, stratum.alpha, back)
            else:
                worse = _sums(worse, stratum.left, stratum.alpha, stratum.beta, most)
        heap = list(itertools.accumulate(worse))
        chance = 0.0
        for more, weight in enumerate(better):
            allowed = _allowed(self.rule, total, self.better + more) - self.worse
            if allowed >= 0:
                chance += weight * heap[min(allowed, len(heap) - 1)]
        return min(1.0, chance)


def _sums(chances: Sequence[float], left: int, alpha: float, beta: float, most: int) -> list[float]:
    """The distribution of a count plus a beta-binomial one, as far as `most`."""
    more = beta_binomial(left, alpha, beta, most)
    found = [0.0] * min(len(chances) + len(more) - 1, most + 1)
    for first, chance in enumerate(chances):
        for second, other in enumerate(more[: len(found) - first]):
            found[first + second] += chance * other
    return found


@functools.lru_cache(maxsize=65536)
def _allowed(rule: Rule, total: int, better: int) -> int:
    """The most harmful responses of `total` that keep the bound, `better` being those of the base alone; −1: none."""
    low, high = -1, total - better + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rule.holds(total, middle, better) else (low, middle)
    return low


def beta_binomial(n: int, alpha: float, beta: float, most: int) -> list[float]:
    """P(X = 0), …, P(X = most) of X ~ Binomial(n, p), p ~ Beta(alpha, beta); as far as n."""
    whole = math.lgamma(n + 1) - _log_beta(alpha, beta)
    return [
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + _log_beta(k + alpha, n - k + beta))
        for k in range(min(n, most) + 1)
    ]


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bisect:
    """A search.

    Attributes:
        rule: When a λ is within the bound on the whole set, and how sure it must be that the λ found is.
        share: The part of that error at which each λ is tested.
        doubt: A λ is left as within once the predictive probability that the whole set would decide otherwise is at
            most this. It is asked the whole set before it is returned.
        over_doubt: The same for a λ left as over. It is smaller, since the search never returns to such a λ.
        resolution: λ are multiples of it.
        lo: λ above this are tried.
        hi: λ below this are tried.
        batch: Prompts asked at a time, looked at together.
        seed: Of the order in which prompts are asked, the same for every λ.
    """

    rule: Rule
    share: float = BISECT_SHARE
    doubt: float = 0.1
    over_doubt: float = 0.005
    resolution: float = 0.05
    lo: float = 0.0
    hi: float = 1.0
    batch: int = 6
    seed: int = 0

    @property
    def test(self) -> Rule:
        """The rule for each λ: it uses `share` of the stated error, since several λ are tested."""
        if self.rule.confidence is None:
            return self.rule
        return dataclasses.replace(self.rule, confidence=sharper(self.rule.confidence, self.share))


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """What to ask next: the model at `lam`, the prompts at these places. None is asked twice."""

    lam: float
    prompts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """Where a λ stood when it was left.

    Attributes:
        lam: The λ.
        asked: Prompts asked at it so far.
        judged: Those that could be judged (in pairs, where a base is given).
        worse: Harmful responses; in pairs, those that the base did not give.
        better: In pairs, harmful responses of the base that this λ does not give; else 0.
        chance: The predictive probability that it keeps the bound on the whole set; 0 or 1 once that was asked.
        said: `within` or `over`.
    """

    lam: float
    asked: int
    judged: int
    worse: int
    better: int
    chance: float
    said: Literal["within", "over"]


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """How a search ended.

    Attributes:
        lam: The largest λ found within the bound, confirmed on the whole set; `None` where there is none.
        looks: Each λ as it was left, in the order of the search.
        asked: Prompts asked, over all λ, the base's aside.
        prompts: Prompts in the whole set.
        odd: Pairs of λ, both asked the whole set, of which the smaller one was significantly more often harmful (exact
            McNemar, p < 0.05), so that the search, which takes the rate to rise with λ, may have missed the largest.
    """

    lam: float | None
    looks: tuple[Look, ...]
    asked: int
    prompts: int
    odd: tuple[tuple[float, float], ...] = ()


Search = Generator[Ask, Sequence[bool | None], Found]
Verdicts = dict[int, bool | None]
"""Verdicts on the prompts at some places."""


def bisect(design: Bisect, prompts: int, base: Sequence[bool | None] | None = None) -> Search:
    """Search for the largest λ within the bound, taking the rate to rise with λ.

    The candidates are bisected: a λ is asked prompts until the predictive probability (`Evidence.chance`) decides
    whether it is within or over, which moves the lower or the upper end. Prompts whose outcome is least certain, given
    the verdicts at other λ, are asked first, in a random order within a stratum. The largest λ within is then asked the
    whole set; if that does not confirm it, the search continues below. So the λ found has passed the same test on all
    prompts as one of a grid. Since several λ are tested, each is tested at a share of the stated error,
    1 − confidence; `benchmarks/bisect_risk.py` checks the resulting risk on simulated curves, the hardest included.

    Args:
        design: The search.
        prompts: How many prompts there are.
        base: The base's verdicts on them, where the bound is on the rise above the base: True is harmful, None a miss.

    Yields:
        What to ask; it is to be sent the verdicts, as many.

    Returns:
        What was found.

    Raises:
        UserError: The resolution leaves no λ to try, or a setting is out of range.
        DataError: There are too few prompts for any λ to pass.
    """
    lams = _candidates(design)
    order = random.Random(design.seed).sample(range(prompts), prompts)
    if base is not None and len(base) != prompts:
        raise DataError(
            f"bisect: {len(base)} verdicts of the base for {prompts} prompts",
            "judge the base first",
            code="data.base_not_judged",
        )
    rule = design.test
    rule.check(prompts)
    answers: dict[float, Verdicts] = {} if base is None else {BASE.lam: dict(enumerate(base))}
    looks: list[Look] = []

    def test(lam: float, whole: bool) -> Generator[Ask, Sequence[bool | None], bool]:
        """Ask one λ until it can be left; the whole set, where that is wanted."""
        seen = answers.setdefault(lam, {})
        while True:
            evidence, left = _evidence(rule, seen, base), [place for place in order if place not in seen]
            strata = _strata(answers, lam, order, base)
            chance = evidence.chance(list(strata))
            settled = bool(seen) and not whole and not design.over_doubt < chance < 1 - design.doubt
            if not left or settled:
                said: Literal["within", "over"] = "within" if chance > 0.5 else "over"
                looks.append(
                    Look(lam, len(seen), evidence.judged, evidence.worse, evidence.better, round(chance, 4), said)
                )
                return said == "within"
            unsure = max(strata, key=lambda stratum: stratum.variance, default=None)
            places = left if whole or unsure is None else strata[unsure][: design.batch] or left[: design.batch]
            verdicts = yield Ask(lam, tuple(places))
            if len(verdicts) != len(places):
                raise ValueError(f"{len(verdicts)} verdicts for {len(places)} prompts")
            seen.update(zip(places, verdicts, strict=True))

    low, high, within = -1, len(lams), [-1]
    while True:
        while high - low > 1:
            middle = (low + high) // 2
            if (yield from test(lams[middle], whole=False)):
                low = middle
                within.append(low)
            else:
                high = middle
        if low < 0 or len(answers[lams[low]]) == prompts or (yield from test(lams[low], whole=True)):
            break
        high = low
        within.remove(low)
        low = within[-1]
    found = None if low < 0 else lams[low]
    asked = {lam: seen for lam, seen in answers.items() if lam or base is None}
    return Found(found, tuple(looks), sum(map(len, asked.values())), prompts, _odd(asked, prompts))


def _candidates(design: Bisect) -> list[float]:
    if not (
        0 < design.resolution < 1
        and min(design.doubt, design.over_doubt) >= 0
        and max(design.doubt, design.over_doubt) < 0.5
        and design.batch >= 1
    ):
        raise UserError(
            f"bisect: resolution {design.resolution:g}, doubt {design.doubt:g} and {design.over_doubt:g}, "
            f"batch {design.batch}",
            "0 < resolution < 1, 0 ≤ doubt < 0.5, batch ≥ 1",
            code="usage.bisect_out_of_range",
        )
    steps = range(1, int(1 / design.resolution) + 1)
    lams = [round(step * design.resolution, 10) for step in steps]
    kept = [lam for lam in lams if design.lo + 1e-9 < lam < design.hi - 1e-9]
    if not kept:
        raise UserError(
            f"bisect: no multiple of {design.resolution:g} lies between {design.lo:g} and {design.hi:g}",
            "use a finer resolution",
            code="usage.resolution_too_coarse",
        )
    return kept


def _evidence(rule: Rule, seen: Verdicts, base: Sequence[bool | None] | None) -> Evidence:
    if base is None:
        hits = [hit for hit in seen.values() if hit is not None]
        return Evidence(rule, len(hits), sum(hits), 0)
    known = [(base[place], hit) for place, hit in seen.items() if base[place] is not None and hit is not None]
    worse = sum(bool(hit) and not first for first, hit in known)
    return Evidence(rule, len(known), worse, sum(bool(first) and not hit for first, hit in known))


def _strata(
    answers: dict[float, Verdicts], lam: float, order: Sequence[int], base: Sequence[bool | None] | None
) -> dict[Stratum, list[int]]:
    """The prompts by what the nearest λ below and above said of them, with the places that are not asked yet.

    A prompt on which the base could not be judged is in none: in pairs it does not count.
    """
    below = [answers[other] for other in sorted(answers, reverse=True) if other < lam]
    above = [answers[other] for other in sorted(answers) if other > lam]
    groups: dict[tuple[bool, float], list[int]] = {}
    for place in order:
        if base is None or base[place] is not None:
            prior = _prior(_nearest(below, place), _nearest(above, place))
            groups.setdefault((base is not None and base[place] is True, prior), []).append(place)
    found: dict[Stratum, list[int]] = {}
    for (harmful, prior), places in groups.items():
        said = [answers[lam][place] for place in places if answers[lam].get(place) is not None]
        left = [place for place in places if place not in answers[lam]]
        found[Stratum(harmful, sum(map(bool, said)), len(said), len(left), prior)] = left
    return found


def _nearest(verdicts: Sequence[Verdicts], place: int) -> bool | None:
    return next((seen[place] for seen in verdicts if seen.get(place) is not None), None)


def _prior(below: bool | None, above: bool | None) -> float:
    """How likely a prompt is harmful that is so, or is not, at a smaller and at a larger λ: by a rate that rises."""
    if below is True and above is not False:
        return 0.9
    return 0.1 if above is False and below is not True else 0.5


def _odd(answers: dict[float, Verdicts], prompts: int) -> tuple[tuple[float, float], ...]:
    """Pairs of λ of which the smaller is significantly more often harmful.

    Only λ that were asked all prompts count: which prompts others were asked depends on earlier verdicts.
    """
    found = []
    whole = {lam: seen for lam, seen in sorted(answers.items()) if len(seen) == prompts}
    for small, large in itertools.combinations(whole, 2):
        both = [(whole[small][place], whole[large][place]) for place in range(prompts)]
        falls = sum(first is True and second is False for first, second in both)
        rises = sum(first is False and second is True for first, second in both)
        if falls > rises and mcnemar(falls, rises) < 0.05:
            found.append((small, large))
    return tuple(found)
