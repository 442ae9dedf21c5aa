"""Requests to a server that may be busy, slow or down: retries, a rate limit, and several requests at a time."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import tenacity

from mooring.inference.server import TransientError

T = TypeVar("T")
R = TypeVar("R")
WORKER = "mooring-request"
"""Name of the threads that make requests."""
BACKOFF = tenacity.wait_exponential_jitter(initial=0.25, max=30, jitter=0.25)
"""Seconds before a failed request is repeated."""
POLL = tenacity.wait_exponential_jitter(initial=0.25, max=5, jitter=0.25)
"""Seconds before a server that went down is tried again."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """How many requests are made to a server, and how long each is tried.

    Attributes:
        concurrency: Number of requests to each server at a time.
        requests_per_minute: Maximum number of requests per minute, including retries; None sets no limit.
        retries: Maximum number of retries while the server is reachable and failing, or if it never was reachable.
        timeout: Seconds after which a request is cancelled and repeated.
        patience: Seconds to wait for a server that was reachable and went down; also the longest `Retry-After`.
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    retries: int = 6
    timeout: float = 600.0
    patience: float = 600.0


class StoppedError(Exception):
    """The work was cancelled while this part of it was waiting."""


class Clock:
    """The system's clock; tests replace it."""

    def now(self) -> float:
        """Seconds on a monotonic clock."""
        return time.monotonic()

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        """Wait; raises StoppedError if `stop` is set in the meantime."""
        if stop.wait(seconds):
            raise StoppedError


class RateLimit:
    """Spaces requests evenly (None: not at all), and holds all of them back during a pause."""

    def __init__(self, per_minute: float | None, clock: Clock) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._next = 0.0
        self._lock = threading.Lock()

    def acquire(self, stop: threading.Event) -> None:
        """Wait until a request is allowed; raises StoppedError if `stop` is set in the meantime."""
        while True:
            with self._lock:
                now = self._clock.now()
                wait = self._next - now
                if wait <= 0:
                    self._next = now + self._interval
                    return
            self._clock.sleep(wait, stop)

    def pause(self, seconds: float) -> None:
        """Allow no request for a time: a server that asks one client thread to wait means all of them."""
        with self._lock:
            self._next = max(self._next, self._clock.now() + seconds)


class Retrier:
    """Repeats requests that fail with a `TransientError`; `reached` says whether the server has ever responded."""

    def __init__(self, limits: RequestLimits, clock: Clock) -> None:
        self.limits = limits
        self.clock = clock
        self.rate = RateLimit(limits.requests_per_minute, clock)
        self.reached = False

    def call(self, request: Callable[[], T], stop: threading.Event) -> T:
        """Make a request until it succeeds.

        Raises:
            TransientError: The last failure, if there were too many or they lasted too long.
            StoppedError: `stop` was set during a wait.
        """
        failures = 0
        down_since: float | None = None

        def give_up(state: tenacity.RetryCallState) -> bool:
            nonlocal failures, down_since
            error, now = _failure(state), self.clock.now()
            if (error.retry_after or 0) > self.limits.patience:
                return True
            if error.down and self.reached:
                down_since = now if down_since is None else down_since
                return now - down_since >= self.limits.patience
            self.reached = self.reached or not error.down
            failures, down_since = failures + 1, None
            return failures > self.limits.retries

        def wait(state: tenacity.RetryCallState) -> float:
            error = _failure(state)
            seconds = (POLL if error.down and self.reached else BACKOFF)(state)
            if error.retry_after is None:
                return seconds
            self.rate.pause(error.retry_after)
            return max(seconds, error.retry_after)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=give_up,
            wait=wait,
            before=lambda state: self.rate.acquire(stop),
            sleep=lambda seconds: self.clock.sleep(seconds, stop),
            reraise=True,
        )
        result = retrying(request)
        self.reached = True
        return result


def _failure(state: tenacity.RetryCallState) -> TransientError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TransientError)
    return error


def in_parallel(work: Callable[[T, threading.Event], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Yield the results of `work(item, stop)` as they are finished; items are started in their order.

    After a failure no further item is started; the results of those in progress are still yielded, and then the
    failure is raised. If the iterator is closed early, nothing is waited for: the threads are daemons, unlike those of
    `concurrent.futures`, so that an open request does not keep the process alive.
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
                results.put(("result", work(item, stop)))
            except StoppedError:
                break
            except BaseException as error:  # raised by the thread that iterates
                stop.set()
                results.put(("failure", error))
                break
        results.put(("end", None))

    running = max(1, min(workers, len(items)))
    for _ in range(running):
        threading.Thread(target=run, name=WORKER, daemon=True).start()
    failure: BaseException | None = None
    try:
        while running:
            try:
                kind, value = results.get(timeout=1)
            except queue.Empty:  # woken up for an interruption that came just before the wait
                continue
            if kind == "result":
                yield value
            elif kind == "failure":
                failure = failure or value
            else:
                running -= 1
        if failure is not None:
            raise failure
    finally:
        stop.set()
