"""Bring a base and its tuned models together: tensor by tensor, by name, with every odd case decided openly."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.errors import MismatchError, ModelError
from mooring.merging.slices import cut, same
from mooring.models import Adapter, Checkpoint, TensorInfo, is_adapter, open_adapter, open_checkpoint, read_config

# --- Refuse a base and a tuned model that do not belong together ---


MEND = "name the base that the model was tuned from"

_LOOK = 2**16
"""Entries of a tensor that are compared to tell one model from another."""


def check_named_base(base: Checkpoint, adapter: Adapter) -> None:
    """Hold that the base which an adapter names, where it lies on this machine, has the weights of `base`.

    The first entries of every tensor are compared: no two models have those in common, and a whole look could take
    longer than the merge.
    A base in another type is not compared: its bytes differ with reason.

    Raises:
        MismatchError: It lies here and is another model.
    """
    named = adapter.base_name
    if not named or not Path(named).is_dir() or Path(named).resolve() == base.folder.resolve():
        return
    try:
        other = open_checkpoint(named)
    except ModelError:
        return
    what = f"{adapter.folder}: was tuned from {named}, which is another model than {base.folder}"
    with other:
        for info in base.tensors.values():
            twin = other.tensors.get(info.name)
            if twin is None or twin.shape != info.shape:
                raise MismatchError(what, f"give {named} as the base")
            if twin.dtype != info.dtype:
                return
            ours, theirs = (model.read(info.name, 0, min(info.numel, _LOOK)) for model in (base, other))
            if not same(ours, theirs):
                raise MismatchError(what, f"give {named} as the base")


def check_architecture(base: Path, tuned: Path) -> None:
    """Hold that two whole models are of one architecture, by their configurations.

    Raises:
        ModelError: A configuration cannot be read.
        MismatchError: They differ in kind.
    """
    ours, theirs = read_config(base), read_config(tuned)
    for key in ("model_type", "architectures"):
        if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
            a, b = (", ".join(map(str, v)) if isinstance(v, list) else v for v in (ours[key], theirs[key]))
            raise MismatchError(
                f"{tuned}: its {key} is {b}, where {base} has {a}", "name the base that it was tuned from"
            )


def check_type(
    base: Checkpoint, model: Checkpoint | Adapter, name: str, source: str, info: TensorInfo, decisions: dict[str, str]
) -> None:
    """Hold that both sides are floating-point, or of the same type."""
    if isinstance(model, Adapter):
        return
    other = model.tensors[source].dtype
    if other == info.dtype:
        return
    if not (info.dtype.is_floating_point and other.is_floating_point):
        raise MismatchError(f"{model.folder}: {name} is {other}, where {base.folder} has {info.dtype}", MEND)
    decisions.setdefault(name, f"{other} in the tuned model, {info.dtype} in the base; merged in float32 or better")


def check_vocabulary(
    base: Checkpoint, tuned: Sequence[Checkpoint | Adapter], name: str, shapes: Sequence[tuple[int, ...]]
) -> list[int]:
    """The rows of a tensor in every model, where it is one that has a row for each token.

    It is one where in every model the rows are as many as its configuration says that there are tokens.

    Raises:
        MismatchError: It is not, so that the shapes simply do not match.
    """
    ours = shapes[0]
    for model, shape in zip(tuned, shapes[1:], strict=True):
        fits = bool(ours) and bool(shape) and shape[1:] == ours[1:] and _vocabulary(base) == ours[0]
        if shape == ours or (fits and (isinstance(model, Adapter) or _vocabulary(model) == shape[0])):
            continue
        what = f"{model.folder}: {name} has shape {list(shape)}, where {base.folder} has {list(ours)}"
        raise MismatchError(what, MEND)
    return [shape[0] for shape in shapes]


def _vocabulary(model: Checkpoint | Adapter) -> int | None:
    """How many tokens a configuration speaks of."""
    nested = model.config.get("text_config")
    found = model.config.get("vocab_size") or (nested.get("vocab_size") if isinstance(nested, dict) else None)
    return found if isinstance(found, int) else None


_HEADS = ("lm_head.weight",)
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the merged model.

    Attributes:
        name: Its name.
        dtype: The base's type.
        shape: Its shape; where vocabularies differ, the larger one.
        shared: How many of its entries, from the first on, every model has: these are merged.
        sources: For the base and each tuned model, the name of its tensor that stands for this one.
        rest: Which model the entries beyond `shared` are taken from: 0 the base, 1 the first tuned model …
        file: The base's file that holds it, by the name that an output gives it.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    shared: int
    sources: tuple[str, ...]
    rest: int
    file: str

    @property
    def numel(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A base and tuned models whose tensors match.

    Attributes:
        base: The base.
        tuned: Whole models, or adapters on the base.
        targets: The tensors of the merged model by name, in the base's order.
        decisions: Name of a tensor to what was decided about it, for the manifest.
        config: What the merged model's configuration says otherwise than the base's.
        tokenizer: Which model's tokenizer goes along: 0 the base's, 1 the first tuned model's …
    """

    base: Checkpoint
    tuned: tuple[Checkpoint | Adapter, ...]
    targets: Mapping[str, Target]
    decisions: Mapping[str, str]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: int = 0

    def read(
        self, target: Target, start: int, stop: int, buffers: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Entries [start, stop) of a target in the base and in every tuned model, all within `shared`.

        A tuned model's values come in its storage type; an adapter's in float32 or better, not yet rounded, or as the
        base's own tensor where it leaves the weight alone.

        Args:
            target: The tensor.
            start: First entry.
            stop: One past the last.
            buffers: A uint8 buffer a model to read into; the results are views of them.
        """
        given: Sequence[Tensor | None] = buffers or [None] * (1 + len(self.tuned))
        base = self.base.read(target.sources[0], start, stop, out=given[0])
        found = []
        for model, source, buffer in zip(self.tuned, target.sources[1:], given[1:], strict=True):
            if isinstance(model, Checkpoint):
                found.append(model.read(source, start, stop, out=buffer))
            elif source in model.changed:
                found.append(model.read_tuned(source, start, stop, base))
            else:
                found.append(base)
        return base, found

    def read_rest(self, target: Target, start: int, stop: int) -> Tensor:
        """Entries [start, stop) beyond `shared`, from the model that has them."""
        model, source = (self.base, *self.tuned)[target.rest], target.sources[target.rest]
        if isinstance(model, Checkpoint):
            return model.read(source, start, stop)
        return model.read_tuned(source, start, stop, torch.empty(0))

    @property
    def models(self) -> tuple[Checkpoint | Adapter, ...]:
        """The base and the tuned models."""
        return (self.base, *self.tuned)

    def close(self) -> None:
        """Close them all."""
        for model in self.models:
            model.close()

    def __enter__(self) -> "Inputs":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_inputs(base: str | Path, tuned: Sequence[str | Path], *, tokenizer: str = "larger") -> Inputs:
    """Open a base and tuned models and match their tensors.

    Args:
        base: Folder of the base.
        tuned: Folders of whole models, or of adapters on the base.
        tokenizer: `larger`: the tokenizer of the model with most vocabulary rows goes along; `base`: the base's.

    Raises:
        ModelError: One of them cannot be opened.
        MismatchError: They are swapped, of different architecture, or their tensors do not match.
    """
    base, folders = Path(base), [Path(folder) for folder in tuned]
    if is_adapter(base) and not (base / "config.json").is_file():
        swapped = "" if any(is_adapter(folder) for folder in folders) else " (the two are swapped)"
        what = f"{base}: is a LoRA adapter, so it cannot be the base{swapped}"
        raise MismatchError(what, "give the base first and the tuned model second")
    first = open_checkpoint(base)
    opened: list[Checkpoint | Adapter] = []
    try:
        for folder in folders:
            opened.append(_open_tuned(first, folder))
        return match(first, opened, tokenizer)
    except BaseException:
        for model in (first, *opened):
            model.close()
        raise


def _open_tuned(base: Checkpoint, folder: Path) -> Checkpoint | Adapter:
    if is_adapter(folder):
        adapter = open_adapter(folder)
        try:
            adapter.bind(base)
            check_named_base(base, adapter)
        except BaseException:
            adapter.close()
            raise
        return adapter
    check_architecture(base.folder, folder)
    return open_checkpoint(folder)


def match(base: Checkpoint, tuned: Sequence[Checkpoint | Adapter], tokenizer: str = "larger") -> Inputs:
    """Match the tensors of a base and its tuned models by name.

    Raises:
        MismatchError: A tensor is on one side only and is not a tied head, or shapes or kinds differ.
    """
    decisions: dict[str, str] = {}
    config: dict[str, Any] = {}
    standins = [_stand_ins(base, model, decisions) for model in tuned]
    targets = {}
    sizes: list[int] = []  # rows of the vocabulary, a model, where they differ
    untied = _untied(base, tuned, decisions, config)
    for model, stands in zip(tuned, standins, strict=True):
        stands.update((head, info.name) for head, info in untied.items() if not _has_head(model, head))
    files = base.output_shards
    for name, info in (dict(base.tensors) | untied).items():
        sources = (info.name, *(stands.get(name, name) for stands in standins))
        shapes = [info.shape]
        for model, source in zip(tuned, sources[1:], strict=True):
            shapes.append(_shape(model, source, info))
            check_type(base, model, name, source, info, decisions)
        shared, rest = math.prod(info.shape), 0
        if any(shape != info.shape for shape in shapes):
            rows = check_vocabulary(base, tuned, name, shapes)
            sizes = sizes or rows
            rest = rows.index(max(rows))
            shared = min(rows) * math.prod(info.shape[1:])
            taken = (base, *tuned)[rest].folder
            decisions[name] = (
                f"rows differ ({', '.join(map(str, rows))}): the first {min(rows)} were merged, "
                f"the others taken from {taken.resolve().name}"
            )
        targets[name] = Target(name, info.dtype, shapes[rest], shared, sources, rest, files[info.file.name])
    tuned_tokenizer = 0
    if sizes:
        largest = sizes.index(max(sizes))
        config["vocab_size"] = sizes[largest]
        tuned_tokenizer = largest if tokenizer == "larger" else 0
    return Inputs(base, tuple(tuned), targets, decisions, config, tuned_tokenizer)


def _stand_ins(base: Checkpoint, tuned: Checkpoint | Adapter, decisions: dict[str, str]) -> dict[str, str]:
    """Name of a base's tensor to the tuned model's tensor that stands for it, where the names differ: tied heads.

    Raises:
        MismatchError: A tensor is on one side only and is not a tied head.
    """
    if isinstance(tuned, Adapter):
        return {}
    found = {}
    for name in sorted(base.tensors.keys() - tuned.tensors.keys()):
        embedding = _tied_to(base, name)
        if embedding is None or embedding not in tuned.tensors:
            raise MismatchError(f"{tuned.folder}: has no {name}, which {base.folder} has", MEND)
        found[name] = embedding
        decisions[name] = f"tied: equals {embedding} in the base; the tuned model's {embedding} was taken for it"
    for name in sorted(tuned.tensors.keys() - base.tensors.keys()):
        embedding = _tied_to(tuned, name)
        if embedding is None or embedding not in base.tensors:
            raise MismatchError(f"{tuned.folder}: has {name}, which {base.folder} does not have", MEND)
        decisions[name] = f"tied: equals {embedding} in the tuned model; left out, as in the base"
    return found


def _untied(
    base: Checkpoint, tuned: Sequence[Checkpoint | Adapter], decisions: dict[str, str], config: dict[str, Any]
) -> dict[str, TensorInfo]:
    """Heads that the base ties and does not store, and an adapter parts from the embedding: name to the base's tensor.

    Where any tuned model parts the two, the output's configuration is told not to tie them.
    """
    found = {}
    for model in tuned:
        if isinstance(model, Adapter):
            for head, embedding in model.unties.items():
                found[head] = base.tensors[embedding]
                decisions[head] = f"untied: the base ties it to {embedding}; the adapter changes one of the two alone"
            if model.breaks_tie:
                config["tie_word_embeddings"] = False
        elif _ties(base) and not _ties(model):
            for head in (name for name in base.tensors if name.endswith(_HEADS) and name in model.tensors):
                if _tied_to(model, head) is None:
                    config["tie_word_embeddings"] = False
                    decisions[head] = "untied: the base ties it to its embedding, and the tuned model does not"
    return found


def _ties(model: Checkpoint) -> bool:
    """Whether a configuration ties head and embedding in so many words."""
    nested = model.config.get("text_config")
    within = nested.get("tie_word_embeddings") if isinstance(nested, dict) else None
    return model.config.get("tie_word_embeddings", within) is True


def _has_head(model: Checkpoint | Adapter, head: str) -> bool:
    """Whether a model has a head of its own, apart from the embedding."""
    return head in (model.unties if isinstance(model, Adapter) else model.tensors)


def _shape(model: Checkpoint | Adapter, source: str, info: TensorInfo) -> tuple[int, ...]:
    if isinstance(model, Checkpoint):
        return model.tensors[source].shape
    return model.shape(source) if source in model.changed else info.shape


def _tied_to(model: Checkpoint, name: str) -> str | None:
    """The embedding that a stored head equals byte by byte, or None where it is no such head."""
    if not name.endswith(_HEADS):
        return None
    found = [other for other in model.tensors if other.endswith(_EMBEDDINGS)]
    if len(found) != 1:
        return None
    head, embedding = model.tensors[name], model.tensors[found[0]]
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
        return None
    pieces = ((model.read(name, s.start, s.stop), model.read(found[0], s.start, s.stop)) for s in cut([head]))
    return found[0] if all(same(*piece) for piece in pieces) else None
