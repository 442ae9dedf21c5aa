"""PEFT's LoRA adapters: what their files say, and the tuned model's tensors, a slice at a time."""

import dataclasses
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.errors import MismatchError, ModelError
from mooring.models import tied
from mooring.models.checkpoint import Checkpoint, TensorFiles, read_json
from mooring.models.safetensors_file import TensorInfo, read_header
from mooring.models.torch_file import read_pickled
from mooring.models.trainers import explained

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

BLOCK = 2**17
"""Elements that are multiplied out together, in whole rows on a fixed grid: a matrix product may round differently
when its shape differs, so its shape must not depend on how the caller slices."""

_CACHE = 32 * 2**20
"""Bytes of factors that are cached between slices, unless a single one is larger."""

_UNSUPPORTED = {
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "layer_replication",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialize that change the base's weights too; PEFT changes them again when it loads the adapter."""

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?:"
    r"(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<kind>weight|bias)"
    r"|(?P<other>embedding_[AB]|magnitude_vector)(?:\.(?P<named>[^.]+))?(?:\.weight)?)"
)
_SAVED = re.compile(r"\.modules_to_save(\.default)?\.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an adapter says about one tensor: magnitude · (stored + scale·(B·A + shift)) / norm, as far as set.

    Attributes:
        stored: Key of the whole tensor in the adapter; None if the base's own values are used.
        own_copy: Whether `stored` belongs to this module only (`modules_to_save`), even if the base ties it to another.
        a: Key of A: (rank, inputs); of an embedding (rank, rows).
        b: Key of B: (outputs, rank); of an embedding (columns, rank).
        scale: α / rank, or α / √rank under rsLoRA.
        embedding: Whether it is an embedding, whose weight is transposed, so that its change is (B·A)ᵀ.
        magnitude: Key of DoRA's m.
        shift: Key of the bias of B (`lora_bias`).
    """

    stored: str | None = None
    own_copy: bool = False
    a: str | None = None
    b: str | None = None
    scale: float = 1.0
    embedding: bool = False
    magnitude: str | None = None
    shift: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _BoundChange:
    """A change with the base's tensor that holds the values before tuning, and the shape of the tuned tensor.

    If `transposed`, the weight is stored as (inputs, outputs), so that its change is (B·A)ᵀ.
    """

    change: Change
    base: str
    shape: tuple[int, ...]
    transposed: bool = False


class Adapter(TensorFiles):
    """An adapter in a folder. Call `bind` before reading tuned values; the attributes from `changed` on are set then.

    Attributes:
        folder: The folder.
        config: Its `adapter_config.json`.
        changes: What the adapter says about each tensor, by its name in the model that it tuned.
        changed: The base's tensors that it changes, and a head that it unties from the embedding.
        sources: The base's tensor with the values before tuning, by name in `changes`.
        unties: A head that the base ties and does not store, if the adapter unties it, to the base's tensor with its
            values before tuning. The output must store it.
        breaks_tie: Whether head and embedding, tied in the base, differ in the tuned model, so its config must not tie
            them.
        remarks: Sentences about what was decided about the adapter as it was opened.
    """

    def __init__(self, folder: Path, config: dict[str, Any], infos: Sequence[TensorInfo]) -> None:
        super().__init__(infos)
        self.folder = folder
        self.config = config
        self.changes: Mapping[str, Change] = _parse(folder, config, self.tensors)
        self.changed: frozenset[str] = frozenset()
        self.sources: Mapping[str, str] = {}
        self.unties: Mapping[str, str] = {}
        self.breaks_tie = False
        self.remarks: list[str] = []
        self._base: Checkpoint | None = None
        self._bound: Mapping[str, _BoundChange] = {}
        self._factors: OrderedDict[str, Tensor] = OrderedDict()
        self._norms: dict[str, Tensor] = {}
        self._lock_for_factors = threading.Lock()
        self._lock_for_norms = threading.Lock()

    @property
    def base_name(self) -> str | None:
        """The model that it was tuned from: a hub id, or a path on the machine where it was tuned."""
        name = self.config.get("base_model_name_or_path")
        return str(name) if name else None

    def bind(self, base: Checkpoint) -> None:
        """Bind the changes to a base, as PEFT's forward pass does; it must stay open while tuned values are read.

        Raises:
            MismatchError: A tensor is missing in the base, or has another shape or type there, or two changes
                contradict each other.
        """
        sources = {name: _name_in_base(name, base) for name in self.changes}
        changes = {sources[name]: change for name, change in self.changes.items()}
        unties: dict[str, str] = {}
        self.breaks_tie = False
        tie = tied.tied_pair(base, changes)
        if tie is not None and {*tie} & changes.keys():
            head, embedding = tie
            pair, self.breaks_tie = _untie(self, changes.pop(head, None), changes.pop(embedding, None))
            changes |= {name: change for name, change in zip(tie, pair, strict=True) if change is not None}
            if head not in base.tensors:
                sources = {name: embedding if source == head else source for name, source in sources.items()}
                if self.breaks_tie:
                    unties[head] = embedding
                else:
                    changes.pop(head, None)
        square_transposed = _squares_are_transposed(self, changes, base)
        self._bound = {
            name: _bind_change(self, name, change, base, unties.get(name, name), square_transposed)
            for name, change in changes.items()
        }
        self._base, self.sources, self.unties, self.changed = base, sources, unties, frozenset(self._bound)
        self._norms.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the tuned model: the base's, unless it was saved with another number of rows."""
        assert self._base is not None
        bound = self._bound.get(name)
        return bound.shape if bound else self._base.tensors[self.unties.get(name, name)].shape

    def read_tuned(self, name: str, start: int, stop: int, base: Tensor) -> Tensor:
        """Elements [start, stop) of a flattened tensor of the tuned model.

        W + scale·B·A (Hu et al. 2021, arXiv:2106.09685); under DoRA m·(W + scale·B·A)/‖W + scale·B·A‖, with one norm
        per output (embeddings: per column), as PEFT computes it (Liu et al. 2024, arXiv:2402.09353). Works in bounded
        memory, on any number of threads; the same bytes whatever the slices.

        Args:
            name: A tensor of the base, or a head in `unties`.
            start: First element.
            stop: One past the last.
            base: The same elements of the base, flattened; not used if the adapter stores the whole tensor.

        Returns:
            float32, or float64 where the base is, not rounded; a whole stored tensor in its storage type; `base`
            itself if the adapter does not change it.

        Raises:
            ModelError: As `read`.
            ValueError: The adapter is not bound to a base.
        """
        if self._base is None:
            raise ValueError(f"{self.folder}: the adapter is not bound to a base")
        bound = self._bound.get(name)
        if bound is None:
            return base
        change = bound.change
        values = base if change.stored is None else self.read(change.stored, start, stop)
        if change.shift is not None:
            shift = self.read(change.shift, start, stop).float() * change.scale
            return _add(shift, values)
        if change.a is None:
            return values
        values = _add(self._product(bound, start, stop), values)
        if change.magnitude is None:
            return values
        return values.mul_(_spread(self._norm(name, bound).to(values.dtype), bound, start, stop))

    def _product(self, bound: _BoundChange, start: int, stop: int) -> Tensor:
        """scale·B·A at elements [start, stop) of the stored weight, in float32."""
        rows, columns = bound.shape
        step = max(1, BLOCK // columns)
        first, last = start // columns // step * step, min(rows, -(-stop // columns))
        last = min(rows, -(-last // step) * step)
        right = self._right(bound)
        left = self._left(bound, first, last)
        out = torch.empty(stop - start, dtype=torch.float32)
        for row in range(first, last, step):
            block = (left[row - first : min(row + step, last) - first] @ right).view(-1)
            low, high = max(start, row * columns), min(stop, row * columns + block.numel())
            out[low - start : high - start] = block[low - row * columns : high - row * columns]
        return out

    def _left(self, bound: _BoundChange, first: int, last: int) -> Tensor:
        """Rows [first, last) of the left factor, in float32: B, or Aᵀ if the weight is transposed."""
        a, b = bound.change.a, bound.change.b
        assert a is not None
        assert b is not None
        rank = self.tensors[a].shape[0]
        if not bound.transposed:
            return self.read(b, first * rank, last * rank).view(-1, rank).float()
        rows = bound.shape[0]
        parts = [self.read(a, i * rows + first, i * rows + last) for i in range(rank)]
        return torch.stack(parts).T.float().contiguous()

    def _right(self, bound: _BoundChange) -> Tensor:
        """The right factor times scale, in float32: A, or Bᵀ if the weight is transposed."""
        key = bound.change.b if bound.transposed else bound.change.a
        assert key is not None
        with self._lock_for_factors:
            if key not in self._factors:
                factor = self.tensor(key).float()
                self._factors[key] = (factor.T.contiguous() if bound.transposed else factor) * bound.change.scale
                while len(self._factors) > 1 and sum(f.nbytes for f in self._factors.values()) > _CACHE:
                    self._factors.popitem(last=False)
            self._factors.move_to_end(key)
            return self._factors[key]

    def _norm(self, name: str, bound: _BoundChange) -> Tensor:
        """DoRA's factor m / ‖W + scale·B·A‖ per output, in float64; computed once, in bounded memory."""
        magnitude = bound.change.magnitude
        assert magnitude is not None
        with self._lock_for_norms:
            if name not in self._norms:
                squares = self._squares(bound)
                self._norms[name] = self.read(magnitude).double() / squares.sqrt_()
            return self._norms[name]

    def _squares(self, bound: _BoundChange) -> Tensor:
        """‖W + scale·B·A‖² per output, in float64."""
        assert self._base is not None
        rows, columns = bound.shape
        step = max(1, 4 * BLOCK // columns)
        squares = torch.zeros(columns if bound.transposed else rows, dtype=torch.float64)
        for row in range(0, rows, step):
            start, stop = row * columns, min(row + step, rows) * columns
            stored = bound.change.stored
            values = self._base.read(bound.base, start, stop) if stored is None else self.read(stored, start, stop)
            block = _add(self._product(bound, start, stop), values).double().square_().view(-1, columns)
            if bound.transposed:
                squares += block.sum(0)
            else:
                squares[row : row + step] = block.sum(1)
        return squares


def open_adapter(folder: str | Path) -> Adapter:
    """Open a LoRA adapter as PEFT saves it.

    Raises:
        ModelError: It is missing or corrupt, not LoRA, or a kind of LoRA that is not supported (named).
    """
    folder = Path(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    _check_supported(folder, config)
    for name, read in ((ADAPTER_WEIGHTS, read_header), (ADAPTER_PICKLE, read_pickled)):
        if (folder / name).is_file():
            return Adapter(folder, config, read(folder / name))
    what = f"{folder}: the adapter has no {ADAPTER_WEIGHTS}"
    raise explained(folder, f"no {ADAPTER_WEIGHTS}") or ModelError(
        what, "save it again with PEFT", code="model.no_weights"
    )


# --- What the files say ---


def _unsupported(what: str) -> ModelError:
    hint = "merge it into its base with PEFT's merge_and_unload, and name the result"
    return ModelError(what, hint, code="model.unsupported_adapter")


def _malformed(what: str, hint: str = "save the adapter again with PEFT") -> ModelError:
    return ModelError(what, hint, code="model.bad_adapter")


def _check_supported(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise for adapters that are not LoRA or change more than weights."""
    if config.get("peft_type") != "LORA":
        raise _unsupported(f"{folder}: is an adapter of type {config.get('peft_type')}, not LoRA")
    for key, name in _UNSUPPORTED.items():
        if config.get(key):
            raise _unsupported(f"{folder}: the adapter uses {name}, which is not supported")
    if config.get("use_dora") and config.get("lora_bias"):
        raise _unsupported(f"{folder}: the adapter uses DoRA with lora_bias, which has no weight of its own")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise _unsupported(f"{folder}: the adapter was initialized by {start}, which changed its base too")


def _parse(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Change]:
    """What an adapter changes, by name of the tensor in the model that it tuned."""
    modules: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key, info in tensors.items():
        bare = key.removeprefix(_PREFIX)
        match = _LORA.fullmatch(bare)
        if match and ".base_layer" not in match["module"]:
            slot = match["other"] or f"{match['side']}.{match['kind']}"
            taken = modules.setdefault(match["module"], {})
        elif ".lora_" in bare:
            raise _unsupported(f"{info.file}: {key} is not a LoRA weight of a known kind")
        elif ".original_module." in bare:
            continue  # the base's own copy
        else:
            slot = _SAVED.sub(".", bare).replace(".base_layer.", ".")
            taken = whole
        if taken.setdefault(slot, key) != key:
            raise _malformed(f"{info.file}: holds more than one adapter, or {slot} twice", "save one alone with PEFT")
    if not modules and not whole:
        raise _malformed(f"{folder}: holds no LoRA weights")
    changes = {name: Change(stored=key, own_copy=_is_own_copy(config, name, key)) for name, key in whole.items()}
    for module, slots in modules.items():
        for name, change in _parse_module(folder, config, tensors, module, slots).items():
            before = changes.get(name, Change())
            changes[name] = dataclasses.replace(change, stored=before.stored, own_copy=before.own_copy)
    return changes


def _is_own_copy(config: Mapping[str, Any], name: str, key: str) -> bool:
    """Whether a whole tensor was saved through `modules_to_save`: as that module's own copy."""
    saved = config.get("modules_to_save") or []
    module = name.rpartition(".")[0]
    return ".base_layer." not in key and any(module.endswith(str(ending)) for ending in saved)


def _parse_module(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], module: str, slots: dict[str, str]
) -> dict[str, Change]:
    """The changes of one module's weight and bias."""
    embedding = any(slot.startswith("embedding_") for slot in slots)
    sides = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
    known = {*sides, "magnitude_vector"} | (set() if embedding else {"B.bias"})
    for slot, key in slots.items():
        if slot not in known:
            raise _unsupported(f"{folder}: {key} is not a LoRA weight of a known kind")
    if not slots.keys() >= set(sides):
        raise _malformed(f"{folder}: {module} has A or B alone")
    if ("magnitude_vector" in slots) != bool(config.get("use_dora")):
        what = "has a DoRA magnitude" if "magnitude_vector" in slots else "has no DoRA magnitude"
        raise _malformed(f"{folder}: {module} {what}, where {ADAPTER_CONFIG} says otherwise")
    a, b = (tensors[slots[side]] for side in sides)
    rank, scale = _rank_and_scale(folder, config, module)
    if len(a.shape) > 2 or len(b.shape) > 2:
        raise _unsupported(f"{folder}: {module} is LoRA of a convolution, which is not supported")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        what = f"{folder}: {module} has A {list(a.shape)} and B {list(b.shape)}"
        raise _malformed(f"{what} where {ADAPTER_CONFIG} says rank {rank}")
    magnitude = slots.get("magnitude_vector")
    weight = Change(a=a.name, b=b.name, scale=scale, embedding=embedding, magnitude=magnitude)
    changes = {f"{module}.weight": weight}
    if "B.bias" in slots:
        changes[f"{module}.bias"] = Change(shift=slots["B.bias"], scale=scale)
    return changes


def _rank_and_scale(folder: Path, config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and scale of a module: `r` and `lora_alpha`, or the first pattern that its name ends in, as in PEFT."""

    def pattern(field: str, default: Any) -> Any:
        patterns = config.get(field) or {}
        return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)

    try:
        rank = int(pattern("rank_pattern", config.get("r")))
        alpha = float(pattern("alpha_pattern", config.get("lora_alpha")))
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError, re.error):
        raise _malformed(f"{folder / ADAPTER_CONFIG}: has no usable r and lora_alpha") from None


# --- How it fits a base ---


def _name_in_base(name: str, base: Checkpoint) -> str:
    """The base's name of a tensor; either side may have one more component in front (`transformer.`, `model.`)."""
    if name in base.tensors:
        return name
    if (shorter := name.partition(".")[2]) in base.tensors:
        return shorter
    longer = [other for other in base.tensors if other.partition(".")[2] == name]
    return longer[0] if len(longer) == 1 else name


def _untie(
    adapter: Adapter, head: Change | None, embedding: Change | None
) -> tuple[tuple[Change | None, Change | None], bool]:
    """The changes of a tied head and its embedding, and whether the two differ afterwards.

    A base weight that PEFT saved with the adapter is loaded into the shared tensor; LoRA and `modules_to_save` belong
    to one module, so PEFT's forward pass separates the two (its merge would add the change to both).
    """
    shared = [c.stored for c in (embedding, head) if c is not None and c.stored is not None and not c.own_copy]
    if len(shared) == 2 and not tied.equal(adapter, *shared):
        what = f"{adapter.folder}: holds different values for the embedding and the head, which its base ties"
        raise MismatchError(what, "save it again with the two in modules_to_save", code="model.contradictory_tie")
    if shared:
        embedding, head = (
            c if c is not None and c.own_copy else dataclasses.replace(c or Change(), stored=shared[0])
            for c in (embedding, head)
        )
    return (head, embedding), not _same_change(adapter, head, embedding)


def _same_change(adapter: Adapter, head: Change | None, embedding: Change | None) -> bool:
    """Whether a head and its embedding get the same change."""
    if head is None or embedding is None:
        return head is embedding
    if head.stored != embedding.stored and (
        head.stored is None or embedding.stored is None or not tied.equal(adapter, head.stored, embedding.stored)
    ):
        return False
    if head.a is None or embedding.a is None or head.b is None or embedding.b is None:
        return head.a is embedding.a
    if head.magnitude or embedding.magnitude or head.scale != embedding.scale:  # DoRA's norms run along other axes
        return False
    a, b = adapter.tensor(head.a), adapter.tensor(head.b)
    return torch.equal(a, adapter.tensor(embedding.b).T) and torch.equal(b, adapter.tensor(embedding.a).T)


def _bind_change(
    adapter: Adapter, name: str, change: Change, base: Checkpoint, source: str, square_transposed: bool
) -> _BoundChange:
    """Bind one change to the base's tensor `source`; raises MismatchError if it does not fit."""
    hint = "name the model that the adapter was tuned from"
    what = f"{adapter.folder}: changes {name}"
    if source not in base.tensors:
        raise MismatchError(f"{what}, which {base.folder} does not have", hint, code="model.missing_tensor")
    info = base.tensors[source]
    if not info.dtype.is_floating_point:
        raise MismatchError(f"{what}, which is {info.dtype} in {base.folder}", hint, code="model.dtype_mismatch")

    def mismatch(*found: int) -> MismatchError:
        message = f"{what} of shape {list(found)}, which is {list(info.shape)} in {base.folder}"
        return MismatchError(message, hint, code="model.shape_mismatch")

    shape = info.shape
    if change.stored is not None:
        stored = adapter.tensors[change.stored]
        resized = tied.has_vocabulary_rows(name) and len(stored.shape) == len(shape) and stored.shape[1:] == shape[1:]
        if not stored.dtype.is_floating_point or (stored.shape != shape and not resized):
            raise mismatch(*stored.shape)
        shape = stored.shape
    if change.shift is not None and adapter.tensors[change.shift].shape != shape:
        raise mismatch(*adapter.tensors[change.shift].shape)
    if change.a is None or change.b is None:
        return _BoundChange(change=change, base=source, shape=shape)
    outputs, inputs = adapter.tensors[change.b].shape[0], adapter.tensors[change.a].shape[1]
    transposed = change.embedding or ((inputs, outputs) == shape and ((outputs, inputs) != shape or square_transposed))
    if shape != ((inputs, outputs) if transposed else (outputs, inputs)):
        raise mismatch(inputs, outputs) if change.embedding else mismatch(outputs, inputs)
    if change.magnitude is not None and adapter.tensors[change.magnitude].numel != outputs:
        raise mismatch(*adapter.tensors[change.magnitude].shape)
    return _BoundChange(change=change, base=source, shape=shape, transposed=transposed)


def _squares_are_transposed(adapter: Adapter, changes: Mapping[str, Change], base: Checkpoint) -> bool:
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
            votes.add(adapter.tensors[change.b].shape[0] == info.shape[1])
    return votes.pop() if len(votes) == 1 else bool(adapter.config.get("fan_in_fan_out"))


# --- Arithmetic ---


def _add(change: Tensor, values: Tensor) -> Tensor:
    """change + values, in float32, or float64 where the values are."""
    return values + change if values.dtype == torch.float64 else change.add_(values)


def _spread(factor: Tensor, bound: _BoundChange, start: int, stop: int) -> Tensor:
    """A factor per output, at every element of [start, stop)."""
    columns = bound.shape[1]
    first, last = start // columns, -(-stop // columns)
    every = factor.repeat(last - first) if bound.transposed else factor[first:last].repeat_interleave(columns)
    return every[start - first * columns : stop - first * columns]
