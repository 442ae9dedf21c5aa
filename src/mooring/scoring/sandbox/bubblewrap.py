"""The command that makes a sandbox: what bubblewrap binds and unshares, and the system calls that are refused.

There are two ways to drop privileges. An ordinary user gets a user namespace, in which the kernel counts processes
separately. Root's processes are never counted, so root gets no user namespace: the processes inside take an unused user
id before the program starts (`inside.py`), and have no capabilities from then on.
"""

import functools
import itertools
import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from mooring.errors import MissingExtraError

NOBODY = 65534
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program, the same verdict
    "OMP_NUM_THREADS": "1",
}
PYTHON = ("-P", "-s", "-S", "-B", "-u")
"""No site-packages, no user packages, no bytecode files, no buffered output."""
_SYSTEM = ("bin", "lib", "lib64", "lib32", "libx32")
_turn = itertools.count()


def find() -> str:
    """The path of bubblewrap.

    Raises:
        MissingExtraError: It is not installed.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise MissingExtraError("bubblewrap", "apt install bubblewrap", code="extra.bubblewrap")
    return path


def own_user() -> int:
    """An unused user id if we are the system's root; 0 if a user namespace is used instead."""
    if os.geteuid() != 0:
        return 0
    mapped = Path("/proc/self/uid_map").read_text().split()
    everyone = len(mapped) == 3 and int(mapped[2]) >= 2**32 - 1
    return 2_000_000_000 + os.getpid() % 1_000_000 * 100 + next(_turn) % 100 if everyone else 0


def command(tmp_size: int, user: int, seccomp: int | None) -> list[str]:
    """The command line, up to the program to run.

    Args:
        tmp_size: The size of /tmp in bytes.
        user: The result of `own_user`.
        seccomp: A descriptor from which the filter can be read.
    """
    line = [find(), "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    line += ["--hostname", "sandbox", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if user:
        line += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        line += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
        line += ["--disable-userns"] if "--disable-userns" in _help(line[0]) else []
    line += ["--clearenv"]
    for name, value in ENVIRONMENT.items():
        line += ["--setenv", name, value]
    line += _root(tmp_size)
    if seccomp is not None:
        line += ["--seccomp", str(seccomp)]
    return [*line, "--"]


def python() -> str:
    """The interpreter to run inside: this one, without its virtual environment."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


@functools.cache
def _help(bwrap: str) -> str:
    return subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False).stdout


def _root(tmp_size: int) -> list[str]:
    """The file system: the system and Python to read, /tmp to write, three devices, and nothing else."""
    line = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        here = Path("/", name)
        if here.is_symlink():
            line += ["--symlink", str(here.readlink()), str(here)]
        elif here.is_dir():
            line += ["--ro-bind", str(here), str(here)]
    for folder in ("/etc", "/dev"):
        line += ["--perms", "0755", "--dir", folder]
    line += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc"]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        line += ["--dev-bind", device, device]
    line += ["--perms", "1777", "--size", str(tmp_size), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    prefixes = {Path(sys.base_prefix).resolve(), Path(sys.base_exec_prefix).resolve()}
    for prefix in sorted(prefixes):
        if not prefix.is_relative_to("/usr"):
            for parent in reversed(prefix.parents[:-1]):
                line += ["--perms", "0755", "--dir", str(parent)]  # otherwise only its owner could read it
            line += ["--ro-bind", str(prefix), str(prefix)]
    return [*line, "--remount-ro", "/"]


# --- System calls ----------------------------------------------------------------------------------------------------

_LOAD, _EQUAL, _AT_LEAST, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE, _FIRST = 0, 4, 16  # offsets in struct seccomp_data; _FIRST is the first argument's low half
_NEW_USER = 0x10000000
_MOUNTS = tuple(range(428, 434))  # open_tree to fspick, the same on both
_FAMILIES = (1, 2, 10)  # unix, IPv4, IPv6, which the network namespace confines; it does not confine others

_IPC = {
    "x86_64": (29, 30, 31, 67, 64, 65, 66, 220, 68, 69, 70, 71, 240),
    "aarch64": (194, 195, 196, 197, 190, 191, 192, 193, 186, 187, 188, 189, 180),
}
"""Shared memory, semaphores and message queues of System V, and message queues of POSIX: no limit counts them."""
_ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        {"socket": 41, "clone": 56, "clone3": 435, "kill": 62},
        # ptrace, keyrings, namespaces and mounts, bpf, perf, userfaultfd, memfd, others' memory, io_uring, pidfd_getfd
        (101, 248, 249, 250, 272, 308, 165, 166, 155, 321, 298, 323, 319, 310, 311, 425, 426, 427, 438, *_MOUNTS),
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "clone": 220, "clone3": 435, "kill": 129},
        (117, 217, 218, 219, 97, 268, 40, 39, 41, 280, 241, 282, 279, 270, 271, 425, 426, 427, 438, *_MOUNTS),
    ),
}


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """The filter of system calls (seccomp(2), BPF) for bubblewrap's `--seccomp`.

    A signal to the sandbox's first process kills the program that sends it. Refused are a new user namespace, sockets
    of families other than unix and IP, and calls that inspect other processes, change mounts, or allocate memory that
    no limit counts. Returns None for a machine (`platform.machine()`) with unknown call numbers.
    """
    machine = machine or platform.machine()
    known = _ARCHITECTURES.get(machine)
    if known is None:
        return None
    architecture, calls, refused = known
    refuse = [(_RETURN, 0, 0, _ERROR | _EPERM)]
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if architecture == 0xC000003E:
        code += [(_AT_LEAST, 0, 1, 0x40000000), *refuse]  # the x32 names of the same calls
    for number in (*refused, *_IPC[machine]):
        code += [(_EQUAL, 0, 1, number), *refuse]
    code += [(_EQUAL, 0, 1, calls["clone3"]), (_RETURN, 0, 0, _ERROR | _ENOSYS)]  # libc falls back on clone
    code += [(_EQUAL, 0, 3, calls["clone"]), (_LOAD, 0, 0, _FIRST), (_HAS, 0, 1, _NEW_USER), *refuse]
    code += [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 3, calls["kill"]), (_LOAD, 0, 0, _FIRST), (_EQUAL, 0, 1, 1)]
    code += [(_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 5, calls["socket"]), (_LOAD, 0, 0, _FIRST)]
    code += [(_EQUAL, 3 - index, 0, family) for index, family in enumerate(_FAMILIES)] + refuse
    code += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
