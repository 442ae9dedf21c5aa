"""A base and the models tuned from it: opened, checked and matched tensor by tensor, once for all uses of the two."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mooring.errors import MismatchError, ModelError, UserError
from mooring.merge_methods import ROLES, Role
from mooring.merging.slices import same
from mooring.models import Adapter, Checkpoint, TensorInfo, is_adapter, open_adapter, open_checkpoint, tied
from mooring.models.classes import text_fields
from mooring.models.matching import Matched, layer_count, match, other_architecture
from mooring.models.relaid import RelaidCheckpoint
from mooring.models.resolve import named_folder, resolve_model
from mooring.models.vocabulary import adds_tokens
from mooring.printable import shorten

Tokenizer = Literal["larger", "base", "tuned"]
"""Whose tokenizer and chat template the merged model gets: the base's, the first tuned model's, or the `larger`: that
of the model with most vocabulary rows, or one that adds tokens to it within these rows."""

QloraBase = Literal["given", "dequantized"]
"""What a QLoRA adapter's change is added to: the base as given, or the dequantized weights that it was trained on."""

NAME_THE_BASE = "name the base that the model was tuned from"

_FIRST_ENTRIES = 2**16
"""Entries of each tensor that are compared to tell one model from another."""


@dataclasses.dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of the merged model.

    Attributes:
        name: Its name.
        dtype: The base's type.
        shape: Its shape; the larger one if vocabularies differ.
        shared: How many of its entries, from the first one, exist in every model: these are merged.
        sources: For the base, each tuned model and each reference, the name of the tensor that corresponds to this one.
        rest: The model that the entries beyond `shared` are copied from: 0 for the base, 1 for the first tuned model …
        file: The output file that holds it if the base's shards are kept.
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
class ModelPair:
    """A base and the models tuned from it, open, with matching tensors. Made by `open_pair`.

    Attributes:
        base: The base.
        tuned: Whole models, or adapters on the base.
        tensors: The tensors of the merged model by name, in the base's order.
        decisions: What was decided about a tensor, by its name, for the manifest.
        config: What the merged model's configuration changes in the base's.
        largest: The model with most vocabulary rows if these differ: 0 for the base, 1 for the first tuned model …
        references: Further models that a method needs, by role, in the order of `merge_methods.ROLES`.
    """

    base: Checkpoint
    tuned: tuple[Checkpoint | Adapter, ...]
    tensors: Mapping[str, OutputTensor]
    decisions: Mapping[str, str]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    largest: int = 0
    references: Mapping[Role, Checkpoint | Adapter] = dataclasses.field(default_factory=dict)

    @property
    def models(self) -> tuple[Checkpoint | Adapter, ...]:
        """The base and the tuned models."""
        return (self.base, *self.tuned)

    @property
    def inputs(self) -> tuple[Checkpoint | Adapter, ...]:
        """All models: the base, the tuned models, and the references."""
        return (*self.models, *self.references.values())

    @property
    def reference_folders(self) -> dict[Role, Path]:
        """The folders of the references."""
        return {role: model.folder for role, model in self.references.items()}

    @property
    def remarks(self) -> list[str]:
        """What was decided about whole models as they were opened, such as that quantized weights are dequantized."""
        return [remark for model in self.inputs for remark in model.remarks]

    def tokenizer(self, choice: Tokenizer) -> int:
        """The index in `models` of the model whose tokenizer the merged model gets."""
        return {"base": 0, "tuned": 1}[choice] if choice != "larger" else self._with_most_tokens

    @functools.cached_property
    def _with_most_tokens(self) -> int:
        """`largest`, or a model whose tokenizer has all tokens of that one's and more, within the embedding's rows."""
        found, rows = self.largest, self.config.get("vocab_size") or _vocabulary_size(self.base)
        for place, model in enumerate(self.models):
            if place != found and adds_tokens(self.models[found].folder, model.folder, rows):
                found = place
        return found

    def read(
        self, tensor: OutputTensor, start: int, stop: int, buffers: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Entries [start, stop) of a tensor in the base, and in every tuned model and reference, all within `shared`.

        A checkpoint's values have its storage type. An adapter's are float32 or better, not yet rounded, or the base's
        own tensor if the adapter does not change it.

        Args:
            tensor: The tensor.
            start: First entry.
            stop: One past the last.
            buffers: One uint8 buffer per model to read into; the results are views of them.
        """
        given: Sequence[Tensor | None] = buffers or [None] * len(self.inputs)
        base = self.base.read(tensor.sources[0], start, stop, out=given[0])
        tuned = []
        for model, source, buffer in zip(self.inputs[1:], tensor.sources[1:], given[1:], strict=True):
            if isinstance(model, RelaidCheckpoint) and source in model.kept:
                tuned.append(base)
            elif isinstance(model, Checkpoint):
                tuned.append(model.read(source, start, stop, out=buffer))
            elif source in model.changed:
                tuned.append(model.read_tuned(source, start, stop, base))
            else:
                tuned.append(base)
        return base, tuned

    def read_rest(self, tensor: OutputTensor, start: int, stop: int) -> Tensor:
        """Entries [start, stop) beyond `shared`, from the model that has them."""
        model, source = self.models[tensor.rest], tensor.sources[tensor.rest]
        if isinstance(model, Checkpoint):
            return model.read(source, start, stop)
        return model.read_tuned(source, start, stop, torch.empty(0))

    def close(self) -> None:
        """Close all files; a later read reopens them."""
        for model in self.inputs:
            model.close()

    def __enter__(self) -> "ModelPair":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_pair(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    *,
    references: Mapping[Role, Path] | None = None,
) -> ModelPair:
    """Open a base and tuned models, check that they can be merged, and match their tensors. Reads headers only.

    Args:
        base: Folder of the base.
        tuned: Folder of a whole model or of an adapter on the base, or several of them.
        references: Folders of further models that a method needs, by role; whole models, or adapters on the base.

    Raises:
        UserError: There is no tuned model.
        ModelError: One of them cannot be opened.
        MismatchError: They are swapped, have different architectures, or their tensors do not match.
    """
    base = Path(base)
    folders = [Path(tuned)] if isinstance(tuned, (str, Path)) else [Path(folder) for folder in tuned]
    if not folders:
        raise UserError("there is no tuned model", "name at least one", code="usage.no_tuned_model")
    if is_adapter(base) and not (base / "config.json").is_file():
        swapped = "" if any(is_adapter(folder) for folder in folders) else " (the two are swapped)"
        what = f"{base}: is a LoRA adapter, so it cannot be the base{swapped}"
        raise MismatchError(what, "give the base first and the tuned model second", code="model.swapped")
    first = open_checkpoint(base)
    opened: list[Checkpoint | Adapter] = []
    further = {role: Path(references[role]) for role in ROLES if role in references} if references else {}
    try:
        for folder in (*folders, *further.values()):
            if is_adapter(folder):
                opened.append(_open_adapter(first, folder))
                continue
            opened.append(tuned_model := open_checkpoint(folder))
            matched = match(first, tuned_model)
            _check_match(first, tuned_model, matched)
            opened[-1] = matched.checkpoint
        return _match(first, opened[: len(folders)], dict(zip(further, opened[len(folders) :], strict=True)))
    except BaseException:
        for model in (first, *opened):
            model.close()
        raise


def resolved(references: Mapping[Role, str]) -> dict[Role, Path]:
    """The folders of further models.

    Raises:
        ModelError: One is not here.
    """
    return {role: resolve_model(ref) for role, ref in references.items()}


def qlora_base(base: str | Path, tuned: Sequence[str | Path]) -> Path:
    """The quantized model that adapters were trained on: `base` if it is quantized, else the base that they name.

    Raises:
        UserError: A tuned model is not an adapter, or the base that it names is not known to be quantized.
        ModelError: A model cannot be opened.
    """
    for folder in tuned:
        if not is_adapter(folder):
            what = f"{folder}: is a whole model, and was not trained on dequantized weights"
            raise UserError(what, "leave out --qlora-base", code="usage.qlora_base")
    found = Path(base)
    with open_checkpoint(found) as given:
        if given.quantized:
            return found
    for folder in tuned:
        with open_adapter(folder) as adapter:
            named = adapter.base_name or ""
        hint = "give the 4-bit model itself as the base"
        try:
            found = resolve_model(named)
        except UserError:
            what = f"{folder}: the quantized base that it names, {named or 'none'}, is not here"
            raise UserError(what, hint, code="usage.qlora_base") from None
        with open_checkpoint(found) as model:
            if not model.quantized:
                what = f"{folder}: names {named} as its base, which is not quantized"
                hint = "save it as it was loaded for training (save_pretrained), and give that folder as the base"
                raise UserError(what, hint, code="usage.qlora_base")
    return found


def _open_adapter(base: Checkpoint, folder: Path) -> Adapter:
    adapter = open_adapter(folder)
    try:
        adapter.bind(base)
        _check_named_base(base, adapter)
    except BaseException:
        adapter.close()
        raise
    return adapter


def _check_named_base(base: Checkpoint, adapter: Adapter) -> None:
    """Raise if the base that an adapter names is on this machine and has other weights than `base`.

    Compares the first entries of every tensor: no two models have those in common, and a complete comparison could
    take longer than the merge. A base of another type is not compared. Of quantized models, which round the same
    weights in different ways, only the other tensors are; if one of the two alone is quantized (QLoRA), it is remarked.
    """
    named = adapter.base_name
    folder = named_folder(named) if named else None
    if not named or (folder and folder.resolve() == base.folder.resolve()):
        return
    if not folder:
        if not base.quantized and QUANTIZED_NAME.search(named):
            adapter.remarks.append(_trained_on(adapter, named, base))
        return
    try:
        other = open_checkpoint(folder)
    except ModelError:
        return
    with other:
        if bool(base.quantized) != bool(other.quantized):
            adapter.remarks.append(_trained_on(adapter, named, base))
        if have_other_weights(base, other):
            what = f"{adapter.folder}: was tuned from {named}, which is another model than {base.folder}"
            raise MismatchError(what, f"give {named} as the base", code="model.base_mismatch")


QUANTIZED_NAME = re.compile(
    r"[-_](bnb|[48]-?bit|int[48]|nf4|fp[48]|gptq|awq|w[48]a(4|8|16)|mxfp4|nvfp4)\b", re.IGNORECASE
)
"""What the name of a quantized repository on the hub contains."""


def _trained_on(adapter: Adapter, named: str, base: Checkpoint) -> str:
    """The sentence about a QLoRA adapter that is merged into another form of its base."""
    name = Path(named).name
    if base.quantized:
        return (
            f"{adapter.folder.resolve().name}: names {name} as its base; its change is added to the dequantized weights"
        )
    return (
        f"{adapter.folder.resolve().name}: was trained on {name}, which is quantized; its change is added to "
        f"{base.folder.resolve().name} as given (--qlora-base dequantized adds it to what it was trained on)"
    )


def have_other_weights(base: Checkpoint, other: Checkpoint) -> bool:
    """Whether the first entries of a tensor differ, or its shape; False if the other model has another type.

    Quantized tensors are not compared, nor those of one side only, since the other may have another layout, unless
    there are no others.
    """
    shared = [info for info in base.tensors.values() if info.name in other.tensors]
    for info in shared:
        if info.name in base.quantized or info.name in other.quantized:
            continue
        twin = other.tensors[info.name]
        if twin.shape != info.shape:
            return True
        if twin.dtype != info.dtype:
            return False
        ours, theirs = (model.read(info.name, 0, min(info.numel, _FIRST_ENTRIES)) for model in (base, other))
        if not same(ours, theirs):
            return True
    return not shared


def _check_match(base: Checkpoint, tuned: Checkpoint, matched: Matched) -> None:
    """Raise if two whole models have different architectures, or tensors of one have no match in the other."""
    key = other_architecture(base, tuned)
    if matched.reason and key:
        a, b = (v if isinstance(v, str) else ", ".join(map(str, v)) for v in (base.config[key], tuned.config[key]))
        what = f"{tuned.folder}: its {key} is {b}, but that of {base.folder} is {a}"
        hint = NAME_THE_BASE if key == "model_type" else f"save the tuned model with the class {a}, or tune that class"
        raise MismatchError(what, hint, code="model.architecture_mismatch")
    layers = [layer_count(model.config) for model in (base, tuned)]
    if None not in layers and layers[0] != layers[1]:
        what = f"{tuned.folder}: has {layers[1]} layers by its config.json, but {base.folder} has {layers[0]}"
        raise MismatchError(what, NAME_THE_BASE, code="model.architecture_mismatch")
    reason = f" (their layouts cannot be compared: {matched.reason})" if matched.reason else ""
    theirs = matched.checkpoint
    for names, has, code in (
        (base.tensors.keys() - theirs.tensors.keys(), "has no {}, which {} has", "model.missing_tensor"),
        (theirs.tensors.keys() - base.tensors.keys(), "has {}, which {} does not have", "model.extra_tensor"),
    ):
        others = sorted(name for name in names if not tied.is_head(name))
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            what = f"{tuned.folder}: {has.format(others[0] + more, base.folder)}{reason}"
            raise MismatchError(what, _way_out(base, tuned, theirs), code=code)


_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")


def _sizes(base: Checkpoint, tuned: Checkpoint) -> str:
    """The sizes in which two configurations differ, in words; empty if they have the same."""
    ours, theirs = text_fields(base.config), text_fields(tuned.config)
    differ = [key for key in (*_SIZES, *_EXPERTS) if key in ours and key in theirs and ours[key] != theirs[key]]
    return ", ".join(f"{key} {shorten(str(theirs[key]), 20)}, not {shorten(str(ours[key]), 20)}" for key in differ)


def _way_out(base: Checkpoint, tuned: Checkpoint, theirs: Checkpoint) -> str:
    """What to do about tensors of one side only, by their cause: another size, part of a model, or other names."""
    if sizes := _sizes(base, tuned):
        return f"it was tuned from a model of another size ({sizes}): name that model as the base"
    missing, extra = base.tensors.keys() - theirs.tensors.keys(), theirs.tensors.keys() - base.tensors.keys()
    if missing and not extra:
        return f"{len(missing)} tensors were not saved: save the whole tuned model, or copy the missing files there"
    if extra and not missing:
        return f"the base lacks {len(extra)} tensors: name a base that has them, or save the tuned model without them"
    save = "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
    return f"their names follow no conversion that transformers knows: save both with one version of it: {save}"


def _match(
    base: Checkpoint, tuned: Sequence[Checkpoint | Adapter], references: Mapping[Role, Checkpoint | Adapter]
) -> ModelPair:
    """Match the tensors of a base, its tuned models and the references by name."""
    decisions: dict[str, str] = {}
    config: dict[str, Any] = {}
    others = (*tuned, *references.values())
    renamed = [_tied_sources(base, model, decisions) for model in others]
    untied = _untied_heads(base, tuned, decisions, config)
    for model, names in zip(others, renamed, strict=True):
        names.update((head, info.name) for head, info in untied.items() if not _stores(model, head))
    tensors = {}
    rows_by_model: list[int] = []  # rows of the vocabulary per model, if they differ
    files = base.output_shards
    for name, info in (dict(base.tensors) | untied).items():
        sources = (info.name, *(names.get(name, name) for names in renamed))
        shapes = [info.shape]
        for model, source in zip(others, sources[1:], strict=True):
            shapes.append(_shape(model, source, info))
            _check_type(base, model, name, source, info, decisions)
        shared, rest = math.prod(info.shape), 0
        if any(shape != info.shape for shape in shapes):
            rows = _vocabulary_rows(base, others, name, shapes)
            rows_by_model = rows_by_model or rows
            rest = rows.index(max(rows))
            if rest > len(tuned):
                what = f"{others[rest - 1].folder}: {name} has {max(rows)} rows, more than base and tuned model"
                raise MismatchError(what, "name a model with their vocabulary", code="model.shape_mismatch")
            shared = min(rows) * math.prod(info.shape[1:])
            decisions[name] = (
                f"rows differ ({', '.join(map(str, rows))}): the first {min(rows)} were merged, "
                f"the others taken from {(base, *others)[rest].folder.resolve().name}"
            )
        tensors[name] = OutputTensor(name, info.dtype, shapes[rest], shared, sources, rest, files[info.file.name])
    largest = rows_by_model.index(max(rows_by_model)) if rows_by_model else 0
    if rows_by_model:
        _check_same_rows((base, *others)[largest], tensors)
        config["vocab_size"] = rows_by_model[largest]
    return ModelPair(base, tuple(tuned), tensors, decisions, config, largest, references)


def _tied_sources(base: Checkpoint, tuned: Checkpoint | Adapter, decisions: dict[str, str]) -> dict[str, str]:
    """The tuned model's embedding for each head that the base stores and the tuned model ties."""
    if isinstance(tuned, Adapter):
        return {}
    sources = {}
    for name in sorted(base.tensors.keys() - tuned.tensors.keys()):
        embedding = tied.embedding_of(base, name)
        if embedding is None or embedding not in tuned.tensors:
            what = f"{tuned.folder}: has no {name}, which {base.folder} has"
            hint = "save it with its output head, or set tie_word_embeddings in its config.json if the two are tied"
            raise MismatchError(what, hint, code="model.missing_tensor")
        sources[name] = embedding
        decisions[name] = f"tied: equals {embedding} in the base; the tuned model's {embedding} was taken for it"
    for name in sorted(tuned.tensors.keys() - base.tensors.keys()):
        embedding = tied.embedding_of(tuned, name)
        if embedding is None or embedding not in base.tensors:
            what = f"{tuned.folder}: has {name}, which {base.folder} does not have"
            hint = (
                "name a base that stores its output head, or save the tuned model without it if it equals the embedding"
            )
            raise MismatchError(what, hint, code="model.extra_tensor")
        decisions[name] = f"tied: equals {embedding} in the tuned model; left out, as in the base"
    return sources


def _untied_heads(
    base: Checkpoint, tuned: Sequence[Checkpoint | Adapter], decisions: dict[str, str], config: dict[str, Any]
) -> dict[str, TensorInfo]:
    """The base's tensor for each head that the base ties and does not store, and an adapter unties.

    If any tuned model unties the two, the output's configuration does not tie them.
    """
    heads = {}
    for model in tuned:
        if isinstance(model, Adapter):
            for head, embedding in model.unties.items():
                heads[head] = base.tensors[embedding]
                decisions[head] = f"untied: the base ties it to {embedding}; the adapter changes one of the two alone"
            if model.breaks_tie:
                config["tie_word_embeddings"] = False
        elif tied.ties(base) and not tied.ties(model):
            for head in (name for name in base.tensors if tied.is_head(name) and name in model.tensors):
                if tied.embedding_of(model, head) is None:
                    config["tie_word_embeddings"] = False
                    decisions[head] = "untied: the base ties it to its embedding, and the tuned model does not"
    return heads


def _stores(model: Checkpoint | Adapter, head: str) -> bool:
    """Whether a model has a head of its own, separate from the embedding."""
    return head in (model.unties if isinstance(model, Adapter) else model.tensors)


def _shape(model: Checkpoint | Adapter, source: str, info: TensorInfo) -> tuple[int, ...]:
    if isinstance(model, Checkpoint):
        return model.tensors[source].shape
    return model.shape(source) if source in model.changed else info.shape


def _check_type(
    base: Checkpoint, model: Checkpoint | Adapter, name: str, source: str, info: TensorInfo, decisions: dict[str, str]
) -> None:
    """Raise unless both sides are floating-point, or have the same type."""
    if isinstance(model, Adapter) or (other := model.tensors[source].dtype) == info.dtype:
        return
    if not (info.dtype.is_floating_point and other.is_floating_point):
        what = f"{model.folder}: {name} is {other}, but {info.dtype} in {base.folder}"
        raise MismatchError(what, "save both in one type, such as bfloat16", code="model.dtype_mismatch")
    decisions.setdefault(name, f"{other} in the tuned model, {info.dtype} in the base; merged in float32 or better")


def _vocabulary_rows(
    base: Checkpoint, tuned: Sequence[Checkpoint | Adapter], name: str, shapes: Sequence[tuple[int, ...]]
) -> list[int]:
    """The rows in every model of a tensor with one row per token.

    A tensor is one if in every model the number of rows is the configuration's vocabulary size.
    """
    ours = shapes[0]
    for model, shape in zip(tuned, shapes[1:], strict=True):
        fits = bool(ours) and bool(shape) and shape[1:] == ours[1:] and _vocabulary_size(base) == ours[0]
        if shape == ours or (fits and (isinstance(model, Adapter) or _vocabulary_size(model) == shape[0])):
            continue
        what = f"{model.folder}: {name} has shape {list(shape)}, but {list(ours)} in {base.folder}"
        raise MismatchError(what, _about_shape(base, model, name, shape), code="model.shape_mismatch")
    return [shape[0] for shape in shapes]


def _check_same_rows(grown: Checkpoint | Adapter, tensors: Mapping[str, OutputTensor]) -> None:
    """Raise if embedding and head have different numbers of rows in the output: no model could be loaded from it."""
    rows = {name: tensor.shape[0] for name, tensor in tensors.items() if tied.has_vocabulary_rows(name)}
    most = max(rows, key=lambda name: rows[name])
    for name, count in rows.items():
        if count != rows[most]:
            what = f"{grown.folder}: {most} has {rows[most]} rows, but {name} has {count}, of which it holds no others"
            hint = "save it again with both: PEFT's save_pretrained(…, save_embedding_layers=True)"
            raise MismatchError(what, hint, code="model.vocabulary_rows_differ")


def _about_shape(base: Checkpoint, model: Checkpoint | Adapter, name: str, shape: tuple[int, ...]) -> str:
    """What to do about a tensor of another shape, by its cause."""
    if isinstance(model, Adapter):
        return NAME_THE_BASE
    if sizes := _sizes(base, model):
        return f"it was tuned from a model of another size ({sizes}): name that model as the base"
    for each, rows in ((base, base.tensors[name].shape[:1]), (model, shape[:1])):
        if tied.has_vocabulary_rows(name) and rows and _vocabulary_size(each) != rows[0]:
            said = (
                f"config.json of {each.folder} says vocab_size {_vocabulary_size(each)}, but there are {rows[0]} rows"
            )
            return f"{said}: correct it"
    return f"{NAME_THE_BASE}; its config.json does not say why the shape differs"


def _vocabulary_size(model: Checkpoint) -> int | None:
    """The vocabulary size in a configuration."""
    size = text_fields(model.config).get("vocab_size") or model.config.get("vocab_size")
    return size if isinstance(size, int) else None
