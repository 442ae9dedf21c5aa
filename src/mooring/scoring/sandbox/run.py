"""Run programs in sandboxes, several at once: processes, pipes and time limits."""

import contextlib
import dataclasses
import functools
import logging
import marshal
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType
from typing import Literal

from mooring.errors import UserError
from mooring.events import Event, OnEvent
from mooring.scoring.sandbox import bubblewrap
from mooring.scoring.sandbox.codec import decode, encode

Status = Literal["passed", "failed", "timed out", "killed"]


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A program that a model wrote, with its checks.

    Attributes:
        code: Python source, untrusted.
        checks: Python source, trusted. It runs in a process of its own, in which `entry_point` (and `candidate`) is a
            function that calls the program's process: arguments and results pass as plain values (`codec.encode`), so a
            change of an argument in place has no effect. The program passed if the checks ran to their end.
        entry_point: The function that the checks call.
        setup: Trusted source that runs before `checks`, such as definitions that they call.
    """

    code: str
    checks: str
    entry_point: str
    setup: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The resources of one program.

    Attributes:
        seconds: Wall-clock time without start-up; processor time is limited to one second more.
        memory: Bytes: of address space for each of its processes, and of resident memory for all of them together.
        processes: Processes and threads besides its own.
        output: Bytes that it may print.
        files: Bytes in its private /tmp, and in any one file.
    """

    seconds: float = 3.0
    memory: int = 512 * 2**20
    processes: int = 16
    output: int = 2**20
    files: int = 16 * 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The result of running a program.

    Attributes:
        status: `passed`; `failed`: a check failed, it raised, or it ended early; `timed out`; `killed`: by a
            signal, or for going over a limit.
        why: One line: the exception or the limit; empty if it passed. Untrusted.
        output: The end of what it printed. Untrusted.
        seconds: Wall-clock time without start-up; 0 if it was stopped from outside.
    """

    status: Status
    why: str = ""
    output: str = ""
    seconds: float = 0.0


UNSAFE_NOTICE = "programs that a model wrote are run without a sandbox: they can do whatever you can"
START = 20.0
"""Seconds that a sandbox may take to start, on a busy machine."""
GRACE = 2.0
"""Seconds after a program's own limit at which it is stopped from outside, in case its checks were stopped."""
TAIL = 2000
"""Characters of output that are kept."""
_INSIDE = ("codec", "child", "inside")
"""The modules that are loaded in the sandbox, each after those that it imports; the last has `main`."""
_LOADER = (
    "import marshal,os,sys\n"
    "data=b''\n"
    "while len(data)<int(sys.argv[1]): data+=os.read(0,int(sys.argv[1])-len(data)) or sys.exit('cut off')\n"
    "for name,code in marshal.loads(data):\n"
    "    module=sys.modules[name]=type(sys)(name)\n"
    "    exec(code,module.__dict__)\n"
    "module.main(int(sys.argv[2]),int(sys.argv[3]))\n"
)
Stopped = tuple[Status, str] | None
"""The status and the reason of a program that was stopped from outside."""
_log = logging.getLogger(__name__)


class SandboxError(UserError):
    """A sandbox could not be made here."""


def require() -> None:
    """Check that a sandbox can be made, by making one.

    Raises:
        MissingExtraError: bubblewrap is not installed.
        SandboxError: It cannot make one here; the message quotes it.
    """
    bubblewrap.find()
    _run(Program(code="def f():\n    return 1\n", checks="assert f() == 1", entry_point="f"), Limits(), unsafe=False)


def run_programs(
    programs: Sequence[Program],
    limits: Limits | None = None,
    workers: int | None = None,
    unsafe: bool = False,
    on_event: OnEvent | None = None,
) -> list[Outcome]:
    """Run programs, each in a fresh sandbox; return their outcomes in the same order.

    Args:
        programs: The programs.
        limits: The resources of each.
        workers: Programs at once; defaults to the number of available cores.
        unsafe: Run without bubblewrap: with limits and a folder of its own, but the program can read and change
            everything that this process can. A warning is logged.
        on_event: Called after each program.

    Raises:
        MissingExtraError: bubblewrap is not installed.
        SandboxError: A sandbox could not be made.
    """
    limits = limits or Limits()
    if unsafe:
        _log.warning(UNSAFE_NOTICE)
    elif programs:
        require()
    outcomes: list[Outcome] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers or cores, thread_name_prefix="sandbox")
    try:
        for outcome in pool.map(lambda program: _run(program, limits, unsafe), programs):
            outcomes.append(outcome)
            if on_event:
                done, total = len(outcomes), len(programs)
                on_event(Event(step="programs", kind="progress", done=done, total=total, unit="programs"))
    finally:
        pool.shutdown(cancel_futures=True)
    return outcomes


def _run(program: Program, limits: Limits, unsafe: bool) -> Outcome:
    """Run one program; a sandbox that does not start, as on a machine short of memory, is retried once."""
    for attempt in range(2):
        key = secrets.token_bytes(16)
        user = 0 if unsafe else bubblewrap.own_user()
        sent, argument = _payload(program, limits, user, key, unsafe)
        folder = tempfile.mkdtemp(prefix="mooring-program-") if unsafe else None
        filter_fd = None if unsafe else _filter()
        try:
            start = [] if unsafe else bubblewrap.command(limits.files, user, filter_fd)
            line = [*start, bubblewrap.python(), *bubblewrap.PYTHON, "-c", _LOADER, *argument]
            written, output, stopped = _converse(line, sent, limits, key, folder, filter_fd)
        finally:
            if filter_fd is not None:
                os.close(filter_fd)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        if written.startswith(key):
            return _outcome(written.removeprefix(key), key, output, stopped)
        if attempt:
            break
    printed = " ".join(output[-300:].decode("utf-8", "replace").split())
    reason = printed or (stopped[1] if stopped else "it printed nothing")
    raise SandboxError(
        f"a sandbox could not be started here: {reason}",
        "allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns), or run as root",
        code="usage.no_sandbox",
    )


