"""Every method from folder to folder: what the formula says, and the same bytes however the work is cut."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mooring.errors import ModelError
from mooring.merge_methods import METHODS
from mooring.merging.merge import merge

Write = Callable[..., Path]
Read = Callable[[Path], dict[str, torch.Tensor]]
Tensors = dict[str, torch.Tensor]

THIN = sorted(reference.KINDS)
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SHAPES = [(), (1,), (3,), (33,), (130,), (1, 7), (7, 1), (5, 13), (19, 17), (3, 5, 7), (2, 1, 64), (0, 4)]
quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)


@pytest.fixture(autouse=True)
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid so fine that small tensors have many slices."""
    monkeypatch.setattr(sys.modules["mooring.merging.slices"], "CELL", 16)


def values(seed: int, kind: str, shape: tuple[int, ...], dtype: torch.dtype, base: torch.Tensor | None) -> torch.Tensor:
    """Numbers of a kind: spread out, with many equal magnitudes, mostly unchanged, or all zero."""
    rng = np.random.default_rng(seed)
    if kind == "equal":
        made = rng.integers(-2, 3, shape) * 0.25
    elif kind == "zero":
        made = np.zeros(shape)
    else:
        made = rng.normal(size=shape) * (1.0 if base is None else 0.02)
    if kind == "sparse":
        made = made * (rng.random(shape) < 0.3)
    found = torch.as_tensor(made, dtype=torch.float64).reshape(shape)
    return found.to(dtype) if base is None else (base.double() + found).to(dtype)


def close(actual: torch.Tensor, expected: reference.Expected, spherical: bool) -> None:
    """Half a unit in the last place for the one rounding, and what arithmetic in float32 may add."""
    info = torch.finfo(actual.dtype)
    wide = 2.0**-24 if actual.dtype != torch.float64 else 1e-12 if spherical else 2.0**-53
    bound = np.abs(expected.value) * info.eps / 2 + info.tiny * info.eps / 2 + expected.size * 16 * wide
    if spherical:  # an angle is found to so much
        bound += 1e-13 * expected.size.max(initial=0)
    error = np.abs(reference.exact(actual) - expected.value)
    assert (error <= bound)[expected.sure].all(), (error - bound)[expected.sure].max()


@st.composite
def cases(draw: st.DrawFn, method: str) -> dict[str, Any]:
    """Models and options for a method."""
    known = METHODS[method]
    models = 1 if known.most == 1 else draw(st.integers(known.least, known.most or 3))
    each = lambda low, high: st.lists(st.floats(low, high), min_size=models, max_size=models)  # noqa: E731
    options: dict[str, Any] = {}
    if "weights" in known.options and draw(st.booleans()):
        options["weights"] = draw(each(0.1, 2))
    if method in ("linear", "karcher") and draw(st.booleans()):
        options["base_weight"] = draw(st.floats(0.1, 2))
    if "normalize" in known.options and (method != "linear" or "base_weight" in options):
        options["normalize"] = draw(st.sampled_from([None, True, False]))
    if method in reference.KINDS:
        options["density"] = draw(
            each(0.3, 0.8) if "della" in method else each(0.001, 1) | each(0.3, 0.7) | st.just([0.0] * models)
        )
        options["rescale"] = draw(st.sampled_from([None, "inverse", "l1", "none"]))
    if "gamma" in known.options:
        options["gamma"] = draw(each(0, 0.5))
    if "epsilon" in known.options:
        options["epsilon"] = draw(each(0, 0.19))
    if "threshold" in known.options:
        options["threshold"] = draw(st.floats(0, 0.05))
    if "seed" in known.options:
        options["seed"] = draw(st.integers(-3, 2**70))
    low, high = (0.0, 1.0) if method in ("linear", "slerp", "karcher", "model_stock", "nuslerp") else (-1.0, 2.0)
    return {
        "models": models,
        "lam": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]) | st.floats(low, high, allow_subnormal=False)),
        "options": {k: v for k, v in options.items() if v is not None},
        "dtype": draw(st.sampled_from(DTYPES)),
        "shapes": draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3)),
        "kinds": draw(st.lists(st.sampled_from(["spread", "equal", "sparse", "zero"]), min_size=4, max_size=4)),
        "seed": draw(st.integers(0, 2**32)),
        "cut": {"slice_bytes": draw(st.integers(1, 400)), "threads": draw(st.integers(1, 3))},
        "shards": draw(st.integers(1, 2)),
    }


