"""JSON that Mooring wrote is converted to types; anything else is refused with its place."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from mooring.jsonio import convert, loads


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


def test_plain_values_become_dataclasses() -> None:
    data = {"leaves": {"l": {"share": 1, "count": None, "kind": "b"}}, "pair": ["y", 2], "flags": [True], "rest": [{}]}
    found = convert(Tree, data)
    assert found == Tree({"l": Leaf(1.0, None, "b")}, ("y", 2), [True], [{}])
    assert isinstance(found.leaves["l"].share, float)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "not an object"),
        ({}, "`leaves`: is missing"),
        ({"leaves": {}, "leafs": {}}, "`leafs`: unknown key"),
        ({"leaves": []}, "`leaves`: "),
        ({"leaves": {"l": {"share": "1"}}}, "`leaves.l.share`: "),
        ({"leaves": {"l": {"share": True}}}, "`leaves.l.share`: "),
        ({"leaves": {"l": {"share": float("inf")}}}, "`leaves.l.share`: "),
        ({"leaves": {"l": {"share": 10**400}}}, "`leaves.l.share`: "),
        ({"leaves": {"l": {"share": 0, "count": 1.0}}}, "`leaves.l.count`: "),
        ({"leaves": {"l": {"share": 0, "count": 2**63}}}, "`leaves.l.count`: "),
        ({"leaves": {"l": {"share": 0, "kind": "c"}}}, "`leaves.l.kind`: input should be 'a' or 'b'"),
        ({"leaves": {"l": {"share": 0, "kind": []}}}, "`leaves.l.kind`: "),
        ({"leaves": {}, "pair": ["y"]}, "`pair.1`: is missing"),
        ({"leaves": {}, "pair": ["y", 2, 3]}, "`pair`: "),
        ({"leaves": {}, "pair": "yz"}, "`pair`: "),
        ({"leaves": {}, "flags": [True, 0]}, "`flags.1`: "),
        ({"leaves": {}, "flags": "tf"}, "`flags`: "),
    ],
)
def test_a_value_of_another_type_is_named_by_its_place(data: object, says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        convert(Tree, data)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("NaN", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not"),
        ("1e999", "1e999 is not"),
        ("9" * 5000, "digits"),
        ("[" * 100_000, "nests too deeply"),
        ('{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        ("", "Expecting value"),
    ],
)
def test_json_that_mooring_does_not_write_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        loads(text)
