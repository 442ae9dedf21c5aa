"""Plain values survive the pipe as what they are; hostile bytes give a ValueError and nothing else."""

import collections
import enum
import itertools
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring.scoring.sandbox.codec import Opaque, decode, encode

KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    KEYS | st.complex_numbers(allow_nan=False) | st.fractions() | st.decimals(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(KEYS)
        | st.frozensets(KEYS)
        | st.dictionaries(KEYS | st.tuples(KEYS), inner)
    ),
    max_leaves=20,
)


def alike(first: Any, second: Any) -> bool:
    """Equal, and of the same types throughout."""
    return type(first) is type(second) and first == second and repr(first).count(".") == repr(second).count(".")


@given(VALUES)
@settings(max_examples=80, deadline=None)
def test_a_plain_value_comes_back_as_it_was(value: Any) -> None:
    assert alike(decode(encode(value)), value)


@given(st.binary(max_size=60) | st.text("lmstfriudbgnco:0123456789-", max_size=40).map(str.encode))
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_a_value_or_a_value_error(data: bytes) -> None:
    try:
        value = decode(data)
    except ValueError:
        return
    encode(value)  # what came out is a plain value


@pytest.mark.parametrize(
    "data",
    [b"", b"l9999999999:", b"l3:N0:", b"N0:N0:", b"m1:l0:N0:", b"s1:l0:", b"i2:zz", b"n3:1 2", b"z0:", b"l1:" * 5000],
)
def test_broken_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (whatever it says)
        decode(data)


def test_numbers_that_text_gets_wrong() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode([math.inf, -math.inf])) == [math.inf, -math.inf]
    assert math.copysign(1, decode(encode(-0.0))) == -1
    assert decode(encode(10**5000)) == 10**5000  # more digits than Python converts
    assert decode(encode("\ud800")) == "\ud800"
    assert decode(encode([Fraction(1, 3), Decimal("1.10")])) == [Fraction(1, 3), Decimal("1.10")]


def test_subclasses_become_the_plain_type() -> None:
    class Colour(enum.IntEnum):
        RED = 3

    class Liar(str):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    back = decode(encode([Colour.RED, Liar("x"), collections.Counter("aab"), collections.OrderedDict(b=1)]))
    assert back == [3, "x", {"a": 2, "b": 1}, {"b": 1}]
    assert [type(each) for each in back] == [int, str, dict, dict]
    assert back[1] != "y"


def test_iterators_come_as_iterators() -> None:
    back = decode(encode(x * x for x in range(3)))
    assert back != [0, 1, 4]
    assert list(back) == [0, 1, 4]
    assert decode(encode(range(5, 1, -2))) == range(5, 1, -2)
    assert decode(encode({1: 2}.keys())) == {1: 2}.keys()
    assert isinstance(decode(encode(itertools.count())), Opaque)  # endless


def test_what_is_not_plain_equals_nothing() -> None:
    class Liar:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = object.__hash__

    back = decode(encode(Liar()))
    assert isinstance(back, Opaque)
    assert back != 4
    assert back != back.kind
    assert repr(back) == "<Liar>"


def test_a_value_within_itself_is_refused() -> None:
    knot: list[Any] = []
    knot.append(knot)
    with pytest.raises(ValueError, match="too deep"):
        encode(knot)
