"""The untrusted side of the sandbox: the process that a program runs in.

Nothing here is relied on once the program runs: it may change all of it. Only the standard library may be used, and
little of it: this is loaded anew for every program.
"""

from __future__ import annotations

import os
import sys

from mooring.scoring.sandbox.codec import decode, encode
from mooring.scoring.sandbox.system import bound, hide, seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


def become_program(job: dict[str, Any], ask: int, answer: int) -> NoReturn:
    """The untrusted side: take limits on, keep no way to the verdict, run the program, answer calls until killed."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(ask, 3) if ask != 3 else None
    os.dup2(answer, 4) if answer != 4 else None
    os.closerange(5, 256)
    hide(False)
    seed()
    bound(job["limits"])
    read, write = os.read, os.write  # a program may put others in their place

    def reply(data: bytes) -> None:
        data = len(data).to_bytes(8, "big") + data
        while data:
            data = data[write(4, data) :]

    def receive(size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = read(3, size - len(data))
            if not part:
                os._exit(0)
            data += part
        return data

    module = type(sys)("program")
    sys.modules["program"] = module

    def load() -> None:
        exec(compile(job["code"], "<program>", "exec"), module.__dict__)

    function: Callable[..., Any] = load
    arguments: Any = ((), {})
    receive(1)  # the checks have been read
    while True:
        try:
            result = function(*arguments[0], **arguments[1])
            if function is load:
                function = module.__dict__[job["entry_point"]]
            reply(b"v" + encode(result))
        except BaseException as error:
            reply(b"e" + f"{type(error).__name__}\n{error}"[:1000].encode("utf-8", "replace"))
        arguments = decode(receive(int.from_bytes(receive(8), "big")))
