"""Lay an adapter's changes on its base: names, shapes, which way a weight lies, and what a tied head becomes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mooring.checkpoint.lora_parts import Change
from mooring.checkpoint.reader import Checkpoint, TensorFiles
from mooring.errors import MismatchError

_HEADS = ("lm_head.weight",)
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_VOCABULARY = (*_HEADS, *_EMBEDDINGS, "embed_out.weight", "lm_head.bias")
_HAS_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_PIECE = 2**20
"""Elements that are compared at a time."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A change, laid on a base.

    Attributes:
        change: What the adapter says.
        base: The base's tensor whose values it starts from.
        shape: Of the tuned tensor.
        transposed: Whether the weight is stored (inputs, outputs), so that its change is (B·A)ᵀ.
    """

    change: Change
    base: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """An adapter's changes, laid on a base.

    Attributes:
        bound: Name of a tensor of the tuned model to its change; the base's names, and a head that parts from it.
        sources: Name that the adapter gives a tensor to the base's tensor that holds its values before tuning.
        unties: Name of a head that the output must store, and the base does not, to the tensor with its base values.
        parts: Whether head and embedding, tied in the base, differ in the tuned model.
    """

    bound: Mapping[str, Bound]
    sources: Mapping[str, str]
    unties: Mapping[str, str]
    parts: bool


def fit(
    folder: Path, config: Mapping[str, Any], files: TensorFiles, changes: Mapping[str, Change], base: Checkpoint
) -> Fit:
    """Lay changes on a base, as PEFT's forward pass does.

    Raises:
        MismatchError: The base has not what they change, or not in that shape, or they contradict each other.
    """
    named = config.get("base_model_name_or_path")
    hint = f" (it names {named} as its base)" if named else ""
    mend = "name the model that the adapter was tuned from"
    sources = {name: _resolve(name, base) for name in changes}
    ours = {sources[name]: change for name, change in changes.items()}
    tie = _tie(ours, base)
    unties: dict[str, str] = {}
    parts = False
    if tie is not None:
        head, embedding = tie
        pair, parts = _part(folder, files, ours.get(head), ours.get(embedding))
        ours = {name: change for name, change in ours.items() if name not in tie}
        ours |= {name: change for name, change in zip((head, embedding), pair, strict=True) if change is not None}
        if not parts and head not in base.tensors:
            ours.pop(head, None)
        if parts and head not in base.tensors:
            unties[head] = embedding
        sources |= {name: embedding for name in changes if sources[name] == head and head not in base.tensors}
    lies = _square_lies_transposed(config, files, ours, base)
    bound = {}
    for name, change in ours.items():
        source = unties.get(name, name)
        if source not in base.tensors:
            raise MismatchError(f"{folder}: changes {name}, which {base.folder} does not have{hint}", mend)
        info = base.tensors[source]
        if not info.dtype.is_floating_point:
            raise MismatchError(f"{folder}: changes {name}, which is {info.dtype} in {base.folder}", mend)
        fitted = _shape(files, change, info.shape, name, lies)
        if isinstance(fitted, list):
            what = f"{folder}: changes {name} of shape {fitted}, which is {list(info.shape)} in {base.folder}{hint}"
            raise MismatchError(what, mend)
        bound[name] = Bound(change=change, base=source, shape=fitted[0], transposed=fitted[1])
    return Fit(bound=bound, sources=sources, unties=unties, parts=parts)


def _resolve(name: str, base: Checkpoint) -> str:
    """The base's name of a tensor: a first component (`transformer.`, `model.`) may be on one side alone."""
    if name in base.tensors:
        return name
    if (shorter := name.partition(".")[2]) in base.tensors:
        return shorter
    longer = [other for other in base.tensors if other.partition(".")[2] == name]
    return longer[0] if len(longer) == 1 else name


def _tie(changes: Mapping[str, Change], base: Checkpoint) -> tuple[str, str] | None:
    """Head and embedding that the base ties, where the adapter changes one of them; else None."""
    embeddings = [name for name in base.tensors if name.endswith(_EMBEDDINGS)]
    heads = [name for name in {**base.tensors, **changes} if name.endswith(_HEADS)] or [_HEADS[0]]
    if len(embeddings) != 1 or len(heads) != 1 or not {heads[0], embeddings[0]} & changes.keys():
        return None
    head, embedding = heads[0], embeddings[0]
    text = base.config.get("text_config")
    nested = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    tied = base.config.get("tie_word_embeddings", nested)
    if tied is None:  # not every configuration writes a default down
        architectures = base.config.get("architectures") or []
        tied = head not in base.tensors and any(str(name).endswith(_HAS_HEAD) for name in architectures)
    if not tied or (head in base.tensors and not _equal(base, head, embedding)):
        return None
    return head, embedding


