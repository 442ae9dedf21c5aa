"""MXFP4 experts as gpt-oss stores them: `…_blocks` (experts, outputs, groups, 16 bytes) and `…_scales` (…, groups).

A byte holds two codes (E2M1), low nibble first; 32 entries share a scale, an exponent of 2 with a bias of 127. The
tensor that they stand for is transposed: (experts, inputs, outputs).
Source: transformers.integrations.mxfp4.convert_moe_packed_tensors.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mooring.models.quantization.float4 import E2M1
from mooring.models.quantization.float8 import as_scales
from mooring.models.quantization.tensor import Requantizable, Runs, Stored, compute_dtype, malformed

GROUP = 32
"""Entries that share a scale."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mxfp4Experts(Requantizable):
    """The weights of all experts: (experts, inputs, outputs). The parts are blocks and scales."""

    format = "MXFP4"

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`: a row is one input of one expert."""
        height = self.shape[1]
        found = []
        while first < last:
            expert, row = divmod(first, height)
            stop = min(height, row + last - first)
            found.append(self._inputs(stored, expert, row, stop))
            first += stop - row
        return found[0] if len(found) == 1 else torch.cat(found)

    def _inputs(self, stored: Stored, expert: int, first: int, last: int) -> Tensor:
        """Inputs [first, last) of an expert: (last − first, outputs)."""
        inputs, outputs = self.shape[1:]
        size, groups = outputs * inputs // 2, outputs * inputs // GROUP
        codes = stored.cached(self.parts[0], expert * size, (expert + 1) * size).view(outputs, inputs // 2)
        scales = stored.cached(self.parts[1], expert * groups, (expert + 1) * groups).view(outputs, inputs // GROUP)
        low, high = first // 2, -(-last // 2)
        pairs = codes[:, low:high].T.contiguous()
        codes = torch.stack([pairs & 15, pairs >> 4], dim=1).view(-1, outputs)[first - 2 * low : last - 2 * low]
        group = torch.arange(first, last) // GROUP
        lowest = int(group[0])
        powers = as_scales(scales[:, lowest : int(group[-1]) + 1].T.contiguous(), powers=True)
        return E2M1[codes.int()].mul_(powers[group - lowest])

    @property
    def piece(self) -> int:
        """See `Requantizable.piece`: an expert."""
        return self.shape[1] * self.shape[2]

    def quantize(self, stored: Stored, start: int, values: Tensor, change: Tensor) -> Runs:
        """See `Requantizable.quantize`: the scale is the least power of 2 that no entry exceeds six times (the largest
        code), as in the Triton kernels that gpt-oss is quantized with."""
        inputs, outputs = self.shape[1:]
        expert, groups = start // self.piece, outputs * inputs // GROUP
        now, changed = (t.view(inputs, outputs).T.reshape(groups, GROUP) for t in (values, (change != 0).float()))
        exponent = (now.abs().amax(1) / 6).clamp(min=2.0**-127).log2().ceil().add_(127).clamp_(0, 254)
        codes = to_e2m1(now / (exponent - 127).exp2()[:, None])
        packed = codes[:, ::2] | (codes[:, 1::2] << 4)
        keep = changed.amax(1) == 0
        old = stored.read(self.parts[0], expert * self.piece // 2, (expert + 1) * self.piece // 2).view(packed.shape)
        scales = stored.read(self.parts[1], expert * groups, (expert + 1) * groups)
        return {
            self.parts[0]: (expert * self.piece // 2, torch.where(keep[:, None], old, packed).view(-1)),
            self.parts[1]: (expert * groups, torch.where(keep, scales, exponent.to(torch.uint8))),
        }


_BETWEEN = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
_BETWEEN[1::2] = torch.nextafter(_BETWEEN[1::2], torch.tensor(0.0))
"""Where the magnitude of one code ends and the next begins; a value in the middle goes to the even code."""


def to_e2m1(values: Tensor) -> Tensor:
    """The nearest FP4 codes: uint8."""
    return (torch.bucketize(values.abs(), _BETWEEN) + 8 * values.signbit()).to(torch.uint8)


def find(stored: Stored, config: Mapping[str, Any]) -> Iterator[Mxfp4Experts]:
    """The MXFP4 experts among stored tensors.

    Raises:
        ModelError: Scales do not fit their blocks.
    """
    for blocks in stored.tensors.values():
        name = blocks.name.removesuffix("_blocks")
        scales = stored.tensors.get(f"{name}_scales")
        if name == blocks.name or scales is None or blocks.dtype != torch.uint8:
            continue
        if len(blocks.shape) != 4 or blocks.shape[-1] != GROUP // 2 or scales.shape != blocks.shape[:-1]:
            raise malformed(scales, f"does not fit {blocks.name}, of shape {list(blocks.shape)}")
        if scales.dtype != torch.uint8:
            raise malformed(scales, "is not a scale")
        experts, outputs, groups, _ = blocks.shape
        yield Mxfp4Experts(
            name=name,
            shape=(experts, groups * GROUP, outputs),
            dtype=compute_dtype(config),
            parts=(blocks.name, scales.name),
        )
