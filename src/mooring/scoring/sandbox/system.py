"""What the sandbox asks of the kernel: who may look into a process, what it may use, and what all processes hold."""

from __future__ import annotations

import os
import resource
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DUMPABLE, _PARENT_DEATH = 4, 1  # prctl(2)


def hide(hidden: bool) -> None:
    """Let no process of the same user look into this one's memory or descriptors (PR_SET_DUMPABLE), or let them."""
    _prctl(_DUMPABLE, 0 if hidden else 1)


def die_with_parent() -> None:
    """Be killed when the process that started this one ends."""
    _prctl(_PARENT_DEATH, signal.SIGKILL)


def bound(limits: dict[str, int]) -> None:
    """Take limits on, by their names in `setrlimit`: for good, for this process and all that it starts."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (least, least))


def seed() -> None:
    """Start `random` at one and the same place, where it was loaded: a fork seeds it anew."""
    if (module := sys.modules.get("random")) is not None:
        module.seed(0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def running() -> list[int]:
    """The processes that there are, those aside that ended and were not waited for."""
    return [pid for pid in _processes() if _field(pid, "stat", lambda text: text.rpartition(")")[2].split()[0]) != "Z"]


def resident() -> int:
    """Bytes of memory that all processes hold, what they share counted for each."""
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
