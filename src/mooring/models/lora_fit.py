"""How an adapter's changes fit a base: the tensor of the base that each of them changes, and where in it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.errors import MismatchError
from mooring.models import tied
from mooring.models.adapter_config import LoraSettings, malformed
from mooring.models.checkpoint import Checkpoint, TensorFiles
from mooring.models.lora_changes import Change
from mooring.models.lora_places import Located, Patch, Piece, Places

_NAME_THE_BASE = "name the model that the adapter was tuned from"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What an adapter does to one tensor of the base.

    Attributes:
        base: The base's tensor that holds the values before tuning.
        shape: The shape of the tuned tensor.
        stored: Key of the whole tuned tensor, before the rest is applied; None for the base's values.
        shift: A change whose `shift` is added, times its scale.
        rows: A change whose `rows` replace those of this tensor.
        pieces: Entries that are taken from the adapter, or to which its entries are added.
        patches: The products that are added.
    """

    base: str
    shape: tuple[int, ...]
    stored: str | None = None
    shift: Change | None = None
    rows: Change | None = None
    pieces: tuple[Piece, ...] = ()
    patches: tuple[Patch, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How an adapter fits a base.

    Attributes:
        changes: The adapter's changes, with what only the base could tell.
        tensors: What happens to each tensor of the base that changes, and to a head that is untied.
        sources: The base's tensors with the values before tuning, by name in `changes`.
        relaid: Names in `changes` of tensors that the base lays out in another way.
        unties: A head that the base does not store and the adapter unties, to the base's tensor with its values.
        breaks_tie: Whether head and embedding, tied in the base, differ in the tuned model.
    """

    changes: Mapping[str, Change]
    tensors: Mapping[str, Fitted]
    sources: Mapping[str, tuple[str, ...]]
    relaid: frozenset[str]
    unties: Mapping[str, str]
    breaks_tie: bool


def fit(
    folder: Path,
    config: Mapping[str, Any],
    settings: LoraSettings,
    files: TensorFiles,
    changes: Mapping[str, Change],
    base: Checkpoint,
) -> Fit:
    """Find out how an adapter's changes fit a base, as PEFT's forward pass does.

    Raises:
        MismatchError: A tensor is missing in the base, or has another shape or type there, or two changes contradict
            each other.
    """
    places = Places(folder, settings, files, changes, base)
    found: dict[str, Change] = {}  # by the names that only the base's class could tell
    named: dict[str, tuple[str, ...]] = {}
    by_tensor: dict[str, Change] = {}
    parts: dict[str, list[Patch | Piece]] = {}
    relaid = set()
    tie = tied.tied_pair(base, changes)
    for own, change in changes.items():
        target = _name_in_base(own, base)
        located = Located(name=own, change=change, renamed=target)
        here = target in base.tensors or (tie is not None and target == tie[0])
        if not here or not change.experts:
            located = places.find(own, change)
        name = located.name
        found[name], named[name] = located.change, tuple(located.parts) or (str(located.renamed),)
        for holder, things in located.parts.items():
            parts.setdefault(holder, []).extend(things)
            relaid.add(name)
        if located.renamed:
            if located.renamed in by_tensor:
                raise malformed(f"{folder}: changes {located.renamed} of the base twice")
            by_tensor[located.renamed] = change
    unties: dict[str, str] = {}
    breaks_tie = False
    tie = tied.tied_pair(base, by_tensor)
    if tie is not None and {*tie} & by_tensor.keys():
        head, embedding = tie
        pair, breaks_tie = _untie(folder, files, by_tensor.pop(head, None), by_tensor.pop(embedding, None))
        by_tensor |= {name: change for name, change in zip(tie, pair, strict=True) if change is not None}
        if head not in base.tensors:
            named = {name: (embedding,) if source == (head,) else source for name, source in named.items()}
            if breaks_tie:
                unties[head] = embedding
            else:
                by_tensor.pop(head, None)
    square_transposed = _squares_are_transposed(config, files, by_tensor, base)
    tensors = {
        name: _fit_tensor(folder, files, name, change, base, unties.get(name, name), square_transposed)
        for name, change in by_tensor.items()
    }
    for holder, each in parts.items():
        if holder in tensors:
            raise malformed(f"{folder}: changes {holder} of the base twice")
        tensors[holder] = Fitted(
            base=holder,
            shape=base.tensors[holder].shape,
            pieces=tuple(thing for thing in each if isinstance(thing, Piece)),
            patches=tuple(thing for thing in each if isinstance(thing, Patch)),
        )
    return Fit(
        changes=found,
        tensors=tensors,
        sources=named,
        relaid=frozenset(relaid),
        unties=unties,
        breaks_tie=breaks_tie,
    )


def _name_in_base(name: str, base: Checkpoint) -> str:
    """The base's name of a tensor; either side may have one more component in front (`transformer.`, `model.`).

    Where a module has one weight for queries, keys and values, as torch's `MultiheadAttention` has, LoRA is on that.
    """
    for here in (name, f"{name.removesuffix('weight')}in_proj_weight" if name.endswith(".weight") else name):
        if here in base.tensors:
            return here
    if (shorter := name.partition(".")[2]) in base.tensors:
        return shorter
    longer = [other for other in base.tensors if other.partition(".")[2] == name]
    return longer[0] if len(longer) == 1 else name


# --- Tied embeddings ---


def _untie(
    folder: Path, files: TensorFiles, head: Change | None, embedding: Change | None
) -> tuple[tuple[Change | None, Change | None], bool]:
    """The changes of a tied head and its embedding, and whether the two differ afterwards.

    A base weight that PEFT saved with the adapter is loaded into the shared tensor, and rows that were trained for the
    embedding alone are the head's too; LoRA and `modules_to_save` belong to one module, so PEFT's forward pass
    separates the two (its merge would add the change to both).
    """
    shared = [c.stored for c in (embedding, head) if c is not None and c.stored is not None and not c.own_copy]
    if len(shared) == 2 and not tied.equal(files, *shared):
        what = f"{folder}: holds different values for the embedding and the head, which its base ties"
        raise MismatchError(what, "save it again with the two in modules_to_save", code="model.contradictory_tie")
    if shared:
        embedding, head = (
            c if c is not None and c.own_copy else dataclasses.replace(c or Change(), stored=shared[0])
            for c in (embedding, head)
        )
    if embedding is not None and embedding.rows and (head is None or head == Change(stored=head.stored)):
        head = dataclasses.replace(head or Change(), rows=embedding.rows, indices=embedding.indices)
    return (head, embedding), not _same_change(files, head, embedding)


def _same_change(files: TensorFiles, head: Change | None, embedding: Change | None) -> bool:
    """Whether a head and its embedding get the same change."""
    if head is None or embedding is None:
        return head is embedding
    if head.stored != embedding.stored and (
        head.stored is None or embedding.stored is None or not tied.equal(files, head.stored, embedding.stored)
    ):
        return False
    if (head.rows, head.indices) != (embedding.rows, embedding.indices):
        return False
    if head.a is None or embedding.a is None or head.b is None or embedding.b is None:
        return head.a is embedding.a
    if head.magnitude or embedding.magnitude or head.scale != embedding.scale:  # DoRA's norms run along other axes
        return False
    a, b = files.tensor(head.a), files.tensor(head.b)
    return _equal_transposed(a, files.tensor(embedding.b)) and _equal_transposed(b, files.tensor(embedding.a))


def _equal_transposed(one: Any, other: Any) -> bool:
    return one.shape == other.T.shape and bool((one == other.T).all())


# --- One tensor ---


def _fit_tensor(
    folder: Path,
    files: TensorFiles,
    name: str,
    change: Change,
    base: Checkpoint,
    source: str,
    square_transposed: bool,
) -> Fitted:
    """Fit one change to the base's tensor `source`; raises MismatchError if it does not."""
    what = f"{folder}: changes {name}"
    if source not in base.tensors:
        raise MismatchError(f"{what}, which {base.folder} does not have", _NAME_THE_BASE, code="model.missing_tensor")
    info = base.tensors[source]
    if not info.dtype.is_floating_point:
        raise MismatchError(
            f"{what}, which is {info.dtype} in {base.folder}", _NAME_THE_BASE, code="model.dtype_mismatch"
        )

    def mismatch(*found: int) -> MismatchError:
        message = f"{what} of shape {list(found)}, which is {list(info.shape)} in {base.folder}"
        return MismatchError(message, _NAME_THE_BASE, code="model.shape_mismatch")

    shape = info.shape
    if change.stored is not None:
        stored = files.tensors[change.stored]
        resized = tied.has_vocabulary_rows(name) and len(stored.shape) == len(shape) and stored.shape[1:] == shape[1:]
        if not stored.dtype.is_floating_point or (stored.shape != shape and not resized):
            raise mismatch(*stored.shape)
        shape = stored.shape
    if change.shift is not None and files.tensors[change.shift].shape != shape:
        raise mismatch(*files.tensors[change.shift].shape)
    if change.rows is not None:
        rows = files.tensors[change.rows].shape
        if len(shape) != 2 or rows[1:] != shape[1:]:
            raise mismatch(*rows)
        if max(change.indices, default=0) >= shape[0]:
            message = f"{what}: trains row {max(change.indices)}, and it has {shape[0]} in {base.folder}"
            hint = "save the adapter again with PEFT's save_embedding_layers=True, so that it holds the added rows"
            raise MismatchError(message, hint, code="model.shape_mismatch")
    patches: tuple[Patch, ...] = ()
    if change.a is not None and change.b is not None:
        outputs, inputs, change = _size(files, change, shape)
        columns = math.prod(shape[1:])
        matrix = (shape[0], columns) if len(shape) > 1 else shape
        transposed = change.embedding or (
            (inputs, outputs) == matrix and ((outputs, inputs) != matrix or square_transposed)
        )
        if matrix != ((inputs, outputs) if transposed else (outputs, inputs)):
            raise mismatch(inputs, outputs) if change.embedding else mismatch(outputs, inputs)
        if change.magnitude is not None and files.tensors[change.magnitude].numel != outputs:
            raise mismatch(*files.tensors[change.magnitude].shape)
        patches = (
            Patch(
                change=change,
                row_stride=columns,
                rows=range(matrix[0]),
                columns=range(columns),
                transposed=transposed,
            ),
        )
    return Fitted(
        base=source,
        shape=shape,
        stored=change.stored,
        shift=change if change.shift is not None else None,
        rows=change if change.rows is not None else None,
        patches=patches,
    )


def _size(files: TensorFiles, change: Change, shape: Sequence[int]) -> tuple[int, int, Change]:
    """Outputs and inputs of a change; the change, with QALoRA's scale if its A holds one column per group.

    QALoRA averages the inputs of a group and multiplies by the number of groups (`QALoraLinearVariant`).
    """
    assert change.a is not None
    assert change.b is not None
    a, b = files.tensors[change.a].shape, files.tensors[change.b].shape
    inputs = math.prod(a[1:]) * change.a_blocks
    if change.group > 1 and inputs * change.group in shape and inputs not in shape:
        return b[0], inputs * change.group, dataclasses.replace(change, scale=change.scale * inputs / change.group)
    return b[0], inputs, dataclasses.replace(change, group=1)


def _squares_are_transposed(
    config: Mapping[str, Any], files: TensorFiles, changes: Mapping[str, Change], base: Checkpoint
) -> bool:
    """Whether a square weight is stored (inputs, outputs), as GPT-2's Conv1D does.

    PEFT's `fan_in_fan_out` describes the last module only; weights that are not square decide if they agree.
    """
    votes = set()
    for name, info in base.tensors.items():
        if len(info.shape) != 2 or info.shape[0] == info.shape[1] or tied.has_vocabulary_rows(name):
            continue
        bias = base.tensors.get(name.removesuffix("weight") + "bias")
        change = changes.get(name)
        if bias is not None and len(bias.shape) == 1 and bias.shape[0] in info.shape:
            votes.add(bias.shape[0] == info.shape[1])
        elif change is not None and change.b is not None and not change.embedding:
            votes.add(files.tensors[change.b].shape[0] == info.shape[1])
    return votes.pop() if len(votes) == 1 else bool(config.get("fan_in_fan_out"))
