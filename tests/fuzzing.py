"""What all fuzzers share: values, damaged files, and limits of each input."""

import contextlib
import json
import random
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

SECONDS = 20
"""Of the processor, for each input."""
MEMORY = 2**30
"""Bytes that all inputs together may add to the peak."""

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**63), float("inf"), float("nan"), 1e308, -1])
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["", "../x", "\x1b[31m", "\ud800", "a" * 300, "null", "1e999", "0.2..0.8", "{}", "<<"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
_TEXTS = [b"", b"null", b"{}", b"[]", b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 5000, b'{"a":' * 2000, b"1" * 5000]


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


def listing(root: Path) -> dict[str, int]:
    """Every file below a folder, with its size."""
    return {str(path): path.lstat().st_size for path in root.rglob("*")}


def damaged_json(original: Any) -> st.SearchStrategy[bytes]:
    """The text of a JSON value in which one to three values, at any depth, are gone, moved, or anything; or a text."""
    text = json.dumps(original)

    def damage(number: int, values: list[Any]) -> bytes:
        chance, data = random.Random(number), json.loads(text)
        for value in values:
            place = data
            while (inner := _within(chance, place)) and chance.random() < 0.8:
                place = inner
            if isinstance(place, dict) and place:
                key = chance.choice(sorted(place))
                if chance.random() < 0.2:
                    place[chance.choice((key.upper(), "a" * 300, "\x1b[2J"))] = place.pop(key)
                elif chance.random() < 0.2:
                    del place[key]
                else:
                    place[key] = value
            elif isinstance(place, list) and place:
                place[chance.randrange(len(place))] = value
        return json.dumps(data).encode()

    seeds = st.integers(0, 2**32)
    return st.builds(damage, seeds, st.lists(VALUES, min_size=1, max_size=3)) | st.sampled_from(_TEXTS)


def _within(chance: random.Random, place: Any) -> Any:
    """One of the non-empty containers in a container, if any."""
    inner = list(place.values()) if isinstance(place, dict) else place
    found = [each for each in inner if isinstance(each, (dict, list)) and each]
    return chance.choice(found) if found else None


_NUMBERS = (0, 1, 2, 8, 9, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**61, 2**63, 2**64 - 1)


def damaged_bytes(original: bytes, head: int) -> st.SearchStrategy[bytes]:
    """Bytes with some bits, numbers and pieces changed, mostly among the first `head`, or cut off."""

    def damage(number: int) -> bytes:
        chance, data = random.Random(number), bytearray(original)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(min(head, len(data)) if chance.random() < 0.9 else len(data))
            match chance.randrange(5):
                case 0:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    width = chance.choice((4, 8))
                    data[at : at + width] = (chance.choice(_NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
                case 2:
                    data[at : at + chance.randrange(40)] = data[(other := chance.randrange(len(data))) : other + 40]
                case 3 if chance.random() < 0.3:
                    del data[max(1, at) :]
                case _:
                    data[at : at + 1] = chance.randbytes(chance.randrange(9))
        return bytes(data)

    return st.builds(damage, st.integers(0, 2**32))
