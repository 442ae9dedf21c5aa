"""Tied embeddings: which tensors are an embedding or an output head, and whether a model ties the two."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from mooring.models.classes import text_fields
from mooring.models.safetensors_file import TensorInfo

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""What the name of a token embedding ends in."""
HEADS = ("lm_head.weight", "embed_out.weight")
"""What the name of an output head ends in."""
_VOCABULARY = (*HEADS, *EMBEDDINGS, "lm_head.bias")
_HAS_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_PIECE = 2**20
"""Entries that are compared at a time."""


class Tensors(Protocol):
    """Tensors that can be read a slice at a time: a checkpoint or the files of an adapter."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name to place."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None, *, out: Tensor | None = None) -> Tensor:
        """Elements [start, stop) of a tensor, flattened."""
        ...


class Model(Tensors, Protocol):
    """Tensors with a configuration."""

    config: dict[str, Any]


def is_head(name: str) -> bool:
    """Whether a tensor is an output head, by its name."""
    return name.endswith(HEADS)


def has_vocabulary_rows(name: str) -> bool:
    """Whether a tensor has one row per token, by its name."""
    return name.endswith(_VOCABULARY)


def equal(files: Tensors, one: str, other: str) -> bool:
    """Whether two tensors of a model are equal, byte by byte."""
    a, b = files.tensors[one], files.tensors[other]
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    pieces = ((start, min(start + _PIECE, a.numel)) for start in range(0, a.numel, _PIECE))
    return all(
        torch.equal(files.read(one, *piece).view(torch.uint8), files.read(other, *piece).view(torch.uint8))
        for piece in pieces
    )


def embedding_of(model: Tensors, head: str) -> str | None:
    """The embedding that a stored head equals byte by byte; None if there is none, or it is not a head."""
    embeddings = [name for name in model.tensors if name.endswith(EMBEDDINGS)]
    if not is_head(head) or len(embeddings) != 1 or not equal(model, head, embeddings[0]):
        return None
    return embeddings[0]


def ties(model: Model) -> bool:
    """Whether a model's configuration ties head and embedding.

    Not every configuration writes the default down: without a value, a model that has a head but does not store one
    ties it.
    """
    tied = model.config.get("tie_word_embeddings", text_fields(model.config).get("tie_word_embeddings"))
    if tied is None:
        architectures = model.config.get("architectures") or []
        stored = any(is_head(name) for name in model.tensors)
        return not stored and any(str(name).endswith(_HAS_HEAD) for name in architectures)
    return bool(tied)


def tied_pair(model: Model, others: Iterable[str] = ()) -> tuple[str, str] | None:
    """Head and embedding that a model ties; None if it does not. It may not store the head.

    `others` are more names that may be the head's, such as those of the tensors that an adapter changes.
    """
    embeddings = [name for name in model.tensors if name.endswith(EMBEDDINGS)]
    if len(embeddings) != 1:
        return None
    default = "embed_out.weight" if embeddings[0].endswith("embed_in.weight") else "lm_head.weight"
    heads = list(dict.fromkeys(name for name in (*model.tensors, *others) if is_head(name))) or [default]
    if len(heads) != 1 or not ties(model):
        return None
    head, embedding = heads[0], embeddings[0]
    return (head, embedding) if head not in model.tensors or equal(model, head, embedding) else None
