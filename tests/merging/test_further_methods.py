"""Methods of a third model, and of whole matrices, beside the papers' formulas on whole tensors in float64."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_models import tune
from mooring.errors import MismatchError, ModelError, UserError
from mooring.merge_methods import METHODS
from mooring.merging.in_memory import OpenMerge
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.merging.sparse import draws
from mooring.merging.spectrum import entropy_rank

Write = Callable[..., Path]
Read = Callable[[Path], dict[str, torch.Tensor]]
Array = np.ndarray[Any, Any]
Tensors = dict[str, torch.Tensor]

SHAPES = {"tall": (40, 12), "wide": (12, 40), "square": (16, 16), "row": (1, 9), "experts": (3, 10, 6), "norm": (31,)}
NEED = [name for name, method in METHODS.items() if method.accepts or name == "intruders"]
OPTIONS: dict[str, dict[str, Any]] = {
    "chat_vector": {},
    "resta": {},
    "resta, thinned": {"density": 0.6, "seed": 5},
    "resta, l1": {"density": 0.6, "rescale": "l1"},
    "lox": {"rank": 3},
    "lox, whole": {"rank": 0},
    "lssf": {"threshold": 0.7},
    "safe_lora": {"threshold": 0.65},
    "safe_merge": {"threshold": 0.65},
    "safe_merge, safe": {"threshold": 0.65},
    "intruders": {"rank": 5, "threshold": 0.6},
    "intruders, all": {"rank": 0, "threshold": 0.9},
}


def models(dtype: torch.dtype = torch.float32) -> dict[str, Tensors]:
    """A pre-trained model, the base aligned from it, a model tuned from the base, a safer one; low-rank changes."""
    made: dict[str, Tensors] = {role: {} for role in ("unaligned", "base", "tuned", "safe")}
    rng = torch.Generator().manual_seed(3)

    def noise(shape: tuple[int, ...], rank: int) -> torch.Tensor:
        if len(shape) < 2:
            return torch.randn(shape, generator=rng, dtype=torch.float64)
        left = torch.randn((*shape[:-1], rank), generator=rng, dtype=torch.float64)
        return left @ torch.randn((*shape[:-2], rank, shape[-1]), generator=rng, dtype=torch.float64)

    for name, shape in SHAPES.items():
        start = torch.randn(shape, generator=rng, dtype=torch.float64)
        safety = noise(shape, 4)
        tuned = safety * 0.3 + noise(shape, 2) if name in ("tall", "experts") else noise(shape, 2)
        tensors = (start, start + safety, start + safety + tuned, start + 1.4 * safety)
        for role, value in zip(made, tensors, strict=True):
            made[role][name] = value.to(dtype)
    for role in made:
        made[role]["steps"] = torch.arange(4)
        made[role]["alone"] = torch.linspace(-1, 1, 70).to(dtype)
        made[role]["alone"][10:20] = -0.0
    return made


def exact(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.double().numpy())


def best(matrix: Array, rank: int) -> Array:
    """The best approximation of a rank, by a full decomposition."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((u[:, :rank] * s[:rank]) @ vt[:rank])


def by_matrix(work: Callable[..., Array], *tensors: Array) -> Array:
    """Work on matrices, each of a batch on its own."""
    if tensors[0].ndim == 2:
        return work(*tensors)
    return np.stack([work(*each) for each in zip(*tensors, strict=True)])


def expected(case: str, lam: float, name: str, given: dict[str, Tensors]) -> Array:
    """The merged tensor by the formula of a paper."""
    method, options = case.partition(",")[0], OPTIONS[case]
    p, b, t, s = (exact(given[role][name]) for role in ("unaligned", "base", "tuned", "safe"))
    matrix = b.ndim > 1
    if method == "chat_vector":
        return b + lam * (t - p)
    if method == "resta":
        change = t - b
        if "density" in options:
            draw = draws(options.get("seed", 42), name, 0, 0, b.size).reshape(b.shape)
            kept = change * (draw < options["density"] * 2**32)
            l1 = options.get("rescale") == "l1"
            change = kept * (np.abs(change).sum() / np.abs(kept).sum() if l1 else 1 / options["density"])
        return np.asarray(b + change + (1 - lam) * (b - p))
    if method in ("lox", "lssf"):
        if not matrix:
            return t

        def safety(ours: Array, before: Array) -> Array:
            values = np.linalg.svd(ours - before, compute_uv=False)
            values = values[values > 1e-8 * values[0]]
            shares = values / values.sum()
            parts = np.cumsum(-shares * np.log(shares))
            rank = options.get("rank", 0) or len(values)
            if method == "lssf":
                rank = int(np.argmax(parts >= options["threshold"] * parts[-1] - 1e-12)) + 1
            return best(ours - before, rank)

        return t + (1 - lam) * by_matrix(safety, b, p)
    if method == "intruders":
        if not matrix:
            return t

        def reduced(ours: Array, theirs: Array) -> Array:
            u0 = np.linalg.svd(ours, full_matrices=False)[0]
            u, sizes, vt = np.linalg.svd(theirs, full_matrices=False)
            alike = np.abs(u.T @ u0).max(1)
            scale = np.array(sizes)
            for k in range(min(options["rank"] or len(sizes), len(sizes))):
                scale[k] *= lam if alike[k] < options["threshold"] else 1.0
            return np.asarray((u * scale) @ vt)

        return by_matrix(reduced, b, t)

    def gated(ours: Array, theirs: Array, before: Array, safe: Array) -> Array:
        safety, change = ours - before, theirs - ours
        onto = safety @ safety.T @ change / np.linalg.norm(safety)
        cosine = (onto * change).sum() / (np.linalg.norm(onto) * np.linalg.norm(change))
        if method == "safe_lora":
            return np.asarray(ours + lam * (onto if cosine <= options["threshold"] else change))
        return np.asarray(lam * theirs + (1 - lam) * safe if cosine < options["threshold"] else theirs)

    if not matrix:
        return np.asarray(b + lam * (t - b)) if method == "safe_lora" else t
    return by_matrix(gated, b, t, p, s if case.endswith("safe") else b)


