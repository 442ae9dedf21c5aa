"""Intervals, tests, bounds and searches give the same numbers as before, to the last bit."""

import functools
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import api
import frozen
import pytest

COUNTS = [
    (0, 0),
    (0, 1),
    (1, 1),
    (0, 7),
    (3, 7),
    (7, 7),
    (1, 50),
    (25, 50),
    (0, 200),
    (13, 200),
    (199, 200),
    (37, 1000),
]
"""Hits and trials."""
FLIPS = [
    (0, 0, 0),
    (0, 0, 30),
    (1, 0, 30),
    (0, 2, 30),
    (4, 4, 60),
    (30, 0, 30),
    (0, 30, 30),
    (9, 3, 200),
    (17, 40, 313),
]
"""Flips for the worse, flips for the better, and pairs."""
CONFIDENCES = (0.8, 0.95, 0.99)
Trials = list[Any]


def units(seed: int, count: int) -> tuple[list[float], list[float]]:
    """Numerators and denominators, some of the latter 0."""
    draw = random.Random(seed)
    bottoms = [float(draw.choice([0, 1, 1, 2, 5])) for _ in range(count)]
    return [round(draw.uniform(0, 3) * bottom, 6) for bottom in bottoms], bottoms


def hits(seed: int, count: int, rate: float = 0.4, misses: bool = True) -> dict[str, bool | None]:
    """Verdicts by prompt."""
    draw = random.Random(seed)
    return {f"p{n}": None if misses and draw.random() < 0.1 else draw.random() < rate for n in range(count)}


def scores(seed: int, count: int) -> dict[str, float]:
    """Scores by prompt."""
    draw = random.Random(seed)
    return {f"p{n}": round(draw.random(), 4) for n in range(count)}


