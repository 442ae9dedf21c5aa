"""How a run would scale over 1 to 1,024 GPUs: the real queue of units, with a simulated clock and simulated workers.

    python benchmarks/scale_model.py [--start SECONDS] [--unit-seconds SECONDS] [--repeats 5]

The work is the paper's protocol: 850 safety prompts and 1,000 of the task at 6 points (base, tuned model, 4 λ), in
units of 32 prompts, and the judge's questions about each safety answer, which exist once a point's answers do. What a
unit, a start and a change of λ take is drawn from `scale_durations.json`, which `scale_durations.py` measured on a
small model on a CPU. For larger models `--unit-seconds` scales all units to that mean, `--start` replaces the start.

Workers are up to 10 % faster or slower than the average, 2 % of the units take three times as long, and 1 % of the
units end the worker, at any moment: the unit is lost and another worker starts. Workers change to judging, and to
another λ, as in a run. A speed-up is one GPU's time beside N GPUs', each the median of the repeats, starts included.
The last line says from where on adding GPUs gains less than half of what it should.
"""

import argparse
import heapq
import itertools
import json
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timing import table

from mooring.pipeline.cluster.units import Become, Unit, UnitQueue, shards

MEASURED = Path(__file__).with_name("scale_durations.json")
SAFETY, TASK, POINTS = 850, 1000, ("0", "0.2", "0.4", "0.6", "0.8", "1")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FAILURES, STRAGGLERS, SLOWER = 0.01, 0.02, 3.0
NEEDED = {8: 7.2, 64: 50.0}
"""The speed-ups that have to be reached."""


@dataclass
class Simulation:
    """A cluster of `workers` that does the protocol; times in seconds from its beginning."""

    workers: int
    measured: Mapping[str, Any]
    seed: int
    queue: UnitQueue = field(default_factory=UnitQueue)
    lost: float = 0.0
    given_up: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = itertools.count()
        speeds = [0.9 + 0.2 * (n + 0.5) / self.workers for n in range(self.workers)]
        self.random.shuffle(speeds)
        self._speeds, self._speed = speeds, dict[str, float]()
        self._at: dict[str, str] = {}
        self._idle: dict[str, None] = {}
        self._open = {point: len(shards(SAFETY, self.measured["unit"])) for point in POINTS}
        self.done: dict[str, int] = {}

    def run(self) -> float:
        """Do everything; returns how long it took."""
        size = self.measured["unit"]
        for point in POINTS:
            for name, count in (("safety", SAFETY), ("task", TASK)):
                numbers = range(len(shards(count, size)))
                self.queue.add(Unit(key=f"{point}/{name}/{n}", kind="models", group=point) for n in numbers)
        for speed in self._speeds:
            self._start("models", speed, 0.0)
        now = 0.0
        while self.queue.unfinished:
            now, _, event = heapq.heappop(self._events)
            event(now)
        return now

    def _later(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), event))

    def _start(self, kind: str, speed: float, now: float) -> None:
        worker = f"worker-{next(self._count)}"
        self._speed[worker] = speed
        self.queue.starting(worker, kind, now)
        self._later(now + self.measured["start"] * self._speed[worker], lambda then: self._ready(worker, then))

    def _ready(self, worker: str, now: float) -> None:
        self.queue.ready(worker, now)
        self._next(worker, now)

    def _next(self, worker: str, now: float) -> None:
        match self.queue.take(worker, now):
            case None:
                self._idle[worker] = None
            case Become(kind):
                self.queue.leave(worker, died=False)
                self._start(kind, self._speed[worker], now)
            case unit:
                self._do(worker, unit, now)

    def _do(self, worker: str, unit: Unit, now: float) -> None:
        seconds = self.random.choice(self.measured["judging" if unit.kind == "judge" else "answering"])
        seconds *= self._speed[worker] * (SLOWER if self.random.random() < STRAGGLERS else 1.0)
        if unit.group != self._at.get(worker):
            seconds += self.random.choice(self.measured["changes"])
        self._at[worker] = unit.group
        if self.random.random() < FAILURES:
            spent = seconds * self.random.random()
            self._later(now + spent, lambda then: self._died(worker, spent, then))
        else:
            self._later(now + seconds, lambda then: self._finished(worker, seconds, then))

    def _finished(self, worker: str, seconds: float, now: float) -> None:
        unit = self.queue.finish(worker, now)
        if unit is None:  # another worker was faster
            self.lost += seconds
        else:
            self.done[unit.key] = self.done.get(unit.key, 0) + 1
            self._follow(unit)
        self._next(worker, now)
        self._wake(now)

    def _follow(self, unit: Unit) -> None:
        """Once all safety answers of a point exist, they can be judged."""
        point, name, _ = unit.key.split("/")
        if name == "safety":
            self._open[point] -= 1
            if not self._open[point]:
                numbers = range(len(shards(SAFETY, self.measured["unit"])))
                self.queue.add(Unit(key=f"{point}/judge/{n}", kind="judge") for n in numbers)

    def _died(self, worker: str, spent: float, now: float) -> None:
        self.lost += spent
        kind = self.queue.kind(worker)
        given_up = self.queue.leave(worker)
        if given_up is not None:
            self.given_up += 1
            self._follow(given_up)
        self._start(kind, self._speed[worker], now)
        self._wake(now)

    def _wake(self, now: float) -> None:
        """Let idle workers look again, since something may wait, or be slow."""
        nothing: set[str] = set()
        for worker in [*self._idle]:
            if (kind := self.queue.kind(worker)) not in nothing:
                del self._idle[worker]
                self._next(worker, now)
                nothing |= {kind} if worker in self._idle else set()


def main() -> None:
    """Simulate each size of the cluster, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=float, help="seconds that a worker takes to start")
    parser.add_argument("--unit-seconds", type=float, help="mean seconds of a unit of answers")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    if given.unit_seconds:
        factor = given.unit_seconds / statistics.mean(measured["answering"])
        for name in ("answering", "judging", "changes"):
            measured[name] = [seconds * factor for seconds in measured[name]]
    if given.start:
        measured["start"] = given.start
    mean = statistics.mean
    print(
        f"a start {measured['start']:.1f} s, 32 answers {mean(measured['answering']):.1f} s, 32 verdicts "
        f"{mean(measured['judging']):.1f} s, a change of λ {mean(measured['changes']):.2f} s\n"
    )
    rows = [["GPUs", "time", "speed-up", "of the ideal", "lost work", "given up"]]
    alone, speed, limit = 0.0, {}, None
    for size in SIZES:
        runs = [Simulation(size, measured, seed) for seed in range(given.repeats)]
        took = statistics.median(run.run() for run in runs)
        assert all(count == 1 for run in runs for count in run.done.values())
        alone = alone or took
        speed[size] = alone / took
        if limit is None and size > 1 and speed[size] < 1.5 * speed[size // 2]:
            limit = size // 2
        lost = statistics.median(run.lost for run in runs)
        rows.append(
            [
                f"{size}",
                f"{took / 3600:.2f} h" if took >= 3600 else f"{took:.0f} s",
                f"{speed[size]:.1f}",
                f"{speed[size] / size:.0%}",
                f"{lost:.0f} s ({lost / alone:.1%})",
                f"{sum(run.given_up for run in runs)}",
            ]
        )
    print(table(rows))
    for size, least in NEEDED.items():
        print(
            f"at {size}: {speed[size]:.1f} times one GPU, at least {least}: {'yes' if speed[size] >= least else 'no'}"
        )
    print(f"it stops scaling at {limit or SIZES[-1]} GPUs: twice as many gain less than half of that")


if __name__ == "__main__":
    main()
