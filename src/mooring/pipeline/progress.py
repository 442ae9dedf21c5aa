"""How far a run is, and how long the rest will take: read from its steps and the pace of its events."""

import dataclasses
from collections.abc import Callable, Iterable

from mooring.events import Event
from mooring.pipeline.steps import Step

_SIMILAR = {"generate": "generate task", "generate task": "generate"}
"""Paces that stand in for each other as long as one of them is not known."""
_SHORT = ("", "score")
"""Paces of steps that take next to no time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Overall:
    """The progress of a run.

    Attributes:
        done: Steps done, now or before.
        steps: Steps in all.
        tokens: Tokens generated since the run was started or resumed.
        tokens_per_second: Over the steps that generate; None before the first token.
        left: Seconds that the rest will take; None before anything was measured.
        complete: Whether `left` covers all that is to be done, or only what has a known pace.
    """

    done: int
    steps: int
    tokens: int
    tokens_per_second: float | None
    left: float | None
    complete: bool


@dataclasses.dataclass(slots=True)
class _Current:
    """The step at work: since when; units in all, done so far, and done when it began; tokens."""

    id: str
    pace: str
    since: float
    units: int | None
    done: int = 0
    at_start: int | None = None
    tokens: int = 0


class Progress:
    """Measures seconds per unit for each kind of step, from a run's events.

    It reads no clock: the time of each event is passed with it, in seconds from any origin. `steps` returns the steps
    known so far; steps that happen without being among them count from when they start.
    """

    def __init__(self, steps: Callable[[], Iterable[Step]]) -> None:
        self._steps = steps
        self._extra: dict[str, tuple[str, int | None]] = {}
        self._done: set[str] = set()
        self._spent: dict[str, tuple[float, int]] = {}
        self._tokens = 0
        self._generating = 0.0
        self._current: _Current | None = None

    def note(self, event: Event, now: float) -> None:
        """Take an event into account."""
        id_ = event.step
        if event.kind == "started":
            pace, units = self._known().get(id_, ("", None))
            self._extra.setdefault(id_, (pace or _pace_of(id_), units))
            self._current = _Current(id_, self._extra[id_][0], now, units)
        elif event.kind == "progress" and self._current and self._current.id == id_:
            current = self._current
            current.at_start = event.done if current.at_start is None else current.at_start
            current.done, current.tokens = event.done, max(current.tokens, event.tokens)
            current.units = event.total or current.units
        elif event.kind in ("cached", "finished"):
            self._extra.setdefault(id_, ("", 1))
            self._done.add(id_)
            if self._current and self._current.id == id_:
                self._close(self._current, now)

    def overall(self, now: float) -> Overall:
        """The progress at a moment."""
        current, steps = self._current, self._known()
        tokens = self._tokens + (current.tokens if current else 0)
        generating = self._generating + (now - current.since if current and current.tokens else 0)
        left, complete = self._left(now)
        speed = tokens / generating if tokens and generating > 0 else None
        return Overall(len(self._done), len(steps), tokens, speed, left, complete)

    def _known(self) -> dict[str, tuple[str, int | None]]:
        """Pace and units of each step by id: the planned ones, and those that happened without being planned."""
        return {**self._extra, **{step.id: (step.pace, step.units) for step in self._steps()}}

    def _close(self, current: _Current, now: float) -> None:
        seconds, units = self._spent.get(current.pace, (0.0, 0))
        made = (1 if current.units is None else current.units) - (current.at_start or 0)
        self._spent[current.pace] = seconds + now - current.since, units + max(made, 0)
        self._tokens += current.tokens
        self._generating += now - current.since if current.tokens else 0
        self._current = None

    def _left(self, now: float) -> tuple[float | None, bool]:
        remaining: dict[str, int] = {}
        complete = True
        for id_, (pace, units) in self._known().items():
            if id_ in self._done or (self._current and self._current.id == id_):
                continue
            complete = complete and units is not None
            remaining[pace] = remaining.get(pace, 0) + (units or 0)
        if current := self._current:
            if current.units is None:
                complete = complete and current.pace in _SHORT
            else:
                remaining[current.pace] = remaining.get(current.pace, 0) + max(current.units - current.done, 0)
        seconds = None
        for pace, units in remaining.items():
            rate = self._rate(pace, now)
            if rate is not None:
                seconds = (seconds or 0.0) + units * rate
            elif units and pace not in _SHORT:
                complete = False
        return seconds, complete

    def _rate(self, pace: str, now: float) -> float | None:
        """Seconds per unit; None if no unit of this pace, nor of a similar one, was done."""
        for candidate in (pace, _SIMILAR.get(pace, pace)):
            seconds, units = self._spent.get(candidate, (0.0, 0))
            current = self._current
            if current and current.pace == candidate and current.done > (current.at_start or 0):
                seconds, units = seconds + now - current.since, units + current.done - (current.at_start or 0)
            if units:
                return seconds / units
        return None


def _pace_of(id_: str) -> str:
    """The pace of a step that was not planned, such as a part of a search's responses."""
    kind, *rest = id_.split("/")
    return ("generate task" if "task" in rest else "generate") if kind == "generate" else ""


def summary(overall: Overall) -> str:
    """Tokens, their speed and the time left, in words."""
    parts = []
    if overall.tokens:
        parts.append(f"{overall.tokens:,} tokens")
    if overall.tokens_per_second:
        parts.append(f"{overall.tokens_per_second:,.0f} per second")
    if overall.left is not None and overall.done < overall.steps:
        parts.append(f"{'about' if overall.complete else 'at least'} {duration(overall.left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time in words, rounded up: `20 s`, `25 min`, `3 h 10 min`."""
    if seconds <= 55:
        return f"{max(5, -5 * int(-seconds // 5))} s"
    minutes = -int(-seconds // 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
