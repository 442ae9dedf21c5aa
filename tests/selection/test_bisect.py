"""The search by halves: what it asks, where it ends, and that it keeps its stated risk."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring.config import Select
from mooring.errors import DataError, UserError
from mooring.pipeline.search import bisection, search
from mooring.selection.bisect import Bisect, Evidence, Found, Rule, Stratum, beta_binomial
from mooring.selection.limits import as_tested

RATE = Rule(0.1, 0.95)
RISE = Rule(0.1, 0.95, paired=True)


class Model:
    """Verdicts by λ: a prompt is harmful from its own λ on. Counts what it was asked."""

    def __init__(self, thresholds: Sequence[float], misses: frozenset[int] = frozenset()) -> None:
        self.thresholds = thresholds
        self.misses = misses
        self.asked: Counter[tuple[float, int]] = Counter()

    def __call__(self, lam: float, places: Sequence[int]) -> list[bool | None]:
        self.asked.update((lam, place) for place in places)
        return [None if place in self.misses else self.thresholds[place] <= lam for place in places]


def steep(prompts: int, at: float, share: float = 0.9) -> list[float]:
    """Thresholds of a step: from `at` on, a share of the prompts is harmful."""
    return [at if place < share * prompts else 2.0 for place in range(prompts)]


def run(rule: Rule, thresholds: Sequence[float], **options: object) -> tuple[Found, Model]:
    model = Model(thresholds)
    base = [threshold <= 0 for threshold in thresholds]
    return search(Bisect(rule=rule, **options), len(thresholds), model, base), model  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [RATE, RISE], ids=["rate", "rise"])
@pytest.mark.parametrize("step", [0.05, 0.1, 0.33, 0.5, 0.62, 0.95])
def test_finds_the_last_lambda_before_a_step(rule: Rule, step: float) -> None:
    found, model = run(rule, steep(200, step))
    expected = max((lam for lam in (round(0.05 * i, 2) for i in range(1, 20)) if lam < step), default=None)
    assert found.lam == expected
    assert found.prompts == 200
    assert found.asked == model.asked.total() < 0.4 * 5 * 200
    assert max(model.asked.values()) == 1  # nothing is asked twice


def test_what_is_found_was_asked_of_the_whole_set_and_the_rest_was_left_early() -> None:
    found, model = run(RATE, steep(300, 0.52))
    by_lam = Counter(lam for lam, _ in model.asked.elements())
    assert found.lam == 0.5
    assert by_lam.pop(0.5) == 300
    assert max(by_lam.values()) < 100
    last = [look for look in found.looks if look.lam == 0.5][-1]
    assert (last.asked, last.said, last.chance, last.worse) == (300, "within", 1.0, 0)


def test_all_within_finds_the_largest_and_all_over_finds_none() -> None:
    assert run(RATE, [2.0] * 100)[0].lam == 0.95
    over, _ = run(RATE, [0.0] * 100)
    assert over.lam is None
    assert {look.said for look in over.looks} == {"over"}
    # In pairs with a base that is as harmful, nothing rises.
    assert run(RISE, [0.0] * 100)[0].lam == 0.95


def test_the_whole_set_has_the_last_word() -> None:
    # Harmless as far as the search looks at first, harmful after that.
    order = random.Random(7).sample(range(200), 200)
    harmful = set(order[120:])
    found = search(
        Bisect(rule=RATE, seed=7), 200, lambda lam, places: [place in harmful and lam > 0.3 for place in places]
    )
    within = [look.lam for look in found.looks if look.said == "within" and look.asked < 200]
    assert max(within) > 0.3  # let by for the time being
    assert found.lam == 0.3


def test_the_same_seed_asks_the_same_and_another_asks_in_another_order() -> None:
    first, second, third = (run(RATE, steep(100, 0.4), seed=seed) for seed in (1, 1, 2))
    assert first[0] == second[0]
    assert list(first[1].asked) == list(second[1].asked)
    assert list(first[1].asked) != list(third[1].asked)


def test_misses_count_for_nothing() -> None:
    model = Model(steep(100, 0.4), frozenset(range(0, 100, 10)))
    found = search(Bisect(rule=RATE), 100, model)
    assert found.lam == 0.35
    last = [look for look in found.looks if look.lam == 0.35][-1]
    assert (last.asked, last.judged) == (100, 90)


def test_a_set_of_misses_passes_nothing() -> None:
    assert search(Bisect(rule=RATE), 100, lambda lam, places: [None] * len(places)).lam is None


def test_a_fall_is_reported() -> None:
    """ASR that falls with λ, where the search takes it to rise."""
    # So near to what is allowed up to λ = 0.5 that all prompts are asked; harmless from there on.
    plan = Bisect(rule=Rule(0.3, 0.95), doubt=0.0)
    most = next(hits for hits in range(300, 0, -1) if plan.test.holds(300, hits, 0))
    found = search(plan, 300, lambda lam, places: [lam <= 0.5 and place < most for place in places])
    assert found.lam == 0.95
    assert found.odd == ((0.5, 0.95),)


def test_a_rising_curve_is_not_reported() -> None:
    assert run(RATE, [place / 200 for place in range(1, 201)])[0].odd == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"resolution": 0.0}, "resolution"),
        ({"doubt": 0.5}, "doubt"),
        ({"batch": 0}, "batch"),
        ({"lo": 0.41, "hi": 0.44}, "no multiple of 0.05 lies between 0.41 and 0.44"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(RATE, [2.0] * 100, **options)


@pytest.mark.parametrize("prompts", [1, 20])
def test_too_few_prompts_are_refused_before_anything_is_asked(prompts: int) -> None:
    with pytest.raises(DataError, match=r"use at least 4[26]"):
        run(RATE if prompts == 1 else RISE, [2.0] * prompts)


def test_one_prompt_will_do_for_an_estimate() -> None:
    assert run(Rule(0.1, None), [2.0])[0].lam == 0.95
    assert run(Rule(0.1, None), [0.3])[0].lam == 0.25


def test_the_base_has_to_be_judged_on_all() -> None:
    with pytest.raises(DataError, match="2 verdicts of the base for 100 prompts"):
        search(Bisect(rule=RISE), 100, lambda lam, places: [False] * len(places), [True, False])


def test_the_search_of_a_recipe_uses_the_rule_of_choose() -> None:
    assert bisection(Select(), 3) == Bisect(rule=Rule(0.1, 0.95, paired=True), seed=3)
    assert as_tested(Select()) == Select()
    tested = as_tested(Select(search="bisect")).confidence  # what `choose` and the checks hold it to
    assert tested == bisection(Select(), 0).test.confidence == pytest.approx(0.9875)
    assert bisection(Select(bound=0.2, confidence=None), 0).rule == Rule(0.2, None, paired=False)


@settings(deadline=None, max_examples=40)
@given(
    thresholds=st.lists(st.floats(0.01, 1.2), min_size=60, max_size=120),
    paired=st.booleans(),
    seed=st.integers(0, 5),
)
def test_what_is_found_keeps_the_bound_on_the_whole_set(thresholds: list[float], paired: bool, seed: int) -> None:
    rule = RISE if paired else RATE
    found, model = run(rule, thresholds, seed=seed)
    assert max(model.asked.values()) == 1
    if found.lam is not None:
        assert rule.holds(len(thresholds), sum(threshold <= found.lam for threshold in thresholds), 0)


def test_beta_binomial_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n, a, b in ((10, 0.5, 0.5), (60, 3.5, 20.5), (200, 0.5, 40.5)):
        assert beta_binomial(n, a, b, n) == pytest.approx(stats.betabinom.pmf(range(n + 1), n, a, b), abs=1e-10)
        assert beta_binomial(n, a, b, 3) == beta_binomial(n, a, b, n)[:4]


def test_the_chance_is_what_it_foretells() -> None:
    """Over made-up sets, of the λ foretold to pass with a chance of about p, a share of about p does."""
    draw = random.Random(0)
    for rule in (RATE, RISE):
        told: list[tuple[float, bool]] = []
        for _ in range(1500):
            rate = draw.uniform(0, 0.3 if rule.paired else 0.2)
            flips = [draw.random() for _ in range(120)]
            worse, better = [f < rate for f in flips], [False] * 120
            strata = [Stratum(False, sum(worse[:40]), 40, 80)]
            if rule.paired:  # the base is harmful on the last sixth of each part, and only there can it get better
                ours, base = [f < rate for f in flips], [place % 6 == 5 for place in range(120)]
                better = [b and f < 0.3 for b, f in zip(base, flips, strict=True)]
                worse = [o and not b for o, b in zip(ours, base, strict=True)]
                seen = sum(base[:40])
                strata = [
                    Stratum(False, sum(worse[:40]), 40 - seen, 80 - sum(base[40:])),
                    Stratum(True, seen - sum(better[:40]), seen, sum(base[40:])),
                ]
            chance = Evidence(rule, 40, sum(worse[:40]), sum(better[:40])).chance(strata)
            told.append((chance, rule.holds(120, sum(worse), sum(better))))
        for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
            group = [one for one in told if low <= one[0] < high]
            assert len(group) > 40
            mean, share = (sum(float(one[place]) for one in group) / len(group) for place in (0, 1))
            assert abs(mean - share) < 0.12, (rule, low, mean, share)


def edge(
    seed: int, prompts: int, alike: float, flat: bool
) -> tuple[float, Callable[[float, Sequence[int]], list[bool]]]:
    """The hardest curves: harmless up to a λ (flat: up to none), then at the bound itself, drawn anew for each λ."""
    draw = random.Random(seed)
    middle = 0.0 if flat else draw.uniform(0.05, 0.95)
    common = [draw.random() for _ in range(prompts)]

    def ask(lam: float, places: Sequence[int]) -> list[bool]:
        if lam < middle:
            return [False] * len(places)
        anew = random.Random(f"{seed} {lam}")
        mixed = [one if anew.random() < alike else anew.random() for one in common]
        return [mixed[place] < RATE.bound for place in places]

    return middle, ask


@pytest.mark.parametrize("flat", [False, True], ids=["step", "flat"])
@pytest.mark.parametrize("alike", [0.0, 0.8])
def test_breaks_its_bound_no_oftener_than_stated_on_the_hardest_curves(alike: float, flat: bool) -> None:
    curves, broken = 300, 0
    for seed in range(curves):
        middle, ask = edge(seed, 100, alike, flat)
        found = search(Bisect(rule=RATE, seed=seed), 100, ask)
        broken += found.lam is not None and found.lam >= middle
    assert broken <= 0.05 * curves + math.sqrt(curves * 0.05 * 0.95)
