"""Every import of Mooring that the golden tests make, behind functions of plain values.

When a module of the package moves or a type is renamed, this is the only file of the folder to change. The JSON files
beside it stay as they are.
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mooring
from mooring import stats
from mooring.config import Select
from mooring.data import load_prompts
from mooring.errors import UserError
from mooring.merge_methods import METHODS as _METHODS
from mooring.merge_point import MergePoint
from mooring.records import Completion, Message, Prompt, Score, Trial, Verdict
from mooring.scoring import judges as _judges
from mooring.selection import bisect as _bisect
from mooring.selection import limits as _support
from mooring.selection.limits import limits as _limits
from mooring.selection.limits import with_flips
from mooring.selection.per_module import by_module as _by_module
from mooring.selection.policies import choose as _choose

Plain = Any
"""A JSON value."""


def plain(value: Any) -> Plain:
    """A value after a round trip through JSON: tuples become lists, keys become strings, floats stay exact."""
    return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False))


def numbers(text: str) -> list[str]:
    """The numbers in a sentence, sorted, so that its wording may change."""
    return sorted(re.findall(r"\d+(?:\.\d+)?", text))


def guarded(call: Callable[[], Any]) -> Plain:
    """The result of a call, or the type of the error it raises and the numbers in its message."""
    try:
        return plain(call())
    except (UserError, ValueError) as error:
        return {"error": type(error).__name__, "numbers": numbers(str(error))}


# Merging.

METHODS: dict[str, tuple[int, int | None, frozenset[str]]] = {
    name: (method.least, method.most, frozenset(method.options))
    for name, method in _METHODS.items()
    if not (method.accepts or method.matrices)  # decompositions differ in their last bits from one processor to another
}
"""By name: the minimum and maximum number of tuned models, and the options other than λ."""
ADAPTER_METHODS = ("linear", "task_arithmetic", "model_stock")
"""Methods that can write an adapter."""


def merge(base: Path, tuned: Sequence[Path], out: Path, **options: Any) -> Path:
    """Merge with the public function."""
    return mooring.merge(base, list(tuned), out=out, **options)


# Verdicts.

Turns = Sequence[tuple[str, str]]
"""Roles and texts of a conversation."""
BY_WORDING: dict[str, Any] = {judge.version: judge.decide for judge in _judges.JUDGES.values() if judge.decide}
"""The judges that need no model, by their versions."""
JUDGES: tuple[str, ...] = tuple(_judges.JUDGES)
"""Names of the judges."""


def explain(request: str, response: str) -> list[str]:
    """What each judge without a model says of a response, and why."""
    return ["/".join(map(str, decide(request, response)[:2])) for decide in BY_WORDING.values()]


def bundled(name: str) -> list[tuple[str, str, str]]:
    """A whole bundled set: ids, requests, reference responses."""
    found = [
        prompt for split in ("tune", "validation", "test") for prompt in load_prompts(f"bundled:{name}", split=split)
    ]
    return [(prompt.id, prompt.messages[-1].content, prompt.reference or "") for prompt in found]


def _prompt(name: str, turns: Turns) -> Prompt:
    return Prompt(id=name, messages=tuple(Message(role, text) for role, text in turns))  # type: ignore[arg-type]


def _completion(name: str, text: str, finish: str = "stop", sample: int = 0) -> Completion:
    return Completion(prompt_id=name, text=text, tokens=len(text.split()), finish=finish, sample=sample)  # type: ignore[arg-type]


def judge_facts(name: str) -> Plain:
    """A judge's attributes."""
    judge = _judges.find(name)
    return {
        "name": judge.name,
        "model": judge.model,
        "needs_model": judge.needs_model,
        "gated": judge.gated,
        "max_new_tokens": judge.max_tokens,
        "whole_lines": judge.complete_lines,
        "says_refused": judge.says_refused,
    }


def questions(name: str, conversations: Mapping[str, Turns], responses: Mapping[str, str]) -> Plain:
    """The questions that a judge asks: id, rendered text, roles and texts of the messages."""
    prompts = [_prompt(key, turns) for key, turns in conversations.items()]
    completions = [_completion(key, text) for key, text in responses.items()]
    found = _judges.questions(_judges.find(name), prompts, completions)
    return [[q.id, q.rendered, [[m.role, m.content] for m in q.messages]] for q in found]


