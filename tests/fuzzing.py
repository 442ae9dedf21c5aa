"""What all fuzzers share: values, damaged files, limits of each input, and a process that tries inputs."""

import contextlib
import copy
import json
import multiprocessing
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 20
"""Of the processor, for each input."""
MEMORY = 2**30
"""Bytes that all inputs together may add to the peak."""
PATIENCE = 120
"""Seconds in which a process has to answer, also if it hangs where Python's signals do not reach it."""

HOSTILE = (
    *("", "../x", "../..", "/proc/self/mem", "a" * 300, "x" * 5000, "\0", "null", "1e999", "{}", "<<", "0.2..0.8"),
    *("\x1b[31m", "\x1b]0;t\x07", "\x9b31m", "\ud800", "\u202e", "\u2028", "(a+)+$", "(", "[", "\\", "NaN", "-", "~"),
    *("a.b", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight", "{{ 1/0 }}", "{% for x in x %}", "\r\n"),
)
NUMBERS = (0, 1, -1, 2, 7, 8, 9, 10**9, 2**31, 2**63, -(2**63), 10**300, 10**400, 0.5, -0.0, 1e308, 1e-320)
_TEXTS = (
    *(b"", b"null", b"{}", b"[]", b"1", b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 5000, b'{"a":' * 2000),
    *(b"1" * 5000, b'{"a": 1e999}', b'{"a": NaN}', b'{"a": 1, "a": 2}', b'"\\ud800"'),
)
_BINARY_NUMBERS = (0, 1, 2, 8, 9, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**61, 2**63, 2**64 - 1)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Fail if the block takes longer than `SECONDS` of the processor, or adds more than `MEMORY` to the peak."""

    def late(*_: object) -> None:
        raise TimeoutError("an input takes too long")

    before, peak = signal.signal(signal.SIGPROF, late), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    if sys.platform == "linux":  # in KiB
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < MEMORY


class Worker:
    """A copy of this process that tries inputs one after the other; after one that ended it, there is a new one.

    Args:
        attempt: Tries the input of a number; raises if a property does not hold.
    """

    def __init__(self, attempt: Callable[[int], object]) -> None:
        self._attempt = attempt
        self._process: Any = None
        self._end: Connection | None = None

    def __call__(self, number: int) -> None:
        """Try the input of a number.

        Raises:
            AssertionError: A property does not hold, or the process crashed or hung.
        """
        end = self._end or self._started()
        end.send(number)
        said: str | None = f"no answer in {PATIENCE} s"
        try:
            if end.poll(PATIENCE):
                said = end.recv()
            else:
                self.close()
        except EOFError:
            self._process.join()
            said = f"the process ended with {self._process.exitcode}"
            self._end = None
        assert said is None, f"input {number}: {said}"

    def close(self) -> None:
        """End the process."""
        if self._end is not None:
            self._process.kill()
            self._process.join()
            self._end = None

    def _started(self) -> Connection:
        context = multiprocessing.get_context("fork")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=self._work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self._end

    def _work(self, end: Connection) -> None:
        while True:
            number = end.recv()
            try:
                self._attempt(number)
                end.send(None)
            except BaseException:
                end.send(traceback.format_exc())


def listing(root: Path) -> dict[str, int]:
    """Every file below a folder, with its size."""
    return {str(path): path.lstat().st_size for path in root.rglob("*")}


# Each input follows from one number: drawing every value by Hypothesis takes ten times as long as reading the file.


def anything(chance: random.Random, depth: int = 3) -> Any:
    """A JSON value: mostly small, and of the kinds that readers tend not to expect."""
    match chance.randrange(10 if depth else 7):
        case 0:
            return chance.choice((None, True, False))
        case 1:
            return chance.choice(NUMBERS)
        case 2:
            return chance.choice((float("inf"), float("nan"), chance.randint(-(2**70), 2**70), chance.random()))
        case 3 | 4:
            return chance.choice(HOSTILE)
        case 5:
            return noise(chance, 8)
        case 6:
            return chance.randrange(10)
        case 7:
            return [anything(chance, depth - 1) for _ in range(chance.randrange(4))]
        case _:
            return {key(chance): anything(chance, depth - 1) for _ in range(chance.randrange(4))}


def key(chance: random.Random) -> str:
    """A key of a mapping."""
    return chance.choice(HOSTILE) if chance.random() < 0.5 else noise(chance, 6)


def noise(chance: random.Random, longest: int, alphabet: str = "") -> str:
    """Some characters: of an alphabet, or any."""
    length = chance.randrange(longest + 1)
    if alphabet:
        return "".join(chance.choices(alphabet, k=length))
    return "".join(chr(chance.randrange(chance.choice((128, 0x3000, 0x110000)))) for _ in range(length))


def damaged_value(chance: random.Random, original: Any) -> Any:
    """A JSON value in which one to three values, at any depth, are gone, moved, doubled, or anything."""
    data = copy.deepcopy(original)
    for _ in range(chance.randint(1, 3)):
        place = data
        while (inner := _within(chance, place)) and chance.random() < 0.7:
            place = inner
        if isinstance(place, dict) and place:
            name = chance.choice(sorted(place))
            match chance.randrange(6):
                case 0:
                    del place[name]
                case 1:
                    place[key(chance)] = place.pop(name)
                case 2:
                    place[name] = copy.deepcopy(place[chance.choice(sorted(place))])
                case 3:
                    place[key(chance)] = anything(chance)
                case _:
                    place[name] = anything(chance)
        elif isinstance(place, list) and place:
            at = chance.randrange(len(place))
            if chance.random() < 0.3:
                del place[at]
            else:
                place[at] = anything(chance)
    return data if chance.random() < 0.97 else anything(chance)


def damaged_json(chance: random.Random, original: bytes) -> bytes:
    """The text of a damaged JSON value; now and then a text of its own, or damaged as text."""
    if (kind := chance.random()) < 0.03:
        return chance.choice(_TEXTS)
    if kind < 0.08:
        return damaged_bytes(chance, original)
    try:
        value = json.loads(original)
    except (ValueError, RecursionError):  # it was damaged before
        return damaged_bytes(chance, original)
    return json.dumps(damaged_value(chance, value)).encode()


def _within(chance: random.Random, place: Any) -> Any:
    """One of the non-empty containers in a container, if any."""
    inner = list(place.values()) if isinstance(place, dict) else place if isinstance(place, list) else []
    found = [each for each in inner if isinstance(each, (dict, list)) and each]
    return chance.choice(found) if found else None


def damaged_bytes(chance: random.Random, original: bytes, head: int = 600) -> bytes:
    """Bytes with some bits, numbers and pieces changed, mostly among the first `head`, or cut off."""
    data = bytearray(original) or bytearray(1)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(head, len(data)) if chance.random() < 0.9 else len(data))
        match chance.randrange(5):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                width = chance.choice((4, 8))
                data[at : at + width] = (chance.choice(_BINARY_NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
            case 2:
                data[at : at + chance.randrange(40)] = data[(other := chance.randrange(len(data))) : other + 40]
            case 3 if chance.random() < 0.3:
                del data[max(1, at) :]
            case _:
                data[at : at + 1] = chance.randbytes(chance.randrange(9))
    return bytes(data)