@pytest.fixture(autouse=True)
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid so fine that small tensors have many slices."""
    monkeypatch.setattr(sys.modules["mooring.merging.slices"], "CELL", 16)


@pytest.fixture
def folders(tmp_path: Path, write: Write) -> dict[str, Path]:
    return {role: write(tmp_path / role, tensors) for role, tensors in models().items()}


def arguments(case: str, folders: dict[str, Path]) -> dict[str, Any]:
    """The arguments of a merge."""
    method = case.partition(",")[0]
    references = dict.fromkeys(METHODS[method].requires, folders["unaligned"])
    if case.endswith("safe"):
        references["safety_adapter"] = folders["safe"]
    return {"method": method, "references": references, **OPTIONS[case]}


def test_every_method_has_a_case() -> None:
    assert {case.partition(",")[0] for case in OPTIONS} == set(NEED)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, -0.5])
@pytest.mark.parametrize("case", OPTIONS)
def test_the_papers_formula(folders: dict[str, Path], tmp_path: Path, read: Read, case: str, lam: float) -> None:
    if METHODS[case.partition(",")[0]].bounded and lam < 0:
        pytest.skip("interpolates")
    options = arguments(case, folders)
    found = read(merge(folders["base"], folders["tuned"], tmp_path / "out", lam=lam, **options))
    given, moved = models(), 0
    for name in SHAPES:
        wanted = expected(case, lam, name, given)
        error = np.linalg.norm(exact(found[name]) - wanted) / np.linalg.norm(exact(given["tuned"][name]))
        assert error < 1e-6, name
        moved += not np.allclose(wanted, (1 - lam) * exact(given["base"][name]) + lam * exact(given["tuned"][name]))
    assert moved or lam in (0, 1)
    for name in ("alone", "steps"):  # −0 too
        assert torch.equal(found[name].view(torch.uint8), given["base"][name].view(torch.uint8))


@pytest.mark.parametrize("case", ["safe_lora", "safe_merge", "intruders", "lssf"])
def test_the_gates_are_open_for_some_matrices_and_named(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    out = merge(folders["base"], folders["tuned"], tmp_path / "out", lam=0.3, **arguments(case, folders))
    said = json.loads((out / "mooring.json").read_text())
    named = {name for name, sentence in said["decisions"].items() if sentence.startswith(case)}
    if case == "intruders":
        assert not named
    elif case == "lssf":
        assert named == SHAPES.keys() - {"norm"}
    else:
        assert named == {"tall", "square", "experts"}
    assert said.get("unaligned", {}).get("name") == ("unaligned" if METHODS[case].requires else None)


def test_lox_and_safe_lora_step_by_step_as_their_authors_compute_them(
    folders: dict[str, Path], tmp_path: Path, write: Write, read: Read
) -> None:
    """Their steps, in their types: singular values cut off after k, and P = V·Vᵀ/‖V‖ applied to the factor B."""
    given, rng = models(), torch.Generator().manual_seed(1)
    lox = read(merge(folders["base"], folders["tuned"], tmp_path / "lox", lam=0.25, **arguments("lox", folders)))
    for name in ("tall", "wide", "square"):
        u, s, vt = torch.linalg.svd(given["base"][name] - given["unaligned"][name], full_matrices=False)
        s[3:] = 0
        wanted = given["tuned"][name] + 0.75 * (u @ torch.diag(s) @ vt)
        assert float((lox[name] - wanted).norm() / wanted.norm()) < 1e-6
    adapted = dict(given["base"])
    wanted_by_name = {}
    for name in ("tall", "wide", "square"):
        rows, columns = SHAPES[name]
        b, a = torch.randn((rows, 2), generator=rng), torch.randn((2, columns), generator=rng)
        v = given["base"][name] - given["unaligned"][name]
        projection = torch.mm(v, v.t()) / torch.norm(v)
        both = projection @ b @ a, b @ a
        cosine = torch.nn.functional.cosine_similarity(both[0].reshape(1, -1), both[1].reshape(1, -1)).item()
        wanted_by_name[name] = given["base"][name] + (both[0] if round(cosine, 5) <= 0.65 else both[1])
        adapted[name] = given["base"][name] + b @ a
    base, tuned = folders["base"], write(tmp_path / "adapted", adapted)
    found = read(merge(base, tuned, tmp_path / "projected", lam=1.0, **arguments("safe_lora", folders)))
    for name, wanted in wanted_by_name.items():
        assert float((found[name] - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("case", OPTIONS)
def test_same_bytes_for_any_slices_threads_shards_and_in_memory(
    tmp_path: Path, write: Write, read: Read, case: str
) -> None:
    given = models(torch.bfloat16)
    folders = {role: write(tmp_path / role, tensors, 2) for role, tensors in given.items()}
    options = arguments(case, folders)
    inputs = folders["base"], folders["tuned"]
    merge(*inputs, tmp_path / "all", lambdas=[0.2, 0.7], threads=3, slice_bytes=100, **options)
    references = options.pop("references")
    with OpenMerge(open_pair(*inputs, references=references), **options) as opened:
        places = opened.tensors(0.0, as_linear=True)
        assert all(torch.equal(places[n], t) for n, t in given["base"].items())
        for lam in (0.2, 0.7, 0.2):
            one = (
                read(merge(*inputs, tmp_path / f"{lam}", lam=lam, threads=1, references=references, **options))
                if not (tmp_path / f"{lam}").exists()
                else read(tmp_path / f"{lam}")
            )
            opened.fill(lam, places, filled=opened.changed)
            for name, value in read(tmp_path / "all" / f"lam-{lam:g}").items():
                assert torch.equal(value.view(torch.uint8), one[name].view(torch.uint8))
                assert torch.equal(value.view(torch.uint8), places[name].view(torch.uint8))
        opened.fill(1.0, places, as_linear=True)
        assert all(torch.equal(places[n], t) for n, t in given["tuned"].items())


def test_a_tensor_that_tuning_left_alone_still_gets_the_safety_vector(tmp_path: Path, write: Write, read: Read) -> None:
    given = models()
    given["tuned"]["square"] = given["base"]["square"].clone()
    folders = {role: write(tmp_path / role, tensors) for role, tensors in given.items()}
    for case in ("resta", "chat_vector", "lox", "lssf"):
        options = arguments(case, folders)
        with OpenMerge(
            open_pair(folders["base"], folders["tuned"], references=options.pop("references")), **options
        ) as m:
            places = m.tensors(0.5)
            m.fill(0.25, places, filled=m.changed)
        wanted = expected(case, 0.25, "square", given)
        assert np.linalg.norm(exact(places["square"]) - wanted) < 1e-6 * np.linalg.norm(wanted), case


def test_adapters_as_tuned_and_safe_model(bases: dict[str, Path], tmp_path: Path, read: Read) -> None:
    base = bases["biased"]
    tuned = tune(base, tmp_path / "tuned", seed=1, target_modules=["q_proj", "down_proj"])
    safe = tune(base, tmp_path / "safe", seed=2, target_modules=["q_proj", "down_proj"])
    references = {"unaligned": bases["biased"], "safety_adapter": safe}
    out = read(
        merge(base, tuned, tmp_path / "out", lam=0.25, method="safe_merge", threshold=1.0, references=references)
    )
    one, other = read(merge(base, tuned, tmp_path / "1", lam=1)), read(merge(base, safe, tmp_path / "2", lam=1))
    for name, value in out.items():
        wanted = 0.25 * one[name].double() + 0.75 * other[name].double()
        assert torch.allclose(value.double(), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("where", ["unaligned", "safe"])
def test_what_is_wrong_with_a_third_model(tmp_path: Path, write: Write, where: str) -> None:
    def code(case: str, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            merge(folders["base"], folders["tuned"], tmp_path / "out", lam=0.5, **arguments(case, folders) | changes)
        assert not (tmp_path / "out").exists()
        return str(caught.value.code)

    given = models()
    folders = {role: write(tmp_path / role, tensors) for role, tensors in given.items()}
    assert code("resta", references={}) == "usage.missing_model"
    assert code("intruders", references={"unaligned": folders["unaligned"]}) == "usage.unused_model"
    assert code("lox", rank=-1) == "usage.option_out_of_range"
    assert code("lox", threshold=0.5) == "usage.unknown_option"
    assert code("safe_lora", threshold=2) == "usage.option_out_of_range"
    given[where]["wide"][3, 4] = torch.nan
    folders[where] = write(tmp_path / "broken", given[where])
    assert code("safe_merge, safe") == ModelError("", code="model.nonfinite").code
    given[where]["wide"] = torch.zeros(3, 4)
    folders[where] = write(tmp_path / "other", given[where])
    assert code("safe_merge, safe") == MismatchError("", code="model.shape_mismatch").code
    del given[where]["wide"]
    folders[where] = write(tmp_path / "less", given[where])
    assert code("safe_merge, safe") == "model.missing_tensor"


def test_the_rank_by_entropy() -> None:
    assert entropy_rank(torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64), 0.5) == 1
    flat = torch.ones(8, dtype=torch.float64)
    assert [entropy_rank(flat, share) for share in (0.1, 0.5, 0.51, 1.0)] == [1, 4, 5, 8]


# Methods that rank the entries of a whole tensor


def ranked(method: str, base: Array, tuned: list[Array], lam: float, density: float = 1.0) -> Array:
    """SCE or Arcee Fusion of one tensor, by their formulas."""
    changes = np.stack([t - base for t in tuned])
    if method == "arcee_fusion":

        def softmax(values: Array) -> Array:
            shares = np.exp(values - values.max(-1, keepdims=True))
            return np.asarray(shares / shares.sum(-1, keepdims=True) + 1e-8)

        p, q = softmax(tuned[0]), softmax(base)
        importance = np.abs(changes[0]) * (p * np.log(p / q)).sum(-1, keepdims=True)
        first, median, third = (np.sort(importance.ravel())[int(s * (base.size - 1))] for s in (0.25, 0.5, 0.75))
        return np.asarray(base + lam * changes[0] * (importance >= median + 1.5 * (third - first)))
    if density < 1:
        variance = changes.var(0)
        count = int(density * np.count_nonzero(variance))
        kept = np.zeros(base.size)
        kept[np.argsort(-variance.ravel(), kind="stable")[:count]] = 1
        changes = changes * kept.reshape(base.shape)
    weights = np.array([np.mean(c**2) for c in changes])
    weights = weights / weights.sum() if weights.sum() >= 1e-6 else np.full(len(tuned), 1 / len(tuned))
    sign = np.where(changes.sum(0) >= 0, 1, -1)
    agree = (np.sign(changes) == sign) * weights.reshape(-1, *[1] * base.ndim)
    return np.asarray(base + lam * (agree * changes).sum(0) / np.maximum(agree.sum(0), 1e-6))


@pytest.mark.parametrize(
    ("method", "options"), [("sce", {}), ("sce", {"density": 0.3}), ("sce", {"density": 0.0}), ("arcee_fusion", {})]
)
@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_ranking_by_the_formulas(
    folders: dict[str, Path], tmp_path: Path, read: Read, method: str, options: dict[str, Any], lam: float
) -> None:
    given, several = models(), method == "sce"
    tuned = ["tuned", "safe"] if several else ["tuned"]
    inputs = folders["base"], [folders[role] for role in tuned]
    found = read(merge(*inputs, tmp_path / "out", lam=lam, method=method, **options))
    again = read(merge(*inputs, tmp_path / "2", lam=lam, method=method, threads=3, slice_bytes=90, **options))
    for name in SHAPES:
        wanted = ranked(
            method, exact(given["base"][name]), [exact(given[role][name]) for role in tuned], lam, **options
        )
        assert np.linalg.norm(exact(found[name]) - wanted) < 1e-6 * np.linalg.norm(wanted), name
        assert torch.equal(found[name], again[name])
    moved = np.mean([np.mean(exact(found[name]) != exact(given["base"][name])) for name in SHAPES])
    assert (moved > 0) == (lam > 0 and options.get("density") != 0.0)
    assert moved < 0.5 or method == "sce"
    assert torch.equal(found["alone"].view(torch.uint8), given["base"]["alone"].view(torch.uint8))


def test_nearswap_moves_an_entry_by_its_threshold_at_most(folders: dict[str, Path], tmp_path: Path, read: Read) -> None:
    out = read(merge(folders["base"], folders["tuned"], tmp_path / "out", lam=1, method="nearswap", threshold=0.5))
    given = models()
    for name in SHAPES:
        b, t = given["base"][name], given["tuned"][name]
        assert float((out[name] - b).abs().max()) <= 0.5 + 1e-6
        near = (t - b).abs() < 0.5
        assert torch.allclose(out[name][near], t[near])
    with pytest.raises(UserError) as caught:
        merge(folders["base"], folders["tuned"], tmp_path / "2", lam=1, method="nearswap", threshold=-0.5)
    assert caught.value.code == "usage.option_out_of_range"
