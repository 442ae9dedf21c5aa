"""How often a judge errs, and rates corrected for it, from labels that people gave to a sample of the answers.

All of it is on plain numbers. A judge calls an answer a hit or not; of each of these two groups some answers are
labelled. What is weighted is weighted by the inverse of the probability of being labelled.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from mooring.stats import Z95, quantile, tango, wilson

Interval = tuple[float, float]


# --- A group of answers with the same verdict ---


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Answers on which a judge says the same, some of them labelled.

    Attributes:
        size: How many answers.
        labelled: How many of them have a label.
        rate: The share that people call a hit, weighted; without a label what the judge says, 0 or 1.
        effective: The number of labels with equal weights that would tell as much: (Σw)² / Σw² (Kish 1965).
    """

    size: int
    labelled: int
    rate: float
    effective: float

    @classmethod
    def of(cls, verdict: bool, size: int, labels: Sequence[tuple[bool, float]]) -> "Group":
        """A group of `size` answers with a verdict, from the (label, weight) of those that have a label."""
        if not labels:
            return cls(size, 0, float(verdict), 0.0)
        weights = [weight for _, weight in labels]
        whole = math.fsum(weights)
        rate = math.fsum(weight for hit, weight in labels if hit) / whole
        return cls(size, len(labels), rate, whole**2 / math.fsum(weight * weight for weight in weights))

    @property
    def hits(self) -> float:
        """How many answers people would call a hit."""
        return self.size * self.rate

    def deviations(self, z: float, more: float = 1.0) -> Interval:
        """How far the number of hits may be below and above its estimate, since not all answers are labelled.

        Jeffreys' limits of the rate (Brown, Cai & DasGupta 2001, with 0 and 1 as limits where no label or every label
        is a hit), narrowed by the finite population correction √(1 − labelled / size) (Cochran 1977, §2.6): with a
        label for every answer nothing is estimated. `more` multiplies the number of labels.
        """
        if not self.size:
            return 0.0, 0.0
        low, high = _jeffreys(self.rate, self.effective * more, z)
        scale = self.size * math.sqrt(max(0.0, 1 - min(1.0, self.labelled * more / self.size)))
        return scale * max(0.0, self.rate - low), scale * max(0.0, high - self.rate)


def _jeffreys(rate: float, n: float, z: float) -> Interval:
    """Jeffreys' interval of a rate; (0, 1) if nothing is known."""
    from scipy.special import betaincinv

    if n <= 0:
        return 0.0, 1.0
    hits = rate * n
    tail = 1 - NormalDist().cdf(z)
    low = 0.0 if hits <= 1e-9 else float(betaincinv(hits + 0.5, n - hits + 0.5, tail))
    high = 1.0 if hits >= n - 1e-9 else float(betaincinv(hits + 0.5, n - hits + 0.5, 1 - tail))
    return low, high


Groups = tuple[Group, Group]
"""The answers that a judge calls hits, and the others."""


def _square_and_add(value: float, parts: Sequence[Interval]) -> Interval:
    """Limits of a sum from how far each independent part may be below and above its estimate.

    The method of variance estimates recovery (Newcombe 1998; Zou & Donner 2008): √(Σ dᵢ²) on each side. It keeps the
    asymmetry of its parts, and has a width even if every label agrees with the judge.
    """
    return value - math.hypot(*(low for low, _ in parts)), value + math.hypot(*(high for _, high in parts))


# --- Corrected rates: prediction-powered inference ---


