"""Which entries of a change stay: exact ranks, ties by position, draws by position, and what follows in the mean."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring.merge_methods import METHODS
from mooring.merging.plan import Pass, TensorParams
from mooring.merging.sparse import Sparsifier, draws, grid_of, sparsifiers

KINDS = ["magnitude", "outliers", "random", "magprune"]
CELL = 16


@pytest.fixture(scope="module", autouse=True)
def small_cells() -> Iterator[None]:
    """A grid so fine that small tensors have many cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["mooring.merging.slices"], "CELL", CELL)
        yield


def site(tensor: torch.Tensor, models: int = 1, name: str = "w", **options: Any) -> TensorParams:
    """The numbers of one tensor."""
    given = {"density": 0.5, "gamma": 0.1, "epsilon": 0.1, "rescale": "none", "seed": 42} | options
    for field in ("density", "gamma", "epsilon"):
        given[field] = (given[field],) * models
    fixed: dict[str, Any] = {"lams": (1.0,), "base_weight": None, "weights": (), "normalize": False}
    return TensorParams(
        name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, numel=tensor.numel(), note=print, **fixed, **given
    )


def cuts(total: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def thinned(
    kind: str, here: TensorParams, base: torch.Tensor, *tuned: torch.Tensor, cells: int = 3
) -> list[torch.Tensor]:
    """Every tuned model's thinned change, flat, worked out in slices of so many cells."""
    flat, others = base.flatten(), [t.flatten() for t in tuned]
    grid = grid_of(kind, here)
    plan, found = sparsifiers(kind, here, len(tuned)), None
    while True:
        try:
            asked: Pass = plan.send(found)
        except StopIteration as end:
            keep: list[Sparsifier] = end.value
            break
        found = None
        for cut in cuts(flat.numel(), grid * cells):
            part = asked.work(cut.start, flat[cut], [t[cut] for t in others])
            found = part if found is None else asked.join(found, part)
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    return [
        torch.cat([rule(c.start, t[c].to(wide) - flat[c].to(wide)).clone() for c in cuts(flat.numel(), grid)])
        for rule, t in zip(keep, others, strict=True)
    ]


changes = st.lists(
    st.sampled_from([0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0, 3.0, 2e-42]), min_size=1, max_size=90
) | st.lists(st.floats(-4, 4, width=32).filter(bool), min_size=1, max_size=90)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(
    change=changes,
    columns=st.sampled_from([0, 1, 2, 5, 17]),
    density=st.floats(0, 1) | st.sampled_from([0.0, 1 / 3, 0.5, 0.9]),
    gamma=st.floats(0, 1),
    cells=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_kept_entries_match_a_stable_sort(
    kind: str, change: list[float], columns: int, density: float, gamma: float, cells: int, dtype: torch.dtype
) -> None:
    """Against a stable sort; magnitudes that float32 holds only as subnormal numbers among them."""
    tuned = torch.tensor(change, dtype=torch.float32)
    if columns:
        tuned = tuned[: len(tuned) // columns * columns].view(-1, columns)
    if not tuned.numel():
        return
    epsilon = 0.1
    if kind == "magprune":
        density = min(max(density, 0.11), 0.89)
    base, tuned = torch.zeros(tuned.shape, dtype=dtype), tuned.to(dtype)
    here = site(base, density=density, gamma=gamma, epsilon=epsilon)
    (found,) = thinned(kind, here, base, tuned, cells=cells)
    kept, _, sure = reference.mask(kind, base, tuned, density, gamma, epsilon)
    expected = tuned.flatten() * torch.as_tensor(kept)
    assert torch.equal(found[sure], expected[torch.as_tensor(sure)])


@pytest.mark.parametrize("kind", ["magnitude", "outliers"])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 333])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.99])
def test_equal_magnitudes_are_ranked_by_position(kind: str, count: int, density: float) -> None:
    """All entries are equal: TIES keeps the first, Breadcrumbs drops the last as largest and then the first."""
    base, tuned = torch.zeros(count), torch.ones(count)
    (found,) = thinned(kind, site(base, density=density, gamma=0.1), base, tuned, cells=2)
    places = found.nonzero().flatten().tolist()
    stay = int(density * count)
    if kind == "magnitude":
        assert places == list(range(max(1, stay) if density else 0))
    else:
        first = max(0, count - stay - int(0.1 * count))
        assert places == list(range(first, first + stay))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rescale", ["none", "inverse", "l1"])
