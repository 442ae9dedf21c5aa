"""How much memory a process may still use."""

import contextlib
import os
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process may still use without swapping: what the machine has left, or its container if less.

    File caches count as available. 0 if the system does not tell.
    """
    return max(0, min(_of_the_machine(), _of_the_container()))


def total_memory() -> int:
    """Bytes of the machine's memory, or of its container's limit if that is less; 0 if the system does not tell."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no control group, or no limit ("max")
        limits.append(int((_GROUP / "memory.max").read_text()))
    return max(0, min(limits, default=0))


def resident_memory() -> int:
    """Bytes of memory that this process occupies; 0 if the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _of_the_machine() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _of_the_container() -> int:
    """What the control group's limit (version 2) leaves; the machine's whole memory if there is no limit."""
    try:
        limit, used = (int((_GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        statistics = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return _of_the_machine()
    return limit - used + int(statistics.get("inactive_file", 0))
