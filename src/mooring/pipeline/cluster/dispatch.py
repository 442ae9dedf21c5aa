"""Bring units to the workers of a Ray cluster, and their results back: one thread that owns the queue."""

import itertools
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mooring.errors import ClusterError
from mooring.events import Event, OnEvent, ignore
from mooring.pipeline.cluster.connect import Cluster
from mooring.pipeline.cluster.sources import Source
from mooring.pipeline.cluster.units import Become, Unit, UnitQueue
from mooring.pipeline.cluster.work import Failure, Setup, Worker

POLL = 0.1
"""Seconds after which idle workers look for new units while others are at work."""
CAPACITY = 1.0
"""Seconds between two looks at what the cluster has room for."""
STARTS = 3
"""Workers that may die while they start, for each that there is room for, before the run ends."""


class Dispatcher:
    """The workers of a cluster, and the units that they do.

    Workers are started when there is work, in as many slots as the cluster has at that moment: nodes may come and go.
    The unit of a worker that died is done by another.

    Args:
        cluster: The cluster.
        on_event: Receives a line when a worker died, and a warning when a unit was given up.
        setup: What the workers have in common with this process; by default its folder.
    """

    def __init__(self, cluster: Cluster, on_event: OnEvent = ignore, *, setup: Setup | None = None) -> None:
        self._setup = setup or Setup.of_this_process((), shared=True)
        self._cluster, self._ray, self._emit = cluster, cluster.ray, on_event
        self._sources: dict[str, Source] = {}
        self._queue = UnitQueue()
        self._names = itertools.count(1)
        self._actors: dict[str, Any] = {}
        self._pending: dict[Any, str] = {}
        """The worker that owes each result."""
        self._idle: dict[str, None] = {}
        self._deaths = 0
        """Workers that died while they started, since the last one that did not."""
        self._slots, self._looked = 0, 0.0
        self._lock = threading.Lock()
        self._added: list[Unit] = []
        self._cancelled: list[str] = []
        self._owners: dict[str, queue.SimpleQueue[Any]] = {}
        self._wake, self._closing = threading.Event(), threading.Event()
        self._failed: BaseException | None = None
        self._thread: threading.Thread | None = None

    def offer(self, kind: str, source: Source) -> None:
        """Say what workers of a kind load."""
        self._sources[kind] = source

    def submit(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Any]]:
        """Have units done. Yields each with its result, as they are finished; None if it was given up.

        Units that are left when the iterator is closed are not started any more.

        Raises:
            UserError: A worker could not load its model, or had an error that the user can do something about.
            ClusterError: Workers die while they start (`cluster.workers_die`).
        """
        mine: queue.SimpleQueue[Any] = queue.SimpleQueue()
        left = {unit.key for unit in units}
        with self._lock:
            if self._failed is not None:
                raise self._failed
            self._owners.update(dict.fromkeys(left, mine))
            self._added += units
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mooring-dispatcher", daemon=True)
                self._thread.start()
        self._wake.set()
        try:
            while left:
                try:
                    found = mine.get(timeout=1)
                except queue.Empty:  # woken up for an interruption that came just before the wait
                    continue
                if isinstance(found, BaseException):
                    raise found
                unit, result = found
                left.discard(unit.key)
                yield unit, result
        finally:
            with self._lock:
                self._cancelled += left
                for key in left:
                    self._owners.pop(key, None)
            self._wake.set()

    def close(self) -> None:
        """End all workers."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()

    # --- in the thread ---

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._step()
        except BaseException as error:  # raised by whoever waits
            with self._lock:
                self._failed = error
                waiting = {id(owner): owner for owner in self._owners.values()}
            for owner in waiting.values():
                owner.put(error)

    def _step(self) -> None:
        with self._lock:
            added, self._added = self._added, []
            cancelled, self._cancelled = self._cancelled, []
        self._queue.add(added)
        self._queue.cancel(cancelled)
        self._start_workers()
        self._give()
        if not self._pending:
            self._wake.wait(CAPACITY if self._queue.unfinished else None)
            self._wake.clear()
            return
        timeout = POLL if self._idle or self._queue.unfinished else CAPACITY
        ready, _ = self._ray.wait([*self._pending], num_returns=1, timeout=timeout)
        for reference in ready:
            self._receive(self._pending.pop(reference), reference)

    def _start_workers(self) -> None:
        now = time.monotonic()
        if self._queue.unfinished and now - self._looked > CAPACITY:
            self._slots, self._looked = self._cluster.slots(), now
        while len(self._actors) < min(self._slots, self._queue.unfinished):
            kind = self._queue.wanted()
            if kind is None:
                return
            self._start(kind)

    def _start(self, kind: str) -> None:
        name = f"worker-{next(self._names)}"
        options = {"max_restarts": 0, "max_task_retries": 0, **self._cluster.options()}
        actor = self._ray.remote(Worker).options(**options).remote(self._sources[kind], self._setup)
        self._actors[name] = actor
        self._queue.starting(name, kind, time.monotonic())
        self._pending[actor.load.remote()] = name

    def _give(self) -> None:
        """Give units to idle workers; if one gets none, nor will the others of its kind."""
        nothing: set[str] = set()
        for name in [*self._idle]:
            kind = self._queue.kind(name)
            if kind in nothing:
                continue
            found = self._queue.take(name, time.monotonic())
            if found is None:
                nothing.add(kind)
                continue
            del self._idle[name]
            if isinstance(found, Become):
                self._queue.leave(name, died=False)
                self._ray.kill(self._actors.pop(name))
                self._start(found.kind)
            else:
                self._pending[self._actors[name].do.remote(found.work)] = name

    def _receive(self, name: str, reference: Any) -> None:
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError:  # a bug
            raise
        except self._ray.exceptions.RayError as error:
            self._died(name, error)
            return
        now = time.monotonic()
        unit = self._queue.held(name)
        if unit is None:  # it was loading
            if isinstance(result, Failure):
                raise result.error()
            self._deaths = 0
            self._queue.ready(name, now)
        elif self._queue.finish(name, now) is not None:
            self._deliver(unit, result.error() if isinstance(result, Failure) else (unit, result))
        self._idle[name] = None

    def _died(self, name: str, error: Exception) -> None:
        unit = self._queue.held(name)
        given_up = self._queue.leave(name)
        self._actors.pop(name)
        if unit is None:
            self._deaths += 1
            if self._deaths > STARTS * max(1, self._slots):
                what = f"{self._deaths} workers died while they started ({_first_line(error)})"
                raise ClusterError(what, "see Ray's logs of the node", code="cluster.workers_die")
            return
        again = "" if given_up else "; what it was doing is done again"
        self._emit(Event(step="cluster", kind="info", message=f"{name} died ({_first_line(error)}){again}"))
        if given_up is not None:
            self._emit(Event(step="cluster", kind="warning", message=_given_up(given_up)))
            self._deliver(given_up, (given_up, None))

    def _deliver(self, unit: Unit, found: Any) -> None:
        with self._lock:
            owner = self._owners.pop(unit.key, None)
        if owner is not None:
            owner.put(found)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _given_up(unit: Unit) -> str:
    """What was lost with a unit, in a line."""
    return f"not answered, since three workers died of it: {', '.join(unit.prompts)} ({unit.kind} {unit.group})".strip()
