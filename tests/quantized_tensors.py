"""Quantized tensors of every format, as they are stored, with the values that their reference library gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

NAME = "model.layers.0.mlp.up_proj.weight"
STEM = NAME.removesuffix(".weight")


class Case(NamedTuple):
    """What is stored for one tensor, what `config.json` says, the tensor's name and its values."""

    stored: dict[str, Tensor]
    settings: dict[str, Any]
    values: Tensor
    name: str = NAME


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def write(folder: Path, case: Case, dtype: str = "bfloat16", **more: Tensor) -> Path:
    """Write a folder with the tensor and one that is not quantized."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": case.settings}))
    plain = {"model.norm.weight": torch.ones(8, dtype=torch.bfloat16)}
    stored = {name: tensor.contiguous().clone() for name, tensor in (case.stored | plain | more).items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


def fp8_blocks() -> Case:
    """transformers' own quantization to FP8 by blocks, and its dequantization."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    class Quantizer:
        class quantization_config:  # noqa: N801
            weight_block_size = (128, 128)
            scale_fmt = None

    stored = Fp8Quantize(Quantizer)._quantize_one(NAME, normal(256, 384))
    values = Fp8Dequantize(Quantizer)._dequantize_one(stored[NAME], stored[f"{NAME}_scale_inv"], torch.bfloat16)
    return Case(stored, {"quant_method": "fp8", "weight_block_size": [128, 128]}, values)


def fp8_ragged() -> Case:
    """Blocks that the shape is no multiple of, as in DeepSeek-V3; by transformers' formula for its backward pass."""
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    codes = (normal(200, 321) * 9000).to(torch.float8_e4m3fn)
    scales = normal(2, 3).abs()
    values = _dequantize_fp8_weight(codes, scales, [128, 128], torch.float32).to(torch.bfloat16)
    return Case(
        {NAME: codes, f"{NAME}_scale_inv": scales}, {"quant_method": "fp8", "weight_block_size": [128, 128]}, values
    )


def fp8_experts() -> Case:
    """Fused experts in FP8, one grid of blocks for each."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    name = "model.layers.0.mlp.experts.gate_up_proj"
    codes, scales = (normal(3, 256, 128) * 9000).to(torch.float8_e4m3fn), normal(3, 2, 1).abs()
    values = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
    return Case({name: codes, f"{name}_scale_inv": scales}, {"quant_method": "fp8"}, values, name)


def fp8_powers() -> Case:
    """MXFP8: scales as exponents of 2, blocks of 1 by 32."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes = (normal(64, 96) * 9000).to(torch.float8_e4m3fn)
    scales = torch.randint(110, 130, (64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    values = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
    return Case({NAME: codes, f"{NAME}_scale_inv": scales}, {"quant_method": "mxfp8"}, values)


def fp8_per_tensor() -> Case:
    """One scale for the whole tensor, as Mistral's FP8 releases have it."""
    codes = (normal(64, 96) * 9000).to(torch.float8_e4m3fn)
    scale = torch.tensor(0.0123)
    values = (codes.float() * scale).to(torch.bfloat16)
    stored = {NAME: codes, f"{NAME}_scale_inv": scale, f"{STEM}.activation_scale": torch.tensor(1.0)}
    return Case(stored, {"quant_method": "fp8", "weight_block_size": None}, values)


def compressed(form: str, strategy: str, kind: torch.dtype = torch.bfloat16, **weights: Any) -> Callable[[], Case]:
    """compressed-tensors' own compression of a tensor to a format, and its decompression."""

    def make() -> Case:
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from compressed_tensors.quantization.utils import calculate_qparams

        args = QuantizationArgs(strategy=strategy, **weights)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        weight = normal(128, 256).to(kind)
        size = args.group_size or 0
        blocks = {
            "tensor": lambda: weight.view(1, -1),
            "channel": lambda: weight,
            "group": lambda: weight.view(128, -1, size),
            "tensor_group": lambda: weight.view(128, -1, size),
            "block": lambda: weight.view(2, 64, 4, 64).transpose(1, 2).reshape(2, 4, -1),
        }[strategy]()
        low, high = blocks.amin(-1), blocks.amax(-1)
        whole = None
        if strategy == "tensor_group":
            whole = (448 * 6 / weight.abs().max().float()).reshape(1)
        scale, zero = calculate_qparams(low, high, args, global_scale=whole)
        if strategy == "channel":
            scale, zero = scale.view(-1, 1), zero.view(-1, 1)
        known = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero, "weight_global_scale": whole}
        known = {name: tensor for name, tensor in known.items() if tensor is not None}
        if args.symmetric:
            known.pop("weight_zero_point")
        compressor = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress(dict(known), scheme)
        values = compressor.decompress(dict(stored), scheme)["weight"].to(torch.bfloat16)
        stored = {f"{STEM}.{name}": tensor for name, tensor in stored.items()}
        return Case(stored, {"quant_method": "compressed-tensors", "format": form}, values)

    return make


def mxfp4() -> Case:
    """gpt-oss's experts, by transformers."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    name, random = "model.layers.0.mlp.experts.down_proj", torch.Generator().manual_seed(2)
    blocks = torch.randint(0, 256, (3, 40, 2, 16), dtype=torch.uint8, generator=random)
    scales = torch.randint(100, 130, (3, 40, 2), dtype=torch.uint8, generator=random)
    values = convert_moe_packed_tensors(blocks, scales)
    return Case({f"{name}_blocks": blocks, f"{name}_scales": scales}, {"quant_method": "mxfp4"}, values, name)


def nvfp4_modelopt() -> Case:
    """ModelOpt's NVFP4: code · (scale · scale of the tensor), by its formula."""
    random = torch.Generator().manual_seed(3)
    packed = torch.randint(0, 256, (24, 32), dtype=torch.uint8, generator=random)
    scales, whole = (normal(24, 4).abs() * 5000).to(torch.float8_e4m3fn), torch.tensor(0.0007)
    table = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).view(24, 64)
    values = (table[codes.long()] * (scales.float() * whole).repeat_interleave(16, 1)).to(torch.bfloat16)
    stored = {NAME: packed, f"{NAME}_scale": scales, f"{NAME}_scale_2": whole, f"{STEM}.input_scale": torch.tensor(1.0)}
    return Case(stored, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, values)


