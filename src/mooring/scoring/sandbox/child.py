"""The untrusted process, in which a program runs, and the system calls of both processes inside the sandbox.

Nothing in the untrusted process is relied on once the program runs: the program may change all of it. Only the
standard library may be used, and little of it: this module is loaded for every program.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from mooring.scoring.sandbox.codec import decode, encode

TYPE_CHECKING = False  # `typing` takes longer to load than a small program takes to run
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_DUMPABLE, _PARENT_DEATH = 4, 1  # prctl(2)


def become_program(job: dict[str, Any], calls: int, results: int) -> NoReturn:
    """Set limits, close all descriptors of the verdict, run the program, and answer calls until killed."""
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for fd, target in ((calls, 3), (results, 4)):
        if fd != target:
            os.dup2(fd, target)
    os.closerange(5, 256)
    hide(False)
    seed()
    bound(job["limits"])
    write = os.write  # a program may replace it

    def reply(data: bytes) -> None:
        data = len(data).to_bytes(8, "big") + data
        while data:
            data = data[write(4, data) :]

    module = type(sys)("program")
    sys.modules["program"] = module

    def load() -> None:
        exec(compile(job["code"], "<program>", "exec"), module.__dict__)

    function: Callable[..., Any] = load
    arguments: Any = ((), {})
    read_exactly(3, 1)  # the checks have been read
    while True:
        try:
            result = function(*arguments[0], **arguments[1])
            if function is load:
                function = module.__dict__[job["entry_point"]]
            reply(b"v" + encode(result))
        except BaseException as error:
            reply(b"e" + f"{type(error).__name__}\n{error}"[:1000].encode("utf-8", "replace"))
        arguments = decode(read_exactly(3, int.from_bytes(read_exactly(3, 8), "big")))


def read_exactly(fd: int, size: int, read: Callable[[int, int], bytes] = os.read) -> bytes:
    """Read this many bytes; raises EOFError at the end."""
    data = b""
    while len(data) < size:
        part = read(fd, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


# --- System calls ----------------------------------------------------------------------------------------------------


def hide(hidden: bool) -> None:
    """Forbid or allow processes of the same user to inspect this one's memory and descriptors (PR_SET_DUMPABLE)."""
    _prctl(_DUMPABLE, 0 if hidden else 1)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends."""
    _prctl(_PARENT_DEATH, signal.SIGKILL)


def bound(limits: dict[str, int]) -> None:
    """Set limits permanently, by their names in `setrlimit`, for this process and its children."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (least, least))


def seed() -> None:
    """Seed `random` if it is loaded: a fork reseeds it."""
    if (module := sys.modules.get("random")) is not None:
        module.seed(0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def running() -> list[int]:
    """The processes that exist, except zombies."""
    return [pid for pid in _processes() if _field(pid, "stat", lambda text: text.rpartition(")")[2].split()[0]) != "Z"]


def resident() -> int:
    """Bytes of resident memory of all processes; shared pages count for each."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(_field(pid, "statm", lambda text: text.split()[1]) or 0) * page for pid in _processes())


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def _field(pid: int, name: str, pick: Callable[[str], str]) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:  # noqa: PTH123  (pathlib is slow)
            return pick(file.read())
    except (OSError, IndexError):
        return "Z" if name == "stat" else ""  # it ended meanwhile
