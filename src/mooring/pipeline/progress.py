"""How far a run is, and how long the rest will take: read from its steps and the pace of its events."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable

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
class _Running:
    """A step at work: its pace, since when, its share of the time; units in all, so far, and when it began; tokens."""

    pace: str
    since: float
    units: int | None
    seconds: float = 0.0
    done: int = 0
    at_start: int | None = None
    tokens: int = 0

    @property
    def made(self) -> int:
        """Units done since it began."""
        return self.done - (self.at_start or 0)


class Progress:
    """Measures seconds per unit for each kind of step, from a run's events.

    Several steps may be at work at the same time: each moment is then divided among them. It reads no clock: the time
    of each event is passed with it, in seconds from any origin. `steps` returns the steps known so far; steps that
    happen without being among them count from when they start.
    """

    def __init__(self, steps: Callable[[], Iterable[Step]]) -> None:
        self._steps = steps
        self._extra: dict[str, tuple[str, int | None]] = {}
        self._done: set[str] = set()
        self._running: dict[str, _Running] = {}
        self._spent: dict[str, tuple[float, int]] = {}
        self._tokens = 0
        self._generating: list[tuple[float, float]] = []
        """Since when, and until when, steps that generated were at work."""
        self._now: float | None = None
        self._seconds: dict[str, float] = {}

    @property
    def running(self) -> Collection[str]:
        """The ids of the steps at work, in the order in which they began."""
        return self._running.keys()

    def is_done(self, step: str) -> bool:
        """Whether a step is done, now or before."""
        return step in self._done

    def seconds(self, steps: Iterable[str]) -> float:
        """The share of the time that steps took that have ended."""
        return sum(self._seconds.get(step, 0.0) for step in steps)

    def note(self, event: Event, now: float) -> None:
        """Take an event into account."""
        self._pass_time(now)
        id_ = event.step
        if event.kind == "started":
            pace, units = self._known().get(id_, ("", None))
            self._extra.setdefault(id_, (pace or _pace_of(id_), units))
            self._running[id_] = _Running(self._extra[id_][0], now, units)
        elif event.kind == "progress" and id_ in self._running:
            step = self._running[id_]
            step.at_start = event.done if step.at_start is None else step.at_start
            step.done, step.tokens = event.done, max(step.tokens, event.tokens)
            step.units = event.total or step.units
        elif event.kind in ("cached", "finished"):
            self._extra.setdefault(id_, ("", 1))
            self._done.add(id_)
            if id_ in self._running:
                self._seconds[id_] = self._running[id_].seconds
                self._close(self._running.pop(id_), now)

    def overall(self, now: float) -> Overall:
        """The progress at a moment."""
        self._pass_time(now)
        generating = [step for step in self._running.values() if step.tokens]
        tokens = self._tokens + sum(step.tokens for step in generating)
        seconds = _covered([*self._generating, *((step.since, now) for step in generating)])
        left, complete = self._left()
        speed = tokens / seconds if tokens and seconds > 0 else None
        return Overall(len(self._done), len(self._known()), tokens, speed, left, complete)

    def _pass_time(self, now: float) -> None:
        """Divide the time since the last call among the steps at work."""
        passed = max(0.0, now - (now if self._now is None else self._now))
        for step in self._running.values():
            step.seconds += passed / len(self._running)
        self._now = now if self._now is None else max(now, self._now)

    def _known(self) -> dict[str, tuple[str, int | None]]:
        """Pace and units of each step by id: the planned ones, and those that happened without being planned."""
        return {**self._extra, **{step.id: (step.pace, step.units) for step in self._steps()}}

    def _close(self, step: _Running, now: float) -> None:
        seconds, units = self._spent.get(step.pace, (0.0, 0))
        made = (1 if step.units is None else step.units) - (step.at_start or 0)
        self._spent[step.pace] = seconds + step.seconds, units + max(made, 0)
        self._tokens += step.tokens
        if step.tokens:
            self._generating.append((step.since, now))

    def _left(self) -> tuple[float | None, bool]:
        remaining: dict[str, int] = {}
        complete = True
        for id_, (pace, units) in self._known().items():
            if id_ in self._done or id_ in self._running:
                continue
            complete = complete and units is not None
            remaining[pace] = remaining.get(pace, 0) + (units or 0)
        for step in self._running.values():
            if step.units is None:
                complete = complete and step.pace in _SHORT
            else:
                remaining[step.pace] = remaining.get(step.pace, 0) + max(step.units - step.done, 0)
        seconds = None
        for pace, units in remaining.items():
            rate = self._rate(pace)
            if rate is not None:
                seconds = (seconds or 0.0) + units * rate
            elif units and pace not in _SHORT:
                complete = False
        return seconds, complete

    def _rate(self, pace: str) -> float | None:
        """Seconds per unit; None if no unit of this pace, nor of a similar one, was done."""
        for candidate in (pace, _SIMILAR.get(pace, pace)):
            seconds, units = self._spent.get(candidate, (0.0, 0))
            for step in self._running.values():
                if step.pace == candidate and step.made > 0:
                    seconds, units = seconds + step.seconds, units + step.made
            if units:
                return seconds / units
        return None


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The time that spans cover together."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


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
