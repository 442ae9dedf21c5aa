"""Which rows of which stored tensors make up each tensor of a GGUF file, and their values."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mooring.errors import ModelError
from mooring.models.checkpoint import Checkpoint, TensorFiles
from mooring.models.to_gguf.architectures import Architecture, Floats

SLICE = 2**22
"""Entries that are converted at a time."""

_FLOAT16_OVERFLOW = 65520.0
"""The smallest value that is rounded to infinity."""

_TEXT = re.compile(r"^(?:_orig_mod\.|module\.)*(?:model\.language_model\.|language_model\.model\.|model\.)")
_HEAD = re.compile(r"^(?:_orig_mod\.|module\.)*(?:language_model\.)?lm_head\.")
_OTHER_PARTS = re.compile(r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|mtp)\.")
_EXPERT = re.compile(r"(?P<stem>.+\.experts)\.(?P<number>\d+)\.(?P<name>\w+)(?P<weight>\.weight)")
_BUFFERS = ("rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Rows [first, last) of a stored tensor, whose last dimension is a row; a row of a vector is an entry."""

    name: str
    first: int
    last: int


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the file.

    Attributes:
        name: Its name in llama.cpp.
        shape: Its shape, as numpy orders it.
        parts: The rows that it is made of, in order.
        interleaved: How many rows a head has whose halves are interleaved; 0 if none are.
        shift: What is added to it.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Rows, ...]
    interleaved: int = 0
    shift: float = 0.0

    def blocks(self, files: TensorFiles) -> Iterator[Floats]:
        """Its values, some rows at a time."""
        width = self.shape[-1] if len(self.shape) > 1 else 1
        unit = self.interleaved or 1
        step = max(1, SLICE // (width * unit)) * unit
        for part in self.parts:
            for first in range(part.first, part.last, step):
                last = min(part.last, first + step)
                values = files.read(part.name, first * width, last * width).to(torch.float32).view(-1, width)
                if self.interleaved:
                    values = _interleave(values, self.interleaved)
                yield (values + self.shift if self.shift else values).numpy()


def _interleave(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of heads whose halves alternate: 0, size/2, 1, size/2 + 1, … as llama.cpp's adjacent pairs need it."""
    return rows.reshape(-1, 2, size // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def head_rows(found: Architecture, name: str, size: int) -> int:
    """The rows of a head if a stored tensor has to be interleaved, else 0."""
    projection = re.search(r"\.(q|k)_proj\.(weight|bias)$", name)
    return size if found.adjacent_pairs and projection else 0


class Names:
    """llama.cpp's names of an architecture's tensors."""

    def __init__(self, found: Architecture, layers: int) -> None:
        import gguf

        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == found.name)
        self._map = gguf.get_tensor_name_map(arch, layers)

    def of(self, name: str) -> str | None:
        """The name of a tensor of transformers; None if llama.cpp has no place for it."""
        found: str | None = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        return found


def plain_name(name: str) -> str | None:
    """A stored name as that of a text-only model: `model.layers.0…`, `lm_head.weight`; None for other parts."""
    if _OTHER_PARTS.search(name):
        return None
    if _HEAD.search(name):
        return _HEAD.sub("lm_head.", name)
    return _TEXT.sub("model.", name)


def targets(model: Checkpoint, found: Architecture, config: Any, size: int) -> tuple[list[Target], list[str]]:
    """The tensors of the file, and the stored ones that are left out because they are not part of the language model.

    Raises:
        ModelError: A tensor has no place in llama.cpp's architecture (`model.gguf_tensor`).
    """
    names = Names(found, int(config.num_hidden_layers))
    tied = bool(getattr(config, "tie_word_embeddings", False))
    made: list[Target] = []
    experts: dict[str, dict[int, str]] = {}
    left: list[str] = []
    for name, info in model.tensors.items():
        plain = plain_name(name)
        if plain is None or plain.endswith(_BUFFERS) or (tied and plain == "lm_head.weight"):
            if plain is None:
                left.append(name)
        elif match := _EXPERT.fullmatch(plain):
            key = f"{match['stem']}.{match['name']}{match['weight']}"
            experts.setdefault(key, {})[int(match["number"])] = name
        elif len(info.shape) == 3 and ".experts." in plain:
            made += _fused(model, names, plain, name)
        else:
            made.append(
                Target(
                    _named(model, names, plain, name),
                    info.shape,
                    _whole(info.name, info.shape),
                    interleaved=head_rows(found, plain, size),
                    shift=found.norm_shift if plain.endswith("norm.weight") else 0.0,
                )
            )
    made += [_stacked(model, names, key, numbered) for key, numbered in experts.items()]
    return made, left


def _whole(name: str, shape: tuple[int, ...]) -> tuple[Rows, ...]:
    """All rows of a tensor; each entry of a vector counts as one."""
    return (Rows(name, 0, math.prod(shape[:-1] or shape)),)


_EXPERT_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""Mixtral's names."""


def _expert_name(plain: str) -> str:
    """The name of a layer's experts, stacked, as the map of the gguf package has it."""
    stem, _, rest = plain.partition(".experts.")
    kind = rest.removesuffix(".weight")
    layer = re.match(r"model\.layers\.\d+", stem)
    prefix = layer[0] if layer else stem
    return f"{prefix}.mlp.experts.{_EXPERT_NAMES.get(kind, kind)}.weight"


def _stacked(model: Checkpoint, names: Names, key: str, numbered: Mapping[int, str]) -> Target:
    """The experts of a layer, stored one by one, as one tensor."""
    order = [numbered.get(number) for number in range(len(numbered))]
    first = model.tensors[next(iter(numbered.values()))]
    if None in order or any(model.tensors[str(name)].shape != first.shape for name in order):
        what = f"{model.folder}: the experts of {key} are not complete"
        raise ModelError(what, "fetch the model again", code="model.missing_tensor")
    parts = tuple(row for name in order for row in _whole(str(name), first.shape))
    return Target(_named(model, names, _expert_name(key), first.name), (len(order), *first.shape), parts)


def _fused(model: Checkpoint, names: Names, plain: str, name: str) -> list[Target]:
    """The experts of a layer that are stored as one tensor (experts, outputs, inputs), gate and up perhaps together."""
    experts, outputs, inputs = model.tensors[name].shape
    stem, _, kind = plain.rpartition(".")
    if kind != "gate_up_proj":
        shape = (experts, outputs, inputs)
        return [Target(_named(model, names, _expert_name(plain), name), shape, _whole(name, shape))]
    half = outputs // 2
    made = []
    for number, part in enumerate(("gate_proj", "up_proj")):
        rows = tuple(
            Rows(name, expert * outputs + number * half, expert * outputs + (number + 1) * half)
            for expert in range(experts)
        )
        target = _named(model, names, _expert_name(f"{stem}.{part}"), name)
        made.append(Target(target, (experts, half, inputs), rows))
    return made


def _named(model: Checkpoint, names: Names, plain: str, stored: str) -> str:
    if (found := names.of(plain)) is None:
        what = f"{model.folder}: llama.cpp has no place for {stored} in this architecture"
        raise ModelError(what, "use another engine for it", code="model.gguf_tensor")
    return found


def fits(values: Floats) -> bool:
    """Whether values stay finite in float16."""
    return bool(np.abs(values).max(initial=0.0) < _FLOAT16_OVERFLOW)