def read(name: str, answers: Sequence[str]) -> Plain:
    """How a judge reads its model's answers."""
    reading = _judges.find(name).read(list(answers))
    return [reading.harmful, reading.refused, reading.category, reading.why]


def verdicts(
    name: str,
    conversations: Mapping[str, Turns],
    responses: Mapping[str, str],
    answer: Callable[[int], tuple[str, str]],
) -> Plain:
    """A judge's verdicts if its model returns `answer(number of the question)`: a text and the finish reason."""
    judge = _judges.find(name)
    prompts = [_prompt(key, turns) for key, turns in conversations.items()]
    completions = [_completion(key, text) for key, text in responses.items()]
    asked = _judges.questions(judge, prompts, completions)
    answers = [_completion(q.id, *answer(number)) for number, q in enumerate(asked)]
    by = _judges.label(judge, None if judge.model else "a-model")
    found = _judges.verdicts(judge, prompts, completions, answers, by)
    rows = [[v.prompt_id, v.harmful, v.refused, v.judge, v.why, v.category] for v in found]
    return {"verdicts": rows, "misses": _judges.misses(found)}


def agreement(first: Mapping[str, bool | None], second: Mapping[str, bool | None]) -> Plain:
    """The agreement of two judges on whether responses are harmful."""
    both = [
        [Verdict(prompt_id=key, harmful=harmful, refused=None, judge="a judge") for key, harmful in hits.items()]
        for hits in (first, second)
    ]
    found = _judges.measure_agreement(*both)
    return [found.kappa, found.same, found.n, found.missed, list(found.disagreements)]


# Statistics.


def _wilson_upper(hits: int, n: int, confidence: float = 0.95) -> float:
    """The one-sided upper limit of Wilson's interval."""
    return stats.wilson(hits, n, stats.quantile(confidence))[1]


STATISTICS: dict[str, Callable[..., Any]] = {
    "wilson_upper": _wilson_upper,
    **{
        name: value
        for name, value in vars(stats).items()
        if inspect.isfunction(value) and value.__module__ == stats.__name__ and not name.startswith("_")
    },
}
"""The public functions of the statistics, by name."""
SUPPORT: dict[str, Callable[..., Any]] = {
    name: getattr(_support, name)
    for name in (
        "sharper",
        "attempt_confidence",
        "smallest_set",
        "enough_pairs",
        "enough_prompts",
        "prompts_for",
        "table",
    )
}
"""The public functions that compute how many prompts a bound needs."""
CONSTANTS: dict[str, float] = {
    "BISECT_SHARE": _support.BISECT_SHARE,
    "SINGLE_SHARE": _support.SINGLE_SHARE,
    "Z95": stats.Z95,
}


def as_plain(value: Any) -> Any:
    """A record as plain values."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def beta_binomial(n: int, alpha: float, beta: float, most: int) -> list[float]:
    """P(X = 0), …, P(X = most)."""
    return _bisect.beta_binomial(n, alpha, beta, most)


def holds(bound: float, confidence: float | None, paired: bool, judged: int, worse: int, better: int) -> bool:
    """Whether counts satisfy a bound."""
    return _support.Rule(bound, confidence, paired).holds(judged, worse, better)


def chance(rule: Sequence[Any], counts: Sequence[int], strata: Sequence[Sequence[Any]]) -> Plain:
    """The probability that a bound holds on the whole set."""
    made = [_bisect.Stratum(*stratum) for stratum in strata]
    found = _bisect.pass_probability(_support.Rule(*rule), stats.Flips(*counts), made)
    return found


# Selection.


def trial(
    model: str, lam: float, scores: Mapping[str, Mapping[str, Any]], modules: Mapping[str, float] | None = None
) -> Trial:
    """A validation trial; each score is given by `value`, `n`, `better` and `details`."""
    made = {
        name: Score(
            name=name,
            value=s["value"],
            low=None,
            high=None,
            n=s["n"],
            better=s["better"],
            method="made up",
            details=s["details"],
        )
        for name, s in scores.items()
    }
    point = MergePoint(lam, modules or {})
    assert point.role == model
    return Trial(point=point, method="linear", split="validation", scores=made)


def flipped(trials: Sequence[Trial], hits: Mapping[str, Mapping[float, Mapping[str, bool | None]]]) -> list[Trial]:
    """Trials with the flips of their verdicts against the base's."""
    return with_flips(
        trials, {name: {MergePoint(lam): verdicts for lam, verdicts in by.items()} for name, by in hits.items()}
    )


