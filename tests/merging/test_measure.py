"""One pass over two models: sums, counts and effective ranks against dense float64."""

import math
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from mooring.errors import ModelError
from mooring.merging.change import Change
from mooring.merging.measure import PROBES, Extent, Measured, block, measure
from mooring.merging.slices import Slice

Models = dict[str, Tensor]


def pair(base: Models, tuned: Models) -> tuple[dict[str, Extent], Callable[..., tuple[Tensor, Tensor]]]:
    def read(piece: Slice, buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        ours, theirs = (model[piece.name].flatten()[piece.start : piece.stop] for model in (base, tuned))
        return ours, theirs

    return {name: Extent(name, value.dtype, tuple(value.shape)) for name, value in base.items()}, read


def measured(base: Models, tuned: Models, **options: int) -> Measured:
    return measure(*pair(base, tuned), **options)


def only(base: Tensor, tuned: Tensor) -> Change:
    (change,) = measured({"x": base}, {"x": tuned}).changes
    return change


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["mooring.merging.measure"], "BLOCK", 2**14)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(300, 200), (70_001,), (3, 50, 40), (1, 1), (0, 4), ()])
def test_sums_are_those_of_dense_float64(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    base = gaussian(*shape).to(dtype)
    tuned = (base + 0.01 * gaussian(*shape, seed=1)).to(dtype)
    change = only(base, tuned)
    a, d = base.double(), tuned.double() - base.double()
    assert change.base_square == pytest.approx(a.square().sum().item(), rel=1e-12)
    assert change.change_square == pytest.approx(d.square().sum().item(), rel=1e-12)
    assert change.along == pytest.approx((a * d).sum().item(), rel=1e-9)
    assert (change.changed, change.entries) == (int((d != 0).sum()), base.numel())


def test_types_may_differ() -> None:
    base = gaussian(100, 30).bfloat16()
    tuned = base.float() + 0.1
    assert only(base, tuned).change_square == pytest.approx(30, rel=1e-5)
    assert measured({"x": base}, {"x": base.float()}).equal


@pytest.mark.parametrize("shape", [(500, 300), (300, 500), (900, 70), (200, 64), (400, 20)])
def test_the_rank_of_a_low_rank_change_is_exact(shape: tuple[int, int]) -> None:
    rows, columns = shape
    base = gaussian(rows, columns)
    scale = torch.diag(torch.tensor([3.0, 2.0, 1.5]))
    delta = torch.linalg.qr(gaussian(rows, 3, seed=1)).Q @ scale @ torch.linalg.qr(gaussian(columns, 3, seed=2)).Q.T
    rank = only(torch.zeros_like(base), delta).rank
    assert rank
    assert rank.directions == 3  # 13 of 15.25 is 85 %
    assert rank.stable == pytest.approx(15.25 / 9, rel=1e-4)


def test_ninety_percent_may_need_fewer_directions() -> None:
    delta = torch.zeros(100, 200)
    delta[0, 0], delta[1, 1], delta[2, 2] = 10.0, 2.0, 1.0
    rank = only(torch.zeros(100, 200), delta).rank
    assert rank
    assert (rank.directions, round(rank.stable, 4)) == (1, 1.05)


def test_a_full_rank_change_needs_more_than_were_probed() -> None:
    delta = gaussian(400, 400)
    rank = only(torch.zeros(400, 400), delta).rank
    assert rank
    assert rank.directions is None
    values = torch.linalg.svdvals(delta.double()).square()
    exact = (values.sum() / values[0]).item()
    assert exact <= rank.stable <= 4 * exact  # an upper bound


def test_directions_are_never_too_few() -> None:
    left, right = (torch.linalg.qr(gaussian(300, 300, seed=seed)).Q for seed in (1, 2))
    values = 0.93 ** torch.arange(300)
    rank = only(torch.zeros(300, 300), left @ torch.diag(values) @ right.T).rank
    squares = values.double().square()
    exact = int((squares.cumsum(0) < 0.9 * squares.sum()).sum()) + 1
    assert rank
    assert rank.directions is not None
    assert exact <= rank.directions <= exact + 2


def test_few_rows_are_exact_too() -> None:
    delta = gaussian(10, 500)
    rank = only(torch.zeros(10, 500), delta).rank
    values = torch.linalg.svdvals(delta.double()).square()
    assert rank
    assert rank.directions == int((values.cumsum(0) < 0.9 * values.sum()).sum()) + 1
    assert rank.stable == pytest.approx((values.sum() / values[0]).item(), rel=1e-4)


def test_ranks_are_of_changed_matrices_only() -> None:
    base = {"v": gaussian(500), "m": gaussian(80, 80), "same": gaussian(80, 80), "cube": gaussian(4, 8, 8)}
    tuned = {name: value + (name != "same") * 0.1 for name, value in base.items()}
    assert [c.name for c in measured(base, tuned).changes if c.rank] == ["m"]
    assert not any(c.rank for c in measured(base, tuned, ranks=False).changes)


def test_numbers_do_not_depend_on_threads() -> None:
    base = {f"m{n}": gaussian(300, 200 + n, seed=n) for n in range(4)} | {"v": gaussian(40_000)}
    tuned = {name: value + 0.01 * gaussian(*value.shape, seed=9) for name, value in base.items()}
    first, *others = (measured(base, tuned, threads=threads).changes for threads in (1, 2, 5))
    assert all(other == first for other in others)


def test_blocks_are_whole_rows_and_enough_of_them() -> None:
    for columns in (1, 100, 5000):
        step = block(Extent("x", torch.float32, (10_000, columns)))
        assert step % columns == 0
        assert step // columns >= PROBES


def test_equal_is_byte_by_byte() -> None:
    base = {"x": gaussian(300, 200), "n": torch.arange(5)}
    assert measured(base, base).equal
    tuned = {name: value.clone() for name, value in base.items()}
    assert measured(base, tuned).equal
    tuned["x"][299, 199] += 1e-3
    found = measured(base, tuned)
    assert not found.equal
    assert [c.changed for c in found.changes] == [1, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_tensors_are_named_with_their_side(bad: float) -> None:
    base = {"a": gaussian(300, 200), "b": gaussian(300, 200), "c": gaussian(10)}
    tuned = {name: value + 1 for name, value in base.items()}
    base["a"][5, 5] = bad
    tuned["b"][200, 5], tuned["b"][200, 6] = bad, -bad
    found = measured(base, tuned)
    assert found.broken == {"a": "base", "b": "tuned"}
    assert [c.name for c in found.changes] == ["c"]


def test_an_error_of_a_reader_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"x": gaussian(1000, 200)}
    extents, read = pair(base, {"x": base["x"] + 1})

    def fails(piece: Slice, buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if piece.start:
            raise ModelError("x: ends early", code="model.corrupt")
        return read(piece, buffers)

    with pytest.raises(ModelError) as caught:
        measure(extents, fails, threads=3)
    assert caught.value.code == "model.corrupt"


def test_progress_ends_at_the_size() -> None:
    base = {"x": gaussian(300, 200), "y": gaussian(7)}
    told: list[tuple[int, int]] = []
    measure(*pair(base, base), on_event=lambda event: told.append((event.done, event.total)))
    assert told[-1] == (60_007 * 4, 60_007 * 4)
    assert told == sorted(told)