WEIGHTS = {f"p{n}": float(1 + n % 4) for n in range(40)}
EVERY = [
    ("wilson", [*COUNTS, (3, 2), (-1, 4)], [{}, {"z": 1.0}]),
    (
        "clustered",
        [
            ([], []),
            ([1, 0, 0, 1], [1, 1, 1, 1]),
            ([10] * 12 + [0] * 28, [10] * 40),
            ([3, 4, 2, 0, 1], [10, 10, 9, 4, 10]),
            ([0] * 5, [3] * 5),
            ([4], [3]),
        ],
        [{}, {"z": 1.0}],
    ),
    ("wilson_upper", [*COUNTS, (3, 2)], [{"confidence": c} for c in CONFIDENCES]),
    ("binomial_upper", [*COUNTS, (3, 2)], [{"confidence": c} for c in CONFIDENCES]),
    ("binomial_cdf", [(k, n, p) for k, n in [*COUNTS, (-1, 5)] for p in (0.0, 0.01, 0.3, 0.97, 1.0)], [{}]),
    ("quantile", [(c,) for c in (0.025, 0.5, 0.8, 0.9, 0.95, 0.975, 0.99, 0.999)], [{}]),
    ("mcnemar", [(b, c) for b, c, _ in FLIPS[1:]] + [(5, 5), (100, 60), (-1, 2)], [{}]),
    (
        "paired_permutation",
        [
            ([0, 1, 1], [1, 1, 1]),
            ([0.2, 0.5, 0.1, 0.9], [0.3, 0.7, 0.0, 0.9]),
            ([0] * 20, [1] * 15 + [0.5] * 5),
            ([], [1]),
        ],
        [{}, {"seed": 3, "draws": 200}],
    ),
    ("tango", [*FLIPS, (3, 3, 5)], [{}, {"z": 1.6448536269514722}]),
    ("null_deviation", [(b / 100, c / 100, d) for b, c, _ in FLIPS[1:] for d in (-0.3, 0.0, 0.05, 0.1)], [{}]),
    (
        "newcombe",
        [(*a, *b) for a, b in zip(COUNTS, COUNTS[5:] + COUNTS[:5], strict=True)],
        [{}, {"z": 1.2815515655446004}],
    ),
    (
        "cohen_kappa",
        [([], []), ("aab", "abb"), ("aaaa", "aaaa"), ("abcabc", "abccba"), ([1, 0, 1, 1], [1, 0, 0, 1]), ("a", "ab")],
        [{}],
    ),
    (
        "bootstrap_ratio",
        [units(seed, count) for seed, count in enumerate((0, 1, 5, 40))] + [([1.0], [0.0]), ([1.0], [])],
        [{"draws": 200}, {"seed": 7, "draws": 150, "level": 0.8}],
    ),
    (
        "bootstrap_difference",
        [(units(seed, count), units(seed + 50, count)) for seed, count in enumerate((0, 1, 5, 40))],
        [{"draws": 200}, {"seed": 7, "draws": 150, "level": 0.8}],
    ),
    ("flips", [(hits(a, n), hits(a + 9, m, 0.6)) for a, (n, m) in enumerate([(0, 0), (5, 9), (60, 50)])], [{}]),
    ("worst_flips", [(hits(a, n), hits(a + 9, m, 0.6)) for a, (n, m) in enumerate([(0, 0), (5, 9), (60, 50)])], [{}]),
    ("paired_within", [(b, c, n, d) for b, c, n in [(0, 0, 29), (0, 0, 28), (5, 3, 100)] for d in (0.1, 0.2)], [{}]),
    (
        "compare_rates",
        [(hits(a, n, misses=a % 2 == 0), hits(a + 9, n, 0.55)) for a, n in enumerate((0, 4, 40, 41, 150))]
        + [(hits(1, 3), hits(1, 4))],
        [{}],
    ),
    (
        "compare_scores",
        [(scores(a, n), scores(a + 9, n)) for a, n in enumerate((0, 1, 12, 40))] + [(scores(1, 3), scores(1, 4))],
        [{"draws": 200}, {"draws": 200, "seed": 3, "weights": WEIGHTS}, {"draws": 50, "weights": {}}],
    ),
]
"""Each public function of the statistics, with arguments and keywords."""
DEFAULTS = [
    ("bootstrap_ratio", units(4, 25)),
    ("bootstrap_difference", (units(4, 25), units(54, 25))),
    ("compare_scores", (scores(4, 25), scores(13, 25))),
    ("wilson_upper", (3, 40)),
    ("binomial_upper", (3, 40)),
]
"""Calls that rely on the functions' defaults."""
SUPPORT = [
    ("sharper", [(c, s) for c in CONFIDENCES for s in (0.05, 0.25, 0.8, 1.0)]),
    ("attempt_confidence", [(c, b) for c in CONFIDENCES for b in (1, 3, 12, 40)]),
    ("smallest_set", [(a, c, p) for a in (0.0, 0.01, 0.05, 0.1, 0.5, 1.0) for c in CONFIDENCES for p in (True, False)]),
    (
        "enough_pairs",
        [
            (b, c, m, s)
            for b, c in ((0.0, 0.0), (0.02, 0.01), (0.1, 0.0), (0.1, 0.15))
            for m in (0.05, 0.1)
            for s in CONFIDENCES
        ],
    ),
    ("enough_prompts", [(r, b, c) for r in (0.0, 0.02, 0.1) for b in (0.05, 0.15, 0.3) for c in CONFIDENCES]),
    ("prompts_for", [(m, f) for m in (0.02, 0.05, 0.1) for f in (0.02, 0.05, 0.1, 0.3)]),
    ("table", [()]),
]
"""Functions that compute how many prompts a bound needs."""


def key(*parts: object) -> str:
    """A short name for a case: its arguments, or their hash if they are long."""
    text = json.dumps(parts)[1:-1]
    return text if len(text) < 80 else f"{text[:40]}… {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def statistics(name: str, _: Path) -> dict[str, Any]:
    """One function over its grid."""
    made = {}
    for _name, arguments, keywords in EVERY:
        for given, named in itertools.product(arguments, keywords) if _name == name else ():
            call = functools.partial(api.STATISTICS[name], *given, **named)
            made[key(*given, *([named] if named else []))] = api.guarded(lambda call=call: api.as_plain(call()))
    for _name, given in DEFAULTS:
        if _name == name:
            made[key("defaults", *given)] = api.guarded(lambda given=given: api.as_plain(api.STATISTICS[name](*given)))
    return made


def support(name: str, _: Path) -> dict[str, Any]:
    """One function that computes how many prompts are needed, over its grid."""
    grid = dict(SUPPORT)[name]
    return {key(*given) or "all": api.guarded(lambda given=given: api.SUPPORT[name](*given)) for given in grid}


