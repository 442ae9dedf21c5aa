"""Quantized tensors are read as their reference library dequantizes them, bit for bit, whatever the slices."""

import json
from pathlib import Path

import pytest
import torch

from mooring.errors import ModelError
from mooring.models import open_checkpoint
from mooring.models.quantization.float8 import to_float8
from quantized_tensors import CASES, NAME, fp8_per_tensor, gptq, write


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def test_values_are_the_references(tmp_path: Path, case) -> None:
    with open_checkpoint(write(tmp_path, case)) as model:
        assert sorted(model.tensors) == sorted([case.name, "model.norm.weight"])
        info = model.tensors[case.name]
        assert (info.shape, info.dtype) == (tuple(case.values.shape), case.values.dtype)
        assert torch.equal(model.tensor(case.name), case.values)
        assert "quantization_config" not in model.config


def test_slices_are_the_whole(tmp_path: Path, case) -> None:
    expected = case.values.reshape(-1)
    count = expected.numel()
    with open_checkpoint(write(tmp_path, case)) as model:
        for start, stop in (
            (0, 1),
            (0, 0),
            (1, 2),
            (5, 333),
            (count // 3 + 1, count - 7),
            (count - 1, count),
            (63, 129),
        ):
            out = torch.empty(8 * count, dtype=torch.uint8)
            assert torch.equal(model.read(case.name, start, stop), expected[start:stop])
            assert torch.equal(model.read(case.name, start, stop, out=out), expected[start:stop])


def test_what_is_stored_shows_the_format(tmp_path: Path, case) -> None:
    """A configuration without `quantization_config` is enough, except for the bits of GPTQ, AWQ's order and INT8."""
    if case.settings["quant_method"] in ("gptq", "awq") or "int8" in str(case.settings):
        pytest.skip("needs the configuration")
    write(tmp_path, case)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    if any(t.dtype == torch.int8 for t in case.stored.values()) and f"{NAME}_scale" in case.stored:
        pytest.skip("INT8 of compressed-tensors is told by its configuration")
    with open_checkpoint(tmp_path) as model:
        assert model.tensor(case.name).dtype == case.values.dtype


def test_every_fp8_code_and_nan(tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(16, 16)
    case = fp8_per_tensor()
    for part in (codes, codes[:4].clone()):  # the first has codes that are NaN
        values = (part.float() * 0.0123).to(torch.bfloat16)
        write(tmp_path, case._replace(stored={**case.stored, NAME: part}))
        with open_checkpoint(tmp_path) as model:
            assert torch.equal(model.tensor(NAME).view(torch.int16), values.view(torch.int16))


def test_fp8_codes_are_those_that_torch_converts_to() -> None:
    """Every value of E4M3, the middle of each two, their neighbours in float32, and values in between."""
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        every = torch.arange(256, dtype=torch.uint8).view(kind).float()
        exact = every[every.isfinite()].sort().values
        middle = (exact[1:] + exact[:-1]) / 2
        points = torch.cat([exact, middle])
        points = torch.cat([points, *(points.nextafter(torch.tensor(end)) for end in (-torch.inf, torch.inf))])
        largest = float(exact[-1])
        drawn = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 4, 5000)
        values = torch.cat([points, torch.tensor([0.0, -0.0, 1e-30, -1e-45]), drawn]).clamp(-largest, largest)
        found, expected = to_float8(values, kind), values.to(kind)
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
        assert torch.equal(to_float8(values[:4].view(2, 2).T, kind).float(), values[:4].view(2, 2).T.to(kind).float())


def test_a_left_over_configuration_is_noticed(tmp_path: Path) -> None:
    case = fp8_per_tensor()
    write(tmp_path, case._replace(stored={NAME: case.values}, settings={"quant_method": "bitsandbytes"}))
    with open_checkpoint(tmp_path) as model:
        assert "bitsandbytes" in model.remarks[0]
        assert "quantization_config" not in model.config


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda s: s.pop(f"{NAME}_scale_inv"), "model.quantized"),
        (lambda s: s.update({f"{NAME}_scale_inv": torch.ones(3, 5)}), "model.bad_quantization"),
        (lambda s: s.update({f"{NAME}_scale_inv": torch.ones(2, dtype=torch.int32)}), "model.bad_quantization"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path: Path, change, code: str) -> None:
    case = fp8_per_tensor()
    change(case.stored)
    with pytest.raises(ModelError) as error:
        open_checkpoint(write(tmp_path, case))
    assert error.value.code == code


def test_bits_of_a_module_of_its_own(tmp_path: Path) -> None:
    """GPTQModel's `dynamic` gives modules bits of their own: the group of each input tells them."""
    case = gptq(8)()
    write(tmp_path, case._replace(settings={**case.settings, "bits": 4}))
    with open_checkpoint(tmp_path) as model:
        assert torch.equal(model.tensor(case.name), case.values)


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    case, without = gptq()(), gptq(plain=True)()
    for settings, stored in (
        ({"quant_method": "gptq", "bits": 9}, without.stored),
        ({"quant_method": "gptq", "bits": "4"}, without.stored),
        ({"quant_method": "hqq"}, {f"{NAME}_q": torch.ones(2, 2, dtype=torch.uint8)}),
        ({"quant_method": "awq", "version": "gemv"}, case.stored),
    ):
        with pytest.raises(ModelError) as error:
            open_checkpoint(write(tmp_path, case._replace(stored=stored, settings=settings)))
        assert error.value.code == "model.quantized"


@pytest.mark.parametrize("name", ["nf4, nested", "gptq, reordered", "mxfp4", "awq", "compressed-tensors int4, groups"])
def test_broken_parts_are_refused(tmp_path: Path, name: str) -> None:
    """Every part cut short, emptied or filled with nonsense: refused in one line, or read without a fault."""
    case = CASES[name]()
    for part, tensor in case.stored.items():
        flat = tensor.reshape(-1)
        for broken in (
            flat[: len(flat) // 2],
            flat[:0],
            torch.full_like(tensor, 101),
            flat.double() * 1e9,
            flat.double() * torch.nan,
        ):
            write(tmp_path, case._replace(stored={**case.stored, part: broken}))
            try:
                with open_checkpoint(tmp_path) as model:
                    for other in model.tensors:
                        model.tensor(other)
            except ModelError:
                continue
