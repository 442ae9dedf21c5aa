"""A PEFT LoRA adapter on its base: the tuned model's tensors, a slice at a time."""

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
from mooring.models.checkpoint import Checkpoint, TensorFiles, read_json
from mooring.models.safetensors_file import TensorInfo, read_header

# --- What an adapter's files say: the kind that its configuration names, and the parts of ---


ADAPTER_CONFIG = "adapter_config.json"

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
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialize that change the base's weights too; PEFT changes them again when it loads the adapter."""

_MERGE = "merge it into its base with PEFT's merge_and_unload, and name the result"
_AGAIN = "save the adapter again with PEFT"

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?:"
    r"(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<kind>weight|bias)"
    r"|(?P<other>embedding_[AB]|magnitude_vector)(?:\.(?P<named>[^.]+))?(?:\.weight)?)"
)
_SAVED = re.compile(r"\.modules_to_save(\.default)?\.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an adapter says about one tensor: magnitude · (stored + scale · B·A + scale · shift) / norm, where given.

    Attributes:
        stored: Key of the whole tensor in the adapter; None: the base's own values.
        alone: Whether `stored` is this module's alone (`modules_to_save`), even where the base ties it to another.
        a: Key of A: (rank, inputs); of an embedding (rank, rows).
        b: Key of B: (outputs, rank); of an embedding (columns, rank).
        scale: α / rank, or α / √rank under rsLoRA.
        embedding: Whether it is an embedding's: its weight lies the other way round, so that its change is (B·A)ᵀ.
        magnitude: Key of DoRA's m.
        shift: Key of the bias of B (`lora_bias`).
    """

    stored: str | None = None
    alone: bool = False
    a: str | None = None
    b: str | None = None
    scale: float = 1.0
    embedding: bool = False
    magnitude: str | None = None
    shift: str | None = None


def check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse, by name, what is not LoRA or changes more than a weight.

    Raises:
        ModelError: It is such a one.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder}: is an adapter of type {kind}, not LoRA", _MERGE)
    for key, name in _UNSUPPORTED.items():
        if config.get(key):
            raise ModelError(f"{folder}: the adapter uses {name}, which is not supported", _MERGE)
    if config.get("use_dora") and config.get("lora_bias"):
        raise ModelError(f"{folder}: the adapter uses DoRA with lora_bias, which has no weight of its own", _AGAIN)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
        raise ModelError(f"{folder}: the adapter was initialized by {start}, which changed its base too", _MERGE)


def parse(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Change]:
    """What an adapter changes: name of a tensor of the model that it tuned to its change.

    Raises:
        ModelError: A tensor is not LoRA's, has no partner, or does not have the rank that the configuration says.
    """
    modules: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key, info in tensors.items():
        bare = key.removeprefix(_PREFIX)
        match = _LORA.fullmatch(bare)
        if match and ".base_layer" not in match["module"]:
            slot = match["other"] or f"{match['side']}.{match['kind']}"
            taken = modules.setdefault(match["module"], {})
        elif ".lora_" in bare:
            raise ModelError(f"{info.file}: {key} is not a LoRA weight of a known kind", _MERGE)
        elif ".original_module." in bare:
            continue  # the base's own copy
        else:
            slot = _SAVED.sub(".", bare).replace(".base_layer.", ".")
            taken = whole
        if taken.setdefault(slot, key) != key:
            raise ModelError(f"{info.file}: holds more than one adapter, or {slot} twice", "save one alone with PEFT")
    if not modules and not whole:
        raise ModelError(f"{folder}: holds no LoRA weights", _AGAIN)
    changes = {name: Change(stored=key, alone=_alone(config, name, key)) for name, key in whole.items()}
    for module, slots in modules.items():
        for name, change in _module(folder, config, tensors, module, slots).items():
            before = changes.get(name, Change())
            changes[name] = dataclasses.replace(change, stored=before.stored, alone=before.alone)
    return changes


def _alone(config: Mapping[str, Any], name: str, key: str) -> bool:
    """Whether a whole tensor was saved as PEFT saves `modules_to_save`: as that module's own copy."""
    saved = config.get("modules_to_save") or []
    module = name.rpartition(".")[0]
    return ".base_layer." not in key and any(module.endswith(str(ending)) for ending in saved)


def _module(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], module: str, slots: dict[str, str]
) -> dict[str, Change]:
    """The changes of one module's weight and bias."""
    embedding = any(slot.startswith("embedding_") for slot in slots)
    sides = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
    known = {*sides, "magnitude_vector"} | (set() if embedding else {"B.bias"})
    for slot, key in slots.items():
        if slot not in known:
            raise ModelError(f"{folder}: {key} is not a LoRA weight of a known kind", _MERGE)
    if not slots.keys() >= set(sides):
        raise ModelError(f"{folder}: {module} has A or B alone", _AGAIN)
    if ("magnitude_vector" in slots) != bool(config.get("use_dora")):
        what = "has a DoRA magnitude" if "magnitude_vector" in slots else "has no DoRA magnitude"
        raise ModelError(f"{folder}: {module} {what}, where {ADAPTER_CONFIG} says otherwise", _AGAIN)
    a, b = (tensors[slots[side]] for side in sides)
    rank, scale = scale_of(folder, config, module)
    if len(a.shape) > 2 or len(b.shape) > 2:
        raise ModelError(f"{folder}: {module} is LoRA of a convolution, which is not supported", _MERGE)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        what = f"{folder}: {module} has A {list(a.shape)} and B {list(b.shape)}"
        raise ModelError(f"{what} where {ADAPTER_CONFIG} says rank {rank}", _AGAIN)
    magnitude = slots.get("magnitude_vector")
    changes = {
        f"{module}.weight": Change(a=a.name, b=b.name, scale=scale, embedding=embedding, magnitude=magnitude),
    }
    if "B.bias" in slots:
        changes[f"{module}.bias"] = Change(shift=slots["B.bias"], scale=scale)
    return changes


