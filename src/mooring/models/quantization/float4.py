"""FP4 weights (E2M1, two per byte along the rows) with a scale per group of a row.

- NVFP4: a group of 16, scales in FP8, and one scale for the whole tensor, as compressed-tensors stores it
  (`weight_packed`, `weight_scale`, `weight_global_scale`, which divides) or ModelOpt (`weight`, `weight_scale`,
  `weight_scale_2`, which multiplies);
- MXFP4 of compressed-tensors: a group of 32, scales as exponents of 2.

Sources: compressed_tensors.compressors.nvfp4 and mxfp4; modelopt.torch.quantization.qtensor.nvfp4_tensor. The codes are
those of the OCP Microscaling Formats specification 1.0, low nibble first.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mooring.models.quantization.float8 import as_scales
from mooring.models.quantization.tensor import QuantizedTensor, Stored, compute_dtype, malformed

E2M1 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The value of each code."""
_BESIDE = ("input_global_scale", "input_scale", "weight_zero_point", "weight_shape", "output_scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float4(QuantizedTensor):
    """An FP4 tensor.

    Attributes:
        group: Entries of a row that share a scale.
        powers: Whether scales are exponents of 2.
        whole: How the scale of the whole tensor, the third part, applies to the others; "no" if there is none.
        rounded: A type that values are rounded to before `dtype`.
    """

    format = "FP4"

    group: int
    powers: bool
    whole: Literal["divides", "multiplies", "no"]
    rounded: torch.dtype

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """See `QuantizedTensor.rows`."""
        width, groups = self.columns // 2, self.columns // self.group
        codes = stored.read(self.parts[0], first * width, last * width)
        scales = as_scales(stored.read(self.parts[1], first * groups, last * groups), powers=self.powers)
        if self.whole == "divides":
            scales = scales / stored.read(self.parts[2]).float()
        elif self.whole == "multiplies":
            scales = scales * stored.read(self.parts[2]).float()
        values = unpack(codes).view(-1, self.group).mul_(scales.view(-1, 1))
        return values.to(self.rounded).view(last - first, self.columns)


def unpack(codes: Tensor) -> Tensor:
    """The values of bytes of two FP4 codes each, flattened, in float32."""
    return _pairs()[codes.reshape(-1).view(torch.uint8).int()].view(-1)


_PAIRS: list[Tensor] = []


def _pairs() -> Tensor:
    """The two values of every byte: (256, 2)."""
    if not _PAIRS:
        byte = torch.arange(256)
        _PAIRS.append(torch.stack([E2M1[byte & 15], E2M1[byte >> 4]], dim=1))
    return _PAIRS[0]


def find(stored: Stored, config: Mapping[str, Any]) -> Iterator[Float4]:
    """The FP4 weights among stored tensors.

    Raises:
        ModelError: A scale does not fit its weight.
    """
    tensors = stored.tensors
    for info in tensors.values():
        stem, _, part = info.name.rpartition(".")
        scale = tensors.get(f"{stem}.weight_scale")
        packed = part == "weight_packed" or (part == "weight" and f"{stem}.weight_scale_2" in tensors)
        if info.dtype != torch.uint8 or len(info.shape) < 2 or not packed or not scale:
            continue
        shape = (*info.shape[:-1], 2 * info.shape[-1])
        powers = scale.dtype in (torch.uint8, getattr(torch, "float8_e8m0fnu", None))
        whole: Literal["divides", "multiplies", "no"] = "no"
        parts = [info.name, scale.name]
        for name, how in ((f"{stem}.weight_global_scale", "divides"), (f"{stem}.weight_scale_2", "multiplies")):
            if name in tensors and tensors[name].numel == 1:
                whole = how  # type: ignore[assignment]
                parts.append(name)
        if scale.shape[:-1] != info.shape[:-1] or not scale.numel or shape[-1] % scale.shape[-1]:
            raise malformed(scale, f"is not the scale of {info.name}, of shape {list(info.shape)}")
        parts += [name for beside in _BESIDE if (name := f"{stem}.{beside}") in tensors]
        yield Float4(
            name=f"{stem}.weight",
            shape=shape,
            dtype=compute_dtype(config),
            parts=tuple(parts),
            group=shape[-1] // scale.shape[-1],
            powers=powers,
            whole=whole,
            rounded=torch.bfloat16,
        )
