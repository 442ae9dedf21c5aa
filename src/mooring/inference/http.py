"""Asking a server that may be busy, slow, or gone for a while: waits, a rate limit, and several requests at once.

The clock is handed in, so that tests sleep nowhere.
"""

import dataclasses
import datetime
import email.utils
import http.client
import json
import os
import queue
import random
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from mooring.errors import ModelError, RecipeError

# --- One request to an OpenAI-compatible server over HTTP: its JSON, or what is wrong, sorted ---


LOOPBACK = ("localhost", "127.0.0.1", "::1")
GONE = frozenset({502, 503, 504})
"""What a proxy answers for a server that is not there, and a server that is still starting."""
REFUSED = frozenset({400, 404, 405, 413, 422, 501})


class Refused(Exception):  # noqa: N818 - the engine turns it into an error, or asks in another way
    """The server will not do this, however often it is asked.

    Attributes:
        status: HTTP status.
        text: What the server says, the key taken out of it: untrusted.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """Where requests go.

    Attributes:
        base: Such as `http://localhost:8000/v1`, without credentials.
        key_env: The environment variable that holds the key; read anew for each request and kept nowhere.
        timeout: Seconds without a byte after which a request is given up.
    """

    base: str
    key_env: str
    timeout: float

    @property
    def host(self) -> str:
        """The host's name alone."""
        return urllib.parse.urlsplit(self.base).hostname or ""

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """POST a JSON body to `path` under the base, or GET where there is none.

        Raises:
            Passing: It may go better next time.
            Refused: It will not.
            ModelError: The key is not accepted, the quota is used up, the address redirects, or its certificate is
                not trusted.
        """
        key = os.environ.get(self.key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ModelError(f"{self.key_env}: holds characters that no key has", "set it anew")
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "mooring"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base}/{path}", data=data, headers=headers)
        # Proxies of the environment do not know this machine's own servers.
        proxies = urllib.request.ProxyHandler({} if self.host in LOOPBACK else None)
        opener = urllib.request.build_opener(_NoRedirect, proxies)
        try:
            with opener.open(request, timeout=self.timeout) as reply:
                raw = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._sorted(error, key) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                raise ModelError(
                    f"{self.base}: no safe connection ({error.reason.reason or 'TLS'})", "is it https, and trusted?"
                ) from None
            raise Passing(f"does not answer ({_reason(error.reason)})", down=True) from None
        except TimeoutError:
            raise Passing(f"gave no answer within {self.timeout:g} s") from None
        except ConnectionError as error:
            raise Passing(f"broke off the connection ({_reason(error)})", down=True) from None
        except http.client.HTTPException:  # half an answer: whether the server is gone, the next try will show
            raise Passing("broke off in the middle of its answer") from None
        try:
            return json.loads(raw)
        except ValueError:
            raise Passing("answers with something that is not JSON") from None

    def _sorted(self, error: urllib.error.HTTPError, key: str) -> Exception:
        status = error.code
        try:
            text = said(error.read())
        except (OSError, http.client.HTTPException):
            text = ""
        text = text.replace(key, "…") if key else text
        if status in (401, 403):  # what the server says may repeat the key
            if key:
                return ModelError(
                    f"{self.base}: does not accept the key ({status})", f"put a valid one into {self.key_env}"
                )
            return ModelError(f"{self.base}: wants a key ({status})", f"put it into the environment as {self.key_env}")
        if 300 <= status < 400:
            return ModelError(f"{self.base}: redirects elsewhere ({status})", "give the address that it leads to")
        if status == 429 and "insufficient_quota" in text:
            return ModelError(f"{self.base}: the quota of this key is used up", "add to it, then run this again")
        if status in REFUSED or (status >= 500 and "system role" in text.lower()):
            return Refused(status, text)
        if status in (408, 409, 425, 429) or status >= 500:
            wait = retry_after(error.headers.get("Retry-After"))
            what = f"answers {status}" + (f" ({short(text)})" if text else "")
            return Passing(what, down=status in GONE, wait=wait, status=status)
        return Refused(status, text)


def open_server(base_url: str, key_env: str, timeout: float) -> Server:
    """Check an address. One without a path is given `/v1`, where these servers all have it.

    Raises:
        RecipeError: It is not an http address, or holds more than scheme, host, port and path.
    """
    try:
        parts = urllib.parse.urlsplit(base_url.strip())
        odd = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        odd, parts = True, urllib.parse.urlsplit("")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Never shown: what stands there may be a secret.
        raise RecipeError("base_url: holds more than an address", f"keep the key in the environment, as {key_env}")
    if odd:
        raise RecipeError(f"base_url: {base_url!r} is not an http address", "write it like http://localhost:8000/v1")
    return Server(
        urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", "")), key_env, timeout
    )


def said(raw: bytes) -> str:
    """The message in an error's body: OpenAI's `error.message`, FastAPI's `detail`, or the text itself."""
    text = raw.decode("utf-8", "replace")
    try:
        data = json.loads(text)
    except ValueError:
        return " ".join(text.split())
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        message = error.get("message", error.get("detail"))
        # The kind says what the message may not: `context_length_exceeded`, `insufficient_quota`.
        found = [message if isinstance(message, str) else json.dumps(message), error.get("code"), error.get("type")]
        return " ".join(" ".join(part for part in found if isinstance(part, str) and part != "null").split())
    return " ".join(str(error).split())


def short(text: str, most: int = 200) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else text[: most - 1] + "…"


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, given as seconds or as a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when - datetime.datetime.now(when.tzinfo)).total_seconds())


def _reason(error: object) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


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
