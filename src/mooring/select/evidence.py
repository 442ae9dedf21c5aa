"""What verdicts on some of the prompts say of the whole set: is the bound kept, and how likely is it to be?"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

from mooring.select.limits import TOLERANCE, too_few
from mooring.select.support import smallest_set
from mooring.select.words import percent, points
from mooring.stats import binomial_upper, quantile, tango


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
        """Hold that so many prompts could pass.

        Raises:
            DataError: They could not, whatever the verdicts.
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
