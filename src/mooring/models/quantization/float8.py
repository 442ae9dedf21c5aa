"""FP8 weights, and integers of 8 bits, with scales: one for the whole tensor, one per row, or one per block.

- block-wise with `weight_scale_inv` (DeepSeek-V3, Qwen3-FP8; transformers' `finegrained_fp8`, MXFP8), and per tensor
  under the same name;
- `weight_scale` of compressed-tensors (per tensor, per channel, per block), fbgemm, ModelOpt and vLLM.

A value is code · scale, rounded to the type of the scale in compressed-tensors, and to the model's type in all.
Sources: transformers.integrations.finegrained_fp8, compressed_tensors.quantization.lifecycle.forward.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mooring.models.quantization.tensor import (
    Infos,
    Requantizable,
    Runs,
    Stored,
    compute_dtype,
    kept_scales,
    malformed,
    unsupported,
    whole_rows,
)
from mooring.models.safetensors_file import TensorInfo
from mooring.models.thread_memory import scratch

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_TOGETHER = 2**17
"""Entries that are converted at a time, so that what is in between stays in a cache."""
_SCALES = ("_scale_inv", "_scale")
"""What the name of a weight's scale adds to the weight's own."""
_BESIDE = ("input_scale", "activation_scale", "output_scale", "weight_zero_point", "input_scale_ub", "weight_shape")
"""What is stored beside a module's weight and changes nothing in it: scales of activations; an FP8 zero point is 0."""
_PER_MODULE = ("k_scale", "v_scale", "q_scale", "prob_scale")
"""What is stored beside attention for its activations and its cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float8(Requantizable):
    """An FP8 or INT8 tensor with scales.

    Attributes:
        block: Rows and columns that share a scale. The last blocks may be smaller.
        grid: How many blocks there are along the rows (for each of the leading indices) and along the columns.
        rounded: A type that the product is rounded to before `dtype`; None if it is not.
        powers: Whether scales are stored as exponents of 2, one byte each (E8M0).
    """

    format = "FP8"

    block: tuple[int, int]
    grid: tuple[int, int]
    rounded: torch.dtype | None = None
    powers: bool = False

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`."""
        values, factor = _widen(stored, self.parts[0], first * self.columns, last * self.columns)
        values = values.view(last - first, self.columns)
        scales = self._row_scales(stored, first, last) * factor
        count, width = len(scales), self.block[1]
        whole = self.columns // width * width
        if self.grid[1] == 1:
            values.view(count, -1).mul_(scales)
        else:
            strides = (len(values) // count * self.columns, self.columns, width, 1)
            blocks = values.as_strided((count, len(values) // count, whole // width, width), strides)
            blocks.mul_(scales[:, None, : whole // width, None])
            if whole < self.columns:
                values.view(count, -1, self.columns)[..., whole:].mul_(scales[:, None, whole // width :])
        return values if self.rounded is None else values.to(self.rounded)

    def _row_scales(self, stored: Stored, first: int, last: int) -> Tensor:
        """The scales of n equal parts of rows [first, last), in float32: (n, blocks along the columns)."""
        (down, across), height, rows = self.grid, self.block[0], self.shape[-2]
        low = first // rows * down + first % rows // height
        high = (last - 1) // rows * down + (last - 1) % rows // height + 1
        scales = as_scales(stored.read(self.parts[1], low * across, high * across), powers=self.powers)
        scales = scales.view(-1, across)
        aligned = first % height == 0 and last % height == 0 and rows % height == 0
        if high == low + 1 or aligned:
            return scales
        row = torch.arange(first, last)
        return scales[row // rows * down + row % rows // height - low]

    @property
    def piece(self) -> int:
        """See `Requantizable.piece`: rows of blocks, within one matrix."""
        height, rows = self.block[0], self.shape[-2]
        fits = math.prod(self.shape[:-2]) == 1 or rows % height == 0
        size = whole_rows(self.columns, height) if fits else rows * self.columns
        return size if math.prod(self.shape[:-2]) == 1 or rows * self.columns % size == 0 else rows * self.columns

    def quantize(self, stored: Stored, start: int, values: Tensor, change: Tensor) -> Runs:
        """See `Requantizable.quantize`: a block's scale is its largest magnitude divided by the largest code."""
        (height, width), (down, across) = self.block, self.grid
        row = start // self.columns
        index = row // self.shape[-2] * down + row % self.shape[-2] // height
        old = stored.read(self.parts[0], start, start + len(values)).view(-1, self.columns)
        blocks = _in_blocks(values.view(old.shape), height, width)
        count = len(blocks)
        scales = stored.read(self.parts[1], index * across, (index + count) * across)
        kind, largest = scales.dtype, _LARGEST[old.dtype]
        new = _largest_magnitudes(blocks) / largest
        old_scales = as_scales(scales, powers=self.powers).view(count, across)
        serves = kept_scales(old_scales, new, 0.8 if old.dtype == torch.int8 else 0.25)
        if self.powers:
            exponent = new.clamp(min=2.0**-127).log2().ceil().add_(127).clamp_(0, 254)
            stored_scales, new = exponent.to(torch.uint8).view(kind), (exponent - 127).exp2()
        else:
            stored_scales = torch.where(new > 0, new, 1.0).to(kind)
            new = stored_scales.float()
        new = torch.where(serves, old_scales, new)
        scaled = scratch("float8: scaled", blocks.numel(), torch.float32).view(blocks.shape)
        torch.div(blocks, new[:, None, :, None], out=scaled).clamp_(-largest, largest)
        codes = scaled.view(count * height, across * width)[: len(old), : self.columns]
        codes = codes.round().to(torch.int8) if old.dtype == torch.int8 else to_float8(codes, old.dtype)
        keep = _largest_magnitudes(_in_blocks(change.view(old.shape), height, width)) == 0
        if keep.any():
            kept = keep.repeat_interleave(height, 0)[: len(old)].repeat_interleave(width, 1)[:, : self.columns]
            codes = torch.where(kept, old.view(torch.uint8), codes.view(torch.uint8)).view(old.dtype)
        raw = torch.uint8 if self.powers else kind
        scale_run = torch.where(keep | serves, scales.view(raw).view(count, across), stored_scales.view(raw)).view(kind)
        return {self.parts[0]: (start, codes.reshape(-1)), self.parts[1]: (index * across, scale_run.view(-1))}


def _in_blocks(values: Tensor, height: int, width: int) -> Tensor:
    """A matrix in blocks, filled up with zeros: (rows of blocks, height, blocks in a row, width)."""
    rows, columns = values.shape
    if rows % height or columns % width:
        values = torch.nn.functional.pad(values, (0, -columns % width, 0, -rows % height))
    return values.reshape(-(-rows // height), height, -(-columns // width), width)


def _largest_magnitudes(blocks: Tensor) -> Tensor:
    """The largest magnitude in each block: (rows of blocks, blocks in a row)."""
    return torch.maximum(blocks.amax(3).amax(1), -blocks.amin(3).amin(1))


_LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}
"""The largest code of each type."""


def as_scales(stored: Tensor, *, powers: bool) -> Tensor:
    """Scales in float32, from their own type or from exponents of 2 with a bias of 127."""
    return (stored.view(torch.uint8).float() - 127).exp2() if powers else stored.float()


_E4M3_IN_FLOAT16 = 2.0**8
"""An E4M3 code, shifted to where float16 has exponent and mantissa, is its value divided by this: the biases differ."""


def _widen(stored: Stored, name: str, start: int, stop: int) -> tuple[Tensor, float]:
    """Entries [start, stop) of stored codes in float32, and a power of two that they are still to be multiplied by.

    In memory of this thread. Through float16, since torch converts FP8 one entry at a time, ten times slower.
    """
    count = stop - start
    codes = stored.read(name, start, stop, out=scratch("float8: codes", count, torch.uint8))
    values = scratch("float8: values", count, torch.float32)
    raw = codes.view(torch.uint8).numpy()
    if codes.dtype != torch.float8_e4m3fn or raw.max() == 0xFF or raw.view("i1").max() == 0x7F:  # which are NaN
        return values.copy_(codes), 1.0
    bits = scratch("float8: bits", count, torch.int16).copy_(codes.view(torch.int8))
    bits.bitwise_left_shift_(7).bitwise_and_(~0x4000)
    return values.copy_(bits.view(torch.float16)), _E4M3_IN_FLOAT16


_SUBNORMAL = 121 << 23
"""float32's bits of 2⁻⁶: below it, E4M3 has the spacing that it has there."""
_INTEGERS = 20 << 23
"""Added to the bits of float32 with a mantissa of 0, multiplies by 2²⁰."""


def to_float8(values: Tensor, kind: torch.dtype) -> Tensor:
    """The nearest FP8 codes, to even in the middle, as torch converts; finite values within the type's range.

    torch converts one entry at a time. E4M3 is computed here with whole vectors: a value's spacing in E4M3 is that of
    float32 at 2²⁰ times its power of two, so that adding and subtracting that rounds to it, and float16 divided by 2⁸
    then holds the code's bits.
    """
    if kind != torch.float8_e4m3fn:
        return values.to(kind)
    codes = torch.empty(values.shape, dtype=torch.int8)
    entries, places = values.reshape(-1), codes.view(-1)
    for first in range(0, len(entries), _TOGETHER):
        part, place = entries[first : first + _TOGETHER], places[first : first + _TOGETHER]
        count = len(part)
        magnitude = torch.abs(part, out=scratch("float8: magnitude", count, torch.float32))
        spacing = scratch("float8: spacing", count, torch.int32).copy_(magnitude.view(torch.int32))
        spacing.bitwise_and_(0xFF << 23).clamp_(min=_SUBNORMAL).add_(_INTEGERS)
        magnitude.add_(spacing.view(torch.float32)).sub_(spacing.view(torch.float32)).mul_(1 / _E4M3_IN_FLOAT16)
        torch.copysign(magnitude, part, out=magnitude)
        bits = scratch("float8: bits", count, torch.float16).copy_(magnitude).view(torch.int16)
        sign = torch.bitwise_right_shift(bits, 1, out=scratch("float8: sign", count, torch.int16))
        place.copy_(bits.bitwise_or_(sign.bitwise_and_(0x4000)).bitwise_right_shift_(7))
    return codes.view(kind)


def find(stored: Stored, config: Mapping[str, Any], method: str) -> Iterator[Float8]:
    """The FP8 and INT8 weights with scales among stored tensors.

    Args:
        stored: The tensors of a model.
        config: Its `config.json`.
        method: Its `quant_method`, if known.

    Raises:
        ModelError: A scale does not fit its weight.
    """
    for info in stored.tensors.values():
        if info.dtype in (*FLOAT8, torch.int8) and len(info.shape) >= 2:
            scale = next((stored.tensors[info.name + s] for s in _SCALES if info.name + s in stored.tensors), None)
            if scale is not None:
                yield _tensor(info, scale, stored.tensors, config, method)


def _tensor(info: TensorInfo, scale: TensorInfo, tensors: Infos, config: Mapping[str, Any], method: str) -> Float8:
    powers = scale.dtype in (torch.uint8, getattr(torch, "float8_e8m0fnu", None))
    if not (scale.dtype.is_floating_point or powers):
        raise malformed(scale, "is not a scale")
    stem = info.name.rpartition(".")[0]
    beside = tuple(name for part in _BESIDE if (name := f"{stem}.{part}") in tensors)
    if info.dtype == torch.int8 and (method != "compressed-tensors" or f"{stem}.weight_zero_point" in beside):
        raise unsupported(info.file, f"{info.name} is INT8 of a kind that is not supported")
    block, grid = _blocks(info, scale, config.get("quantization_config"))
    return Float8(
        name=info.name,
        shape=info.shape,
        dtype=compute_dtype(config),
        parts=(info.name, scale.name, *beside),
        block=block,
        grid=grid,
        rounded=scale.dtype if method == "compressed-tensors" and not powers else None,
        powers=powers,
    )


def _blocks(info: TensorInfo, scale: TensorInfo, settings: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size of a block, and how many there are along both axes."""
    rows, columns = info.shape[-2:]
    leading = math.prod(info.shape[:-2])
    if scale.numel == leading:
        return (rows, columns), (1, 1)
    if scale.numel == leading * rows and scale.shape[-1:] in ((1,), (rows,)):
        return (1, columns), (rows, 1)
    if len(scale.shape) != len(info.shape) or scale.shape[:-2] != info.shape[:-2] or 0 in scale.shape:
        raise malformed(scale, f"is not the scale of {info.name}, of shape {list(info.shape)}")
    down, across = scale.shape[-2:]
    given = settings.get("weight_block_size") if isinstance(settings, dict) else None
    exact = (rows // down, columns // across) if not rows % down and not columns % across else None
    for block in (given, exact, (128, 128)):
        if not isinstance(block, (list, tuple)) or [type(n) for n in block] != [int, int] or min(block) < 1:
            continue
        if (-(-rows // block[0]), -(-columns // block[1])) == (down, across):
            return (block[0], block[1]), (down, across)
    raise malformed(scale, f"does not divide {info.name}, of shape {list(info.shape)}, into blocks")


def beside_attention(tensors: Infos) -> list[str]:
    """Scales of a quantized model's attention cache and activations, which a model of 16 bits does not have."""
    return [name for name, info in tensors.items() if name.endswith(_PER_MODULE) and info.numel == 1]