def _part(
    folder: Path, files: TensorFiles, head: Change | None, embedding: Change | None
) -> tuple[tuple[Change | None, Change | None], bool]:
    """What becomes of a tied head and its embedding, and whether they part.

    A base weight that PEFT saved with the adapter is loaded into what both share; LoRA and `modules_to_save` are a
    module's own, so that PEFT's forward pass parts the two (its merge would add the change to both).

    Raises:
        MismatchError: Two base weights were saved, and they differ.
    """
    shared = [c.stored for c in (embedding, head) if c is not None and c.stored is not None and not c.alone]
    if len(shared) == 2 and not _equal(files, *shared):
        what = f"{folder}: holds different values for the embedding and the head, which its base ties"
        raise MismatchError(what, "save it again with the two in modules_to_save")
    if shared:
        embedding, head = (
            c if c is not None and c.alone else dataclasses.replace(c or Change(), stored=shared[0])
            for c in (embedding, head)
        )
    return (head, embedding), not _same(files, head, embedding)


def _same(files: TensorFiles, head: Change | None, embedding: Change | None) -> bool:
    """Whether a head and its embedding change alike."""
    if head is None or embedding is None:
        return head is embedding
    if head.stored != embedding.stored and (
        head.stored is None or embedding.stored is None or not _equal(files, head.stored, embedding.stored)
    ):
        return False
    if head.a is None or embedding.a is None or head.b is None or embedding.b is None:
        return head.a is embedding.a
    if head.magnitude or embedding.magnitude or head.scale != embedding.scale:  # DoRA's norms run along other axes
        return False
    a, b = files.tensor(head.a), files.tensor(head.b)
    return torch.equal(a, files.tensor(embedding.b).T) and torch.equal(b, files.tensor(embedding.a).T)


def _equal(files: TensorFiles, one: str, other: str) -> bool:
    """Whether two tensors are equal, byte by byte."""
    a, b = files.tensors[one], files.tensors[other]
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    pieces = ((start, min(start + _PIECE, a.numel)) for start in range(0, a.numel, _PIECE))
    return all(
        torch.equal(files.read(one, *piece).view(torch.uint8), files.read(other, *piece).view(torch.uint8))
        for piece in pieces
    )


def _shape(
    files: TensorFiles, change: Change, base: tuple[int, ...], name: str, lies: bool
) -> tuple[tuple[int, ...], bool] | list[int]:
    """Shape of the tuned tensor and whether its weight lies transposed; or the shape that does not fit the base."""
    shape = base
    if change.stored is not None:
        info = files.tensors[change.stored]
        resized = name.endswith(_VOCABULARY) and len(info.shape) == len(base) and info.shape[1:] == base[1:]
        if not info.dtype.is_floating_point or (info.shape != base and not resized):
            return list(info.shape)
        shape = info.shape
    if change.shift is not None and files.tensors[change.shift].shape != shape:
        return list(files.tensors[change.shift].shape)
    if change.a is None or change.b is None:
        return shape, False
    outputs, inputs = files.tensors[change.b].shape[0], files.tensors[change.a].shape[1]
    transposed = change.embedding or ((inputs, outputs) == shape and ((outputs, inputs) != shape or lies))
    if shape != ((inputs, outputs) if transposed else (outputs, inputs)):
        return [inputs, outputs] if change.embedding else [outputs, inputs]
    if change.magnitude is not None and files.tensors[change.magnitude].numel != outputs:
        return list(files.tensors[change.magnitude].shape)
    return shape, transposed


def _square_lies_transposed(
    config: Mapping[str, Any], files: TensorFiles, changes: Mapping[str, Change], base: Checkpoint
) -> bool:
    """Whether a square weight is stored (inputs, outputs), as GPT-2's Conv1D does.

    PEFT's `fan_in_fan_out` tells of the last module only; where weights that are not square agree, they decide.
    """
    votes = set()
    for name, info in base.tensors.items():
        if len(info.shape) != 2 or info.shape[0] == info.shape[1] or name.endswith(_VOCABULARY):
            continue
        bias = base.tensors.get(name.removesuffix("weight") + "bias")
        change = changes.get(name)
        if bias is not None and len(bias.shape) == 1 and bias.shape[0] in info.shape:
            votes.add(bias.shape[0] == info.shape[1])
        elif change is not None and change.b is not None and not change.embedding:
            votes.add(files.tensors[change.b].shape[0] == info.shape[1])
    return votes.pop() if len(votes) == 1 else bool(config.get("fan_in_fan_out"))