def constants(_: Path) -> dict[str, Any]:
    """Constants of the code."""
    return dict(api.CONSTANTS)


def evidence(_: Path) -> dict[str, Any]:
    """The inference from verdicts on some prompts to the whole set."""
    made: dict[str, Any] = {}
    for n, alpha, beta, most in ((0, 1.0, 1.0, 3), (5, 0.5, 0.5, 5), (20, 3.1, 9.9, 6), (100, 0.1, 12.9, 100)):
        made[key("beta-binomial", n, alpha, beta, most)] = api.plain(api.beta_binomial(n, alpha, beta, most))
    for rule in ((0.1, 0.95, False), (0.1, 0.9875, True), (0.05, None, True)):
        said = [api.holds(*rule, 100, worse, better) for worse in range(0, 16, 2) for better in (0, 3, 8)]
        made[key("holds", *rule)] = "".join("01"[each] for each in said)
        for number, strata in enumerate(
            (
                [(False, 0, 0, 100, 0.5)],
                [(False, 1, 20, 40, 0.5), (False, 0, 10, 30, 0.1)],
                [(False, 2, 30, 60, 0.5), (True, 4, 5, 9, 0.9), (False, 3, 6, 10, 0.9)],
                [(False, 8, 60, 20, 0.5)],
                [(False, 3, 100, 0, 0.5)],
            )
        ):
            worse = sum(hit for base, hit, *_ in strata if not base)
            better = sum(seen - hit for base, hit, seen, *_ in strata if base)
            judged = sum(seen for _, _, seen, *_ in strata)
            made[key("chance", *rule, number)] = api.chance(rule, (judged, worse, better), strata)
    return made


# Choosing.

LAMS = (0.2, 0.4, 0.6, 0.8)
CURVES: dict[str, Callable[[float], tuple[float, float, float, float]]] = {
    "rising": lambda lam: (0.02 + 0.5 * lam**3, 0.1 + 0.8 * lam, 0.9 - 0.7 * lam, 0.3 - 0.2 * lam),
    "flat": lambda lam: (0.04, 0.5, 0.5, 0.1),
    "early": lambda lam: (0.01 if lam == 0 else 0.4, 0.2 + lam / 2, 1.0 - lam / 2, 0.05 + 0.3 * lam),
    "wavy": lambda lam: (
        0.03 + (0.2 if lam == 0.4 else 0.05 * lam),
        0.9 - abs(lam - 0.6),
        0.3 + abs(lam - 0.6),
        0.2 * lam,
    ),
    "none": lambda lam: (0.0, 0.3 + 0.6 * lam, 0.7 - 0.6 * lam, 0.0),
}
"""By name: attack success, call match, response loss, over-refusal at λ."""
COUNT = 150


def verdict_table(curve: str, count: int, place: int, misses: bool) -> dict[float, dict[str, bool | None]]:
    """Verdicts by λ and prompt whose rates follow a curve, with a little noise."""
    draw = random.Random(f"{curve} {place}")
    order = [draw.random() for _ in range(count)]
    found: dict[float, dict[str, bool | None]] = {}
    for lam in (0.0, *LAMS, 1.0):
        rate, flip = CURVES[curve](lam)[place], random.Random(f"{curve} {place} {lam}")
        said = {f"p{n}": (at < rate) != (flip.random() < 0.01) for n, at in enumerate(order)}
        found[lam] = {p: None if misses and flip.random() < 0.05 else hit for p, hit in said.items()}
    return found


def trials(curve: str, *, count: int = COUNT, misses: bool = False, flipped: bool = True, tuned: bool = True) -> Trials:
    """Validation trials whose rates follow a curve."""
    asr, over = (verdict_table(curve, count, place, misses) for place in (0, 3))
    made = []
    for lam in (0.0, *LAMS, 1.0):
        if lam == 1 and not tuned:
            continue
        _, match, loss, _ = CURVES[curve](lam)
        values: dict[str, dict[str, Any]] = {
            "call_match": {"value": round(match * count) / count, "n": count, "better": "higher", "details": {}},
            "response_loss": {"value": loss, "n": count, "better": "lower", "details": {}},
        }
        for name, table in (("asr", asr), ("over_refusal", over)):
            judged = [hit for hit in table[lam].values() if hit is not None]
            counts = {"yes": sum(judged), "total": count, "miss": count - len(judged)}
            values[name] = {"value": sum(judged) / len(judged), "n": count, "better": "lower", "details": counts}
        model = {0.0: "base", 1.0: "tuned"}.get(lam, "merged")
        made.append(api.trial(model, lam, values))
    return api.flipped(made, {"asr": asr, "over_refusal": over}) if flipped else made