@pytest.mark.parametrize("method", reference.PLAIN)
@quick
@given(data=st.data())
def test_the_formula(
    tmp_path_factory: pytest.TempPathFactory, write: Write, read: Read, method: str, data: st.DataObject
) -> None:
    case = data.draw(cases(method))
    models, dtype, seed = case["models"], case["dtype"], case["seed"]
    base = {f"t{i}": values(seed + i, case["kinds"][0], s, dtype, None) for i, s in enumerate(case["shapes"])}
    tuned = [
        {n: values(seed + 9 * m + i + 5, case["kinds"][m], t.shape, dtype, t) for i, (n, t) in enumerate(base.items())}
        for m in range(1, models + 1)
    ]
    base["other"], base["kept"] = torch.linspace(-1, 1, 40).to(dtype), torch.arange(3)
    for m, tensors in enumerate(tuned):  # some tensor always differs, or the merge is refused
        tensors |= {"other": torch.linspace(2, m, 40).to(dtype), "kept": base["kept"].clone()}
    folder = tmp_path_factory.mktemp("merge")
    inputs = [write(folder / f"{i}", tensors, case["shards"]) for i, tensors in enumerate([base, *tuned])]
    out = merge(inputs[0], inputs[1:], folder / "out", lam=case["lam"], method=method, **case["options"], **case["cut"])
    found = read(out)
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        if name == "kept":
            continue
        changed = [t[name] for t in tuned]
        expected = reference.merged(method, tensor, changed, case["lam"], name=name, **case["options"])
        close(found[name], expected, method in ("slerp", "nuslerp", "multislerp", "karcher", "model_stock"))


# The same bytes, whatever the slices, the threads and the shards.


def models(count: int) -> list[Tensors]:
    """A base and tuned models of every type; entries and tensors left alone, −0 among them."""
    made: list[Tensors] = []
    for m in range(count + 1):
        rng = torch.Generator().manual_seed(m)
        tensors = {
            f"model.layers.{i}.w{i}": torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
            for i, (shape, dtype) in enumerate(
                [((23, 11), torch.bfloat16), ((9, 40), torch.float16), ((307,), torch.float32)]
            )
        }
        tensors["wide"] = torch.randn((5, 31), generator=rng, dtype=torch.float64)
        tensors["steps"], tensors["none"] = torch.arange(70), torch.empty(0, 3)
        tensors["alone"] = torch.linspace(-1, 1, 70).to(torch.bfloat16)
        tensors["alone"][10:20] = -0.0
        tensors["partly"] = torch.full((100,), -0.0)
        tensors["partly"][90:] += m
        made.append(tensors)
    return made


def options_for(method: str) -> dict[str, Any]:
    """Options under which a method does all that it can."""
    options: dict[str, Any] = {"method": method}
    if method in reference.KINDS:
        options |= {"density": 0.5, "rescale": "l1" if method in ("ties", "della", "dare_ties") else None}
    if "gamma" in METHODS[method].options:
        options["gamma"] = 0.1
    return options


def folders(write: Write, folder: Path, method: str, shards: int = 1) -> tuple[Path, list[Path]]:
    """The models for a method on the disk."""
    base, *tuned = (write(folder / f"{i}", t, shards) for i, t in enumerate(models(METHODS[method].most or 2)))
    return base, tuned


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().view(torch.uint8)