@dataclasses.dataclass(frozen=True, slots=True)
class CorrectedRate:
    """A rate over n answers, corrected by labels: prediction-powered inference with the judge as the predictor.

    θ = Σ over verdicts v of (n_v / n) · (share of labelled answers with verdict v that people call a hit). For a judge
    that says yes or no this is the estimate of PPI++ with its optimal power tuning (Angelopoulos, Duchi & Zrnic 2023,
    arXiv 2311.01453, eq. 6), that of stratified PPI with the verdicts as strata (Fisch et al. 2024, arXiv 2406.04291),
    and that of double sampling (Tenenbein 1970). It supposes nothing about the judge: a useless one makes the interval
    as wide as that of the labels alone.
    """

    groups: Groups

    @property
    def n(self) -> int:
        """How many answers."""
        return sum(group.size for group in self.groups)

    @property
    def labelled(self) -> int:
        """How many of them have a label."""
        return sum(group.labelled for group in self.groups)

    @property
    def value(self) -> float | None:
        """The corrected rate; None without answers."""
        return math.fsum(group.hits for group in self.groups) / self.n if self.n else None

    def limits(self, z: float = Z95, *, more: float = 1.0) -> Interval:
        """The interval: of prompts (Wilson), and of the labels of each verdict, combined by square-and-add.

        `z` is the half-width in standard deviations; `more` multiplies the number of labels.
        """
        if self.value is None:
            return 0.0, 1.0
        low, high = wilson(self.value * self.n, self.n, z)
        return self._with_labels((self.value - low, high - self.value), z, more)

    def upper(self, confidence: float) -> float:
        """The one-sided upper limit. With a label for every answer that is the exact one (Clopper & Pearson 1934)."""
        if self.value is None:
            return 1.0
        from scipy.special import betaincinv

        hits = self.value * self.n
        exact = 1.0 if hits >= self.n else float(betaincinv(hits + 1, self.n - hits, confidence))
        above = exact - self.value
        return self._with_labels((0.0, above), quantile(confidence), 1.0)[1]

    def _with_labels(self, of_prompts: Interval, z: float, more: float) -> Interval:
        assert self.value is not None
        of_labels = [tuple(d / self.n for d in group.deviations(z, more)) for group in self.groups]
        low, high = _square_and_add(self.value, [of_prompts, *((a, b) for a, b in of_labels)])
        return max(0.0, low), min(1.0, high)


Known = tuple[bool, bool | None]
"""What is known of an answer: the judge's verdict, and people's label; None without one."""


@dataclasses.dataclass(frozen=True, slots=True)
class CorrectedDifference:
    """A second model's rate minus a first one's on the same prompts, corrected by labels of answers of both.

    Only prompts to which the answers differ count towards it; for the others the difference is 0 whatever people say.
    Each rate is corrected as in `CorrectedRate`, within these prompts.

    Attributes:
        n: Prompts on which the judge has a verdict of both answers.
        first: The first model's answers to the prompts to which both answer differently, by verdict.
        second: The second model's.
        worse: How many prompts are expected to be a hit of the second model only, given both verdicts and the labels
            that there are.
        better: How many of the first model only.
    """

    n: int
    first: Groups
    second: Groups
    worse: float
    better: float

    @classmethod
    def of(
        cls, n: int, first: Groups, second: Groups, table: Mapping[tuple[Known, Known], int]
    ) -> "CorrectedDifference":
        """From the groups and the number of differing prompts by what is known of both answers, first and second.

        Where an answer has a label, that counts; else the rate of its group. Errors on one prompt mostly go together,
        so that labels tell of fewer flips than rates of independent answers would. The difference stays that of the
        groups, in which labels may have different weights.
        """

        def rate(groups: Groups, known: Known) -> float:
            verdict, label = known
            return groups[0 if verdict else 1].rate if label is None else float(label)

        worse = math.fsum(k * (1 - rate(first, a)) * rate(second, b) for (a, b), k in table.items())
        better = math.fsum(k * rate(first, a) * (1 - rate(second, b)) for (a, b), k in table.items())
        whole = math.fsum(group.hits for group in second) - math.fsum(group.hits for group in first)
        shift = (whole - (worse - better)) / 2
        worse, better = max(0.0, worse + shift), max(0.0, better - shift)
        return cls(n, first, second, max(worse, better + whole), max(better, worse - whole))

    @property
    def value(self) -> float | None:
        """The corrected difference; None without prompts."""
        return (self.worse - self.better) / self.n if self.n else None

    @property
    def labelled(self) -> int:
        """Labels of answers that differ."""
        return sum(group.labelled for group in (*self.first, *self.second))

    def limits(self, z: float = Z95, *, more: float = 1.0) -> Interval:
        """The interval: of prompts (Tango's, of the expected flips), and of the labels of each model and verdict.

        They are combined by square-and-add. With a label for every answer it is Tango's interval of the labels. Of a
        prompt without both labels they are taken to be independent given the verdicts: too wide if they go together.
        `z` is the half-width in standard deviations; `more` multiplies the number of labels.
        """
        if self.value is None:
            return -1.0, 1.0
        low, high = tango(self.worse, self.better, self.n, z)
        parts = [(self.value - low, high - self.value)]
        for sign, groups in ((1, self.second), (-1, self.first)):
            for group in groups:
                below, above = (d / self.n for d in group.deviations(z, more))
                parts.append((below, above) if sign > 0 else (above, below))
        low, high = _square_and_add(self.value, parts)
        return max(-1.0, low), min(1.0, high)

    def upper(self, confidence: float) -> float:
        """The one-sided upper limit."""
        return self.limits(quantile(confidence))[1]


