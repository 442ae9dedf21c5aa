"""What follows from the numbers of a change: angles, groups, shares kept."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mooring.merging.change import Change, Group, Rank, grouped, keep_chances, kept_share
from mooring.merging.layers import module
from mooring.merging.measure import sums


def change(base: torch.Tensor, tuned: torch.Tensor, name: str = "x") -> Change:
    """A change measured in one piece."""
    squares, _, counts = sums(base.flatten(), tuned.flatten(), torch.empty(base.numel()))
    held = () if counts is None else tuple((int(i), int(counts[i])) for i in counts.nonzero().flatten())
    shape = tuple(base.shape)
    return Change(
        name=name,
        shape=shape,
        base_square=squares[0],
        change_square=squares[1],
        along=squares[2],
        histogram=held,
    )


@given(st.floats(1e-12, math.pi), st.floats(0.1, 10))
def test_angle_is_right_however_small(angle: float, length: float) -> None:
    along = length * math.cos(angle) - 1 if angle > 0.1 else length * -2 * math.sin(angle / 2) ** 2 + length - 1
    across = length * math.sin(angle)
    c = Change(name="x", shape=(2,), base_square=1.0, change_square=along**2 + across**2, along=along)
    # Where lengths differ, δ lies almost along the base, and the part across it is known to about 1e-8 of ‖δ‖.
    assert c.angle == pytest.approx(angle, rel=1e-6, abs=3e-8 * abs(length - 1) / length + 1e-15)


def test_angle_of_a_small_rotation_beats_the_cosine() -> None:
    base = torch.tensor([3.0, 4.0], dtype=torch.float64)
    tuned = base + 1e-9 * torch.tensor([-4.0, 3.0], dtype=torch.float64)
    assert change(base, tuned).angle == pytest.approx(1e-9, rel=1e-6)


def test_no_angle_with_zero() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert change(zero, one).angle is None
    assert change(one, zero).angle is None
    assert change(zero, one).relative == math.inf
    assert change(zero, zero).relative == 0
    assert change(one, -one).angle == pytest.approx(math.pi)


def test_group() -> None:
    first, second = torch.ones(4), torch.full((12,), 2.0)
    moved = second.clone()
    moved[:3] += 0.5
    group = Group.of([change(first, first), change(second, moved)])
    assert group.relative == pytest.approx(math.sqrt(0.75 / 52))
    assert group.changed == 3 / 16
    assert group.directions is None
    assert group.angle == pytest.approx(
        math.degrees(math.acos((second @ moved / second.norm() / moved.norm()).item())), rel=1e-4
    )


@pytest.mark.parametrize(("ranks", "most"), [([3, 5], 5), ([3, None], math.inf), ([2], 2)])
def test_group_has_the_most_directions(ranks: list[int | None], most: float) -> None:
    changes = [
        Change(name="x", shape=(9, 9), base_square=1, change_square=1, along=0, rank=Rank(rank, 1.0)) for rank in ranks
    ]
    assert Group.of(changes).directions == most


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj.weight", ("model.layers", 3, "self_attn.q_proj.weight")),
        ("transformer.h.11.mlp.c_fc.bias", ("transformer.h", 11, "mlp.c_fc.bias")),
        ("model.layers.0.mlp.experts.17.up_proj.weight", ("model.layers", 0, "mlp.experts.*.up_proj.weight")),
        ("lm_head.weight", None),
    ],
)
def test_module(name: str, place: tuple[str, int, str] | None) -> None:
    assert module(name) == place


def test_grouped_keeps_the_order_of_first_sight() -> None:
    one = torch.ones(2)
    changes = [change(one, one + 1, name) for name in ("b.x", "a.y", "b.y")]
    groups = grouped(changes, lambda name: name[0])
    assert list(groups) == ["b", "a"]
    assert groups["b"].relative == 1


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.0), (0.2, 0.0), (0.5, 0.01), (0.9, 0.3), (1.0, 0.01)])
def test_kept_share_is_near_what_sorting_gives(density: float, gamma: float) -> None:
    delta = torch.randn(50_000, generator=torch.Generator().manual_seed(1))
    squares = delta.double().square().sort(descending=True).values
    first = round(min(gamma, 1 - density) * len(squares))
    kept = squares[first : first + round(density * len(squares))].sum() / squares.sum()
    assert kept_share(change(torch.zeros(50_000), delta).histogram, density, gamma) == pytest.approx(
        kept.item(), abs=0.01
    )


def test_kept_share_counts_what_did_not_change() -> None:
    tuned = torch.zeros(1000)
    tuned[:100] = 1.0
    histogram = change(torch.zeros(1000), tuned).histogram
    assert kept_share(histogram, 0.1) == pytest.approx(1)
    assert kept_share(histogram, 0.05) == pytest.approx(0.5)
    assert kept_share((), 0.5) == 1
    assert kept_share(change(torch.zeros(4), torch.full((4,), 3e38)).histogram, 0.5) == pytest.approx(0.5)


def test_keep_chances() -> None:
    delta = torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    found = list(keep_chances(change(torch.zeros(20_000), delta).histogram, 0.5, 0.2))
    squares = delta.double().square().sort().values
    exact = 0.3 + 0.4 * (torch.arange(20_000).double() + 0.5) / 20_000
    assert sum(share for _, share in found) == pytest.approx(1)
    assert sum(share / chance for chance, share in found) == pytest.approx(
        ((squares / exact).sum() / squares.sum()).item(), rel=0.02
    )
