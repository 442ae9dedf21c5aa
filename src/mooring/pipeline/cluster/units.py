"""Units of work, and the queue from which workers take them. No cluster and no clock: the time is passed in."""

import dataclasses
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DEATHS = 3
"""A unit that this many workers died of is given up."""
SLOW = 1.5
"""A unit that takes this many times as long as the median of its kind is started a second time on an idle worker."""
COPIES = 2
"""The most workers that do one unit at the same time."""
_MEDIAN_OF = 5
"""Units of a kind that must have been finished before one counts as slow."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The least that a worker does at a time: a shard of the prompts of one model.

    Attributes:
        key: Unique. The result of a unit is accepted once, however many workers did it.
        kind: What a worker must have loaded to do it: the models of the run, or a judge.
        group: What such a worker has to change to, such as a λ; units of one group are best done by the same worker.
        prompts: The ids of its prompts, to say what was lost.
        work: What the worker is sent.
    """

    key: str
    kind: str
    group: str = ""
    prompts: tuple[str, ...] = ()
    work: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Become:
    """The answer to an idle worker for which another kind of work is waiting: it should load what that needs."""

    kind: str


@dataclasses.dataclass(slots=True)
class _Worker:
    """A worker: the kind of work it can do, the group it is at, and the unit that it has, since when."""

    kind: str
    group: str = ""
    unit: Unit | None = None
    since: float = 0.0
    ready: bool = False


