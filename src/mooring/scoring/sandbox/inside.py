"""The code that runs inside the sandbox: two processes, of which only one is trusted.

The program runs in a child process. Each call of its function goes over a pipe, and results come back as plain values.
The checks run in the parent, and only the parent can say "passed". So nothing that a program does to its own
interpreter (exiting early, patching builtins, answering `==` with True) reaches the verdict: it has to return the right
values. The child is forked before the parent reads the checks and the key that signs its verdict; both come through a
pipe that is empty by the time the program runs, and no process may inspect the parent's memory.

Only the standard library may be used here, and little of it: this module is loaded for every program.
"""

from __future__ import annotations

import builtins
import os
import select
import signal
import time

from mooring.scoring.sandbox.child import (
    become_program,
    bound,
    die_with_parent,
    hide,
    read_exactly,
    resident,
    running,
    seed,
)
from mooring.scoring.sandbox.codec import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

LARGEST = 8 * 2**20
"""The most bytes of one result."""
OVERTIME = 5.0
"""Seconds beyond the program's own after which a sandbox ends, even if the processes that watch it are gone."""
TICK = 0.05
"""Seconds between two checks of memory."""


class Stopped(BaseException):
    """The program cannot be called any more. Not an Exception, so that no check catches it."""


def main(job_size: int, secret_size: int) -> None:
    """Read a job from standard input, run it, and write the key and then the signed verdict to standard output."""
    job = decode(read_exactly(0, job_size))
    verdict = os.dup(1)
    os.dup2(2, 1)  # what checks print is not a verdict
    _drop_privileges(job)
    _continue_in_child(job["seconds"] + OVERTIME)
    (calls_out, calls_in), (results_out, results_in) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            become_program(job, calls_out, results_in)
        finally:
            os._exit(1)
    os.close(calls_out)
    os.close(results_in)
    secret = decode(read_exactly(0, secret_size))
    key: bytes = secret["key"]
    os.write(verdict, key)  # nothing untrusted has run so far: the sandbox works
    started = time.monotonic()

    def late(*_: object) -> NoReturn:
        raise Stopped("timed out", f"more than {job['seconds']:g} seconds")

    try:
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        status, why = _check(job, secret, _Caller(child, calls_in, results_out, job))
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Stopped as stopped:
        status, why = stopped.args
    signed = key + encode((status, why[:500], time.monotonic() - started))
    os.write(verdict, signed)
    os._exit(0)


def _drop_privileges(job: dict[str, Any]) -> None:
    """Drop privileges if we are still root, and let no process inspect this one."""
    if uid := job["uid"]:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        die_with_parent()  # changing the user reset it
    hide(True)
    bound({"AS": job["limits"]["AS"], "CORE": 0})  # a small answer can be a large value
    for name in job["needs"]:
        __import__(name)  # once for both processes


def _continue_in_child(seconds: float) -> None:
    """Continue in a child, while the first process waits for it; its end is the end of the whole sandbox.

    The first process cannot be inspected, stopped or killed from inside; bubblewrap's own would hold the verdict's
    pipe open where the program can reach it, in /proc/1/fd. It also ends everything after `seconds`: a program may
    have stopped the checks' process, and the process that started the sandbox may be gone.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    if child := os.fork():
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ended = os.waitpid(-1, os.WNOHANG)[0]
            if ended == child:
                break
            if not ended:  # one signal may stand for several orphans
                signal.sigtimedwait({signal.SIGCHLD}, left)
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Caller:
    """Calls the program's function in its process, and watches memory while it waits."""

    def __init__(self, child: int, calls: int, results: int, job: dict[str, Any]) -> None:
        self.child, self.calls, self.results, self.job = child, calls, results, job

    def start(self) -> None:
        """Load the program, and raise what it raises."""
        self._send(b"!")
        self._result()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        data = encode((arguments, named))
        self._send(len(data).to_bytes(8, "big") + data)
        return self._result()

    def _send(self, data: bytes) -> None:
        os.set_blocking(self.calls, False)
        while data:
            self._wait([], [self.calls])
            try:
                data = data[os.write(self.calls, data) :]
            except BrokenPipeError:
                self._gone()

    def _result(self) -> Any:
        size = int.from_bytes(self._take(8), "big")
        if not 0 < size <= LARGEST:
            raise Stopped("killed", f"an answer of {size} bytes")
        data = self._take(size)
        if data[:1] == b"v":
            return decode(data[1:])
        name, _, text = data[1:].decode("utf-8", "replace").partition("\n")
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
            raise kind(text)
        raise RuntimeError(f"{name}: {text}")

    def _take(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            self._wait([self.results], [])
            part = os.read(self.results, min(missing, 2**20))
            if not part:
                self._gone()
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _wait(self, readable: list[int], writable: list[int]) -> None:
        while not any(select.select(readable, writable, [], TICK)):
            if self.job["contained"] and resident() > self.job["memory"]:
                raise Stopped("killed", f"more than {self.job['memory']} bytes of memory")

    def _gone(self) -> NoReturn:
        for _ in range(50):  # its pipe closes a moment before it can be waited for
            pid, state = os.waitpid(self.child, os.WNOHANG)
            if pid and os.WIFSIGNALED(state):
                name = signal.Signals(os.WTERMSIG(state)).name
                raise Stopped("timed out" if name == "SIGXCPU" else "killed", f"killed by {name}")
            if pid:
                break
            time.sleep(0.01)
        raise Stopped("failed", "the program ended before its checks did")


def _check(job: dict[str, Any], secret: dict[str, Any], call: _Caller) -> tuple[str, str]:
    """Run the checks, in a namespace in which the program's function is a call to its process."""

    def candidate(*arguments: Any, **named: Any) -> Any:
        return call(*arguments, **named)

    names: dict[str, Any] = {"__name__": "checks"}
    try:
        seed()
        exec(compile(secret["setup"], "<setup>", "exec"), names)
        call.start()
        names |= {job["entry_point"]: candidate, "candidate": candidate}
        exec(compile(secret["checks"], "<checks>", "exec"), names)
    except Stopped:
        raise
    except BaseException as error:
        return "failed", " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    if job["contained"] and any(pid not in (1, os.getpid(), call.child) for pid in running()):
        return "failed", "it left a process behind"
    return "passed", ""