def four_bit(
    quant_type: str, *, nested: bool, dtype: torch.dtype = torch.bfloat16, columns: int = 128
) -> Callable[[], Case]:
    """bitsandbytes' own quantization to 4 bits, and its dequantization.

    The number of columns is a multiple of the block's 64: otherwise bitsandbytes 0.50.2 gives wrong values on a CPU
    that has bfloat16. If the last block is short, other code of it computes them.
    """

    def make() -> Case:
        functional = pytest.importorskip("bitsandbytes.functional")
        weight = normal(70, columns).to(dtype)
        codes, state = functional.quantize_4bit(weight, quant_type=quant_type, compress_statistics=nested)
        stored = {NAME: codes, **{f"{NAME}.{k}": v for k, v in state.as_dict(packed=True).items()}}
        values = functional.dequantize_4bit(codes, state)
        settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": quant_type}
        return Case(stored, settings, values)

    return make


def int8() -> Case:
    """bitsandbytes' INT8."""
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, scales, _ = functional.int8_vectorwise_quant(normal(70, 96).half())
    values = functional.int8_vectorwise_dequant(codes, scales).to(torch.bfloat16)
    stored = {NAME: codes, f"{STEM}.SCB": scales, f"{STEM}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Case(stored, {"quant_method": "bitsandbytes", "load_in_8bit": True}, values)


def words(codes: Tensor, bits: int, order: list[int] | None = None) -> Tensor:
    """Codes packed along the last axis into int32 words; `order` is the place of each code in its word."""
    per = 32 // bits
    places = torch.tensor(order or list(range(per)))
    found = (codes.long().view(*codes.shape[:-1], -1, per) << (bits * places)).sum(-1)
    return torch.where(found >= 2**31, found - 2**32, found).to(torch.int32)


def stream(codes: Tensor, bits: int, planes: tuple[int, ...] = ()) -> Tensor:
    """Codes packed along the last axis into int32 words as one stream of bits, the lowest first.

    With `planes`, the bits of 32 codes follow each other plane by plane; the widths are given from the lowest bits.
    """
    blocks = codes.unflatten(-1, (-1, 32))[..., None] >> torch.arange(bits) & 1
    parts = blocks.split(list(planes) or [bits], dim=-1)
    run = torch.cat([part.flatten(-2) for part in parts], dim=-1).flatten(-2)
    packed = np.packbits(run.numpy().astype(np.uint8), axis=-1, bitorder="little")
    return torch.from_numpy(packed.view(np.int32).copy())


PLANES = {3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}


def gptq(bits: int = 4, *, version: str = "gptq", reordered: bool = False, plain: bool = False) -> Callable[[], Case]:
    """GPTQ by its formula, scale · (code − zero point), in float16; `plain` leaves out the group of each input."""

    def make() -> Case:
        inputs, outputs, groups, random = 96, 64, 3, torch.Generator().manual_seed(4)
        codes = torch.randint(0, 1 << bits, (inputs, outputs), generator=random)
        zeros = torch.randint(1, 1 << bits, (groups, outputs), generator=random)
        scales = normal(groups, outputs).abs().half()
        group = torch.arange(inputs) // (inputs // groups)
        if reordered:
            group = group[torch.randperm(inputs, generator=random)]
        values = (scales[group] * (codes - zeros[group])).T
        minus = 1 if version == "gptq" else 0
        planes = PLANES[bits] if version == "gptq_p" else ()
        stored = {
            f"{STEM}.qweight": stream(codes.T.contiguous(), bits, planes).T,
            f"{STEM}.qzeros": stream(zeros - minus, bits, planes),
            f"{STEM}.scales": scales,
            f"{STEM}.g_idx": group.to(torch.int32),
        }
        if plain:
            del stored[f"{STEM}.g_idx"]
        return Case(stored, {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}, values)

    return make


def awq() -> Case:
    """AWQ by its formula, (code − zero point) · scale, in float16."""
    inputs, outputs, groups, random = 96, 64, 3, torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (inputs, outputs), generator=random)
    zeros = torch.randint(0, 16, (groups, outputs), generator=random)
    scales = normal(groups, outputs).abs().half()
    group = torch.arange(inputs) // (inputs // groups)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    stored = {
        f"{STEM}.qweight": words(codes, 4, order),
        f"{STEM}.qzeros": words(zeros, 4, order),
        f"{STEM}.scales": scales,
    }
    values = ((codes - zeros[group]) * scales[group]).T
    return Case(stored, {"quant_method": "awq", "bits": 4, "version": "gemm"}, values)


