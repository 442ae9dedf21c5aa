"""JSON from the disk: what fits a type is taken, and what does not is named by its place."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from mooring.jsonio import fit, loads


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    share: float
    count: int | None = None
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    leaves: Mapping[str, Leaf]
    pair: tuple[str, int] = ("x", 1)
    flags: Sequence[bool] = ()
    rest: Any = None


def test_what_fits_is_taken() -> None:
    data = {"leaves": {"l": {"share": 1, "count": None, "kind": "b"}}, "pair": ["y", 2], "flags": [True], "rest": [{}]}
    found = fit(Tree, data)
    assert found == Tree({"l": Leaf(1.0, None, "b")}, ("y", 2), [True], [{}])
    assert isinstance(found.leaves["l"].share, float)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "list is no mapping"),
        ({}, "`leaves`: is missing"),
        ({"leaves": {}, "leafs": {}}, "`leafs`: unknown key"),
        ({"leaves": []}, "`leaves`: [] is not a mapping"),
        ({"leaves": {"l": {"share": "1"}}}, "`leaves.l.share`: '1' is not a number"),
        ({"leaves": {"l": {"share": True}}}, "`leaves.l.share`: True is not a number"),
        ({"leaves": {"l": {"share": float("inf")}}}, "`leaves.l.share`: inf"),
        ({"leaves": {"l": {"share": 10**400}}}, "`leaves.l.share`: is too large"),
        ({"leaves": {"l": {"share": 0, "count": 1.0}}}, "`leaves.l.count`: 1.0 is not a whole number"),
        ({"leaves": {"l": {"share": 0, "count": 2**63}}}, "`leaves.l.count`: is too large"),
        ({"leaves": {"l": {"share": 0, "kind": "c"}}}, "`leaves.l.kind`: 'c' is not one of a, b"),
        ({"leaves": {"l": {"share": 0, "kind": []}}}, "`leaves.l.kind`: [] is not one of"),
        ({"leaves": {}, "pair": ["y"]}, "`pair`: holds 1 values, not 2"),
        ({"leaves": {}, "pair": "yz"}, "`pair`: 'yz' is not a list"),
        ({"leaves": {}, "flags": [True, 0]}, "`flags.1`: 0 is not true or false"),
    ],
)
def test_what_does_not_fit_is_named(data: object, says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        fit(Tree, data)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("NaN", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not"),
        ("1e999", "1e999 is not"),
        ("9" * 5000, "digits"),
        ("[" * 100_000, "nests too deeply"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        ("", "Expecting value"),
    ],
)
def test_json_that_mooring_does_not_write(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        loads(text)
