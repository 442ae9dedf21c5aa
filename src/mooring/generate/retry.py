"""Asking a server that may be busy, slow, or gone for a while: waits, a rate limit, and several requests at once.

The clock is handed in, so that tests sleep nowhere.
"""

import dataclasses
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

FIRST_WAIT = 0.5
"""Seconds before the second try; each later wait is twice as long."""
LONGEST_WAIT = 30.0
"""Most seconds between two tries."""
WORKER = "mooring-request"
"""The name of the threads that make requests."""
KNOCK = 5.0
"""Most seconds between two looks at whether a server that went away is back."""


class Passing(Exception):  # noqa: N818 - it is not yet an error
    """A failure that may pass.

    Args:
        what: What happened, in a few words.
        down: Whether the server is not there at all, rather than there and in trouble.
        wait: Seconds that the server asks to be left alone.
        status: HTTP status, where there was one.
    """

    def __init__(self, what: str, *, down: bool = False, wait: float | None = None, status: int | None = None) -> None:
        super().__init__(what)
        self.down = down
        self.wait = wait
        self.status = status


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """The work was called off while this piece of it waited."""


class Clock:
    """Time as it is."""

    def now(self) -> float:
        """Seconds since some moment; never runs backwards."""
        return time.monotonic()

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        """Wait.

        Raises:
            Stopped: `stop` was set before the time was over.
        """
        if stop.wait(seconds):
            raise Stopped


class Gate:
    """What every request goes through: at most so many a minute, evenly spaced, and none during a pause.

    Args:
        per_minute: Most requests a minute; `None` sets no limit.
        clock: Whose time it is.
    """

    def __init__(self, per_minute: float | None, clock: Clock) -> None:
        self.interval = 60 / per_minute if per_minute else 0.0
        self.clock = clock
        self._opens = 0.0
        self._lock = threading.Lock()

    def enter(self, stop: threading.Event) -> None:
        """Wait for one's turn.

        Raises:
            Stopped: `stop` was set first.
        """
        while True:
            with self._lock:
                now = self.clock.now()
                wait = self._opens - now
                if wait <= 0:
                    self._opens = now + self.interval
                    return
            self.clock.sleep(wait, stop)

    def pause(self, seconds: float) -> None:
        """Let nobody in for so long: a server that asks one request to wait means all of them."""
        with self._lock:
            self._opens = max(self._opens, self.clock.now() + seconds)


@dataclasses.dataclass(slots=True)
class Persistence:
    """How long to go on asking.

    Attributes:
        retries: Tries after the first, where the server is there and in trouble, or was never there.
        patience: Seconds to wait for a server that was there and went away.
        gate: What every try goes through.
        clock: Whose time it is.
        jitter: Gives numbers in [0, 1), so that requests which failed together do not come back together.
        met: Whether the server has ever answered.
    """

    retries: int
    patience: float
    gate: Gate
    clock: Clock
    jitter: Callable[[], float] = random.random
    met: bool = False

    def ask(self, request: Callable[[], T], stop: threading.Event) -> T:
        """Make a request until it succeeds.

        Raises:
            Passing: The last failure, once there were too many or they went on for too long.
            Stopped: `stop` was set while it waited.
        """
        failures, gone_since, looks = 0, None, 0
        while True:
            self.gate.enter(stop)
            try:
                answer = request()
            except Passing as trouble:
                now = self.clock.now()
                if trouble.down and self.met:
                    gone_since = now if gone_since is None else gone_since
                    if now - gone_since >= self.patience:
                        raise
                    pause = min(KNOCK, wait_before(looks, self.jitter()))
                    looks += 1
                else:
                    self.met = self.met or not trouble.down
                    failures += 1
                    if failures > self.retries or (trouble.wait or 0) > self.patience:
                        raise
                    gone_since, looks = None, 0
                    pause = wait_before(failures - 1, self.jitter())
                if trouble.wait is not None:
                    self.gate.pause(trouble.wait)
                    pause = max(pause, trouble.wait)
            else:
                self.met = True
                return answer
            self.clock.sleep(pause, stop)


def wait_before(retry: int, jitter: float) -> float:
    """Seconds before a retry (0 is the first): doubled each time up to a limit, the later half of it left to chance."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(retry, 16)) * (0.5 + jitter / 2)


def in_parallel(work: Callable[[T, threading.Event], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Results of `work(item, stop)` as they are made, in no order, items begun in theirs.

    After a failure nothing new is begun; what was under way is still waited for and yielded, and then the failure is
    raised. Where the iterator is closed early, nothing is waited for.
    """
    stop, lock, todo = threading.Event(), threading.Lock(), iter(items)
    results: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    end = object()

    def run() -> None:
        while not stop.is_set():
            with lock:
                item: Any = next(todo, end)
            if item is end:
                break
            try:
                results.put(("made", work(item, stop)))
            except Stopped:
                break
            except BaseException as error:  # handed over to the thread that waits
                stop.set()
                results.put(("failed", error))
                break
        results.put(("over", None))

    running = max(1, min(workers, len(items)))
    # Daemons: a request under way must not keep a program alive that was told to end.
    for _ in range(running):
        threading.Thread(target=run, name=WORKER, daemon=True).start()
    failure: BaseException | None = None
    try:
        while running:
            what, value = results.get()
            if what == "made":
                yield value
            elif what == "failed":
                failure = failure or value
            else:
                running -= 1
        if failure is not None:
            raise failure
    finally:
        stop.set()
