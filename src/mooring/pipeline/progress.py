"""How far a whole run is, and how long the rest will take: a plan of its steps, and a pace that its events keep."""

import dataclasses
from collections.abc import Iterator, Mapping

from mooring.config import Recipe
from mooring.merge_point import BASE, TUNED, grid
from mooring.metrics import needs_completions, needs_likelihoods
from mooring.pipeline.judging import Judging
from mooring.pipeline.run_folder import Event
from mooring.pipeline.sets import Sets, asked, evaluation_sets, task_metrics
from mooring.records import Half

CHOSEN = "λ = chosen"
"""Stands for the model at the chosen λ, which a plan cannot know yet."""
TRY = "try"
"""Stands, with a number, for a merge with λ by module, which a plan cannot know yet."""
SLIGHT = "slight"
"""The kind of steps that take next to no time until measured."""
_ALIKE = {"answer": "answer task", "answer task": "answer"}
"""Kinds whose pace is a guess at another's, as long as that has none of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A step to do.

    Attributes:
        kind: Steps of a kind take as long a unit.
        units: Responses, examples, optimizer steps; `None` where only the step itself will tell.
    """

    kind: str
    units: int | None = 1


def planned(recipe: Recipe, sets: Sets | None = None) -> dict[str, Step]:
    """The steps of a run by name, in order, the chosen λ's under `CHOSEN`. A search may leave some of them out.

    Args:
        recipe: The recipe.
        sets: Its prompt sets; read where they are not given.

    Raises:
        UserError: A data set cannot be read.
    """
    return dict(_steps(recipe, evaluation_sets(recipe) if sets is None else sets))


def _steps(recipe: Recipe, sets: Sets) -> Iterator[tuple[str, Step]]:
    if recipe.align:
        yield "align", Step("tune", None)
        yield "align: merge", Step(SLIGHT)
    if recipe.tune:
        yield "tune", Step("tune", None)
    yield "check the pair", Step(SLIGHT)
    judging = Judging(recipe.score.judges, lambda folder, measure: "")
    points = (BASE, *grid(recipe.merge.lambdas), TUNED)
    yield from _trials(recipe, sets, judging, "validation", [point.label for point in points])
    yield "select", Step(SLIGHT)
    if recipe.select.search == "modules":
        tries = [f"{TRY} {place}" for place in range(1, recipe.select.budget + 1)]
        yield from _trials(recipe, sets, judging, "validation", tries)
    yield "write the model", Step(SLIGHT)
    yield from _trials(recipe, sets, judging, "test", [BASE.label, CHOSEN, TUNED.label])
    yield "report", Step(SLIGHT)


def _trials(recipe: Recipe, sets: Sets, judging: Judging, split: Half, labels: list[str]) -> Iterator[tuple[str, Step]]:
    """What `Trials` does with each model: ask all, then judge and score all."""
    metrics, prompts = task_metrics(recipe, sets, split), asked(sets, split)
    for who in labels:
        for name, rows in prompts.items():
            if name != "task":
                yield f"{who}: answer {name} ({split})", Step("answer", len(rows))
            elif needs_completions(metrics):
                yield (
                    f"{who}: answer task ({split})",
                    Step("answer task", len(rows) * recipe.generate.sampling("task", recipe.seed).n),
                )
        if needs_likelihoods(metrics):
            yield f"{who}: response loss ({split})", Step("loss", len(prompts["task"]))
        if split == "test" and recipe.score.lm_eval:
            yield f"{who}: lm-eval {', '.join(recipe.score.lm_eval)}", Step("lm-eval")
    for who in labels:
        for name, rows in prompts.items():
            for judge in judging.of(name) if name != "task" else []:
                model = judge in judging.kinds and judging.kinds[judge].needs_model
                step = Step(f"judge {judge}", len(rows)) if model else Step(SLIGHT)
                yield f"{who}: judge {name} ({split}) by {judge}", step
        yield f"{who}: score ({split})", Step("score")


@dataclasses.dataclass(frozen=True, slots=True)
class Overall:
    """A run so far.

    Attributes:
        done: Steps done, now or before.
        steps: Steps in all.
        tokens: Tokens generated since the run was started, or started again.
        tokens_per_second: Over the steps that generate; `None` before the first token.
        left: Seconds that the rest will take; `None` before anything was measured.
        whole: Whether `left` holds all that is to do, or only that of which the pace is known.
    """

    done: int
    steps: int
    tokens: int
    tokens_per_second: float | None
    left: float | None
    whole: bool


@dataclasses.dataclass(slots=True)
class _Work:
    """A step at work: since when, its units so far, those that were there when it began, and in all; tokens."""

    name: str
    kind: str
    since: float
    units: int | None
    done: int = 0
    kept: int | None = None
    tokens: int = 0


