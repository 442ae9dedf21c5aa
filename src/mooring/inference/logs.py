"""The log file of an engine: what it prints goes there instead of to the terminal, and is read when something fails."""

import atexit
import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_LOGGERS = ("vllm",)
"""Loggers of this process that keep writing to the file after the engine has started."""
_TAIL = 2**16
"""Bytes at the end of a file that `log_tail` reads."""
_COLORS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_one_at_a_time = threading.RLock()
_unneeded: set[Path] = set()


@contextlib.contextmanager
def engine_logs(path: Path | None = None) -> Iterator[Path]:
    """Write to a file what an engine prints while it starts, and what its processes print as long as they live.

    While the block runs, file descriptors 1 and 2 and `sys.stdout` and `sys.stderr` of this process lead to the file.
    Processes that are started meanwhile keep them; so does vLLM's logger in this process. To go on writing to the
    terminal, duplicate its descriptor before (`own_stderr`).

    Args:
        path: The file, which is appended to. None for a temporary one, which is removed when this process exits unless
            the block or the engine failed; see `keep_log`.

    Yields:
        The path of the file.
    """
    if path is None:
        descriptor, name = tempfile.mkstemp(prefix="mooring-engine-", suffix=".log")
        os.close(descriptor)
        path = Path(name)
        _unneeded.add(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("a", encoding="utf-8", errors="replace", buffering=1)
    with _one_at_a_time, contextlib.ExitStack() as stack:
        for descriptor in (1, 2):
            _redirect(descriptor, log.fileno(), stack)
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        _redirect_loggers(log)
        try:
            yield path
        except BaseException:
            if path.stat().st_size:
                keep_log(path)
            raise
        finally:
            _redirect_loggers(log)  # again: vLLM configures its logger while it starts


def log_tail(path: Path, lines: int = 20, *, begin: int = 0) -> str:
    """The last lines of a log file, without blank lines and colors; empty if there is no such file.

    Args:
        path: The file.
        lines: Maximum number of lines.
        begin: Size in bytes that the file had before; nothing older is shown.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(begin, path.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    shown = [line.rstrip() for line in _COLORS.sub("", text.replace("\r", "\n")).splitlines() if line.strip()]
    return "\n".join(shown[-lines:])


def keep_log(path: Path) -> None:
    """Keep a temporary log file after this process exits, because something refers to it."""
    _unneeded.discard(path)


@contextlib.contextmanager
def own_stderr() -> Iterator[IO[str]]:
    """Standard error for a display that goes on while an engine starts; where it is not a file, `sys.stderr` itself."""
    try:
        descriptor = os.dup(2) if sys.stderr.fileno() == 2 else None
    except (OSError, ValueError):  # closed, or replaced by something without a descriptor
        descriptor = None
    if descriptor is None:
        yield sys.stderr
    else:
        with os.fdopen(descriptor, "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1) as own:
            yield own


def _redirect(descriptor: int, target: int, stack: contextlib.ExitStack) -> None:
    """Let a descriptor lead to another file until the stack is closed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    try:
        saved = os.dup(descriptor)
    except OSError:  # this process has no such stream
        return
    os.dup2(target, descriptor)
    stack.callback(os.close, saved)
    stack.callback(os.dup2, saved, descriptor)


def _redirect_loggers(log: IO[str]) -> None:
    """Let the engines' loggers write to the file from now on."""
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(log)


@atexit.register
def _remove_unneeded() -> None:
    for path in _unneeded:
        path.unlink(missing_ok=True)