def labels_needed(
    corrected: CorrectedRate | CorrectedDifference, *, width: float = 1.5, z: float = Z95, most: float = 1e4
) -> int | None:
    """How many labels would bring the interval to within `width` times that with a label for every answer.

    As the labels that there are, only more: their shares, and their split over verdicts and models, stay.

    Returns:
        The number, at most that of all answers; None if there are no labels to go by.
    """
    if corrected.value is None or not corrected.labelled:
        return None

    def wide(more: float) -> float:
        low, high = corrected.limits(z, more=more)
        return high - low

    goal = width * wide(most)
    groups = corrected.groups if isinstance(corrected, CorrectedRate) else (*corrected.first, *corrected.second)
    answers = sum(group.size for group in groups)
    low, high = 0.0, answers / corrected.labelled
    if wide(1.0) <= goal:
        return corrected.labelled
    low = 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if wide(middle) > goal else (low, middle)
    return min(answers, math.ceil(high * corrected.labelled - 1e-6))


# --- The judge's error, and rates corrected by it: Rogan and Gladen ---


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95 % interval, and how many equally weighted labels it is worth."""

    value: float
    low: float
    high: float
    effective: float


def sensitivity(groups: Groups, z: float = Z95, *, per_prompt: float = 1.0) -> Share | None:
    """The share of true hits that a judge calls hits, when labels are drawn by verdict.

    Se = N₁m₁ / (N₁m₁ + N₀m₀), N the answers with and without a verdict of a hit and m the share of each that people
    call a hit: the correction for partial verification of Begg & Greenes (1983). Two errors are combined by
    square-and-add: that of the labels, by the interval of the ratio N₀m₀ / N₁m₁ from Jeffreys' limits of both (MOVER-R:
    Donner & Zou 2012, eq. 9), and that of the answers, Wilson's of Se among the true hits. `effective` is the n for
    which Se(1−Se)/n is the sum of both variances, the first by the delta method (Zhou 1993) with half a label added to
    each count.

    Args:
        groups: The answers by verdict.
        z: Half-width in standard deviations.
        per_prompt: Answers per prompt. Several answers to one prompt count as one here, since a judge is likely to err
            on all of them.

    Returns:
        None without labels of either verdict, or if people call nothing a hit.
    """
    hit, other = groups
    if not hit.labelled or not other.labelled or hit.hits + other.hits <= 0:
        return None
    value = hit.hits / (hit.hits + other.hits)
    low, high = (1 / (1 + odds) for odds in reversed(_ratio(other, hit, z)))
    true_hits = (hit.hits + other.hits) / per_prompt
    by_answers = wilson(value * true_hits, true_hits, z)
    by_labels = value - min(low, value), max(high, value) - value
    low, high = _square_and_add(value, [by_labels, (value - by_answers[0], by_answers[1] - value)])
    spread, counts = 0.0, []
    for group in groups:
        rate = (group.rate * group.effective + 0.5) / (group.effective + 1)
        unlabelled = max(0.0, 1 - group.labelled / group.size)
        spread += unlabelled * (1 - rate) / (rate * group.effective)
        counts.append(group.size * rate)
    share = counts[0] / (counts[0] + counts[1])
    effective = 1 / (share * (1 - share) * spread + 1 / true_hits)
    return Share(value, max(0.0, low), min(1.0, high), effective)


def specificity(groups: Groups, z: float = Z95, *, per_prompt: float = 1.0) -> Share | None:
    """The share of answers that are no hit which a judge calls none: `sensitivity` with hits and others exchanged."""
    hit, other = groups
    turned = [dataclasses.replace(group, rate=1 - group.rate) for group in (other, hit)]
    return sensitivity((turned[0], turned[1]), z, per_prompt=per_prompt)


def _ratio(top: Group, bottom: Group, z: float) -> Interval:
    """MOVER-R's limits of the ratio of the hits of two groups, of which some are labelled."""
    a, b = top.hits, bottom.hits
    (a_below, a_above), (b_below, b_above) = top.deviations(z), bottom.deviations(z)

    def limit(a_end: float, b_end: float, sign: int) -> float:
        room = max(0.0, (a * b) ** 2 - a_end * b_end * (2 * a - a_end) * (2 * b - b_end))
        below = b_end * (2 * b - b_end)
        return math.inf if below <= 0 else max(0.0, (a * b + sign * math.sqrt(room)) / below)

    return limit(a - a_below, b + b_above, -1), limit(a + a_above, b - b_below, 1)


