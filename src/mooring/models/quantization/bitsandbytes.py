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

from mooring.models.quantization.tensor import QuantizedTensor, Stored, compute_dtype, malformed
from mooring.models.safetensors_file import TensorInfo

_STATE = ".quant_state.bitsandbytes__"
_LONGEST_STATE = 2**16
"""Bytes."""
_INVERSE_127 = 7.874015748031496e-3
"""1 / 127, as bitsandbytes writes it."""
_TYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FourBit(QuantizedTensor):
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8(QuantizedTensor):
    """An INT8 tensor of LLM.int8(): codes and the largest magnitude of every row."""

    format = "bitsandbytes INT8"

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`."""
        codes = stored.read(self.parts[0], first * self.columns, last * self.columns).view(-1, self.columns)
        scales = stored.read(self.parts[1], first, last).float()
        return codes.float().mul_(scales[:, None]).mul_(_INVERSE_127)


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