class Pace:
    """Seconds a unit by kind of step, from a run's events.

    It reads no clock: the time of each event comes with it, in seconds from wherever.

    Args:
        steps: What `planned` gives. Steps that happen without being planned count from when they begin.
    """

    def __init__(self, steps: Mapping[str, Step]) -> None:
        self._steps = dict(steps)
        self._done: set[str] = set()
        self._spent: dict[str, tuple[float, int]] = {}
        self._tokens = 0
        self._asking = 0.0
        self._work: _Work | None = None
        self._tries: dict[str, str] = {}

    def note(self, event: Event, now: float) -> None:
        """Take an event in."""
        name = self._planned_name(event.step)
        if name == "write the model":  # the search is over: what it did not try is not to be done
            self._steps = {n: s for n, s in self._steps.items() if n in self._done or not n.startswith(f"{TRY} ")}
        if event.kind == "start":
            step = self._steps.setdefault(name, Step(_kind_of(name), None))
            self._work = _Work(name, step.kind, now, step.units)
        elif event.kind == "progress" and self._work and self._work.name == name:
            work = self._work
            work.kept = event.done if work.kept is None else work.kept
            work.done, work.tokens = event.done, max(work.tokens, event.tokens)
            work.units = event.total or work.units
        elif event.kind == "kept":
            self._steps.setdefault(name, Step(SLIGHT))
            self._done.add(name)
        elif event.kind == "done":
            self._done.add(name)
            if self._work and self._work.name == name:
                self._close(self._work, now)

    def overall(self, now: float) -> Overall:
        """How far the run is at a moment."""
        work = self._work
        tokens = self._tokens + (work.tokens if work else 0)
        asking = self._asking + (now - work.since if work and work.tokens else 0)
        left, whole = self._left(now)
        speed = tokens / asking if tokens and asking > 0 else None
        return Overall(len(self._done), len(self._steps), tokens, speed, left, whole)

    def _close(self, work: _Work, now: float) -> None:
        seconds, units = self._spent.get(work.kind, (0.0, 0))
        made = (1 if work.units is None else work.units) - (work.kept or 0)
        self._spent[work.kind] = seconds + now - work.since, units + max(made, 0)
        self._tokens += work.tokens
        self._asking += now - work.since if work.tokens else 0
        self._work = None

    def _left(self, now: float) -> tuple[float | None, bool]:
        remaining: dict[str, int] = {}
        whole = True
        for name, step in self._steps.items():
            if name in self._done or (self._work and self._work.name == name):
                continue
            whole = whole and step.units is not None
            remaining[step.kind] = remaining.get(step.kind, 0) + (step.units or 0)
        if work := self._work:
            if work.units is None:
                whole = whole and work.kind in (SLIGHT, "score")
            else:
                remaining[work.kind] = remaining.get(work.kind, 0) + max(work.units - work.done, 0)
        seconds = None
        for kind, units in remaining.items():
            pace = self._pace(kind, now)
            if pace is not None:
                seconds = (seconds or 0.0) + units * pace
            elif units and kind not in (SLIGHT, "score"):
                whole = False
        return seconds, whole

    def _pace(self, kind: str, now: float) -> float | None:
        """Seconds a unit, or `None` where no unit of the kind, nor of one that is like it, was done."""
        for candidate in (kind, _ALIKE.get(kind, kind)):
            seconds, units = self._spent.get(candidate, (0.0, 0))
            work = self._work
            if work and work.kind == candidate and work.done > (work.kept or 0):
                seconds, units = seconds + now - work.since, units + work.done - (work.kept or 0)
            if units:
                return seconds / units
        return None

    def _planned_name(self, name: str) -> str:
        """A step's name in the plan: on test, the one λ that is neither base nor tuned is the chosen one."""
        who, _, what = name.partition(": ")
        if who.startswith("λ by module"):
            tried = f"{self._tries.setdefault(who, f'{TRY} {len(self._tries) + 1}')}: {what}"
            return tried if tried in self._steps else name
        chosen = f"{CHOSEN}: {what}"
        return chosen if name not in self._steps and who.startswith("λ = ") and chosen in self._steps else name


def _kind_of(name: str) -> str:
    """The kind of a step that was not planned, such as a part of a search's answers."""
    what = name.partition(": ")[2]
    if what.startswith("answer "):
        return "answer task" if what.startswith("answer task") else "answer"
    return SLIGHT


def said(overall: Overall) -> str:
    """Tokens, their speed and the time left, for people."""
    parts = []
    if overall.tokens:
        parts.append(f"{overall.tokens:,} tokens")
    if overall.tokens_per_second:
        parts.append(f"{overall.tokens_per_second:,.0f} a second")
    if overall.left is not None and overall.done < overall.steps:
        parts.append(f"{'about' if overall.whole else 'at least'} {duration(overall.left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time for people, rounded up: `20 s`, `25 min`, `3 h 10 min`."""
    if seconds <= 55:
        return f"{max(5, -5 * int(-seconds // 5))} s"
    minutes = -int(-seconds // 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