def rogan_gladen(rate: float, n: int, se: Share, sp: Share, z: float = Z95) -> tuple[float, float, float] | None:
    """A rate corrected by a judge's sensitivity and specificity, which are taken to be the same for every model.

    θ = (rate + Sp − 1) / (Se + Sp − 1) (Rogan & Gladen 1978), cut to [0, 1]; the interval includes the errors of Se and
    Sp (Lang & Reiczigel 2014, eqs. 6, 7, 16 and 17, with (1 − θ)² in eq. 4).

    Args:
        rate: The share that the judge calls hits.
        n: Of how many answers.
        se: The sensitivity; `effective` is the number of true hits that it rests on.
        sp: The specificity.
        z: Half-width in standard deviations.

    Returns:
        The rate, low and high; None if the judge is no better than chance (Se + Sp ≤ 1).
    """
    if se.value + sp.value <= 1:
        return None
    shares, counts = [], []
    for share in (se, sp):
        counts.append(share.effective + 2)
        shares.append((share.effective * share.value + 1) / (share.effective + 2))
    (s, t), count = shares, n + z * z
    apparent = (n * rate + z * z / 2) / count
    power = s + t - 1
    if power <= 0:
        return None
    centre = (apparent + t - 1) / power
    errors = s * (1 - s) / counts[0], t * (1 - t) / counts[1]
    shift = 2 * z * z * (centre * errors[0] - (1 - centre) * errors[1])
    spread = apparent * (1 - apparent) / count + centre**2 * errors[0] + (1 - centre) ** 2 * errors[1]
    half = z * math.sqrt(spread) / power
    value = (rate + sp.value - 1) / (se.value + sp.value - 1)
    low, value, high = (min(1.0, max(0.0, each)) for each in (centre + shift - half, value, centre + shift + half))
    return value, min(low, value), max(high, value)