SETS: dict[str, Trials] = {
    **{curve: trials(curve) for curve in CURVES},
    "rising, with misses": trials("rising", misses=True),
    "rising, not in pairs": trials("rising", flipped=False),
    "rising, few": trials("rising", count=12),
    "wavy, no tuned model": trials("wavy", tuned=False),
    "rising, many": trials("rising", count=400),
}
"""Trials to choose among."""
BOUNDS: dict[str, dict[str, Any]] = {
    "default": {},
    "margin 0": {"margin": 0.0},
    "margin 0.05": {"margin": 0.05},
    "margin 0.3": {"margin": 0.3},
    "margin 1": {"margin": 1.0},
    "bound 0.08": {"bound": 0.08},
    "bound 0.2": {"bound": 0.2},
    "bound 1": {"bound": 1.0},
    "over-refusal 0.1": {"over_refusal_margin": 0.1},
    "over-refusal 0": {"margin": 0.2, "over_refusal_margin": 0.0},
}
POLICIES: dict[str, dict[str, Any]] = {
    **{
        f"{title}, confidence {sure}": {**bound, "confidence": sure}
        for title, bound in BOUNDS.items()
        for sure in (None, 0.95)
    },
    "margin 0.1, modules": {"search": "modules"},
    "bound 0.2, modules, of 3": {"search": "modules", "budget": 3, "bound": 0.2, "confidence": 0.9},
    "margin 0.1, bisect": {"search": "bisect"},
    "bound 0.1, bisect": {"search": "bisect", "bound": 0.1},
    "paper": {"policy": "paper"},
    "paper, bound 0.2": {"policy": "paper", "bound": 0.2},
    "knee": {"policy": "knee"},
}
"""Settings to choose by."""


def choices(name: str, _: Path) -> dict[str, Any]:
    """Every policy over one set of trials, by each metric."""
    made = {}
    for title, settings in POLICIES.items():
        for metric in ("call_match", "response_loss", None):
            made[f"{title}; {metric}"] = api.choose(SETS[name], metric, settings)
    for margin in (0.0, 0.05, 0.4, 2.0):
        made[f"margin {margin} alone"] = api.choose(SETS[name], "call_match", None, margin)
    return made


def held(name: str, _: Path) -> dict[str, Any]:
    """The values compared with each bound, over one set of trials."""
    base, *others = SETS[name]
    made = {title: api.limits(base, others, {**bound, "confidence": 0.9}) for title, bound in BOUNDS.items()}
    return {"details": api.details(SETS[name]), **made}


# Searches.


def says(kind: str, lam: float, place: int, seed: int) -> bool | None:
    """A made-up verdict on one prompt."""
    at = random.Random(f"{seed} {place}").random()
    if kind == "misses" and place % 9 == 4:
        return None
    if kind == "step":
        return lam >= 0.5 and at < 0.9
    if kind == "never":
        return False
    if kind == "always":
        return True
    if kind == "odd":
        return at < (0.4 if 0.25 < lam < 0.45 else 0.03)
    if kind == "noise":
        return random.Random(f"{seed} {place} {lam:.4f}").random() < 0.3 * lam
    return at < 0.02 + 0.6 * lam**2


KINDS = ("smooth", "step", "never", "always", "odd", "noise", "misses")
RULES = {"rate": (0.1, 0.95, False), "rise": (0.1, 0.95, True), "estimate": (0.15, None, False)}
DESIGNS: dict[str, dict[str, Any]] = {
    "default": {},
    "seed 3": {"seed": 3},
    "coarse": {"resolution": 0.1, "batch": 20, "lo": 0.2, "hi": 0.9},
    "no doubt": {"doubt": 0.0, "resolution": 0.25},
    "bad": {"doubt": 0.7},
    "nothing between": {"lo": 0.41, "hi": 0.44},
}