@pytest.mark.parametrize("method", reference.PLAIN)
@settings(quick, max_examples=3)
@given(size=st.integers(50, 3000), threads=st.integers(1, 4), shards=st.integers(2, 4), lam=st.sampled_from([0.3, 0.7]))
def test_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    write: Write,
    read: Read,
    method: str,
    size: int,
    threads: int,
    shards: int,
    lam: float,
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    inputs, options = folders(write, folder / "in", method), options_for(method)
    whole = merge(*inputs, folder / "whole", lam=lam, threads=1, **options)
    again = merge(*inputs, folder / "again", lam=lam, threads=threads, slice_bytes=size, **options)
    assert files(whole) == files(again)
    spread = folders(write, folder / "spread", method, shards)
    dealt = read(merge(*spread, folder / "dealt", lam=lam, threads=threads, slice_bytes=size, **options))
    assert all(torch.equal(raw(value), raw(dealt[name])) for name, value in read(whole).items())


@pytest.mark.parametrize("method", reference.PLAIN)
def test_what_no_model_changed_keeps_its_bytes(tmp_path: Path, write: Write, read: Read, method: str) -> None:
    inputs = folders(write, tmp_path, method)
    base = models(0)[0]
    for lam in (0.0, 0.3, 0.7, 1.0):
        found = read(merge(*inputs, tmp_path / f"out{lam}", lam=lam, slice_bytes=100, **options_for(method)))
        for name in ("alone", "steps", "none"):
            assert torch.equal(raw(found[name]), raw(base[name]))
        if METHODS[method].keeps:
            assert torch.equal(raw(found["partly"][:90]), raw(base["partly"][:90]))  # −0 too


@pytest.mark.parametrize("method", reference.PLAIN)
def test_many_lambdas_are_as_many_merges(tmp_path: Path, write: Write, method: str) -> None:
    inputs, options = folders(write, tmp_path / "in", method), options_for(method)
    merge(*inputs, tmp_path / "all", lambdas=[0.0, 0.25, 0.7, 1.0], threads=2, slice_bytes=333, **options)
    for lam in (0.0, 0.25, 0.7, 1.0):
        one = merge(*inputs, tmp_path / f"one{lam:g}", lam=lam, **options)
        assert files(one) == files(tmp_path / "all" / f"lam-{lam:g}")


@pytest.mark.parametrize("method", ["linear", "slerp", "karcher"])
@pytest.mark.parametrize("lam", [0, 1])
def test_ends_are_the_inputs_bytes(tmp_path: Path, write: Write, read: Read, method: str, lam: int) -> None:
    base, *tuned = (write(tmp_path / f"{i}", tensors) for i, tensors in enumerate(models(1)))
    found = read(merge(base, tuned, tmp_path / "out", lam=lam, method=method, slice_bytes=100))
    for name, value in read(tuned[0] if lam else base).items():
        assert torch.equal(raw(value), raw(found[name])), name


@pytest.mark.parametrize("method", THIN)
def test_nothing_dropped_is_the_plain_sum(tmp_path: Path, write: Write, read: Read, method: str) -> None:
    base, tuned = folders(write, tmp_path / "in", method)
    found = read(merge(base, tuned[0], tmp_path / "out", lam=0.3, method=method, density=1.0))
    plain = read(merge(base, tuned[0], tmp_path / "plain", lam=0.3, method="task_arithmetic"))
    assert all(torch.equal(raw(value), raw(found[name])) for name, value in plain.items())


def test_lines_rise_with_depth(tmp_path: Path, write: Write, read: Read) -> None:
    base = {f"model.layers.{i}.w": torch.zeros(3) for i in range(5)} | {"model.embed_tokens.w": torch.zeros(3)}
    tuned = {name: torch.ones(3) for name in base}
    inputs = write(tmp_path / "base", base), write(tmp_path / "tuned", tuned)
    for lam, ends in (((0.2, 1.0), (0.2, 1.0)), (0.8, (0.0, 0.8))):
        found = read(merge(*inputs, tmp_path / f"out{ends[0]}", lam=lam, method="lines"))
        assert found.pop("model.embed_tokens.w").tolist() == pytest.approx([ends[0]] * 3)
        for i in range(5):
            assert found[f"model.layers.{i}.w"].tolist() == pytest.approx([ends[0] + (ends[1] - ends[0]) * i / 4] * 3)