def scale_of(folder: Path, config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and scale of a module: `r` and `lora_alpha`, or the first pattern that its name ends in, as in PEFT.

    Raises:
        ModelError: They are not numbers, or the rank is 0.
    """

    def pattern(field: str, default: Any) -> Any:
        patterns = config.get(field) or {}
        return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)

    try:
        rank = int(pattern("rank_pattern", config.get("r")))
        alpha = float(pattern("alpha_pattern", config.get("lora_alpha")))
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError, re.error):
        raise ModelError(f"{folder / ADAPTER_CONFIG}: has no usable r and lora_alpha", "save it again") from None


# --- Lay an adapter's changes on its base: names, shapes, which way a weight lies, and what a ---


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
    hint = "name the model that the adapter was tuned from"
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
            raise MismatchError(f"{folder}: changes {name}, which {base.folder} does not have{hint}", hint)
        info = base.tensors[source]
        if not info.dtype.is_floating_point:
            raise MismatchError(f"{folder}: changes {name}, which is {info.dtype} in {base.folder}", hint)
        fitted = _shape(files, change, info.shape, name, lies)
        if isinstance(fitted, list):
            what = f"{folder}: changes {name} of shape {fitted}, which is {list(info.shape)} in {base.folder}{hint}"
            raise MismatchError(what, hint)
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


ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

BLOCK = 2**17
"""Elements that are multiplied out together, in whole rows on a fixed grid: a matrix product may round differently
when its shape differs, so that its shape must not hang on how the caller slices."""

_CACHE = 32 * 2**20
"""Bytes of factors that are kept between slices, unless one alone is larger."""


class Adapter(TensorFiles):
    """An adapter in a folder. `bind` it to its base before asking for tuned values.

    Attributes:
        folder: Where it lies.
        config: Its `adapter_config.json`.
        changes: Name of a tensor, as in the model that it tuned, to what the adapter says about it.
    """

    def __init__(self, folder: Path, config: dict[str, Any], infos: Sequence[TensorInfo]) -> None:
        super().__init__(infos)
        self.folder = folder
        self.config = config
        self.changes: Mapping[str, Change] = parse(folder, config, self.tensors)
        self._base: Checkpoint | None = None
        self._fit: Fit | None = None
        self._changed: frozenset[str] = frozenset()
        self._factors: OrderedDict[str, Tensor] = OrderedDict()
        self._norms: dict[str, Tensor] = {}
        self._busy = threading.Lock()
        self._lock_for_norms = threading.Lock()

    @property
    def base_name(self) -> str | None:
        """The model that it was tuned from: a hub id, or a path on the machine where it was tuned."""
        name = self.config.get("base_model_name_or_path")
        return str(name) if name else None

    def bind(self, base: Checkpoint) -> None:
        """Lay the adapter on its base, which must stay open as long as tuned values are read.

        Raises:
            MismatchError: It does not fit: a tensor is missing in the base or has another shape or type.
        """
        self._fit = fit(self.folder, self.config, self, self.changes, base)
        self._base = base
        self._changed = frozenset(self._fit.bound)
        self._norms.clear()

    @property
    def fit(self) -> Fit:
        """How it lies on its base."""
        if self._fit is None:
            raise ValueError(f"{self.folder}: the adapter is not bound to a base")
        return self._fit

    @property
    def changed(self) -> frozenset[str]:
        """The base's tensors that it touches, and a head that it parts from a tied embedding by changing it."""
        return self._changed

    @property
    def sources(self) -> Mapping[str, str]:
        """Name of a tensor in `changes` to the base's tensor that has its values before tuning."""
        return self.fit.sources

    @property
    def unties(self) -> Mapping[str, str]:
        """A head that the base ties and does not store, where it parts from its embedding: name to the base's tensor
        that has its base values. The output must store it by itself."""
        return self.fit.unties

    @property
    def breaks_tie(self) -> bool:
        """Whether head and embedding, tied in the base, differ in the tuned model: its config must not tie them."""
        return self.fit.parts

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the tuned model: the base's, but for an embedding or head saved with other rows."""
        bound = self.fit.bound.get(name)
        assert self._base is not None
        return bound.shape if bound else self._base.tensors[self.unties.get(name, name)].shape

    def read_tuned(self, name: str, start: int, stop: int, base: Tensor) -> Tensor:
        """Elements [start, stop) of a flattened tensor of the tuned model.

        W + scale·B·A (Hu et al. 2021, arXiv:2106.09685); under DoRA m·(W + scale·B·A)/‖W + scale·B·A‖, with a norm an
        output (an embedding's: a column), as PEFT computes it (Liu et al. 2024, arXiv:2402.09353). Works in bounded
        memory, on any number of threads; the same bytes whatever the slices.

        Args:
            name: A tensor of the base, or a head in `unties`.
            start: First element.
            stop: One past the last.
            base: The same elements of the base, flattened; not used where the adapter stores the whole tensor.

        Returns:
            float32, or float64 where the base is, not rounded; a whole stored tensor in its storage type; `base`
            itself where the adapter does not touch it.

        Raises:
            ModelError: As `read`.
        """
        bound = self.fit.bound.get(name)
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

    def _product(self, bound: Bound, start: int, stop: int) -> Tensor:
        """scale·B·A at elements [start, stop) of the weight as it is stored, in float32."""
        change = bound.change
        assert change.a is not None
        assert change.b is not None
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

    def _left(self, bound: Bound, first: int, last: int) -> Tensor:
        """Rows [first, last) of the left factor, in float32: B, or Aᵀ where the weight lies transposed."""
        change = bound.change
        assert change.a is not None
        assert change.b is not None
        rank = self.tensors[change.a].shape[0]
        if not bound.transposed:
            return self.read(change.b, first * rank, last * rank).view(-1, rank).float()
        rows = bound.shape[0]
        parts = [self.read(change.a, i * rows + first, i * rows + last) for i in range(rank)]
        return torch.stack(parts).T.float().contiguous()

    def _right(self, bound: Bound) -> Tensor:
        """The right factor times scale, in float32: A, or Bᵀ where the weight lies transposed."""
        key = bound.change.b if bound.transposed else bound.change.a
        assert key is not None
        with self._busy:
            if key not in self._factors:
                factor = self.tensor(key).float()
                self._factors[key] = (factor.T.contiguous() if bound.transposed else factor) * bound.change.scale
                while len(self._factors) > 1 and sum(f.nbytes for f in self._factors.values()) > _CACHE:
                    self._factors.popitem(last=False)
            self._factors.move_to_end(key)
            return self._factors[key]

    def _norm(self, name: str, bound: Bound) -> Tensor:
        """DoRA's factor m / ‖W + scale·B·A‖, one an output, in float64; found once, in bounded memory."""
        magnitude = bound.change.magnitude
        assert magnitude is not None
        with self._lock_for_norms:
            if name not in self._norms:
                squares = self._squares(bound)
                self._norms[name] = self.read(magnitude).double() / squares.sqrt_()
            return self._norms[name]

    def _squares(self, bound: Bound) -> Tensor:
        """‖W + scale·B·A‖², one an output, in float64."""
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


def _add(change: Tensor, values: Tensor) -> Tensor:
    """change + values, in float32, or float64 where the values are."""
    return values + change if values.dtype == torch.float64 else change.add_(values)


def _spread(factor: Tensor, bound: Bound, start: int, stop: int) -> Tensor:
    """A factor an output, at every element of [start, stop)."""
    columns = bound.shape[1]
    first, last = start // columns, -(-stop // columns)
    every = factor.repeat(last - first) if bound.transposed else factor[first:last].repeat_interleave(columns)
    return every[start - first * columns : stop - first * columns]


def open_adapter(folder: str | Path) -> Adapter:
    """Open a LoRA adapter as PEFT saves it.

    Raises:
        ModelError: It is missing or corrupt, not LoRA, or a kind of LoRA that is not supported (named).
    """
    folder = Path(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    check_kind(folder, config)
    if (folder / ADAPTER_WEIGHTS).is_file():
        return Adapter(folder, config, read_header(folder / ADAPTER_WEIGHTS))
    if (folder / ADAPTER_PICKLE).is_file():
        from mooring.models.torch_file import read_pickled

        return Adapter(folder, config, read_pickled(folder / ADAPTER_PICKLE))
    raise ModelError(f"{folder}: the adapter has no {ADAPTER_WEIGHTS}", "save it again with PEFT")


def check_fits(adapter: Adapter, base: Checkpoint) -> None:
    """Hold that every tensor that the adapter changes is in the base, with the right shape: as `Adapter.bind`.

    Raises:
        MismatchError: One is not.
    """
    adapter.bind(base)