FP8: dict[str, Any] = {"num_bits": 8, "type": "float"}
CASES: dict[str, Callable[[], Case]] = {
    "fp8, blocks": fp8_blocks,
    "fp8, blocks that do not divide the shape": fp8_ragged,
    "fp8, fused experts": fp8_experts,
    "fp8, exponents": fp8_powers,
    "fp8, one scale": fp8_per_tensor,
    "compressed-tensors fp8, one scale": compressed("float-quantized", "tensor", **FP8),
    "compressed-tensors fp8, per channel": compressed("float-quantized", "channel", **FP8),
    "compressed-tensors fp8, float16 scales": compressed("float-quantized", "channel", torch.float16, **FP8),
    "compressed-tensors fp8, blocks": compressed("float-quantized", "block", block_structure=[64, 64], **FP8),
    "compressed-tensors int8": compressed("int-quantized", "channel", num_bits=8, type="int"),
    "compressed-tensors int4, groups": compressed("pack-quantized", "group", num_bits=4, type="int", group_size=32),
    "compressed-tensors int4, zero points": compressed(
        "pack-quantized", "group", num_bits=4, type="int", group_size=64, symmetric=False
    ),
    "compressed-tensors int4, per channel": compressed("pack-quantized", "channel", num_bits=4, type="int"),
    "compressed-tensors nvfp4": compressed(
        "nvfp4-pack-quantized", "tensor_group", num_bits=4, type="float", group_size=16
    ),
    "compressed-tensors mxfp4": compressed(
        "mxfp4-pack-quantized", "group", num_bits=4, type="float", group_size=32, scale_dtype="torch.uint8"
    ),
    "mxfp4": mxfp4,
    "nvfp4, modelopt": nvfp4_modelopt,
    "nf4": four_bit("nf4", nested=False),
    "nf4, nested": four_bit("nf4", nested=True),
    "nf4, nested, float16": four_bit("nf4", nested=True, dtype=torch.float16),
    "nf4, float32, a last block that is short": four_bit("nf4", nested=True, dtype=torch.float32, columns=82),
    "fp4, nested": four_bit("fp4", nested=True),
    "int8": int8,
    "gptq": gptq(),
    "gptq, 8 bits": gptq(8),
    "gptq, 2 bits": gptq(2),
    "gptq, 3 bits": gptq(3),
    "gptq, 3 bits, v2, reordered": gptq(3, version="gptq_v2", reordered=True),
    "gptq, 3 bits, without groups of inputs": gptq(3, plain=True),
    "gptq, 3 bits in planes": gptq(3, version="gptq_p"),
    "gptq, 4 bits in planes": gptq(4, version="gptq_p"),
    "gptq, 5 bits": gptq(5, version="gptq_p"),
    "gptq, 6 bits": gptq(6, version="gptq_p", reordered=True),
    "gptq, 7 bits": gptq(7, version="gptq_p"),
    "gptq, v2": gptq(version="gptq_v2"),
    "gptq, reordered": gptq(reordered=True),
    "awq": awq,
}
