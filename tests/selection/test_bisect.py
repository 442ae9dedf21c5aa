"""Bisection: what it requests, what it finds, and that its risk is at most the stated one."""

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring.config import Select
from mooring.errors import DataError, UserError
from mooring.pipeline.search import bisection
from mooring.selection.bisect import (
    BisectResult,
    BisectSettings,
    BoundedRate,
    Stratum,
    _allowed,
    _prior,
    beta_binomial,
    bisect,
    bisect_all,
    pass_probability,
)
from mooring.selection.limits import BISECT_SHARE, Rule, as_tested, sharper
from mooring.stats import Flips

RATE = Rule(0.1, 0.95)
RISE = Rule(0.1, 0.95, paired=True)


class Model:
    """Verdicts by λ: each prompt is harmful from its own threshold on. Counts the requests."""

    def __init__(self, thresholds: Sequence[float], misses: frozenset[int] = frozenset()) -> None:
        self.thresholds = thresholds
        self.misses = misses
        self.requests: Counter[tuple[float, int]] = Counter()

    def __call__(self, lam: float, places: Sequence[int]) -> list[bool | None]:
        self.requests.update((lam, place) for place in places)
        return [None if place in self.misses else self.thresholds[place] <= lam for place in places]


def step(prompts: int, at: float, share: float = 0.9) -> list[float]:
    """Thresholds of a step: from `at` on, a share of the prompts is harmful."""
    return [at if place < share * prompts else 2.0 for place in range(prompts)]


def run(rule: Rule, thresholds: Sequence[float], **options: object) -> tuple[BisectResult, Model]:
    model = Model(thresholds)
    base = [threshold <= 0 for threshold in thresholds]
    return bisect(BisectSettings(rule=rule, **options), len(thresholds), model, base), model  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [RATE, RISE], ids=["rate", "rise"])
@pytest.mark.parametrize("at", [0.05, 0.33, 0.5, 0.95])
def test_finds_the_last_lambda_before_a_step(rule: Rule, at: float) -> None:
    found, model = run(rule, step(200, at))
    expected = max((lam for lam in (round(0.05 * i, 2) for i in range(1, 20)) if lam < at), default=None)
    assert found.lam == expected
    assert found.prompts == 200
    assert found.responses == model.requests.total() < 0.45 * 5 * 200
    assert max(model.requests.values()) == 1


def test_only_the_lambda_found_is_tested_on_the_whole_set() -> None:
    found, model = run(RATE, step(300, 0.52))
    by_lam = Counter(lam for lam, _ in model.requests.elements())
    assert found.lam == found.chosen == 0.5
    assert by_lam.pop(0.5) == 300
    assert max(by_lam.values()) < 100
    last = [visit for visit in found.visits if visit.lam == 0.5][-1]
    assert (last.prompts, last.within, last.probability, last.worse) == (300, True, 1.0, 0)


def test_all_within_finds_the_largest_and_all_over_finds_none() -> None:
    assert run(RATE, [2.0] * 100)[0].lam == 0.95
    over, _ = run(RATE, [0.0] * 100)
    assert (over.lam, over.chosen) == (None, 0.05)
    assert not any(visit.within for visit in over.visits)
    # Compared with a base that is as harmful, nothing rises.
    assert run(RISE, [0.0] * 100)[0].lam == 0.95


def test_the_search_continues_below_a_lambda_that_the_whole_set_does_not_confirm() -> None:
    # The prompts that are tested first are harmless.
    order = random.Random(7).sample(range(200), 200)
    harmful = set(order[120:])
    found = bisect(
        BisectSettings(rule=RATE, seed=7), 200, lambda lam, places: [place in harmful and lam > 0.3 for place in places]
    )
    early = [visit.lam for visit in found.visits if visit.within and visit.prompts < 200]
    assert max(early) > 0.3
    assert found.lam == 0.3


def test_the_seed_determines_the_order_of_the_prompts() -> None:
    first, second, third = (run(RATE, step(100, 0.4), seed=seed) for seed in (1, 1, 2))
    assert first[0] == second[0]
    assert list(first[1].requests) == list(second[1].requests)
    assert list(first[1].requests) != list(third[1].requests)


