"""What Ray costs: one worker and two on units that only sleep, so that the cores of this machine are not the limit.

    python benchmarks/ray_units.py [--units 60] [--seconds 0.2]

The units go through the dispatcher of a run, on a Ray cluster of two CPUs that is started for it; workers are started
before the clock. The ratio of two workers' time to one's, and what a unit costs beside its sleep, come last.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import table

from mooring.config import Resources
from mooring.inference.engine import Engine
from mooring.inference.token_engine import Encoded, TokenEngine
from mooring.merge_point import BASE, MergePoint
from mooring.pipeline.cluster.connect import Cluster
from mooring.pipeline.cluster.dispatch import Dispatcher
from mooring.pipeline.cluster.units import Unit
from mooring.pipeline.cluster.work import Answer
from mooring.records import Completion, Message, Prompt
from mooring.sampling import SamplingParams

RATIO, OVERHEAD = 0.62, 0.030
"""The most of one worker's time that two may take, and the most seconds that a unit may cost besides."""


class Sleeping(TokenEngine):
    """An engine that sleeps for each batch, and answers nothing."""

    def __init__(self, seconds: float) -> None:
        super().__init__(None, (), batch_size=1)
        self.seconds = seconds

    @property
    def about(self) -> dict[str, Any]:
        """See `Engine.about`."""
        return {"engine": "sleeping", "process": os.getpid()}

    @property
    def context(self) -> int | None:
        """See `TokenEngine.context`."""
        return None

    def complete_batch(self, batch: Sequence[tuple[Prompt, int]], params: SamplingParams) -> list[Completion]:
        """Sleep."""
        time.sleep(self.seconds)
        return [Completion(prompt_id=prompt.id, text="", tokens=0, finish="stop", sample=n) for prompt, n in batch]

    def _generate(self, rows: list[list[int]], keys: list[str], params: SamplingParams) -> list[list[int]]:
        raise NotImplementedError

    def _score(self, examples: list[Encoded]) -> list[float]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Bed:
    """What a worker loads: an engine that sleeps."""

    seconds: float

    def load(self, scratch: Path) -> "Bed":
        """See `Source.load`."""
        return self

    def at(self, point: MergePoint) -> Engine:
        """See `Loaded.at`."""
        return Sleeping(self.seconds)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Few(Cluster):
    """A cluster of which only some CPUs are used."""

    workers: int

    def slots(self) -> int:
        """See `Cluster.slots`."""
        return self.workers


def measure(ray: Any, workers: int, units: int, seconds: float) -> float:
    """Seconds that some workers take for the units, once they are started."""
    cluster = Few(ray=ray, resources=Resources(on="ray"), own=False, per_engine=1, workers=workers)
    dispatcher = Dispatcher(cluster)
    dispatcher.offer("models", Bed(seconds))
    prompt = Prompt(id="p", messages=(Message("user", "Hello."),))
    work = Answer(point=BASE, batch=[(prompt, 0)], params=SamplingParams())

    def do(name: str, count: int) -> tuple[float, int]:
        """How long some units take, and how many processes did them."""
        started = time.perf_counter()
        made = [*dispatcher.submit([Unit(key=f"{name}/{n}", kind="models", work=work) for n in range(count)])]
        seconds = time.perf_counter() - started
        assert len(made) == count
        return seconds, len({completions[0].made_by["engine"]["process"] for _, completions in made})

    while do(f"start {time.perf_counter()}", 2 * workers)[1] < workers:
        pass
    took, _ = do("measured", units)
    dispatcher.close()
    return took


def main() -> None:
    """Measure one worker and two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.2)
    given = parser.parse_args()
    import ray

    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        times = {workers: measure(ray, workers, given.units, given.seconds) for workers in (1, 2)}
        ray.shutdown()
    slept = given.units * given.seconds
    rows = [["workers", "time", "a unit costs besides"]]
    rows += [
        [f"{n}", f"{took:.2f} s", f"{1000 * (took * n - slept) / given.units:.1f} ms"] for n, took in times.items()
    ]
    print(table(rows))
    ratio, overhead = times[2] / times[1], (times[1] - slept) / given.units
    print(f"two workers take {ratio:.2f} of one worker's time, at most {RATIO}: {'yes' if ratio <= RATIO else 'no'}")
    fits = "yes" if overhead < OVERHEAD else "no"
    print(f"a unit costs {1000 * overhead:.1f} ms besides, less than {1000 * OVERHEAD:.0f}: {fits}")


if __name__ == "__main__":
    main()