def _payload(program: Program, limits: Limits, user: int, key: bytes, unsafe: bool) -> tuple[bytes, list[str]]:
    """The sandbox's input (our code, what the program may know, what it may not), and the sizes of its parts."""
    bounds = {"AS": limits.memory, "CPU": int(limits.seconds) + 1, "FSIZE": limits.files, "NOFILE": 64, "CORE": 0}
    if not unsafe:  # without a namespace all of the user's processes would count
        bounds["NPROC"] = limits.processes + 3  # the first process, the checks', the program's
    job = {
        "code": program.code,
        "entry_point": program.entry_point,
        "seconds": float(limits.seconds),
        "memory": limits.memory,
        "limits": bounds,
        "uid": user,
        "contained": not unsafe,
        "needs": [name for name in ("random", "typing") if name in program.checks + program.setup + program.code],
    }
    parts = [_code(), encode(job), encode({"setup": program.setup, "checks": program.checks, "key": key})]
    return b"".join(parts), [str(len(part)) for part in parts]


@functools.cache
def _code() -> bytes:
    """The modules of `_INSIDE`, compiled: our files are not visible inside."""
    compiled: list[tuple[str, CodeType]] = []
    for name in _INSIDE:
        path = Path(__file__).with_name(f"{name}.py")
        source = path.read_text(encoding="utf-8")
        compiled.append((f"mooring.scoring.sandbox.{name}", compile(source, path.name, "exec")))
    return marshal.dumps(compiled)


def _filter() -> int | None:
    instructions = bubblewrap.seccomp_filter()
    if instructions is None:
        return None
    read, write = os.pipe()
    os.write(write, instructions)
    os.close(write)
    return read


def _converse(
    line: Sequence[str], sent: bytes, limits: Limits, key: bytes, folder: str | None, filter_fd: int | None
) -> tuple[bytes, bytes, Stopped]:
    """Start a sandbox, send it its input, and read until it ends, runs out of time or prints too much.

    Returns what the checks' process wrote, the end of what the program printed, and why it was stopped.
    """
    child = subprocess.Popen(
        line,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=bubblewrap.ENVIRONMENT,  # ours would be visible in /proc/1/environ
        pass_fds=() if filter_fd is None else (filter_fd,),
        start_new_session=True,
        bufsize=0,
    )
    assert child.stdin
    assert child.stdout
    assert child.stderr
    written, output, printed = b"", b"", 0
    stopped: Stopped = None
    end, started = time.monotonic() + START, False
    with selectors.DefaultSelector() as ready, child:
        os.set_blocking(child.stdin.fileno(), False)
        ready.register(child.stdin, selectors.EVENT_WRITE)
        for pipe in (child.stdout, child.stderr):
            ready.register(pipe, selectors.EVENT_READ)
        while ready.get_map() and not stopped:
            events = ready.select(min(0.5, max(0.0, end - time.monotonic())))
            if not events and child.poll() is not None:
                break  # all was read: the pipes are held by processes that it left behind
            for event, _ in events:
                fd = event.fd
                if event.fileobj is child.stdin:
                    try:
                        sent = sent[os.write(fd, sent) :]
                    except BrokenPipeError:
                        sent = b""
                    if not sent:
                        ready.unregister(child.stdin)
                        child.stdin.close()
                    continue
                data = os.read(fd, 65536)
                if not data:
                    ready.unregister(event.fileobj)
                elif event.fileobj is child.stdout:
                    written = (written + data)[:65536]
                else:
                    printed += len(data)
                    output = (output + data)[-4 * TAIL :]
            if not started and written.startswith(key):
                end, started = time.monotonic() + limits.seconds + GRACE, True
            if printed > limits.output:
                stopped = "killed", f"more than {limits.output} bytes of output"
            elif time.monotonic() > end:
                stopped = "timed out", f"more than {limits.seconds if started else START:g} seconds"
        _kill(child, alone=folder is None)
    return written, output, stopped


def _kill(child: subprocess.Popen[bytes], alone: bool) -> None:
    """Kill a sandbox's first process, with which its namespace ends, and bubblewrap; without one, the process group.

    The first process is killed directly: if it runs as another user, bubblewrap may not kill it.
    """
    if not alone:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        return
    with contextlib.suppress(OSError):  # a kernel without this list, or a process that has ended
        for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        child.kill()


def _outcome(written: bytes, key: bytes, output: bytes, stopped: Stopped) -> Outcome:
    tail = output.decode("utf-8", "replace")[-TAIL:]
    if written.startswith(key):
        with contextlib.suppress(ValueError):  # something else was written to the pipe
            status, reason, seconds = decode(written.removeprefix(key))
            return Outcome(status, reason, tail, round(seconds, 4))
    return Outcome(*(stopped or ("killed", "the checks' process was ended")), tail)