def test_misses_do_not_count_where_estimates_are_compared() -> None:
    model = Model(step(100, 0.4), frozenset(range(0, 100, 10)))
    found = bisect(BisectSettings(rule=dataclasses.replace(RATE, confidence=None)), 100, model)
    assert found.lam == 0.35
    last = [visit for visit in found.visits if visit.lam == 0.35][-1]
    assert (last.prompts, last.judged) == (100, 90)


@pytest.mark.parametrize(("confidence", "judged", "worse"), [(0.95, 200, 20), (None, 180, 0)])
def test_the_bases_misses_are_harmless_with_a_confidence(confidence: float | None, judged: int, worse: int) -> None:
    thresholds = [0.0] * 20 + [2.0] * 180
    base: list[bool | None] = [None] * 20 + [False] * 180
    rule = Rule(0.2, confidence, paired=True)
    found = bisect(BisectSettings(rule=rule), 200, Model(thresholds), base)
    last = [visit for visit in found.visits if visit.lam == found.lam][-1]
    assert (last.prompts, last.judged, last.worse) == (200, judged, worse)


def test_verdicts_at_neighbouring_lambdas_are_the_prior_of_those_between() -> None:
    known = {(below, above): _prior(below, above) for below in (True, False, None) for above in (True, False, None)}
    assert {pair for pair, prior in known.items() if prior == 0.9} == {(True, True), (True, None)}
    assert {pair for pair, prior in known.items() if prior == 0.1} == {(False, False), (None, False)}
    assert set(known.values()) == {0.1, 0.5, 0.9}


def test_nothing_passes_if_all_verdicts_are_misses() -> None:
    assert bisect(BisectSettings(rule=RATE), 100, lambda lam, places: [None] * len(places)).lam is None


def test_a_rate_that_falls_with_lambda_is_reported() -> None:
    # Just within the bound up to λ = 0.5, so that all prompts are tested; harmless above.
    plan = BisectSettings(rule=Rule(0.3, 0.95), doubt=0.0)
    most = next(hits for hits in range(200, 0, -1) if plan.test.holds(200, hits, 0))
    found = bisect(plan, 200, lambda lam, places: [lam <= 0.5 and place < most for place in places])
    assert found.lam == 0.95
    assert found.reversals == ((0.5, 0.95),)


def test_a_rate_that_rises_with_lambda_is_not_reported() -> None:
    assert run(RATE, [place / 200 for place in range(1, 201)])[0].reversals == ()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"resolution": 0.00009}, "bisect_out_of_range"),
        ({"resolution": 1.0}, "bisect_out_of_range"),
        ({"doubt": 0.5}, "bisect_out_of_range"),
        ({"doubt": -0.1}, "bisect_out_of_range"),
        ({"batch": 0}, "bisect_out_of_range"),
        ({"lo": 0.41, "hi": 0.44}, "resolution_too_coarse"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float], code: str) -> None:
    with pytest.raises(UserError) as caught:
        run(RATE, [2.0] * 100, **options)
    assert caught.value.code == f"usage.{code}"


def test_the_ends_of_each_range_are_settings() -> None:
    finest = BisectSettings(rule=RATE, resolution=0.0001, doubt=0.0, batch=1).candidates()
    assert (finest[0], finest[-1], len(finest)) == (0.0001, 0.9999, 9999)
    assert BisectSettings(rule=RATE, resolution=0.5, doubt=0.499).candidates() == [0.5]
    assert BisectSettings(rule=RATE, lo=0.2, hi=0.4, resolution=0.1).candidates() == [0.3]  # between, without the ends


@pytest.mark.parametrize(("rule", "prompts", "needed"), [(RATE, 1, 51), (RISE, 20, 60)])
def test_too_few_prompts_are_refused_before_the_first_request(rule: Rule, prompts: int, needed: int) -> None:
    model = Model([2.0] * prompts)
    with pytest.raises(DataError) as caught:
        bisect(BisectSettings(rule=rule), prompts, model, [False] * prompts)
    assert caught.value.code == "data.too_few_prompts"
    assert f"at least {needed}" in caught.value.hint
    assert not model.requests


@pytest.mark.parametrize("rule", [RATE, RISE, Rule(0.1, None), Rule(0.05, None, paired=True)])
def test_the_largest_count_that_keeps_the_rule_is_found(rule: Rule) -> None:
    for total in (*range(12), 29, 45):
        for better in range(0, total + 1, 5):
            kept = [worse for worse in range(total - better + 1) if rule.holds(total, worse, better)]
            assert _allowed(rule, total, better) == (max(kept) if kept else -1)


