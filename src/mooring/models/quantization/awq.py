"""AWQ (Lin et al. 2023, arXiv:2306.00978), as AutoAWQ's `gemm` version stores it.

`qweight` (inputs, outputs / 8) holds codes of 4 bits along the outputs in int32 words, in the order 0, 2, 4, 6, 1, 3,
5, 7 from the lowest bits; `qzeros` (groups, outputs / 8) the same way; `scales` (groups, outputs). The tensor that they
stand for is transposed: (outputs, inputs), with values (code − zero point) · scale in the type of the scales.
Source: awq.utils.packing_utils.dequantize_gemm.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mooring.models.quantization.tensor import QuantizedTensor, Stored, malformed, unsupported

_SHIFTS = 4 * torch.tensor([0, 4, 1, 5, 2, 6, 3, 7], dtype=torch.int32)
"""Where the code of each of a word's outputs begins."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Awq(QuantizedTensor):
    """An AWQ weight: (outputs, inputs). The parts are codes, zero points and scales.

    Attributes:
        groups: Number of groups of inputs that share a scale.
    """

    format = "AWQ"

    groups: int

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`."""
        outputs, inputs = self.shape
        low, high = first // 8, -(-last // 8)
        codes, zeros = (
            _unpack(stored.cached(part).view(height, outputs // 8)[:, low:high])[
                first - 8 * low : last - 8 * low
            ].contiguous()
            for part, height in ((self.parts[0], inputs), (self.parts[1], self.groups))
        )
        scales = stored.cached(self.parts[2]).view(self.groups, outputs)[:, first:last].T.float()
        blocks = codes.view(last - first, self.groups, -1)
        return (blocks - zeros[..., None]).float().mul_(scales[..., None]).view(last - first, inputs)


def _unpack(words: Tensor) -> Tensor:
    """The codes of words along the outputs, transposed: (8 · words, height)."""
    return ((words.T[:, None] >> _SHIFTS[:, None]) & 15).flatten(0, 1)


def find(stored: Stored, settings: Mapping[str, Any]) -> Iterator[Awq]:
    """The AWQ weights among stored tensors.

    Args:
        stored: The tensors of a model.
        settings: Its `quantization_config`.

    Raises:
        ModelError: The parts of a weight do not fit each other, or it is another version of AWQ.
    """
    tensors = stored.tensors
    for info in tensors.values():
        stem, _, part = info.name.rpartition(".")
        if part != "qweight" or info.dtype != torch.int32:
            continue
        version = str(settings.get("version", settings.get("format", "gemm"))).lower()
        if version != "gemm" or settings.get("bits", 4) != 4:
            raise unsupported(info.file, f"{info.name} is AWQ of version {version[:40]!a}; gemm of 4 bits is supported")
        zeros, scales = (tensors.get(f"{stem}.{part}") for part in ("qzeros", "scales"))
        if zeros is None or scales is None or [len(i.shape) for i in (info, zeros, scales)] != [2, 2, 2]:
            raise malformed(info, "has no qzeros and scales beside it")
        inputs, outputs, groups = info.shape[0], 8 * info.shape[1], scales.shape[0]
        fits = zeros.shape == (groups, outputs // 8) and scales.shape == (groups, outputs)
        if (
            not fits
            or not groups
            or inputs % groups
            or not scales.dtype.is_floating_point
            or zeros.dtype != torch.int32
        ):
            raise malformed(info, "does not fit its qzeros and scales")
        yield Awq(
            name=f"{stem}.weight",
            shape=(outputs, inputs),
            dtype=scales.dtype,
            parts=(info.name, zeros.name, scales.name),
            groups=groups,
        )