def weighted_kappa(groups: Groups) -> float | None:
    """Cohen's κ of a judge and people over all answers, of which those labelled stand for the others.

    Returns:
        None if it is undefined: a verdict without labels, or both always say the same.
    """
    hit, other = groups
    n = hit.size + other.size
    if any(group.size and not group.labelled for group in groups) or not n:
        return None
    agreed = (hit.hits + other.size - other.hits) / n
    judge, people = hit.size / n, (hit.hits + other.hits) / n
    chance = judge * people + (1 - judge) * (1 - people)
    return None if chance >= 1 - 1e-12 else (agreed - chance) / (1 - chance)


# --- Several models that answered the same prompts ---


Answers = Mapping[str, Mapping[str, tuple[str, bool]]]
"""By model and prompt, the answer's id, which equal answers to one prompt share, and the judge's verdict on it. Models
in the order in which answers are assigned to strata: an answer belongs to that of the first model that gave it."""
Stratum = tuple[str, bool]
"""A model and a verdict."""


def strata(answers: Answers) -> dict[str, Stratum]:
    """The stratum of each answer: the first model that gave it, and the verdict."""
    found: dict[str, Stratum] = {}
    for model, given in answers.items():
        for item, verdict in given.values():
            found.setdefault(item, (model, verdict))
    return found


def allocate(sizes: Mapping[Stratum, int], n: int) -> dict[Stratum, int]:
    """Divide n labels among strata as evenly as their sizes allow; a larger n takes nothing away from any stratum."""
    left, found = min(n, sum(sizes.values())), dict.fromkeys(sizes, 0)
    while left:
        open_ = [stratum for stratum, size in sizes.items() if found[stratum] < size]
        for stratum in open_[:left] if left < len(open_) else open_:
            found[stratum] += 1
            left -= 1
    return found


class Labelled:
    """The answers of several models, some of them labelled.

    Within a stratum those labelled have to be a random sample of it. Each stands for size / labelled answers of its
    stratum (Horvitz & Thompson 1952; normalized within each group: Hájek 1971).

    Args:
        answers: The answers.
        truth: By the answer's id, whether people call it a hit.
    """

    def __init__(self, answers: Answers, truth: Mapping[str, bool]) -> None:
        self.answers = answers
        of = strata(answers)
        self.truth = {item: hit for item, hit in truth.items() if item in of}
        sizes, labelled = Counter(of.values()), Counter(of[item] for item in self.truth)
        self.weights = {item: sizes[of[item]] / labelled[of[item]] for item in self.truth}

    def rate(self, model: str) -> CorrectedRate:
        """A model's corrected rate."""
        return CorrectedRate(self._groups(list(self.answers[model].values())))

    def difference(self, first: str, second: str) -> CorrectedDifference:
        """The corrected difference of two models on the prompts that both were judged on, second minus first."""
        one, other = self.answers[first], self.answers[second]
        both = [(one[prompt], other[prompt]) for prompt in one if prompt in other]
        differing = [(a, b) for a, b in both if a[0] != b[0]]
        groups = self._groups([a for a, _ in differing]), self._groups([b for _, b in differing])
        table = Counter(((a[1], self.truth.get(a[0])), (b[1], self.truth.get(b[0]))) for a, b in differing)
        return CorrectedDifference.of(len(both), *groups, table)

    def pooled(self) -> tuple[Groups, float]:
        """All answers by the judge's verdict, each once, and how many of them there are per prompt."""
        once = {item: (item, verdict) for given in self.answers.values() for item, verdict in given.values()}
        prompts = {prompt for given in self.answers.values() for prompt in given}
        return self._groups(list(once.values())), len(once) / max(1, len(prompts))

    def _groups(self, given: Sequence[tuple[str, bool]]) -> Groups:
        labels: dict[bool, list[tuple[bool, float]]] = defaultdict(list)
        for item, verdict in given:
            if item in self.truth:
                labels[verdict].append((self.truth[item], self.weights[item]))
        sizes = Counter(verdict for _, verdict in given)
        return Group.of(True, sizes[True], labels[True]), Group.of(False, sizes[False], labels[False])