def test_a_batch_may_be_one_prompt_and_the_resolution_a_half() -> None:
    assert run(Rule(0.1, None), [2.0] * 3, batch=1)[0].lam == 0.95
    assert run(Rule(0.1, None), [2.0] * 3, resolution=0.5)[0].lam == 0.5
    with pytest.raises(UserError):
        run(Rule(0.1, None), [2.0] * 3, resolution=1.0)


def test_one_prompt_suffices_for_an_estimate() -> None:
    assert run(Rule(0.1, None), [2.0])[0].lam == 0.95
    assert run(Rule(0.1, None), [0.3])[0].lam == 0.25


def test_a_verdict_of_the_base_is_needed_for_each_prompt() -> None:
    with pytest.raises(ValueError, match="zip"):
        bisect(BisectSettings(rule=RISE), 100, lambda lam, places: [False] * len(places), [True, False])


def test_the_search_of_a_recipe_uses_the_rule_of_choose() -> None:
    assert bisection(Select(), 3) == BisectSettings(rule=Rule(0.1, 0.95, paired=True), seed=3)
    assert as_tested(Select()) == Select()
    assert as_tested(Select(search="bisect")).confidence == 0.95  # `choose` and the last test of the search
    assert bisection(Select(), 0).depth == 5
    assert bisection(Select(), 0).test.confidence == pytest.approx(sharper(0.95, BISECT_SHARE))
    assert bisection(Select(), 0).enough == pytest.approx(math.log(1 / (0.05 * BISECT_SHARE)))
    assert bisection(Select(bound=0.2, confidence=None), 0).rule == Rule(0.2, None, paired=False)


@settings(deadline=None, max_examples=40)
@given(
    thresholds=st.lists(st.floats(0.01, 1.2), min_size=60, max_size=120),
    paired=st.booleans(),
    seed=st.integers(0, 5),
)
def test_the_lambda_found_is_within_the_bound_on_the_whole_set(
    thresholds: list[float], paired: bool, seed: int
) -> None:
    rule = RISE if paired else RATE
    found, model = run(rule, thresholds, seed=seed)
    assert max(model.requests.values()) == 1
    if found.lam is not None:
        assert rule.holds(len(thresholds), sum(threshold <= found.lam for threshold in thresholds), 0)


def test_beta_binomial_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n, a, b in ((10, 0.5, 0.5), (60, 3.5, 20.5), (200, 0.5, 40.5)):
        assert beta_binomial(n, a, b, n) == pytest.approx(stats.betabinom.pmf(range(n + 1), n, a, b), abs=1e-10)
        assert beta_binomial(n, a, b, 3) == beta_binomial(n, a, b, n)[:4]


def test_the_pass_probability_is_calibrated() -> None:
    """Of the simulated λ that pass with a predicted probability of about p, a share of about p passes."""
    draw = random.Random(0)
    for rule in (RATE, RISE):
        predicted: list[tuple[float, bool]] = []
        for _ in range(1000):
            rate = draw.uniform(0, 0.3 if rule.paired else 0.2)
            noise = [draw.random() for _ in range(120)]
            worse, better = [each < rate for each in noise], [False] * 120
            strata = [Stratum(False, sum(worse[:40]), 40, 80)]
            if rule.paired:  # the base is harmful on every sixth prompt, and only there can the λ be better
                hits, base = [each < rate for each in noise], [place % 6 == 5 for place in range(120)]
                better = [b and each < 0.3 for b, each in zip(base, noise, strict=True)]
                worse = [hit and not b for hit, b in zip(hits, base, strict=True)]
                judged = sum(base[:40])
                strata = [
                    Stratum(False, sum(worse[:40]), 40 - judged, 80 - sum(base[40:])),
                    Stratum(True, judged - sum(better[:40]), judged, sum(base[40:])),
                ]
            probability = pass_probability(rule, Flips(40, sum(worse[:40]), sum(better[:40])), strata)
            predicted.append((probability, rule.holds(120, sum(worse), sum(better))))
        for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
            group = [each for each in predicted if low <= each[0] < high]
            assert len(group) > 30
            mean, share = (sum(float(each[place]) for each in group) / len(group) for place in (0, 1))
            assert abs(mean - share) < 0.12, (rule, low, mean, share)


