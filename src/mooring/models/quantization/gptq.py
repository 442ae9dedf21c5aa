"""GPTQ (Frantar et al. 2022, arXiv:2210.17323), as GPTQModel and AutoGPTQ store it.

`qweight` (inputs · bits / 32, outputs) holds codes along the inputs in int32 words, lowest bits first; `qzeros`
(groups, outputs · bits / 32) holds zero points along the outputs, one less than they are unless `checkpoint_format`
is `gptq_v2`; `scales` (groups, outputs); `g_idx` is the group of each input. The tensor that they stand for is
transposed: (outputs, inputs), with values scale · (code − zero point) in the type of the scales.
Source: gptqmodel.nn_modules.qlinear (dequantize_weight).
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
"""A word of ones, by the bits of a code."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq(QuantizedTensor):
    """A GPTQ weight: (outputs, inputs). The parts begin with codes, zero points and scales.

    Attributes:
        bits: Bits of a code.
        groups: Number of groups.
        order: The stored group of each input, unless groups follow each other.
        added: What is added to each word of stored zero points.
    """

    format = "GPTQ"

    bits: int
    groups: int
    order: str | None
    added: int

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`."""
        outputs, per = self.shape[0], 32 // self.bits
        words = stored.cached(self.parts[0]).view(-1, outputs)[:, first:last].T.contiguous()
        codes = unpack(words, self.bits)
        low, high = first // per, -(-last // per)
        packed = stored.cached(self.parts[1]).view(self.groups, -1)[:, low:high].contiguous()
        zeros = unpack(packed + self.added, self.bits)[:, first - low * per : last - low * per].T
        scales = stored.cached(self.parts[2]).view(self.groups, outputs)[:, first:last].T.float()
        return _scaled(codes, zeros, scales, stored.cached(self.order) if self.order else None)


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
        ModelError: The parts of a weight do not fit each other, or the codes have 3 bits.
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
    bits = settings.get("bits")
    if type(bits) is not int or bits not in _ONES:
        raise unsupported(info.file, f"{info.name} is GPTQ of {bits!r} bits; 2, 4 and 8 are supported")
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
        added=0 if settings.get("checkpoint_format") == "gptq_v2" else _ONES[bits],
    )
