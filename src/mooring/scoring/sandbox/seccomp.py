"""The system calls that a program in the sandbox is refused, as a filter that the kernel runs (seccomp(2), BPF)."""

import platform
import struct

_LOAD, _EQUAL, _AT_LEAST, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE, _FIRST = 0, 4, 16  # offsets in struct seccomp_data; _FIRST is the first argument's low half
_NEW_USER = 0x10000000
_MOUNTS = tuple(range(428, 434))  # open_tree to fspick, the same on both
_FAMILIES = (
    1,
    2,
    10,
)  # unix, IPv4, IPv6: there is no network but the sandbox's own; all others are not fenced in by one

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


def program(machine: str | None = None) -> bytes | None:
    """The filter for bubblewrap's `--seccomp`.

    A signal to the sandbox's first process kills the program that sends it. Refused are a new user namespace, sockets
    of other families than unix and IP, and calls that look into other processes, change mounts, or hold memory that
    no limit counts.

    Args:
        machine: As `platform.machine()` names it; this machine by default.

    Returns:
        Instructions, 8 bytes each; None for a machine whose call numbers are not known here.
    """
    known = _ARCHITECTURES.get(machine or platform.machine())
    if known is None:
        return None
    architecture, calls, refused = known
    refuse = [(_RETURN, 0, 0, _ERROR | _EPERM)]
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if architecture == 0xC000003E:
        code += [(_AT_LEAST, 0, 1, 0x40000000), *refuse]  # the x32 names of the same calls
    for number in refused:
        code += [(_EQUAL, 0, 1, number), *refuse]
    code += [(_EQUAL, 0, 1, calls["clone3"]), (_RETURN, 0, 0, _ERROR | _ENOSYS)]  # libc falls back on clone
    code += [(_EQUAL, 0, 3, calls["clone"]), (_LOAD, 0, 0, _FIRST), (_HAS, 0, 1, _NEW_USER), *refuse]
    code += [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 3, calls["kill"]), (_LOAD, 0, 0, _FIRST), (_EQUAL, 0, 1, 1)]
    code += [(_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 5, calls["socket"]), (_LOAD, 0, 0, _FIRST)]
    code += [(_EQUAL, 3 - index, 0, family) for index, family in enumerate(_FAMILIES)] + refuse
    code += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
