"""GPTQ (Frantar et al. 2022, arXiv:2210.17323), as GPTQModel and AutoGPTQ store it.

`qweight` (inputs · bits / 32, outputs) holds codes along the inputs in int32 words, lowest bits first; `qzeros`
(groups, outputs · bits / 32) holds zero points along the outputs, one less than they are unless `checkpoint_format`
is `gptq_v2`; `scales` (groups, outputs); `g_idx` is the group of each input. The tensor that they stand for is
transposed: (outputs, inputs), with values scale · (code − zero point) in the type of the scales. Codes of 3 bits run on
from one word to the next, 32 of them in three words. In the format `gptq_p`, and always with 5, 6 and 7 bits, 32 codes
are cut into planes of 4, 2 or 1 bits instead, whose words follow each other, and zero points are what they are.
Source: gptqmodel.nn_modules.qlinear (dequantize_weight), gptqmodel.utils.planar_packing.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mooring.models.quantization.packed_int import unpack
from mooring.models.quantization.tensor import QuantizedTensor, Stored, malformed, unsupported
from mooring.models.safetensors_file import TensorInfo

_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""A word of ones, by the bits of a code, where codes do not run on from one word to the next."""
_PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Widths of the planes of a code, from its lowest bits, by the bits of a code."""
_CODES = 32
"""Codes in `bits` words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq(QuantizedTensor):
    """A GPTQ weight: (outputs, inputs). The parts begin with codes, zero points and scales.

    Attributes:
        bits: Bits of a code.
        groups: Number of groups.
        order: The stored group of each input, unless groups follow each other.
        planar: Whether codes are cut into planes.
        one_less: Whether stored zero points are one less than they are.
    """

    format = "GPTQ"

    bits: int
    groups: int
    order: str | None
    planar: bool
    one_less: bool

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`."""
        outputs = self.shape[0]
        words = stored.cached(self.parts[0]).view(-1, outputs)[:, first:last].T.contiguous()
        codes = self._unpack(words)
        low, high = first // _CODES, -(-last // _CODES)
        packed = stored.cached(self.parts[1]).view(self.groups, -1)[:, low * self.bits : high * self.bits].contiguous()
        zeros = self._zeros(packed)[:, first - low * _CODES : last - low * _CODES].T
        scales = stored.cached(self.parts[2]).view(self.groups, outputs)[:, first:last].T.float()
        return _scaled(codes, zeros, scales, stored.cached(self.order) if self.order else None)

    def _unpack(self, words: Tensor) -> Tensor:
        """The codes in words along the last axis: int32."""
        if self.planar:
            return _planar(words, self.bits)
        return unpack(words, self.bits) if self.bits in _ONES else _continued(words, self.bits)

    def _zeros(self, packed: Tensor) -> Tensor:
        """Zero points. One is added to whole words, as the library does, where it takes one from whole words."""
        if not self.one_less:
            return self._unpack(packed)
        if self.bits in _ONES:
            return self._unpack(packed + _ONES[self.bits])
        return (self._unpack(packed) + 1) & ((1 << self.bits) - 1)


def _continued(words: Tensor, bits: int) -> Tensor:
    """Codes that run on from one word to the next: 32 in `bits` words."""
    bit = torch.arange(0, _CODES * bits, bits)
    word, shift = bit // 32, bit % 32
    runs = words.view(*words.shape[:-1], -1, bits).long() & 0xFFFFFFFF
    pair = runs[..., word] | (runs[..., (word + 1).clamp(max=bits - 1)] << 32)
    codes: Tensor = (pair >> shift) & ((1 << bits) - 1)
    return codes.int().flatten(-2)


def _planar(words: Tensor, bits: int) -> Tensor:
    """Codes in planes: those of 32 codes are in `bits` words, the plane of the lowest bits first."""
    runs = words.view(*words.shape[:-1], -1, bits)
    codes, below = torch.zeros((), dtype=torch.int32), 0
    for width in _PLANES[bits]:
        codes = codes | (unpack(runs[..., below : below + width], width) << below)
        below += width
    return codes.flatten(-2)


def _scaled(codes: Tensor, zeros: Tensor, scales: Tensor, order: Tensor | None) -> Tensor:
    """(code − zero point) · scale in float32, which is exact before it is rounded to the type of a 16-bit scale."""
    if order is not None:
        group = order.long()
        return (codes - zeros[:, group]).float().mul_(scales[:, group])
    blocks = codes.view(*scales.shape, -1)
    return (blocks - zeros[..., None]).float().mul_(scales[..., None]).view(codes.shape)


def find(stored: Stored, settings: Mapping[str, Any]) -> Iterator[Gptq]:
    """The GPTQ weights among stored tensors.

    Args:
        stored: The tensors of a model.
        settings: Its `quantization_config`.

    Raises:
        ModelError: The parts of a weight do not fit each other, or no format has so many bits.
    """
    for info in stored.tensors.values():
        stem, _, part = info.name.rpartition(".")
        if part == "qweight" and info.dtype == torch.int32:
            yield _tensor(stored, info, f"{stem}." if stem else "", settings)


def _tensor(stored: Stored, info: TensorInfo, stem: str, settings: Mapping[str, Any]) -> Gptq:
    tensors = stored.tensors
    zeros, scales, order = (tensors.get(f"{stem}{part}") for part in ("qzeros", "scales", "g_idx"))
    if zeros is None or scales is None or [len(i.shape) for i in (info, zeros, scales)] != [2, 2, 2]:
        raise malformed(info, "has no qzeros and scales beside it")
    words, outputs = info.shape
    groups = scales.shape[0]
    bits = settings.get("bits") if order is None or not order.numel else words * 32 / order.numel
    if not isinstance(bits, int | float) or bits not in _PLANES:
        raise unsupported(info.file, f"{info.name} is GPTQ of {bits!r} bits; 2 to 8 are supported")
    bits = int(bits)
    form = settings.get("checkpoint_format") or settings.get("format")
    planar = form == "gptq_p" or bits in (5, 6, 7)
    if (planar or bits not in _ONES) and (words % bits or outputs % _CODES):
        raise malformed(info, f"does not hold codes of {bits} bits in whole runs of {_CODES}")
    inputs = words * 32 // bits
    fits = zeros.shape == (groups, -(-outputs * bits // 32)) and scales.shape == (groups, outputs)
    if not fits or not groups or not scales.dtype.is_floating_point or zeros.dtype != torch.int32:
        raise malformed(info, "does not fit its qzeros and scales")
    reordered = None
    if order is not None:
        index = stored.read(order.name)
        if order.dtype != torch.int32 or index.numel() != inputs or int(index.min()) < 0 or int(index.max()) >= groups:
            raise malformed(order, f"does not give each of {inputs} inputs one of {groups} groups")
        following = torch.arange(inputs) // max(1, inputs // groups)
        reordered = None if inputs % groups == 0 and torch.equal(index.long(), following) else order.name
    if reordered is None and inputs % groups:
        raise malformed(scales, f"does not divide {inputs} inputs into groups")
    return Gptq(
        name=f"{stem}weight",
        shape=(outputs, inputs),
        dtype=scales.dtype,
        parts=(info.name, zeros.name, scales.name, *(() if order is None else (order.name,))),
        bits=bits,
        groups=groups,
        order=reordered,
        planar=planar,
        one_less=not planar and form != "gptq_v2",
    )
