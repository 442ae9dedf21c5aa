"""The command that makes a sandbox: what bubblewrap binds, unshares and takes away.

Two ways of being nobody. An ordinary user gets a user namespace, in which the kernel counts processes anew. Root's
processes are never counted, so that root takes no user namespace: what runs inside becomes a user that no one else is
before the program starts (`inside.py`), and holds no capability from then on.
"""

import functools
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mooring.errors import MissingExtraError
from mooring.scoring.sandbox.program import Limits

NOBODY = 65534
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program, the same verdict
    "OMP_NUM_THREADS": "1",
}
PYTHON = ("-P", "-s", "-S", "-B", "-u")
"""No site-packages, nothing of the user's, nothing written beside the source, no output kept back."""
_SYSTEM = ("bin", "lib", "lib64", "lib32", "libx32")
_turn = itertools.count()


def find() -> str:
    """Where bubblewrap is.

    Raises:
        MissingExtraError: It is not installed.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise MissingExtraError("bubblewrap", "apt install bubblewrap")
    return found


def own_user() -> int:
    """A user id that nothing else has, where we are the system's root; 0 where a user namespace does instead."""
    if os.geteuid() != 0:
        return 0
    mapped = Path("/proc/self/uid_map").read_text().split()
    everyone = len(mapped) == 3 and int(mapped[2]) >= 2**32 - 1
    return 2_000_000_000 + os.getpid() % 1_000_000 * 100 + next(_turn) % 100 if everyone else 0


def command(limits: Limits, user: int, seccomp: int | None) -> list[str]:
    """The command line, up to where the program to run is named.

    Args:
        limits: Of these, the size of /tmp.
        user: What `own_user` gave.
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
    line += _root(limits)
    if seccomp is not None:
        line += ["--seccomp", str(seccomp)]
    return [*line, "--"]


def python() -> str:
    """The interpreter that runs inside: this one, without the virtual environment around it."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


@functools.cache
def _help(bwrap: str) -> str:
    return subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False).stdout


def _root(limits: Limits) -> list[str]:
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
    line += ["--perms", "1777", "--size", str(limits.files), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    prefixes = {Path(sys.base_prefix).resolve(), Path(sys.base_exec_prefix).resolve()}
    for prefix in sorted(prefixes):
        if not prefix.is_relative_to("/usr"):
            for parent in reversed(prefix.parents[:-1]):
                line += ["--perms", "0755", "--dir", str(parent)]  # otherwise for its maker's eyes only
            line += ["--ro-bind", str(prefix), str(prefix)]
    return [*line, "--remount-ro", "/"]