def test_inputs_of_other_types_are_rounded_once(tmp_path: Path, write: Write, read: Read) -> None:
    """float64 among float32: the sum is in float64."""
    base = torch.tensor([1.0, -3.0])
    tuned = [base.double() + 1e-9, base.double() + 3e-8]
    inputs = [write(tmp_path / f"{i}", {"w": t}) for i, t in enumerate([base, *tuned])]
    expected = (base.double() + 30 * (tuned[0] - base) + 30 * (tuned[1] - base)).float()
    for method in ("task_arithmetic", "ties", "dare_linear"):
        options: dict[str, Any] = {"weights": [1.0, 1.0], "normalize": False}
        if method != "task_arithmetic":
            options["density"] = 1.0
        found = read(merge(inputs[0], inputs[1:], tmp_path / method, lam=30, method=method, **options))
        assert torch.equal(found["w"], expected), method


@pytest.mark.parametrize("method", reference.PLAIN)
def test_nan_in_what_no_model_changed(tmp_path: Path, write: Write, method: str) -> None:
    """Every model has it, so no slice there differs; it is named all the same."""
    broken = models(2)
    for tensors in broken:
        tensors["alone"][3] = torch.nan
    base, *tuned = (write(tmp_path / f"{i}", t) for i, t in enumerate(broken[: 2 if METHODS[method].most == 1 else 3]))
    with pytest.raises(ModelError) as caught:
        merge(base, tuned, tmp_path / "out", lam=0.5, method=method, slice_bytes=100)
    assert caught.value.code == "model.nonfinite"
    assert "0: alone" in caught.value.message


@pytest.mark.parametrize("method", ["slerp", "model_stock"])
def test_what_was_decided_is_in_the_manifest(tmp_path: Path, write: Write, method: str) -> None:
    base = torch.ones(40) if method == "model_stock" else torch.zeros(40)
    ramp = torch.linspace(0.5, 2, 40)
    tuned = [base + ramp, base - ramp][: METHODS[method].most or 2]
    inputs = [write(tmp_path / f"{i}", {"w": t}) for i, t in enumerate([base, *tuned])]
    out = merge(inputs[0], inputs[1:], tmp_path / "out", lam=0.5, method=method)
    said = json.loads((out / "mooring.json").read_text())["decisions"]["w"]
    assert ("merged as linear" if METHODS[method].most == 1 else "the base") in said


@pytest.mark.parametrize("method", reference.PLAIN)
def test_more_vocabulary_changes_nothing_in_the_shared_rows(
    tmp_path: Path, write: Write, read: Read, method: str
) -> None:
    """Ranks, angles and draws are those of the shared rows; the tuned model's other rows come as they are."""
    name, rng = "model.embed_tokens.weight", torch.Generator().manual_seed(5)
    base = torch.randn((11, 13), generator=rng)
    tuned = [base + torch.randn((11, 13), generator=rng) for _ in range(METHODS[method].most or 2)]
    more = torch.randn((3, 13), generator=rng)
    found = []
    for extra in (torch.empty(0, 13), more):
        rows = 11 + len(extra)
        folder = tmp_path / str(rows)
        inputs = [write(folder / "base", {name: base}, vocab_size=11)]
        inputs += [write(folder / f"{i}", {name: torch.cat([t, extra])}, vocab_size=rows) for i, t in enumerate(tuned)]
        found.append(read(merge(inputs[0], inputs[1:], folder / "out", lam=0.3, **options_for(method)))[name])
    assert torch.equal(found[0], found[1][:11])
    assert torch.equal(found[1][11:], more)
