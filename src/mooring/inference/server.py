"""One request to an OpenAI-compatible server over HTTP, and what its failure means."""

import datetime
import email.utils
import functools
import json
import math
import os
import ssl
from collections.abc import Mapping
from typing import Any

import httpx2

from mooring.bounded import CONFIG, RECORD, UnusableError, parse_json
from mooring.errors import ModelError, RecipeError
from mooring.inference.deadline import Deadline

LOOPBACK = ("localhost", "127.0.0.1", "::1")
UNAVAILABLE = frozenset({502, 503, 504})
"""Status codes of a proxy whose server is down, and of a server that is still starting."""
RETRIABLE = frozenset({408, 409, 425, 429})
FINAL = frozenset({400, 404, 405, 413, 422, 501})
MESSAGE_LENGTH = 200
"""Maximum number of characters of a server's message in an error."""


class ServerError(Exception):
    """The server rejects the request, and would reject it again.

    Attributes:
        status: The HTTP status.
        text: The server's message, without the API key: untrusted.
        base: The server's address.
    """

    def __init__(self, status: int, text: str, base: str = "") -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text
        self.base = base


class TransientError(Exception):
    """A failure after which the same request may succeed.

    Attributes:
        down: Whether the server is unreachable, as opposed to reachable and failing.
        retry_after: Seconds that the server asks clients to wait.
        status: The HTTP status, if there was a response.
        base: The server's address.
    """

    def __init__(
        self, message: str, *, down: bool = False, retry_after: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.down = down
        self.retry_after = retry_after
        self.status = status
        self.base = ""


class Server:
    """An OpenAI-compatible server.

    Redirects are not followed, since they would send the API key to another host. The key is read from the environment
    for each request and stored nowhere.

    Args:
        base_url: Such as `http://localhost:8000/v1`; `/v1` is appended to an address without a path.
        key_env: Name of the environment variable that holds the API key.
        timeout: Seconds after which a request is cancelled, whatever it has received.

    Raises:
        RecipeError: `base_url` is not an http address, or contains credentials or a query.
    """

    def __init__(self, base_url: str, key_env: str, timeout: float) -> None:
        try:
            url = httpx2.URL(base_url.strip())
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        if url.userinfo or url.query or url.fragment:  # not shown: it may be a secret
            hint = f"keep the key in the environment, as {key_env}"
            what = "base_url: contains more than scheme, host, port and path"
            raise RecipeError(what, hint, code="recipe.url_with_secret")
        if url.scheme not in ("http", "https") or not url.host:
            hint = "write it like http://localhost:8000/v1"
            raise RecipeError(f"base_url: {base_url!r} is not an http address", hint, code="recipe.not_a_url")
        self.base = str(url.copy_with(path=url.path.rstrip("/") or "/v1"))
        self.root = self.base.removesuffix("/v1")
        self.key_env = key_env
        self.timeout = timeout
        self._loopback = url.host in LOOPBACK

    @functools.cached_property
    def _client(self) -> httpx2.Client:
        return httpx2.Client(
            headers={"User-Agent": "mooring", "Accept": "application/json", "Content-Type": "application/json"},
            timeout=self.timeout,
            verify=_trusted(),
            # A connection per request: some servers close one after an error without saying so.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=not self._loopback,  # the environment's proxies cannot reach servers on this machine
        )

    def request(self, path: str, body: Mapping[str, Any] | None = None, *, plain: bool = False) -> Any:
        """POST a JSON body to a path under the base, or GET the path if there is no body; return the JSON response.

        A path that begins with `/` is one below the host, not below `/v1`. With `plain` the response is returned as
        text.

        Raises:
            TransientError: The request may succeed later.
            ServerError: The server rejects the request.
            ModelError: The key is rejected, the quota is exhausted, the address redirects, or TLS fails.
        """
        try:
            return self._request(path, body, plain)
        except (TransientError, ServerError) as error:
            error.base = self.base
            raise

    def _request(self, path: str, body: Mapping[str, Any] | None, plain: bool) -> Any:
        key = os.environ.get(self.key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            what = f"{self.key_env}: contains characters that no API key has"
            raise ModelError(what, "set it again", code="model.key_malformed")
        deadline = Deadline(self.timeout)
        try:
            with (
                deadline,
                self._client.stream(
                    "GET" if body is None else "POST",
                    f"{self.root}{path}" if path.startswith("/") else f"{self.base}/{path}",
                    content=None if body is None else json.dumps(body).encode(),
                    headers={"Authorization": f"Bearer {key}"} if key else {},
                    extensions={"trace": deadline.extension},
                ) as response,
            ):
                content = _read(response)
        except (httpx2.NetworkError, httpx2.ProxyError, httpx2.ConnectTimeout) as error:
            if deadline.expired:
                raise self._too_slow() from None
            if reason := _tls_failure(error):
                hint = "is the scheme https, and is its certificate trusted?"
                raise ModelError(f"{self.base}: TLS fails ({reason})", hint, code="model.server_tls") from None
            raise TransientError(f"does not respond ({error or type(error).__name__})", down=True) from None
        except httpx2.TimeoutException:
            raise self._too_slow() from None
        except (httpx2.RequestError, httpx2.InvalidURL):  # the next request shows whether the server is down
            if deadline.expired:
                raise self._too_slow() from None
            raise TransientError("closed the connection in the middle of its response") from None
        if deadline.expired:
            raise self._too_slow()
        if not response.is_success:
            raise self._failure(response, content, key)
        try:
            return content.decode(errors="replace") if plain else parse_json(content, RECORD)
        except UnusableError as error:
            raise ServerError(response.status_code, f"its response {error}") from None
        except ValueError:
            raise TransientError("responds with something that is not JSON") from None

    def _too_slow(self) -> TransientError:
        return TransientError(f"did not respond within {self.timeout:g} s")

    def _failure(self, response: httpx2.Response, content: bytes, key: str) -> Exception:
        status, text = response.status_code, _message(content)
        text = text.replace(key, "…") if key else text
        if status in (401, 403):  # the message may repeat the key in part
            if key:
                hint = f"put a valid one into {self.key_env}"
                return ModelError(f"{self.base}: rejects the API key ({status})", hint, code="model.key_rejected")
            hint = f"put it into the environment as {self.key_env}"
            return ModelError(f"{self.base}: requires an API key ({status})", hint, code="model.key_missing")
        if 300 <= status < 400:
            hint = "use the address that it redirects to"
            return ModelError(f"{self.base}: redirects elsewhere ({status})", hint, code="model.server_redirects")
        if status == 429 and "insufficient_quota" in text:
            hint = "add to it, then run this again"
            return ModelError(f"{self.base}: the quota of the API key is used up", hint, code="model.quota_exhausted")
        if status in FINAL or "system role" in text.lower() or not (status in RETRIABLE or status >= 500):
            return ServerError(status, text)
        message = f"responds with {status}" + (f" ({shorten(text)})" if text else "")
        wait = retry_after(response.headers.get("Retry-After"))
        return TransientError(message, down=status in UNAVAILABLE, retry_after=wait, status=status)


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The certificates that are trusted; loading them takes a tenth of a second."""
    return httpx2.create_ssl_context()


def shorten(text: str) -> str:
    """The beginning of a text, at most `MESSAGE_LENGTH` characters."""
    return text if len(text) <= MESSAGE_LENGTH else text[: MESSAGE_LENGTH - 1] + "…"


def retry_after(value: str | None) -> float | None:
    """The seconds of a `Retry-After` header, given as a number or as a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, (date - datetime.datetime.now(date.tzinfo)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # not a date, or one that does not exist
        return None


def _tls_failure(error: BaseException | None) -> str:
    """The reason of the TLS error that caused an exception; empty if none did."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error.reason or "TLS"
        error = error.__cause__ or error.__context__
    return ""


def _read(response: httpx2.Response) -> bytes:
    """The body of a response, decompressed; raises ServerError if it is too large for one."""
    content = bytearray()
    for part in response.iter_bytes():
        content += part
        if len(content) > RECORD.size:
            raise ServerError(response.status_code, f"its response is larger than {RECORD.size // 2**20} MiB")
    return bytes(content)


def _message(content: bytes) -> str:
    """An error response's message in one line: OpenAI's `error.message`, FastAPI's `detail`, or the text itself."""
    try:
        data = parse_json(content[: CONFIG.size], CONFIG)
    except ValueError:
        return " ".join(content[: CONFIG.size].decode(errors="replace").split())
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        message = error.get("message", error.get("detail"))
        # The code and the type may say more than the message: `context_length_exceeded`, `insufficient_quota`.
        parts = [message if isinstance(message, str) else json.dumps(message), error.get("code"), error.get("type")]
        error = " ".join(part for part in parts if isinstance(part, str) and part != "null")
    return " ".join(str(error).split())