def halves(rule: str, _: Path) -> dict[str, Any]:
    """Bisections under one rule: the result, and a hash of all requests in order."""
    made = {}
    for kind, (title, settings) in itertools.product(KINDS, DESIGNS.items()):
        if title != "default" and kind not in ("smooth", "noise"):
            continue
        prompts = 120
        base = [says(kind, 0.0, place, 5) for place in range(prompts)] if RULES[rule][2] else None
        found, asked = api.bisect(
            RULES[rule], settings, prompts, base, lambda lam, place, kind=kind: says(kind, lam, place, 5)
        )
        order = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        made[f"{kind}, {title}"] = {"found": found, "first": api.plain(asked[:2]), "times": len(asked), "order": order}
    made["too few prompts"], _ = api.bisect(
        RULES[rule], {}, 8, [False] * 8 if RULES[rule][2] else None, lambda *_: False
    )
    return made


GROUP_NAMES = ("early attention", "early mlp", "late attention", "late mlp")


def _module_trial(task: float, asr: float, modules: Mapping[str, float] | None, count: int, lam: float = 0.6) -> Any:
    counts = {"pairs": count, "worse": round(asr * count), "better": 0}
    made: dict[str, dict[str, Any]] = {
        "call_match": {"value": task, "n": count, "better": "higher", "details": {}},
        "asr": {"value": asr, "n": count, "better": "lower", "details": counts},
    }
    return api.trial("merged" if lam else "base", lam, made, modules)


def _effects(seed: int) -> tuple[Sequence[float], Sequence[float]]:
    draw = random.Random(seed)
    return [round(draw.uniform(-0.1, 0.3), 3) for _ in GROUP_NAMES], [
        round(draw.uniform(-0.1, 0.3), 3) for _ in GROUP_NAMES
    ]


def modules(_: Path) -> dict[str, Any]:
    """Searches for λ by module over made-up effects of groups, additive and not."""
    made = {}
    for seed, budget, sure, count, start in itertools.product(range(4), (1, 3, 12), (None, 0.95), (400,), (0.0, 0.06)):
        task, harm = _effects(seed)

        def measure(
            given: Mapping[str, float], task: Any = task, harm: Any = harm, seed: int = seed, start: float = start
        ) -> Any:
            moved = [lam - 0.6 for lam in given.values()]
            bent = 0.1 * moved[0] * moved[-1] if seed % 2 else 0.0
            gained = 0.5 + sum(e * m for e, m in zip(task, moved, strict=True)) + bent
            harmed = min(1.0, max(0.0, start + sum(e * m for e, m in zip(harm, moved, strict=True))))
            return _module_trial(round(gained, 6), round(harmed * 400) / 400, given, 400)

        settings = {"margin": 0.1, "confidence": sure}
        base, single = _module_trial(0.0, 0.0, None, count, 0.0), _module_trial(0.5, start, None, count)
        made[f"seed {seed}, budget {budget}, confidence {sure}, from {start}"] = api.by_module(
            base, single, GROUP_NAMES, LAMS, settings, "call_match", budget, measure
        )
    return made


GROUPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{name: functools.partial(statistics, name) for name, *_ in EVERY},
    **{f"support, {name}": functools.partial(support, name) for name, _ in SUPPORT},
    "constants": constants,
    "evidence": evidence,
    **{f"choices, {name}": functools.partial(choices, name) for name in SETS},
    **{f"limits, {name}": functools.partial(held, name) for name in SETS},
    **{f"bisect, {name}": functools.partial(halves, name) for name in RULES},
    "by module": modules,
}
"""By name, a function that makes a group of cases."""


@pytest.mark.parametrize("group", GROUPS)
def test_the_numbers_are_those_that_were_frozen(group: str, tmp_path: Path) -> None:
    frozen.check("statistics", group, GROUPS[group](tmp_path))


def test_every_public_function_of_the_statistics_is_frozen() -> None:
    assert {name for name, *_ in EVERY} == set(api.STATISTICS)


def test_no_two_cases_have_one_name() -> None:
    for name, arguments, keywords in EVERY:
        expected = len(arguments) * len(keywords) + sum(each == name for each, _ in DEFAULTS)
        assert len(frozen.load("statistics")[name]) == expected, name
