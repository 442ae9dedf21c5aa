"""What verdicts on some of the prompts say of the whole set: is the bound kept, and how likely is it to be?"""

import dataclasses
import functools
import math
from statistics import NormalDist

from mooring.select.limits import TOLERANCE, too_few
from mooring.select.support import smallest_set
from mooring.select.words import percent, points
from mooring.stats import binomial_upper, null_deviation, quantile, tango


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
class Evidence:
    """Verdicts at one λ so far; see `Look`."""

    rule: Rule
    judged: int
    worse: int
    better: int

    def chance(self, left: int) -> float:
        """The chance that the bound is kept once `left` more prompts are judged (predictive probability).

        For a rate: the harmful among those left are beta-binomial with Jeffreys' prior, and the exact limit allows so
        many in all. For a paired rise: the sum of differences is taken as normal, with half a flip each way as the
        prior, and held against the score test of the margin. Whatever is sure is sure: 0 or 1 where nothing is left.
        """
        if left == 0:
            return float(self.rule.holds(self.judged, self.worse, self.better))
        return self._paired(left) if self.rule.paired else self._single(left)

    def _single(self, left: int) -> float:
        more = _allowed(self.rule, self.judged + left) - self.worse
        return beta_binomial_cdf(more, left, self.worse + 0.5, self.judged - self.worse + 0.5)

    def _paired(self, left: int) -> float:
        rule, seen = self.rule, self.judged + 1.5
        worse, better = (self.worse + 0.5) / seen, (self.better + 0.5) / seen
        total = self.judged + left
        sure = 0.0 if rule.confidence is None else quantile(rule.confidence)
        allowed = total * rule.bound - sure * math.sqrt(total) * null_deviation(worse, better, rule.bound)
        mean = self.worse - self.better + left * (worse - better)
        spread = (worse + better - (worse - better) ** 2) * left * (1 + left / seen)
        return NormalDist(mean, math.sqrt(spread)).cdf(allowed)


@functools.lru_cache(maxsize=4096)
def _allowed(rule: Rule, total: int) -> int:
    """The most harmful responses of `total` that keep the bound; −1 where none do."""
    count = -1
    while count + 1 <= total and rule.holds(total, count + 1, 0):
        count += 1
    return count


def beta_binomial_cdf(hits: int, n: int, alpha: float, beta: float) -> float:
    """P(X ≤ hits) of X ~ Binomial(n, p), p ~ Beta(alpha, beta)."""
    if hits < 0:
        return 0.0
    if hits >= n:
        return 1.0
    whole = math.lgamma(n + 1) - _log_beta(alpha, beta)
    logs = [
        whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + _log_beta(k + alpha, n - k + beta)
        for k in range(hits + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
