"""What goes into the sandbox and what comes out."""

import dataclasses
from typing import Literal

Status = Literal["passed", "failed", "timed out", "killed"]


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A program that a model wrote, and the checks that it has to pass.

    Attributes:
        code: Python source, untrusted.
        checks: Python source, trusted. It runs in a process of its own, in which `entry_point` (and `candidate`) is a
            function that calls the program's process: arguments and results pass as plain values (`codec.encode`), so a
            change of an argument in place is not seen. The program passed if the checks ran to their end.
        entry_point: The function that the checks call.
        setup: Trusted source that runs before `checks`, such as definitions that they call.
    """

    code: str
    checks: str
    entry_point: str
    setup: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

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