class UnitQueue:
    """Units that wait, that are being done, and that are finished.

    Idle workers pull units, so that a slow worker holds nobody up. A worker gets units of the group that it is at, as
    long as there are any, and then of the group with the fewest workers for what waits. If its kind has no unit left,
    or if work that repays two starts waits for a kind that has no worker, it should become a worker of that kind.

    All times are in seconds, from any origin.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, OrderedDict[str, deque[Unit]]] = {}
        """By kind and group, in the order in which they were added."""
        self._workers: dict[str, _Worker] = {}
        self._of_kind: Counter[str] = Counter()
        """How many workers there are of each kind."""
        self._units: dict[str, Unit] = {}
        """Units that are neither finished nor given up, by key."""
        self._deaths: dict[str, int] = {}
        self._took: dict[str, list[float]] = {}
        """How long the finished units of a kind took."""
        self._starts: dict[str, list[float]] = {}
        """How long workers of a kind took to start."""

    # --- units ---

    def add(self, units: Iterable[Unit]) -> None:
        """Add units. One whose key is waiting or being done is left out."""
        for unit in units:
            if unit.key not in self._units:
                self._units[unit.key] = unit
                self._wait(unit)

    def cancel(self, keys: Iterable[str]) -> None:
        """Forget units: those that wait are not started, and the results of those that are being done are ignored."""
        gone = {key for key in keys if self._units.pop(key, None) is not None}
        for kind in self._waiting:
            for group, units in [*self._waiting[kind].items()]:
                self._put(kind, group, deque(unit for unit in units if unit.key not in gone))

    @property
    def waiting(self) -> Mapping[str, int]:
        """How many units of each kind wait; kinds without any are left out."""
        counts = {kind: sum(map(len, groups.values())) for kind, groups in self._waiting.items()}
        return {kind: count for kind, count in counts.items() if count}

    @property
    def unfinished(self) -> int:
        """How many units wait or are being done."""
        return len(self._units)

    # --- workers ---

    def starting(self, worker: str, kind: str, now: float) -> None:
        """A worker is being started: it counts for its kind, and takes no units yet."""
        self._workers[worker] = _Worker(kind, since=now)
        self._of_kind[kind] += 1

    def ready(self, worker: str, now: float) -> None:
        """A worker has loaded what its kind needs."""
        known = self._workers[worker]
        self._starts.setdefault(known.kind, []).append(now - known.since)
        known.ready, known.since = True, now

    def take(self, worker: str, now: float) -> Unit | Become | None:
        """What an idle worker should do next; None if there is nothing for it, nor for others of its kind, now.

        The unit is the worker's until `finish` or `leave`.
        """
        known = self._workers[worker]
        if (other := self._neglected(known)) is not None:
            return Become(other)
        unit = self._next(known) or self._slowest(known, now)
        if unit is None:
            return None
        known.unit, known.group, known.since = unit, unit.group, now
        return unit

    def finish(self, worker: str, now: float) -> Unit | None:
        """A worker has finished its unit. Returns the unit if this is its first result, which is the one to keep."""
        known = self._workers[worker]
        unit, known.unit = known.unit, None
        if unit is None or self._units.pop(unit.key, None) is None:
            return None
        self._took.setdefault(unit.kind, []).append(now - known.since)
        self._deaths.pop(unit.key, None)
        return unit

    def leave(self, worker: str, *, died: bool = True) -> Unit | None:
        """A worker is gone. Its unit waits again, before all others, unless another worker is doing it as well.

        Returns the unit if it is given up, since it is the third worker that died of it.
        """
        gone = self._workers.pop(worker)
        unit = gone.unit
        self._of_kind[gone.kind] -= 1
        if unit is None or unit.key not in self._units:
            return None
        self._deaths[unit.key] = self._deaths.get(unit.key, 0) + died
        if self._deaths[unit.key] >= DEATHS:
            del self._units[unit.key]
            return unit
        if not self._copies(unit):
            self._wait(unit, first=True)
        return None

    def workers(self, kind: str | None = None) -> list[str]:
        """The names of the workers, or of those of a kind, those that are being started included."""
        return [name for name, worker in self._workers.items() if kind in (None, worker.kind)]

    def held(self, worker: str) -> Unit | None:
        """The unit that a worker has."""
        return self._workers[worker].unit

    def kind(self, worker: str) -> str:
        """The kind of work that a worker can do."""
        return self._workers[worker].kind

    # --- choosing ---

    def wanted(self) -> str | None:
        """The kind of which one more worker is most useful: with the most waiting units for each worker."""
        counts = self.waiting
        return max(counts, key=lambda kind: counts[kind] / (1 + self._of_kind[kind]), default=None)

    def _neglected(self, worker: _Worker) -> str | None:
        """The kind that a worker should change to."""
        counts = self.waiting
        own = counts.get(worker.kind, 0)
        colleagues = self._of_kind[worker.kind] - 1
        best, most = None, 0.0
        for kind, count in counts.items():
            if kind == worker.kind:
                continue
            there = self._of_kind[kind]
            backlog = count * self._duration(kind, worker.kind) / max(1, there)
            start = self._start(kind)
            needed = (not own and not there) or (backlog > 2 * start and (not own or (not there and colleagues)))
            if needed and (best is None or backlog > most):
                best, most = kind, backlog
        return best

    def _duration(self, kind: str, like: str) -> float:
        """How long a unit of a kind takes on average; as one of another kind if that is not known yet."""
        times = self._took.get(kind) or self._took.get(like) or [1.0]
        return sum(times) / len(times)

    def _start(self, kind: str) -> float:
        """How long a worker of a kind takes to start; as those of other kinds if that is not known yet."""
        times = self._starts.get(kind) or [each for times in self._starts.values() for each in times] or [0.0]
        return sum(times) / len(times)

    def _next(self, worker: _Worker) -> Unit | None:
        groups = self._waiting.get(worker.kind)
        if not groups:
            return None
        group = worker.group if worker.group in groups else min(groups, key=lambda name: self._crowd(worker, name))
        units = groups[group]
        unit = units.popleft()
        self._put(worker.kind, group, units)
        return unit

    def _crowd(self, worker: _Worker, group: str) -> float:
        """Workers at a group for each of its waiting units."""
        there = sum(each.kind == worker.kind and each.group == group for each in self._workers.values())
        return there / len(self._waiting[worker.kind][group])

    def _slowest(self, worker: _Worker, now: float) -> Unit | None:
        """The unit of a worker's kind that another has had for far longer than is usual, to be done a second time."""
        times = self._took.get(worker.kind, [])
        if len(times) < _MEDIAN_OF:
            return None
        limit = SLOW * sorted(times)[len(times) // 2]
        held = [each for each in self._workers.values() if each.unit and each.kind == worker.kind]
        slow = [each for each in held if each.unit and each.unit.key in self._units and now - each.since > limit]
        slow.sort(key=lambda each: each.since)
        return next((each.unit for each in slow if each.unit and self._copies(each.unit) < COPIES), None)

    def _copies(self, unit: Unit) -> int:
        """How many workers are doing a unit."""
        return sum(each.unit is not None and each.unit.key == unit.key for each in self._workers.values())

    def _wait(self, unit: Unit, *, first: bool = False) -> None:
        units = self._waiting.setdefault(unit.kind, OrderedDict()).setdefault(unit.group, deque())
        (units.appendleft if first else units.append)(unit)

    def _put(self, kind: str, group: str, units: deque[Unit]) -> None:
        """Replace what waits of a group; a group of which nothing waits is left out."""
        if units:
            self._waiting[kind][group] = units
        else:
            self._waiting[kind].pop(group, None)


def shards(count: int, size: int) -> Sequence[range]:
    """Positions from 0 to `count` in shards of `size`; only the last may be smaller."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