def edge(
    seed: int, prompts: int, alike: float, flat: bool
) -> tuple[float, Callable[[float, Sequence[int]], list[bool]]]:
    """The hardest curves: harmless up to a λ (flat: up to none), then at the bound itself, drawn again for each λ."""
    draw = random.Random(seed)
    middle = 0.0 if flat else draw.uniform(0.05, 0.95)
    common = [draw.random() for _ in range(prompts)]

    def ask(lam: float, places: Sequence[int]) -> list[bool]:
        if lam < middle:
            return [False] * len(places)
        own = random.Random(f"{seed} {lam}")
        mixed = [each if own.random() < alike else own.random() for each in common]
        return [mixed[place] < RATE.bound for place in places]

    return middle, ask


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True], ids=["step", "flat"])
@pytest.mark.parametrize("alike", [0.0, 0.8])
def test_the_risk_on_the_hardest_curves_is_at_most_the_stated_one(alike: float, flat: bool) -> None:
    curves, broken = 150, 0
    for seed in range(curves):
        middle, ask = edge(seed, 100, alike, flat)
        found = bisect(BisectSettings(rule=RATE, seed=seed), 100, ask)
        broken += found.lam is not None and found.lam >= middle
    assert broken <= 0.05 * curves + math.sqrt(curves * 0.05 * 0.95)


# --- Several bounds at once ---


def bounded(name: str, thresholds: Sequence[float], rule: Rule = RISE) -> tuple[BoundedRate, Model]:
    model = Model(thresholds)
    base = [threshold <= 0 for threshold in thresholds]
    return BoundedRate(name=name, rule=rule, prompts=len(thresholds), ask=model, base=base), model


@pytest.mark.parametrize("order", [(0.7, 0.42), (0.42, 0.7)])
def test_of_several_bounds_the_narrowest_decides_and_what_one_refuses_is_not_asked_by_the_next(
    order: tuple[float, float],
) -> None:
    (first, one), (second, other) = (
        bounded(name, step(count, at)) for name, count, at in zip(("asr", "asr+base64"), (200, 120), order, strict=True)
    )
    found = bisect_all(BisectSettings(rule=RISE), [first, second])
    assert found.lam == 0.4
    assert found.prompts == 320
    assert found.responses == one.requests.total() + other.requests.total()
    assert max([*one.requests.values(), *other.requests.values()]) == 1
    asked = [{lam for lam, _ in model.requests} for model in (one, other)]
    over = {visit.lam for visit in found.visits if visit.rate == "asr" and not visit.within}
    assert bool(over) == (order[0] < order[1])
    assert asked[1] == asked[0] - over
    last = [visit for visit in found.visits if visit.lam == 0.4][-2:]
    assert [(visit.rate, visit.prompts, visit.within) for visit in last] == [
        ("asr", 200, True),
        ("asr+base64", 120, True),
    ]


def test_several_bounds_that_are_one_find_what_it_finds() -> None:
    thresholds = step(150, 0.52)
    alone, _ = run(RISE, thresholds)
    twice = bisect_all(
        BisectSettings(rule=RISE), [bounded("asr", thresholds)[0], bounded("over_refusal", thresholds)[0]]
    )
    assert (twice.lam, twice.reversals) == (alone.lam, alone.reversals)
    assert [visit for visit in twice.visits if visit.rate == "asr"] == list(alone.visits)


def test_each_rate_needs_enough_prompts() -> None:
    with pytest.raises(DataError, match=r"30 validation prompts cannot show .* over-refusal"):
        bisect_all(BisectSettings(rule=RISE), [bounded("asr", [2.0] * 100)[0], bounded("over_refusal", [2.0] * 30)[0]])


@pytest.mark.slow
def test_the_risk_of_two_bounds_is_at_most_that_of_one() -> None:
    """Every λ from some on lies at one of the bounds, and below the other: either may let it through by chance."""
    curves, broken = 60, 0
    for seed in range(curves):
        middle, ask = edge(seed, 100, 0.5, seed % 4 == 0)
        safe, _ = bounded("asr", [2.0] * 100, RATE)
        at_bound = BoundedRate(name="asr+base64", rule=RATE, prompts=100, ask=ask)
        rates = [safe, at_bound] if seed % 2 else [at_bound, safe]
        found = bisect_all(BisectSettings(rule=RATE, seed=seed), rates)
        broken += found.lam is not None and found.lam >= middle
    assert broken <= 0.05 * curves + math.sqrt(curves * 0.05 * 0.95)
