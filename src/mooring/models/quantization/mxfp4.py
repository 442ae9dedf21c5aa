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
from mooring.models.quantization.tensor import QuantizedTensor, Stored, compute_dtype, malformed

GROUP = 32
"""Entries that share a scale."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mxfp4Experts(QuantizedTensor):
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
