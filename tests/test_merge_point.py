"""λ as a value."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mooring
from mooring.errors import RecipeError
from mooring.merge_point import BASE, TUNED, MergePoint, grid

LAM = st.floats(0, 1)


def test_the_ends_are_the_base_and_the_tuned_model() -> None:
    assert BASE.is_base
    assert BASE.role == BASE.label == "base"
    assert TUNED.is_tuned
    assert TUNED.role == TUNED.label == "tuned"
    between = MergePoint(0.4)
    assert (between.role, between.label, between.key, between.folder) == ("merged", "λ = 0.4", "0.4", "lam-0.4")
    assert [point.long_label for point in (BASE, between, TUNED)] == ["base (λ = 0)", "λ = 0.4", "tuned (λ = 1)"]


def test_overrides_make_a_model_of_their_own() -> None:
    point = MergePoint(0.4, {"early mlp": 0.2, "late mlp": 0.4})
    assert point.by_module
    assert point.label == "λ by module (early mlp 0.2, else 0.4)"
    assert point.key == "0.4;early mlp=0.2"
    assert point.folder.startswith("modules-")
    assert point.single == MergePoint(0.4) != point


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_an_end_with_other_lambdas_in_it_is_a_merge(lam: float) -> None:
    point = MergePoint(lam, {"early mlp": 0.5})
    assert point.role == "merged"
    assert not point.is_base
    assert not point.is_tuned


def test_overrides_that_change_nothing_do_not_count() -> None:
    assert MergePoint(0.0, {"early mlp": 0.0}).is_base
    assert MergePoint(0.4, {"early mlp": 0.4}) == MergePoint(0.4)


@pytest.mark.parametrize("lam", [-0.1, 1.1, math.nan, math.inf])
def test_lambda_outside_of_its_range_is_refused(lam: float) -> None:
    for make in (lambda: MergePoint(lam), lambda: MergePoint(0.5, {"early mlp": lam})):
        with pytest.raises(RecipeError) as caught:
            make()
        assert caught.value.code == "recipe.lam_out_of_range"


@pytest.mark.parametrize(("text", "code"), [("half", "not_a_number"), ("", "not_a_number"), ("2", "out_of_range")])
def test_text_that_is_not_a_lambda_is_refused(text: str, code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        MergePoint.parse(text)
    assert caught.value.code == f"recipe.lam_{code}"


@given(LAM, st.dictionaries(st.sampled_from(["early mlp", "late attention"]), LAM))
def test_equal_points_hash_alike_and_survive_a_copy(lam: float, overrides: dict[str, float]) -> None:
    point = MergePoint(lam, overrides)
    again = MergePoint(**{field.name: getattr(point, field.name) for field in dataclasses.fields(point)})
    assert again == point
    assert hash(again) == hash(point)
    assert (again.key, again.folder, again.label) == (point.key, point.folder, point.label)


def test_a_grid_is_sorted_and_has_each_lambda_once() -> None:
    assert grid([1, 0.2, 0, 0.2]) == (BASE, MergePoint(0.2), TUNED)


def test_a_point_is_a_plain_record() -> None:
    assert dataclasses.asdict(MergePoint(0.4, {"early mlp": 0.2})) == {"lam": 0.4, "overrides": {"early mlp": 0.2}}
    with pytest.raises(dataclasses.FrozenInstanceError):
        MergePoint(0.4).lam = 0.5  # type: ignore[misc]


SOURCE = Path(mooring.__file__).parent
OPENED = re.compile(r"λ = \{[^'\"]*:g\}|\{0\.0:|\b(lam|λ) (==|!=) [01]\b|\blam in \(0\.0, |lam-\{")
"""A λ that is formatted, or whose ends are told apart, by hand."""


@pytest.mark.parametrize("line", ['f"λ = {lam:g}"', '{0.0: "base"}.get(lam)', "if lam == 0:", 'f"lam-{lam:g}"'])
def test_the_pattern_finds_what_it_should(line: str) -> None:
    assert OPENED.search(line)


def test_no_other_file_formats_lambda_or_tells_its_ends_apart() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path.name != "merge_point.py" and "merging" not in path.parts]
    lines = [(path.name, line.strip()) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert not [f"{name}: {line}" for name, line in lines if OPENED.search(line)]


def test_many_groups_are_counted_and_not_named() -> None:
    point = MergePoint(0.4, {f"layer {i} mlp": i / 100 for i in range(1, 31)})
    other = MergePoint(0.4, {**point.overrides, "layer 1 mlp": 0.9})
    assert point.label == "λ by module (30 groups 0.01 … 0.3, else 0.4)"
    assert len(point.key) < 40
    assert (point.key == other.key, point.folder == other.folder) == (False, False)
    assert point.key == MergePoint(0.4, dict(reversed(point.overrides.items()))).key