def test_slices_do_not_matter(kind: str, rescale: str) -> None:
    rng = torch.Generator().manual_seed(1)
    base, one, other = (torch.randn((29, 11), generator=rng) for _ in range(3))
    here = site(base, models=2, rescale=rescale)
    results = [thinned(kind, here, base, one, other, cells=cells) for cells in (1, 2, 7, 1000)]
    for first, second in itertools.pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rescaling(kind: str) -> None:
    base, tuned = torch.zeros(40, 10), torch.randn((40, 10), generator=torch.Generator().manual_seed(2))
    (plain,) = thinned(kind, site(base), base, tuned)
    (l1,) = thinned(kind, site(base, rescale="l1"), base, tuned)
    assert l1.abs().sum().item() == pytest.approx(tuned.abs().sum().item(), rel=1e-5)
    assert torch.allclose(l1, plain * (tuned.abs().sum() / plain.abs().sum()), rtol=1e-5)
    (inverse,) = thinned(kind, site(base, rescale="inverse"), base, tuned)
    _, chance, _ = reference.mask(kind, base, tuned, 0.5, 0.1, 0.1)
    assert torch.allclose(inverse, plain / torch.as_tensor(chance, dtype=torch.float32), rtol=1e-5)


# Draws.


def test_draws_depend_on_seed_name_model_and_position_only() -> None:
    whole = draws(7, "layers.0.w", 0, 0, 1000)
    assert whole.dtype == np.uint32
    for start, stop in ((0, 1), (0, 16), (3, 5), (15, 17), (16, 32), (37, 999), (500, 500)):
        assert np.array_equal(draws(7, "layers.0.w", 0, start, stop), whole[start:stop])
    for other in ((8, "layers.0.w", 0), (7 + 2**63, "layers.0.w", 0), (7, "layers.1.w", 0), (7, "layers.0.w", 1)):
        assert (draws(*other, 0, 1000) == whole).mean() < 0.01
    assert len(set(whole.tolist())) > 990  # cells do not repeat each other


def test_a_seed_gives_the_same_numbers_forever() -> None:
    """Written down once: a change here would change what every published seed gives."""
    found = draws(42, "model.layers.0.mlp.up_proj.weight", 0, 0, 4)
    assert found.tolist() == [1752960689, 119469288, 1309185824, 3116589299]


@pytest.fixture
def large_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real grid, for many draws in little time."""
    monkeypatch.setattr(sys.modules["mooring.merging.slices"], "CELL", 2**17)


@pytest.mark.usefixtures("large_cells")
@pytest.mark.parametrize("density", [0.03, 0.3, 0.8])
def test_dare_keeps_the_share_and_the_mean(density: float) -> None:
    """Of n equal changes of 1: the share kept is binomial, the rescaled mean 1, its variance (1−d)/d."""
    n = 400_000
    base, tuned = torch.zeros(n), torch.ones(n)
    one, other = (
        r.double() for r in thinned("random", site(base, 2, density=density, rescale="inverse"), base, tuned, tuned)
    )
    spread = (1 - density) / density
    for result in (one, other):
        assert abs((result != 0).double().mean().item() - density) < 4 * (density * (1 - density) / n) ** 0.5
        assert abs(result.mean().item() - 1) < 4 * (spread / n) ** 0.5
        assert result.var().item() == pytest.approx(spread, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 4 / n**0.5  # each model has its own mask
    assert abs(torch.corrcoef(torch.stack([one[:-1], one[1:]]))[0, 1].item()) < 4 / n**0.5


@pytest.mark.usefixtures("large_cells")
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.3), (0.2, 0.15), (0.6, 0.0)])
def test_della_keeps_by_rank_and_keeps_the_mean(density: float, epsilon: float) -> None:
    """An entry of rank r in a row of 50 stays with p = d − ε + 2ε·r/49; its mean is δ, its variance δ²(1−p)/p."""
    rows = 6000
    row = torch.linspace(0.5, 3, 50)[torch.randperm(50, generator=torch.Generator().manual_seed(3))]
    base, tuned = torch.zeros(rows, 50), row.repeat(rows, 1)
    here = site(base, density=density, epsilon=epsilon, rescale="inverse")
    (found,) = (r.double().view(rows, 50) for r in thinned("magprune", here, base, tuned))
    chance = density - epsilon + 2 * epsilon * row.argsort().argsort().double() / 49
    sampling = (chance * (1 - chance) / rows).sqrt()
    assert (((found != 0).double().mean(dim=0) - chance).abs() < 4.5 * sampling).all()
    assert abs((found != 0).double().mean().item() - density) < 4 * (density * (1 - density) / found.numel()) ** 0.5
    spread = row.double() ** 2 * (1 - chance) / chance
    assert ((found.mean(dim=0) - row.double()).abs() < 4.5 * (spread / rows).sqrt()).all()
    assert torch.allclose(found.var(dim=0), spread, rtol=0.15)


def test_rows_are_the_last_axis_and_a_vector_is_one_row() -> None:
    assert grid_of("magprune", site(torch.empty(4, 5))) == 15
    assert grid_of("magprune", site(torch.empty(4, 2, 40))) == 40
    assert grid_of("magprune", site(torch.empty(100))) == 100
    assert grid_of("magprune", site(torch.empty(()))) == 16
    assert {grid_of(kind, site(torch.empty(4, 5))) for kind in KINDS[:3]} == {CELL}


def test_every_kind_has_methods() -> None:
    assert {method.kind for method in METHODS.values()} == {None, *KINDS}
    assert {name: m.kind for name, m in METHODS.items() if m.kind and not m.accepts} == reference.KINDS
