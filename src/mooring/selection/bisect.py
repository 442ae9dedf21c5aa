"""Bisection for the largest λ within a bound, which stops testing a λ as soon as the evidence suffices.

It runs no model itself: a function that the caller passes returns the verdicts.
"""

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence

from mooring.errors import UserError
from mooring.export import Record
from mooring.merge_point import BASE
from mooring.selection.betting import log_e_value
from mooring.selection.limits import Rule, sharper
from mooring.stats import Flips, flips, mcnemar

AskModel = Callable[[float, tuple[int, ...]], Sequence[bool | None]]
"""Called with λ and the positions of prompts; generates and judges, and returns the verdicts in the same order."""
Verdicts = dict[int, bool | None]
"""Verdicts by the position of the prompt: True is harmful, None could not be judged."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BisectSettings:
    """How to bisect.

    Attributes:
        rule: When a λ is within the bound on the whole set; its confidence is that of the whole search.
        doubt: Testing stops with "over" once the predictive probability of passing on the whole set is at most this.
        resolution: Candidates are multiples of this.
        lo: Candidates are larger than this.
        hi: Candidates are smaller than this.
        batch: Prompts per request.
        seed: Random seed of the order of prompts, which is the same for every λ.
    """

    rule: Rule
    doubt: float = 0.05
    resolution: float = 0.05
    lo: float = 0.0
    hi: float = 1.0
    batch: int = 6
    seed: int = 0

    @property
    def test(self) -> Rule:
        """The rule for each λ on the whole set, at half of its share of the stated error; bets have the other half."""
        if self.rule.confidence is None:
            return self.rule
        return dataclasses.replace(self.rule, confidence=sharper(self.rule.confidence, 1 / (2 * self.depth)))

    @property
    def depth(self) -> int:
        """How many λ a bisection tests at most."""
        return len(self.candidates()).bit_length()

    @property
    def enough(self) -> float:
        """The logarithm of the e-value with which a λ passes before all prompts are tested."""
        if self.rule.confidence is None:
            return math.inf
        return math.log(2 * self.depth / (1 - self.rule.confidence))

    def candidates(self) -> list[float]:
        """The λ to choose from, in ascending order.

        Raises:
            UserError: A setting is out of range (`usage.bisect_out_of_range`), or there is no candidate
                (`usage.resolution_too_coarse`).
        """
        if not (1e-4 <= self.resolution < 1 and 0 <= self.doubt < 0.5 and self.batch >= 1):
            raise UserError(
                f"bisect: resolution {self.resolution:g}, doubt {self.doubt:g}, batch {self.batch}",
                "0.0001 ≤ resolution < 1, 0 ≤ doubt < 0.5, batch ≥ 1",
                code="usage.bisect_out_of_range",
            )
        lams = [round(step * self.resolution, 10) for step in range(1, int(1 / self.resolution) + 1)]
        between = [lam for lam in lams if self.lo + 1e-9 < lam < self.hi - 1e-9]
        if not between:
            raise UserError(
                f"bisect: no multiple of {self.resolution:g} lies between {self.lo:g} and {self.hi:g}",
                "use a finer resolution",
                code="usage.resolution_too_coarse",
            )
        return between


@dataclasses.dataclass(frozen=True, slots=True)
class Visit:
    """The evidence on a λ when testing it stopped.

    Attributes:
        lam: The λ.
        prompts: Prompts tested so far.
        judged: Of these, prompts that count. With a confidence, all do: responses that could not be judged count as
            harmful, those of the base as harmless. Without, they are left out.
        worse: Harmful responses; if verdicts are paired, only those to which the base's response is harmless.
        better: If verdicts are paired, harmless responses to prompts on which the base's is harmful; else 0.
        probability: The predictive probability that the λ is within the bound on the whole set.
        within: The decision.
        rate: The rate that was tested.
    """

    lam: float
    prompts: int
    judged: int
    worse: int
    better: int
    probability: float
    within: bool
    rate: str = "asr"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoundedRate:
    """A rate that a bisection keeps within a bound, and who answers for it.

    Attributes:
        name: The rate: `asr`, `asr+prefill:8`, `over_refusal`.
        rule: When a λ is within the bound on the whole set; its confidence is that of the whole search.
        prompts: The number of prompts.
        ask: Called with one λ at a time, never twice with the same prompt.
        base: The base's verdicts on all prompts, in their order; needed if the bound is relative to the base.
    """

    name: str
    rule: Rule
    prompts: int
    ask: AskModel
    base: Sequence[bool | None] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class BisectResult(Record):
    """The result of a bisection.

    Attributes:
        lam: The largest λ found within the bound, confirmed on the whole set; None if there is none.
        visits: The λ in the order in which they were tested.
        responses: Responses judged, over all λ.
        prompts: Prompts in the set, or in all sets.
        reversals: Pairs of λ of which the smaller is significantly more often harmful (exact McNemar, p < 0.05). The
            search assumes that harm does not decrease with λ.
    """

    lam: float | None
    visits: tuple[Visit, ...]
    responses: int
    prompts: int
    reversals: tuple[tuple[float, float], ...] = ()

    @property
    def chosen(self) -> float:
        """`lam`, or the smallest λ tested if none is within the bound."""
        return min(visit.lam for visit in self.visits) if self.lam is None else self.lam


def bisect(
    settings: BisectSettings, prompts: int, ask: AskModel, base: Sequence[bool | None] | None = None
) -> BisectResult:
    """Search for the largest λ within one bound: `bisect_all` of one rate, that of `settings.rule`.

    Args:
        settings: How to search.
        prompts: As in `BoundedRate`, like `ask` and `base`.
        ask: See there.
        base: See there.

    Raises:
        UserError: A setting is out of range, or there is no candidate.
        DataError: There are too few prompts for any λ to pass (`data.too_few_prompts`).
    """
    return bisect_all(settings, [BoundedRate(name="asr", rule=settings.rule, prompts=prompts, ask=ask, base=base)])


def bisect_all(settings: BisectSettings, rates: Sequence[BoundedRate]) -> BisectResult:
    """Search for the largest λ within all bounds, taking each true rate to rise with λ.

    A λ is tested on more and more prompts, in one random order, until it is within or over, which moves the lower or
    the upper end. It is within as soon as bets against its rate being at the bound have multiplied their capital enough
    (`betting.log_e_value`), or if the whole set passes; each has half of the λ's share of the stated error. It is over
    if the whole set is unlikely to pass (`pass_probability`). The largest λ within is then tested on the whole set at
    the stated confidence, as one of a grid; if that does not confirm it, the search continues below.

    Theorem: a λ with a true rate at the bound or above is returned with a probability of at most 1 − confidence.
    Proof: such a λ is returned only if it was found within. Consider the first such λ that is found within. Before it,
    every λ at the bound or above was over, so the ends were moved as by the truth, unless a λ below the bound was over
    or not confirmed; after that only smaller λ are tested, which are all below the bound. So that λ is one of those
    that a bisection with true answers tests: at most `depth` λ, which do not depend on the verdicts. Each of them is
    found within with a probability of at most (1 − confidence) / depth: half of it by the bets (Ville's inequality),
    half by the test on the whole set. Their sum is 1 − confidence. ∎

    With several bounds, "at the bound or above" means for any of the rates, and a λ is within if it is for each of
    them (intersection-union test, Berger 1982). The λ that break a bound are still all those above some λ, since each
    rate rises; and one that breaks a bound is found within only if that bound's own test finds it so, whose probability
    is as above. So each rate is tested at the whole confidence, and the proof holds word by word. A λ that is over by
    one rate is not tested by the rates after it.

    Args:
        settings: How to search; its own rule does not count.
        rates: The rates with their bounds, those first that need fewest answers to tell.

    Raises:
        UserError: A setting is out of range, or there is no candidate.
        DataError: There are too few prompts for any λ to pass (`data.too_few_prompts`).
    """
    lams = settings.candidates()
    visits: list[Visit] = []
    searches = [_Search(settings, rate, visits) for rate in rates]
    for search in searches:
        search.rule.check(search.rate.name, search.rate.prompts)
    within, over = [-1], len(lams)  # indices; −1 stands for the base
    while True:
        while over - within[-1] > 1:
            middle = (within[-1] + over) // 2
            if all(search.test(lams[middle]) for search in searches):
                within.append(middle)
            else:
                over = middle
        largest = within[-1]
        if largest < 0 or all(search.confirm(lams[largest]) for search in searches):
            break
        over = within.pop()
    tested = [sorted((lam, v) for lam, v in each.verdicts.items() if lam != BASE.lam) for each in searches]
    complete = [
        {lam: verdicts for lam, verdicts in of_rate if search.complete(lam)}
        for search, of_rate in zip(searches, tested, strict=True)
    ]
    return BisectResult(
        lam=None if largest < 0 else lams[largest],
        visits=tuple(visits),
        responses=sum(len(verdicts) for of_rate in tested for _, verdicts in of_rate),
        prompts=sum(rate.prompts for rate in rates),
        reversals=tuple(dict.fromkeys(pair for of_rate in complete for pair in _reversals(of_rate))),
    )


class _Search:
    """The verdicts of a bisection on one rate so far, by λ; `visits` are those of all rates."""

    def __init__(self, settings: BisectSettings, rate: BoundedRate, visits: list[Visit]) -> None:
        self.settings, self.rate, self.visits = dataclasses.replace(settings, rule=rate.rule), rate, visits
        self.rule, self.ask = self.settings.test, rate.ask
        self.order = random.Random(settings.seed).sample(range(rate.prompts), rate.prompts)
        self.base: Verdicts = dict.fromkeys(range(rate.prompts), False)
        self.verdicts: dict[float, Verdicts] = {}
        if rate.base is not None and rate.rule.paired:
            judged = rate.base if self.rule.confidence is None else [hit is True for hit in rate.base]
            self.base = self.verdicts[BASE.lam] = dict(zip(range(rate.prompts), judged, strict=True))

    def _at_worst(self, hit: bool | None) -> bool | None:
        """A merged model's verdict: with a confidence, a response that could not be judged counts as harmful."""
        return True if hit is None and self.rule.confidence is not None else hit

    def complete(self, lam: float) -> bool:
        """Whether a λ was tested on all prompts."""
        return not self._missing(lam)

    def test(self, lam: float) -> bool:
        """Test a λ until the evidence suffices; return whether it is within the bound."""
        verdicts, settings = self.verdicts.setdefault(lam, {}), self.settings
        while True:
            counts, left = flips(self.base, verdicts), len(self.order) - len(verdicts)
            certain = self.rule.holds(counts.pairs + left, counts.worse + left, counts.better)
            within = certain or self._capital(counts) >= settings.enough
            probability = 1.0 if within else pass_probability(self.rule, counts, self._strata(lam))
            if within or not left or (verdicts and probability <= settings.doubt):
                self._visit(lam, counts, probability, within)
                return within
            self._ask(lam, self._missing(lam)[: settings.batch])

    def confirm(self, lam: float) -> bool:
        """Test a λ on the whole set, at the stated confidence, as on a grid."""
        missing = self._missing(lam)
        self._ask(lam, missing)
        counts = flips(self.base, self.verdicts[lam])
        within = self.settings.rule.holds(counts.pairs, counts.worse, counts.better)
        if missing or not within:
            self._visit(lam, counts, float(within), within)
        return within

    def _capital(self, counts: Flips) -> float:
        """See `log_e_value`. What reaches or exceeds a bound of 1 cannot be bet against."""
        bound = self.rule.bound
        return log_e_value(counts.pairs, counts.worse, counts.better, bound) if bound < 1 else -math.inf

    def _visit(self, lam: float, counts: Flips, probability: float, within: bool) -> None:
        tested, rounded = len(self.verdicts[lam]), round(probability, 4)
        self.visits.append(
            Visit(lam, tested, counts.pairs, counts.worse, counts.better, rounded, within, self.rate.name)
        )

    def _missing(self, lam: float) -> list[int]:
        """The prompts on which a λ was not tested yet, in the order of the search."""
        return [place for place in self.order if place not in self.verdicts[lam]]

    def _ask(self, lam: float, places: Sequence[int]) -> None:
        if places:
            self.verdicts[lam].update(zip(places, map(self._at_worst, self.ask(lam, tuple(places))), strict=True))

    def _strata(self, lam: float) -> list["Stratum"]:
        """The prompts grouped by their verdicts at the nearest λ below and above.

        Prompts on which the base could not be judged are left out: they do not count.
        """
        below = [self.verdicts[other] for other in sorted(self.verdicts, reverse=True) if other < lam]
        above = [self.verdicts[other] for other in sorted(self.verdicts) if other > lam]
        groups: dict[tuple[bool, float], list[int]] = {}
        for place in self.order:
            if (base_harmful := self.base[place]) is not None:
                prior = _prior(_first_verdict(below, place), _first_verdict(above, place))
                groups.setdefault((base_harmful, prior), []).append(place)
        verdicts, found = self.verdicts[lam], list[Stratum]()
        for (base_harmful, prior), places in groups.items():
            judged = [hit for place in places if (hit := verdicts.get(place)) is not None]
            remaining = sum(place not in verdicts for place in places)
            found.append(Stratum(base_harmful, sum(judged), len(judged), remaining, prior))
        return found


def _first_verdict(verdicts: Sequence[Verdicts], place: int) -> bool | None:
    return next((seen[place] for seen in verdicts if seen.get(place) is not None), None)


def _prior(below: bool | None, above: bool | None) -> float:
    """The prior rate of prompts with these verdicts at a smaller and at a larger λ."""
    if below is True and above is not False:
        return 0.9
    return 0.1 if above is False and below is not True else 0.5


def _reversals(complete: dict[float, Verdicts]) -> tuple[tuple[float, float], ...]:
    """See `BisectResult`. Only λ tested on all prompts count: elsewhere, which were tested depends on the verdicts."""
    found = []
    for small, large in itertools.combinations(complete, 2):
        counts = flips(complete[small], complete[large])
        if counts.better > counts.worse and mcnemar(counts.better, counts.worse) < 0.05:
            found.append((small, large))
    return tuple(found)


# --- From verdicts on some of the prompts to the whole set ---


@dataclasses.dataclass(frozen=True, slots=True)
class Stratum:
    """Prompts with the same verdicts at other λ.

    Attributes:
        base_harmful: Whether the base's responses to them are harmful; False if verdicts are not paired.
        hits: Harmful responses so far.
        judged: Responses judged so far.
        remaining: Prompts not tested yet.
        prior: The prior mean of the rate of harmful responses, with the weight of one response.
    """

    base_harmful: bool
    hits: int
    judged: int
    remaining: int
    prior: float = 0.5

    @property
    def alpha(self) -> float:
        """The posterior weight of harmful responses."""
        return self.hits + self.prior

    @property
    def beta(self) -> float:
        """The posterior weight of harmless responses."""
        return self.judged - self.hits + 1 - self.prior


def pass_probability(rule: Rule, counts: Flips, strata: Sequence[Stratum]) -> float:
    """The predictive probability that a λ is within the bound once all prompts are judged.

    The harmful responses among the remaining prompts of each stratum are beta-binomial, and their sum is compared with
    what the rule allows. The result is exactly 0 or 1 if the outcome is certain.

    Args:
        rule: When a λ is within the bound.
        counts: The verdicts so far.
        strata: All prompts that count, each in one stratum.
    """
    remaining = sum(stratum.remaining for stratum in strata)
    if not remaining:
        return float(rule.holds(counts.pairs, counts.worse, counts.better))
    total = counts.pairs + remaining
    most_better = sum(stratum.remaining for stratum in strata if stratum.base_harmful)
    most_worse = _allowed(rule, total, counts.better + most_better) - counts.worse
    if most_worse < 0:
        return 0.0
    worse, better = [1.0], [1.0]
    for stratum in strata:
        if not stratum.remaining:
            continue
        if stratum.base_harmful:
            better = _add(better, beta_binomial(stratum.remaining, stratum.beta, stratum.alpha, most_better))
        else:
            worse = _add(worse, beta_binomial(stratum.remaining, stratum.alpha, stratum.beta, most_worse), most_worse)
    at_most = list(itertools.accumulate(worse))
    probability = 0.0
    for more, weight in enumerate(better):
        allowed = _allowed(rule, total, counts.better + more) - counts.worse
        if allowed >= 0:
            probability += weight * at_most[min(allowed, len(at_most) - 1)]
    return min(1.0, probability)


def _add(first: Sequence[float], second: Sequence[float], most: float = math.inf) -> list[float]:
    """The distribution of the sum of two counts, up to `most`."""
    import numpy as np

    total = np.zeros(int(min(len(first) + len(second) - 1, most + 1)))
    others = np.array(second)
    for i, chance in enumerate(first):  # not `np.convolve`, whose last bits depend on the machine
        total[i : i + len(others)] += chance * others[: len(total) - i]
    return [float(each) for each in total]


@functools.lru_cache(maxsize=65536)
def _allowed(rule: Rule, total: int, better: int) -> int:
    """The largest number of `worse` among `total` prompts with which the rule holds; −1 if there is none."""
    low, high = -1, total - better + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rule.holds(total, middle, better) else (low, middle)
    return low


def beta_binomial(n: int, alpha: float, beta: float, most: int) -> list[float]:
    """P(X = 0), …, P(X = min(n, most)) of X ~ Binomial(n, p), p ~ Beta(alpha, beta)."""
    whole = math.lgamma(n + 1) - _log_beta(alpha, beta)
    return [
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + _log_beta(k + alpha, n - k + beta))
        for k in range(min(n, most) + 1)
    ]


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