def details(trials: Sequence[Trial]) -> Plain:
    """The details of every score of some trials."""
    return [[t.point.lam, {name: dict(score.details) for name, score in t.scores.items()}] for t in trials]


def choose(
    trials: Sequence[Trial], metric: str | None, settings: Mapping[str, Any] | None, margin: float | None = None
) -> Plain:
    """The choice; only the numbers of its reason."""

    def call() -> Plain:
        made = None if settings is None else Select(**settings)
        choice = _choose(trials, metric=metric, settings=made, margin=margin)
        return {
            "lam": choice.point.lam,
            "within": choice.within,
            "bound": choice.bound,
            "metric": choice.metric,
            "policy": choice.policy,
            "confidence": choice.confidence,
            "upper": dict(choice.upper),
            "prompts": choice.prompts,
            "numbers": numbers(choice.reason),
        }

    return guarded(call)


def limits(base: Trial, others: Sequence[Trial], settings: Mapping[str, Any]) -> Plain:
    """The values compared with each bound."""

    def call() -> Plain:
        found = _limits(base, others, Select(**settings))

        def by_lam(values: Mapping[MergePoint, float]) -> dict[float, float]:
            return {point.lam: value for point, value in values.items()}

        return [
            [
                each.score,
                each.allowed,
                by_lam(each.values),
                by_lam(each.prompts),
                [each.excess(t.point) for t in others],
            ]
            for each in found
        ]

    return guarded(call)


def bisect(
    rule: Sequence[Any],
    settings: Mapping[str, Any],
    prompts: int,
    base: Sequence[bool | None] | None,
    says: Callable[[float, int], bool | None],
) -> tuple[Plain, list[tuple[float, tuple[int, ...]]]]:
    """The result of a bisection, and all its requests in order."""
    asked: list[tuple[float, tuple[int, ...]]] = []

    def call() -> Plain:
        def ask(lam: float, places: tuple[int, ...]) -> list[bool | None]:
            asked.append((lam, places))
            return [says(lam, place) for place in places]

        found = _bisect.bisect(_bisect.BisectSettings(rule=_support.Rule(*rule), **settings), prompts, ask, base)
        looks = [
            [v.lam, v.prompts, v.judged, v.worse, v.better, v.probability, "within" if v.within else "over"]
            for v in found.visits
        ]
        return {
            "lam": found.lam,
            "looks": looks,
            "asked": found.responses,
            "prompts": found.prompts,
            "odd": found.reversals,
        }

    return guarded(call), asked


def by_module(
    base: Trial,
    single: Trial,
    groups: Sequence[str],
    levels: Sequence[float],
    settings: Mapping[str, Any],
    metric: str,
    budget: int,
    measure: Callable[[Mapping[str, float]], Trial],
) -> Plain:
    """The rounds of a search for λ by module, and its result."""

    def call() -> Plain:
        rounds: list[Any] = []

        def ask(points: Sequence[MergePoint]) -> list[Trial]:
            lambdas = [{name: point.overrides.get(name, point.lam) for name in groups} for point in points]
            rounds.append([list(modules.values()) for modules in lambdas])
            return [measure(modules) for modules in lambdas]

        found = _by_module(base, single, groups, levels, Select(**settings), metric, budget, ask)
        tried = [[a.upper, a.within, a.beats] for a in found.tried]
        return {
            "rounds": rounds,
            "tried": tried,
            "chosen": found.chosen,
            "confidence": found.confidence,
            "numbers": numbers(found.sentence),
        }

    return guarded(call)
