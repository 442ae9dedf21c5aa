"""compressed-tensors' packed integers: `weight_packed` (INT4, also 2 and 8 bits) with scales per group, row or tensor.

int32 words hold 32 / bits entries of a row, the first in the lowest bits, plus 2^(bits−1); zero points are packed the
same way, along the rows. A value is (code − zero point) · scale, in the type of the scale; `weight_g_idx` gives the
group of each column if they were reordered.
Source: compressed_tensors.compressors.pack_quantized.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mooring.models.quantization.tensor import QuantizedTensor, Stored, compute_dtype, malformed, unsupported

_INTEGERS = (torch.int32, torch.int64)
_BESIDE = ("weight_shape", "input_scale", "output_scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedInt(QuantizedTensor):
    """A tensor of packed integers. The parts begin with codes and scales.

    Attributes:
        bits: Bits of a code.
        words: int32 words in a row.
        grid: How many scales there are along rows and columns; 1 along the rows if all share them.
        zero: The stored zero points, if there are any.
        order: The stored group of each column, if columns were reordered.
        kind: The type of the scales.
    """

    format = "packed integers"

    bits: int
    words: int
    grid: tuple[int, int]
    zero: str | None
    order: str | None
    kind: torch.dtype

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`."""
        count, offset = last - first, 1 << (self.bits - 1)
        packed = stored.read(self.parts[0], first * self.words, last * self.words).view(count, self.words)
        codes = (unpack(packed, self.bits)[:, : self.columns] - offset).to(self.kind).contiguous()
        shared = self.grid[0] == 1
        across = self.grid[1]
        low, high = (0, 1) if shared else (first, last)
        scales = stored.read(self.parts[1], low * across, high * across).view(-1, across)
        zeros = None
        if self.zero is not None:
            zeros = (self._zeros(stored, low, high) - offset).to(self.kind)
        return self._scaled(stored, codes, scales, zeros)

    def _zeros(self, stored: Stored, low: int, high: int) -> Tensor:
        """Zero points of rows [low, high), packed along the rows."""
        assert self.zero is not None
        per, across = 32 // self.bits, self.grid[1]
        top, bottom = low // per, -(-high // per)
        packed = stored.read(self.zero, top * across, bottom * across).view(-1, across)
        return unpack(packed.T.contiguous(), self.bits).T[low - top * per : high - top * per]

    def _scaled(self, stored: Stored, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
        if self.order is not None:
            group = stored.cached(self.order).long()
            scales, zeros = scales[:, group], None if zeros is None else zeros[:, group]
            return (codes if zeros is None else codes - zeros) * scales
        blocks = codes.view(len(codes), self.grid[1], -1)
        if zeros is not None:
            blocks = blocks - zeros[..., None]
        return (blocks * scales[..., None]).view(codes.shape)


def _reordered(stored: Stored, order: str, columns: int, groups: int) -> str | None:
    """The stored group of each column, or None if it was never set."""
    index = stored.read(order)
    if index.dtype not in _INTEGERS:
        raise malformed(stored.tensors[order], "is not the group of each column")
    if index.numel() == columns and int(index.min()) < 0:
        return None
    if index.numel() != columns or int(index.max()) >= groups:
        raise malformed(stored.tensors[order], f"does not give each of {columns} columns one of {groups} groups")
    return order


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes in int32 words, along the last axis, the first in the lowest bits: int32."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)


def find(stored: Stored, config: Mapping[str, Any]) -> Iterator[PackedInt]:
    """The packed integers among stored tensors.

    Raises:
        ModelError: The parts do not fit each other, or the codes have another number of bits.
    """
    tensors = stored.tensors
    for info in tensors.values():
        stem, _, part = info.name.rpartition(".")
        scale, size = tensors.get(f"{stem}.weight_scale"), tensors.get(f"{stem}.weight_shape")
        if part != "weight_packed" or info.dtype != torch.int32:
            continue
        if scale is None or size is None or size.numel != 2 or size.dtype not in _INTEGERS or len(info.shape) != 2:
            raise malformed(info, "has no weight_scale and weight_shape beside it, or is no matrix")
        rows, columns = (int(n) for n in stored.read(size.name))
        words = info.shape[1]
        bits = next((b for b in (4, 8, 2) if rows == info.shape[0] and -(-columns * b // 32) == words), None)
        if bits is None:
            raise unsupported(info.file, f"{info.name} has codes of neither 2, 4 nor 8 bits")
        grid = (scale.shape[0], scale.shape[1]) if len(scale.shape) == 2 else (scale.numel, 1)
        if grid[0] not in (1, rows) or not grid[1] or columns % grid[1]:
            raise malformed(scale, f"is not the scale of {info.name}, of shape {[rows, columns]}")
        zero, order = (n if (n := f"{stem}.{p}") in tensors else None for p in ("weight_zero_point", "weight_g_idx"))
        if zero and tensors[zero].shape != (-(-grid[0] * bits // 32), grid[1]):
            raise malformed(tensors[zero], f"is not the zero point of {info.name}")
        order = _reordered(stored, order, columns, grid[1]) if order else None
        others = (f"{stem}.{p}" for p in ("weight_zero_point", "weight_g_idx", *_BESIDE))
        yield PackedInt(
            name=f"{stem}.weight",
            shape=(rows, columns),
            dtype=compute_dtype(config),
            parts=(info.name, scale.name, *(name for name in others if name in tensors)),
            bits=bits,
            words=words,
            grid=grid,
            zero=zero,
            order=order,
            kind=scale.dtype,
        )
