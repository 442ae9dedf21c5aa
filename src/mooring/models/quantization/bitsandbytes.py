"""bitsandbytes: NF4 and FP4 of 4 bits (QLoRA; Dettmers et al. 2023, arXiv:2305.14314), and INT8 (arXiv:2208.07339).

4 bits: `weight` holds two codes a byte, the first in the high bits, for the flattened tensor; `weight.quant_map` is the
value of each code, and `weight.absmax` the scale of each block of 64 entries (or another number) of the flattened
tensor, itself in 8 bits with `weight.nested_absmax` and `weight.nested_quant_map` if it was quantized twice.
`weight.quant_state.bitsandbytes__nf4` is JSON: the shape, type and sizes of blocks.

INT8: `weight` and the row's largest magnitude, `SCB`; a value is code · SCB / 127.

Source: bitsandbytes.functional (dequantize_4bit, QuantState.from_dict, int8_vectorwise_dequant).
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mooring.models.quantization.tensor import (
    PIECE,
    Requantizable,
    Runs,
    Stored,
    compute_dtype,
    kept_scales,
    malformed,
    whole_rows,
)
from mooring.models.safetensors_file import TensorInfo

_STATE = ".quant_state.bitsandbytes__"
_LONGEST_STATE = 2**16
"""Bytes."""
_INVERSE_127 = 7.874015748031496e-3
"""1 / 127, as bitsandbytes writes it."""
_TYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FourBit(Requantizable):
    """An NF4 or FP4 tensor.

    Attributes:
        block: Entries that share a scale.
        scales: The stored scales.
        code: The value of each code, float32.
        nested: How scales were quantized again, if they were.
    """

    format = "bitsandbytes 4 bits"

    block: int
    scales: str
    code: Tensor = dataclasses.field(compare=False)
    nested: "Nested | None" = None

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`."""
        out = torch.empty((last - first) * self.columns, dtype=self.dtype)
        self.read(stored, first * self.columns, last * self.columns, out)
        return out.view(-1, self.columns)

    def read(self, stored: Stored, start: int, stop: int, out: Tensor) -> None:
        """See `QuantizedTensor.read`: blocks do not end with rows, so whole blocks are computed."""
        if start == stop:
            return
        low, high = start // self.block, -(-stop // self.block)
        first, last = low * self.block, min(high * self.block, math.prod(self.shape))
        width = stored.tensors[self.parts[0]].dtype.itemsize
        codes = _bytes(stored, self.parts[0], first // 2, -(-last // 2), width)
        values = self._pairs[codes.int()].view(-1)[: last - first]
        scales = self._scales(stored, low, high)
        whole = (last - first) // self.block
        values[: whole * self.block].view(whole, self.block).mul_(scales[:whole, None])
        values[whole * self.block :].mul_(scales[whole:])
        out.copy_(values[start - first : stop - first])

    @property
    def piece(self) -> int:
        """See `Requantizable.piece`: whole blocks of scales that were quantized again."""
        least = self.block * (self.nested.block if self.nested else 1)
        return least * max(1, PIECE // least)

    def quantize(self, stored: Stored, start: int, values: Tensor, change: Tensor) -> Runs:
        """See `Requantizable.quantize`: a block's scale is its largest magnitude, a code the nearest one."""
        info = stored.tensors[self.parts[0]]
        count, low = len(values), start // self.block
        padded, changed = (
            torch.nn.functional.pad(t, (0, -count % self.block)).view(-1, self.block)
            for t in (values, (change != 0).float())
        )
        scales = padded.abs().amax(1)
        old_scales = stored.read(self.scales, low, low + len(scales))
        before_scales = self._scales(stored, low, low + len(scales))
        keep = changed.amax(1) == 0
        serves = keep | kept_scales(before_scales, scales, 0.8)
        scales = torch.where(serves, before_scales, scales)
        codes = nearest(padded / torch.where(scales > 0, scales, 1.0)[:, None], self.code).to(torch.uint8)
        runs: dict[str, tuple[int, Tensor]] = {}
        if self.nested is None:
            runs[self.scales] = (low, torch.where(serves, old_scales, scales.to(old_scales.dtype)))
        else:
            codes_of_scales, nested = self.nested.quantize(stored, low, scales, old_scales, serves)
            runs |= {self.scales: (low, codes_of_scales), self.nested.scales: (low // self.nested.block, nested)}
        packed = (codes.view(-1, 2)[:, 0] << 4) | codes.view(-1, 2)[:, 1]
        packed = packed[: -(-count // 2)]
        old = _bytes(stored, self.parts[0], start // 2, start // 2 + len(packed), info.dtype.itemsize)
        kept = keep.repeat_interleave(self.block // 2)[: len(packed)]
        size = info.dtype.itemsize
        runs[self.parts[0]] = (start // 2 // size, torch.where(kept, old, packed).view(info.dtype))
        return runs

    @property
    def _pairs(self) -> Tensor:
        """The two values of every byte: (256, 2)."""
        byte = torch.arange(256)
        return torch.stack([self.code[byte >> 4], self.code[byte & 15]], dim=1)

    def _scales(self, stored: Stored, low: int, high: int) -> Tensor:
        """The scales of blocks [low, high), float32."""
        found = stored.read(self.scales, low, high)
        return found.float() if self.nested is None else self.nested.values(stored, low, found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nested:
    """Scales that were quantized again: code · scale + offset.

    Attributes:
        block: Scales that share a scale.
        scales: The stored scales of the scales.
        code: The value of each code, float32.
        offset: What was subtracted from the scales.
    """

    block: int
    scales: str
    code: Tensor = dataclasses.field(compare=False)
    offset: float

    def values(self, stored: Stored, low: int, codes: Tensor) -> Tensor:
        """The scales from block `low` on."""
        index = torch.arange(low, low + codes.numel()) // self.block
        first = low // self.block
        scales = stored.read(self.scales, first, int(index[-1]) + 1).float()
        return self.code[codes.int()] * scales[index - first] + self.offset

    def quantize(self, stored: Stored, low: int, scales: Tensor, old: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales for the scales from block `low` on, with the offset as it is.

        Where the scale of the scales still covers them, it is kept, and with it the codes of blocks in `keep`.
        """
        count = len(scales)
        padded = torch.nn.functional.pad(scales - self.offset, (0, -count % self.block)).view(-1, self.block)
        largest = padded.abs().amax(1)
        stored_scales = stored.read(self.scales, low // self.block, low // self.block + len(largest))
        before = stored_scales.float()
        covers = kept_scales(before, largest, 0.5) | _every(keep, self.block)
        used = torch.where(covers, before, largest)
        codes = nearest(padded / torch.where(used > 0, used, 1.0)[:, None], self.code).view(-1)[:count]
        kept = keep & covers.repeat_interleave(self.block)[:count]
        new = torch.where(covers, stored_scales, largest.to(stored_scales.dtype))
        return torch.where(kept, old, codes.to(old.dtype)), new


def _every(flags: Tensor, size: int) -> Tensor:
    """Whether all flags of each group are set."""
    return torch.nn.functional.pad(flags, (0, -len(flags) % size), value=True).view(-1, size).all(1)


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """The index of the entry of a table that is nearest to each value."""
    ordered, index = table.sort()
    return index[torch.bucketize(values, (ordered[1:] + ordered[:-1]) / 2)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8(Requantizable):
    """An INT8 tensor of LLM.int8(): codes and the largest magnitude of every row."""

    format = "bitsandbytes INT8"

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`."""
        codes = stored.read(self.parts[0], first * self.columns, last * self.columns).view(-1, self.columns)
        scales = stored.read(self.parts[1], first, last).float()
        return codes.float().mul_(scales[:, None]).mul_(_INVERSE_127)

    @property
    def piece(self) -> int:
        """See `Requantizable.piece`: whole rows."""
        return whole_rows(self.columns)

    def quantize(self, stored: Stored, start: int, values: Tensor, change: Tensor) -> Runs:
        """See `Requantizable.quantize`: a row's scale is its largest magnitude."""
        rows = values.view(-1, self.columns)
        low = start // self.columns
        old = stored.read(self.parts[0], start, start + len(values)).view(rows.shape)
        scales = rows.abs().amax(1)
        old_scales = stored.read(self.parts[1], low, low + len(rows))
        serves = kept_scales(old_scales.float(), scales, 0.8)
        scales = torch.where(serves, old_scales.float(), scales)
        codes = (rows * (127.0 / torch.where(scales > 0, scales, 1.0))[:, None]).round_().clamp_(-127, 127)
        codes = codes.to(torch.int8)
        keep = (change == 0).view(rows.shape).all(1)
        return {
            self.parts[0]: (start, torch.where(keep[:, None], old, codes).view(-1)),
            self.parts[1]: (low, torch.where(keep | serves, old_scales, scales.to(old_scales.dtype))),
        }


def _bytes(stored: Stored, name: str, start: int, stop: int, width: int) -> Tensor:
    """Bytes [start, stop) of a tensor whose elements have `width` bytes."""
    low = start // width
    return stored.read(name, low, -(-stop // width)).view(torch.uint8)[start - low * width : stop - low * width]


def find(stored: Stored, config: Mapping[str, Any]) -> Iterator[FourBit | Int8]:
    """The bitsandbytes weights among stored tensors.

    Raises:
        ModelError: The parts of a weight are missing or do not fit each other.
    """
    for info in stored.tensors.values():
        name, mark, _ = info.name.partition(_STATE)
        if mark:
            yield _four_bit(stored, name, info)
        elif info.name.endswith(".SCB") or info.name == "SCB":
            yield _int8(stored, info, config)


def _int8(stored: Stored, scale: TensorInfo, config: Mapping[str, Any]) -> Int8:
    stem = scale.name.removesuffix("SCB")
    weight = stored.tensors.get(f"{stem}weight")
    if weight is None or weight.dtype != torch.int8 or len(weight.shape) != 2 or scale.numel != weight.shape[0]:
        raise malformed(scale, "has no INT8 weight of as many rows beside it")
    parts = [weight.name, scale.name, *(n for n in (f"{stem}weight_format",) if n in stored.tensors)]
    return Int8(name=weight.name, shape=weight.shape, dtype=compute_dtype(config, torch.float16), parts=tuple(parts))


def _four_bit(stored: Stored, name: str, info: TensorInfo) -> FourBit:
    """The tensor that a quantization state describes.

    Raises:
        ModelError: A part is missing, or the state is malformed.
    """
    state = _state(stored, info)
    tensors, nested = stored.tensors, "nested_offset" in state
    names = ("absmax", "quant_map", *(("nested_absmax", "nested_quant_map") if nested else ()))
    parts = {part: f"{name}.{part}" for part in names}
    missing = [part for part in (name, *parts.values()) if part not in tensors]
    if missing:
        raise malformed(info, f"has no {missing[0]} beside it")
    try:
        shape, block = tuple(int(n) for n in state["shape"]), int(state["blocksize"])
        dtype = _TYPES[state["dtype"]]
        nested_block, offset = int(state.get("nested_blocksize", 1)), float(state.get("nested_offset", 0))
        blocks = -(-math.prod(shape) // block)
        least = {
            "absmax": blocks,
            "quant_map": 16,
            "nested_absmax": -(-blocks // nested_block),
            "nested_quant_map": 256,
        }
        if not shape or min(*shape, block, nested_block) < 1 or block % 2 or not math.isfinite(offset):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise malformed(info, "is not a state of bitsandbytes") from None
    short = [part for key, part in parts.items() if tensors[part].numel < least[key]]
    if nested and tensors[parts["absmax"]].dtype != torch.uint8:
        raise malformed(tensors[parts["absmax"]], "has no codes of scales that were quantized again")
    if tensors[name].nbytes < -(-math.prod(shape) // 2):
        short.append(name)
    if short:
        raise malformed(tensors[short[0]], f"does not fit {name} of shape {list(shape)}")
    again = None
    if nested:
        code = stored.read(parts["nested_quant_map"]).float().clone()
        again = Nested(block=nested_block, scales=parts["nested_absmax"], code=code, offset=offset)
    return FourBit(
        name=name,
        shape=shape,
        dtype=dtype,
        parts=(name, *parts.values(), info.name),
        block=block,
        scales=parts["absmax"],
        code=stored.read(parts["quant_map"]).float().clone(),
        nested=again,
    )


def _state(stored: Stored, info: TensorInfo) -> dict[str, Any]:
    """The JSON in a quantization state."""
    if info.dtype != torch.uint8 or info.nbytes > _LONGEST_STATE:
        raise malformed(info, "is not a state of bitsandbytes")
    try:
        state = json.loads(bytes(stored.read(info.name).numpy()).decode("utf-8"))
    except (ValueError, RecursionError):
        raise malformed(info, "is not a state of bitsandbytes") from None
    if not isinstance(state, dict):
        raise malformed(info, "is not a state of bitsandbytes")
    return state
