"""Merge LoRA adapters without leaving LoRA: (1−λ)·W + λ·(W + sBA) = W + λ·sBA, so the result is an adapter, exact."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mooring.errors import MismatchError, UserError
from mooring.files import atomic_folder, need_room
from mooring.merging import sphere
from mooring.merging.compatibility import pair_warnings
from mooring.merging.job import Job, dtype_named, options_to_json, tensor_params, values_by_folder
from mooring.merging.manifest import Decisions, Written, source_entry, written_entry
from mooring.merging.merge import ROOM_FOR_SIDE_FILES, check_output
from mooring.merging.pair import ModelPair, open_pair
from mooring.merging.plan import TensorParams
from mooring.merging.slices import CELL, check_finite, hash_values, one_thread, same
from mooring.merging.verify import verify
from mooring.models import (
    ADAPTER_CONFIG,
    MANIFEST,
    NAMES,
    Adapter,
    Checkpoint,
    TensorDigest,
    Writer,
    copy_side_files,
    is_adapter,
    side_files,
)
from mooring.models.lora import ADAPTER_WEIGHTS
from mooring.models.lora_changes import Change

METHODS = ("linear", "task_arithmetic", "model_stock")
"""Methods whose result is the base and a weighted sum of changes."""

LEAVE_OUT = "leave out --as-adapter"
_SELECTS = ("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern")
_TUNING_ONLY = ("eva_config", "corda_config", "lora_ga_config", "loftq_config", "velora_config")

Weights = Mapping[str, tuple[float, ...]]
"""The weight of each adapter's change of a tensor, by the tensor's name: θ = base + Σ cᵢ·changeᵢ."""


@dataclasses.dataclass(frozen=True, slots=True)
class BoundAdapters:
    """A base and adapters on it, open."""

    pair: ModelPair

    @property
    def base(self) -> Checkpoint:
        return self.pair.base

    @property
    def adapters(self) -> list[Adapter]:
        return [model for model in self.pair.tuned if isinstance(model, Adapter)]

    @property
    def names(self) -> list[str]:
        """The tensors that the adapters change, by the adapters' names for them."""
        return list(dict.fromkeys(name for adapter in self.adapters for name in adapter.changes))

    def changes(self, name: str) -> list[tuple[int, Adapter, Change]]:
        """The adapters that change a tensor: (index, adapter, change)."""
        known = ((i, adapter, adapter.changes.get(name)) for i, adapter in enumerate(self.adapters))
        return [(i, adapter, change) for i, adapter, change in known if change is not None]

    def sources(self, name: str) -> tuple[str, ...]:
        """The base's tensors with the values before tuning: several if the base stores a parameter in parts."""
        return next(a.sources[name] for a in self.adapters if name in a.changes)

    def source(self, name: str) -> str:
        """The base's only tensor with the values before tuning, in the layout of the adapters.

        Raises:
            MismatchError: The base lays it out in another way.
        """
        if any(name in adapter.relaid for adapter in self.adapters):
            raise _incompatible(f"{name} is saved whole, and laid out differently in {self.base.folder}")
        return self.sources(name)[0]

    def module(self, name: str) -> str:
        """The module that has the factors of a tensor, as PEFT names it in a file.

        The factors of several parameters of one module are nested: those of the last one are outside.
        """
        place = name.rpartition(".")[0]
        position = self.changes(name)[0][2].position
        if position is None:
            return place
        beside = (self.changes(n)[0][2].position for n in self.names if n.rpartition(".")[0] == place)
        return place + ".base_layer" * sum(p > position for p in beside if p is not None)


def _weights(inputs: BoundAdapters, job: Job, note: Callable[[str, str], None]) -> Weights:
    """The weight of each adapter's change, for every tensor that one of them changes.

    Linear: λ·wᵢ/Σw (with a base weight b: wᵢ/(b + Σw)); task arithmetic: λ·wᵢ; Model Stock: λ·t/N. As in `dense`.
    """
    options, tensors = job.options, inputs.pair.tensors
    params = tensor_params(job.method, options, tensors, len(inputs.adapters), [options.lam], note)
    weights = {}
    for name in inputs.names:
        found = [params[name]] if name in params else [params[source] for source in inputs.sources(name)]
        at = found[0]
        if any((p.lams, p.weights, p.base_weight) != (at.lams, at.weights, at.base_weight) for p in found):
            what = f"λ or a weight differs within {name}, which is one tensor for the adapter"
            raise UserError(what, LEAVE_OUT, code="usage.lambda_within_parameter")
        lam = at.lams[0]
        if not 0 <= lam <= 1:
            what = f"λ is {lam:g} for {name}, outside [0, 1]"
            raise UserError(what, LEAVE_OUT, code="usage.lambda_out_of_range")
        weights[name] = _weights_of_tensor(inputs, job.method, at, name)
    return weights


def _weights_of_tensor(inputs: BoundAdapters, method: str, params: TensorParams, name: str) -> tuple[float, ...]:
    models, lam = len(inputs.adapters), params.lams[0]
    if method == "model_stock":
        ratio, reason = sphere.model_stock_ratio(gram(inputs, name))
        if reason:
            params.note(f"model_stock: {reason}")
        return (lam * ratio / models,) * models
    weights = params.weights or (1.0,) * models
    total = math.fsum(weights)
    if method == "task_arithmetic":
        return tuple(lam * w / (total if params.normalize else 1.0) for w in weights)
    if params.base_weight is None:
        return tuple(lam * w / total for w in weights)
    total += params.base_weight
    if not params.normalize and not math.isclose(total, 1):
        what = f"the weights sum to {total:g} for {name}, which scales the base too"
        raise UserError(what, LEAVE_OUT, code="usage.weights_scale_base")
    return tuple(w / total for w in weights)


def gram(inputs: BoundAdapters, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Inner products of the adapters' changes of a tensor, in float64: (adapters, adapters).

    With the low rank, ⟨sᵢBᵢAᵢ, sⱼBⱼAⱼ⟩ = sᵢsⱼ·Σ (BᵢᵀBⱼ) ∘ (AᵢAⱼᵀ), without the products B·A.
    """
    found = np.zeros((len(inputs.adapters),) * 2)
    known = inputs.changes(name)
    if all(c.a and c.rows is None and (c.stored is None or _saved_base(inputs, name)) for _, _, c in known):
        factors = [(i, *_by_expert(adapter, change), change.scale) for i, adapter, change in known]
        for i, a, b, scale in factors:
            for j, other_a, other_b, other_scale in factors:
                product = (b.mT @ other_b) * (a @ other_a.mT)
                found[i, j] = float(product.sum()) * scale * other_scale
        return found
    for source in inputs.sources(name):
        count = inputs.base.tensors[source].numel
        for start in range(0, count, CELL):
            stop = min(start + CELL, count)
            base = inputs.base.read(source, start, stop)
            changes = {}
            for i, adapter, _ in known:
                bound = name if name in adapter.unties else source
                changes[i] = adapter.read_tuned(bound, start, stop, base).double() - base.double()
            for i, first in changes.items():
                for j, second in changes.items():
                    found[i, j] += float(first.dot(second))
    return found


def _by_expert(adapter: Adapter, change: Change) -> tuple[Tensor, Tensor]:
    """A and B of every product of a change, in float64: (experts, rank, inputs) and (experts, outputs, rank)."""
    a, b = (factor.double() for factor in adapter.factors(change))
    return a.view(change.experts, change.rank, -1), b.view(len(b), change.rank, change.experts).permute(2, 0, 1)


def _saved_base(inputs: BoundAdapters, name: str) -> bool:
    """Whether the base weights that PEFT saved with the adapters equal the base's, so can be left out."""
    source = inputs.source(name)
    info = inputs.base.tensors[source]
    for _, adapter, change in inputs.changes(name):
        if change.stored is None:
            continue
        if change.own_copy or adapter.tensors[change.stored].shape != info.shape:
            return False
        for start in range(0, info.numel, CELL):
            stop = min(start + CELL, info.numel)
            if not same(inputs.base.read(source, start, stop), adapter.read(change.stored, start, stop)):
                return False
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor of the output: its key in the file, type, shape, and a function that yields (start, elements)."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    values: Callable[[], Iterator[tuple[int, Tensor]]]


def _entries(inputs: BoundAdapters, weights: Weights, rank: int | None, dtype: torch.dtype | None) -> list[_Entry]:
    """The tensors of the output: ranks stacked up to `rank`, or the factors of the only adapter if it is None.

    All have type `dtype`; if it is None, A and what was saved whole keep theirs, and B is float32.
    """
    lora = {name.rpartition(".")[0] for name in inputs.names for _, _, c in inputs.changes(name) if c.a}
    entries = []
    for name in inputs.names:
        known = inputs.changes(name)
        module, kind = inputs.module(name), name.rpartition(".")[2]
        rows = any(c.rows for _, _, c in known)
        _check_saved(inputs, name, module in lora)
        if any(c.stored for _, _, c in known) and not _saved_base(inputs, name):
            inner = "token_adapter.base_layer." if rows else "base_layer." if module in lora else ""
            entries.append(_whole(inputs, name, f"base_model.model.{module}.{inner}{kind}", weights[name], dtype))
        if rows:
            entries.append(_rows(inputs, name, f"base_model.model.{module}", weights[name], dtype))
        if rank is None:
            keys = [key for _, _, c in known for key in (c.a, c.b, c.shift) if key]
            entries += [_copy(inputs.adapters[0], key, dtype) for key in keys]
        elif any(c.a for _, _, c in known):
            entries += _stack(known, f"base_model.model.{module}", weights[name], rank, dtype)
        elif any(c.shift for _, _, c in known):
            entries.append(_shift(known, f"base_model.model.{module}.lora_B.bias", weights[name], dtype))
    return entries


def _check_saved(inputs: BoundAdapters, name: str, lora: bool) -> None:
    """Raise for a tensor that one adapter saved whole through `modules_to_save` and another changes by factors."""
    known = inputs.changes(name)
    if not any(c.own_copy for _, _, c in known):
        return
    tied = {
        other for other in inputs.names if inputs.sources(other) == inputs.sources(name)
    }  # a saved base weight changes all
    shared = {i for other in tied for i, _, c in inputs.changes(other) if c.stored and not c.own_copy}
    if lora or any(c.stored and not c.own_copy for _, _, c in known) or shared - {i for i, _, c in known if c.own_copy}:
        raise _incompatible(f"{name} is saved whole by one adapter and changed otherwise by another")


def _incompatible(problem: str) -> MismatchError:
    return MismatchError(problem, LEAVE_OUT, code="model.adapters_incompatible")


def _copy(adapter: Adapter, key: str, dtype: torch.dtype | None) -> _Entry:
    info = adapter.tensors[key]
    kind = dtype or info.dtype
    return _Entry(key, kind, info.shape, lambda: iter([(0, adapter.read(key).to(kind))]))


def _stack(
    known: Sequence[tuple[int, Adapter, Change]],
    module: str,
    weights: Sequence[float],
    rank: int,
    dtype: torch.dtype | None,
) -> list[_Entry]:
    """A: the adapters' A on top of each other; B: cᵢ·sᵢ·Bᵢ side by side; both padded with zeros to the rank.

    Of a fused parameter, this is done for every expert.
    """
    pairs = [(i, adapter, change) for i, adapter, change in known if change.a and change.b]
    _, adapter, change = pairs[0]
    a, b = (adapter.tensors[str(key)].shape for key in (change.a, change.b))
    inputs, experts = adapter.factors(change)[0].shape[1], change.experts
    kind = dtype or functools.reduce(torch.promote_types, (m.tensors[str(c.a)].dtype for _, m, c in pairs))

    def left() -> Iterator[tuple[int, Tensor]]:
        out = torch.zeros(b[0], rank, experts)
        at = 0
        for i, adapter, change in pairs:
            values = adapter.factors(change)[1].float() * (weights[i] * change.scale)
            out[:, at : at + change.rank] = values.view(b[0], change.rank, experts)
            at += change.rank
        yield 0, out.to(dtype or torch.float32)

    def right() -> Iterator[tuple[int, Tensor]]:
        out = torch.zeros(experts, rank, inputs, dtype=kind)
        at = 0
        for _, adapter, change in pairs:
            out[:, at : at + change.rank] = adapter.factors(change)[0].view(experts, change.rank, inputs)
            at += change.rank
        yield 0, out

    ends = ("lora_embedding_A", "lora_embedding_B") if change.embedding else ("lora_A.weight", "lora_B.weight")
    kernel = a[1:] if len(a) > 2 else (inputs,)
    return [
        _Entry(f"{module}.{ends[0]}", kind, (experts * rank, *kernel), right),
        _Entry(f"{module}.{ends[1]}", dtype or torch.float32, (b[0], rank * experts, *b[2:]), left),
    ]


def _rows(inputs: BoundAdapters, name: str, module: str, weights: Sequence[float], dtype: torch.dtype | None) -> _Entry:
    """Rows that were trained: base + Σ cᵢ·(rowᵢ − base); rows that the base does not have are copied."""
    known = [(i, adapter, c) for i, adapter, c in inputs.changes(name)]
    _, first, change = known[0]
    if any(c.rows is None or c.indices != change.indices for _, _, c in known) or change.rows is None:
        raise _incompatible(f"{name}: the adapters train different rows")
    info, source = first.tensors[change.rows], inputs.source(name)
    columns, kind = info.shape[1], dtype or info.dtype
    used = tuple(weights[i] for i, _, _ in known)

    def values() -> Iterator[tuple[int, Tensor]]:
        for number, row in enumerate(change.indices):
            start, stop = number * columns, (number + 1) * columns
            tuned = [adapter.read(str(c.rows), start, stop) for _, adapter, c in known]
            if row >= inputs.base.tensors[source].shape[0]:
                yield start, tuned[0].to(kind)
            else:
                base = inputs.base.read(source, row * columns, (row + 1) * columns)
                yield start, _mix(base, tuned, used).to(kind)

    return _Entry(f"{module}.token_adapter.trainable_tokens_delta", kind, info.shape, values)


def _shift(
    known: Sequence[tuple[int, Adapter, Change]], key: str, weights: Sequence[float], dtype: torch.dtype | None
) -> _Entry:
    """The bias of B: Σ cᵢ·sᵢ·biasᵢ."""
    parts = [(i, adapter, change, change.shift) for i, adapter, change in known if change.shift]
    _, first, _, shift = parts[0]

    def values() -> Iterator[tuple[int, Tensor]]:
        terms = [m.tensor(key).float() * (weights[i] * change.scale) for i, m, change, key in parts]
        yield 0, functools.reduce(torch.add, terms).to(dtype or torch.float32)

    return _Entry(key, dtype or torch.float32, first.tensors[shift].shape, values)


def _whole(inputs: BoundAdapters, name: str, key: str, weights: Sequence[float], dtype: torch.dtype | None) -> _Entry:
    """A tensor that was saved whole: base + Σ cᵢ·(savedᵢ − base); rows that the base does not have are copied."""
    saved = [(i, adapter, c.stored) for i, adapter, c in inputs.changes(name) if c.stored]
    _, first, stored = saved[0]
    info, source = first.tensors[stored], inputs.source(name)
    shared = min(info.numel, inputs.base.tensors[source].numel)
    kind = dtype or info.dtype
    if info.shape != inputs.base.tensors[source].shape and len(inputs.adapters) > 1:
        what = f"{name} has shape {list(info.shape)} in {first.folder}, and another in the base"
        raise _incompatible(f"{what}: rows of several adapters are not joined")
    used = tuple(weights[i] for i, _, _ in saved)

    def values() -> Iterator[tuple[int, Tensor]]:
        for start in range(0, shared, CELL):
            stop = min(start + CELL, shared)
            tuned = [adapter.read(at, start, stop) for _, adapter, at in saved]
            yield start, _mix(inputs.base.read(source, start, stop), tuned, used).to(kind)
        if shared < info.numel:
            yield shared, first.read(stored, shared).to(kind)

    return _Entry(key, kind, info.shape, values)


def _mix(base: Tensor, tuned: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """base + Σ cᵢ·(tunedᵢ − base), in float32 or better; exact if there is one weight of 0 or 1."""
    kind = functools.reduce(torch.promote_types, (values.dtype for values in tuned), torch.float32)
    ground = base.to(torch.promote_types(kind, base.dtype))
    if len(tuned) == 1:
        return torch.lerp(ground, tuned[0].to(ground.dtype), weights[0])
    changes = ((values.to(ground.dtype) - ground) * weight for values, weight in zip(tuned, weights, strict=True))
    return functools.reduce(torch.add, changes) + ground


def merge_adapters(base: Path, adapters: Sequence[Path], out: Path, job: Job, lambdas: Sequence[float] = ()) -> Path:
    """Merge LoRA adapters into one that PEFT and vLLM load on the same base, instead of a whole model.

    A single adapter whose changes all have the same weight keeps A and B byte for byte, and its α is scaled. Otherwise
    ranks are stacked: the A on top of each other, the cᵢ·sᵢ·Bᵢ side by side (in float32), padded with zeros to one rank
    for all modules, α = rank. Of the base, only headers are read, and tensors that an adapter saved whole.

    Args:
        base: Folder of the base.
        adapters: Folders of the adapters.
        out: A folder that does not exist yet, or is empty.
        job: Method and options; its `base` and `tuned` are not used.
        lambdas: Several λ at once: `out` gets a folder such as `lam-0.4` for each.

    Returns:
        The output folder.

    Raises:
        UserError: The method, λ or DoRA cannot be written as an adapter, an option is out of range, or two of the λ are
            the same.
        ModelError: An input is missing, corrupt, not supported, or holds NaN or Inf.
        MismatchError: The adapters do not fit the base, or each other.
        OutputError: `out` is not empty, is inside an input, or does not fit on the disk.
    """
    if job.method not in METHODS:
        what = f"method {job.method} does not give an adapter ({', '.join(METHODS)} do)"
        raise UserError(what, LEAVE_OUT, code="usage.method_gives_no_adapter")
    for folder in adapters:
        if not is_adapter(folder):
            raise UserError(f"{folder}: is not a LoRA adapter", LEAVE_OUT, code="usage.not_an_adapter")
    values = values_by_folder(job.method, lambdas)
    check_output(out, base, *adapters)
    with one_thread(), open_pair(base, adapters) as pair:
        inputs = BoundAdapters(pair)
        for adapter in inputs.adapters:
            if adapter.config.get("use_dora"):
                what = f"{adapter.folder}: DoRA scales the base's weights too, which is not a sum of changes"
                raise UserError(what, LEAVE_OUT, code="usage.dora_gives_no_adapter")
        if all(_changes_nothing(adapter) for adapter in inputs.adapters):
            what = f"{' and '.join(map(str, adapters))}: its change is zero, so the merge would change nothing"
            raise MismatchError(what, "name a tuned one", code="model.equal")
        if not values:
            return _merge_at(inputs, job, out)
        with atomic_folder(out) as scratch:
            for name, lam in values.items():
                each = dataclasses.replace(job, options=dataclasses.replace(job.options, lam=lam))
                _merge_at(inputs, each, scratch / name)
    return out


def _merge_at(inputs: BoundAdapters, job: Job, out: Path) -> Path:
    """Write the merge at one λ."""
    decisions = Decisions()
    weights = _weights(inputs, job, decisions.add)
    same_for_all = len(inputs.adapters) == 1 and len({c for (c,) in weights.values()}) == 1
    rank = None if same_for_all else _rank(inputs)
    entries = _entries(inputs, weights, rank, dtype_named(job.dtype))
    config = _config(inputs.adapters, rank, next(iter(weights.values()))[0])
    need_room(out, sum(e.dtype.itemsize * math.prod(e.shape) for e in entries) + ROOM_FOR_SIDE_FILES)
    folders = [adapter.folder for adapter in inputs.adapters]
    with atomic_folder(out) as scratch:
        written = _write(entries, folders, scratch)
        with_tokenizer = [folder for folder in folders if (folder / "tokenizer_config.json").is_file()]
        for sentence in pair_warnings(inputs.pair):
            decisions.add("", sentence)
        if with_tokenizer:
            copy_side_files(with_tokenizer[0], scratch)
            for name in side_files(with_tokenizer[0], links_away=True):
                decisions.add("", f"{name} was not copied: it links to a file outside the adapter's folder")
        _write_json(scratch / ADAPTER_CONFIG, config)
        _write_json(scratch / MANIFEST, _manifest(inputs, job, decisions, written))
        verify(scratch)
    return out


def _changes_nothing(adapter: Adapter) -> bool:
    """Whether every change is a product with a factor of zero, as before the first step of tuning."""
    return all(
        c.stored is None
        and c.shift is None
        and c.rows is None
        and bool(c.a and c.b)
        and not (bool(adapter.tensor(str(c.a)).any()) and bool(adapter.tensor(str(c.b)).any()))
        for c in adapter.changes.values()
    )


def _rank(inputs: BoundAdapters) -> int:
    """The largest sum of a module's ranks."""
    return max([1, *(sum(c.rank for _, _, c in inputs.changes(name) if c.a) for name in inputs.names)])


def _write(entries: Sequence[_Entry], adapters: Sequence[Path], folder: Path) -> Written:
    layout = [(entry.key, entry.dtype, entry.shape) for entry in entries]
    where = adapters[0] if len(adapters) == 1 else adapters[0].parent
    written = {}
    with Writer(folder, {ADAPTER_WEIGHTS: layout}) as writer:
        for entry in entries:
            digest = TensorDigest()
            for start, part in entry.values():
                values = part.contiguous()
                check_finite(values, where, f"{entry.key}, once merged,")
                writer.write(entry.key, start, values)
                digest.add(hash_values(start, values))
            written[entry.key] = (NAMES[entry.dtype], list(entry.shape), digest.hexdigest())
    return written


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(adapters: Sequence[Adapter], rank: int | None, factor: float) -> dict[str, Any]:
    """The configuration: the first adapter's, with the changes of the merge."""
    configs = [dict(adapter.config) for adapter in adapters]
    config = configs[0] | {"inference_mode": True}
    if rank is None:
        config["lora_alpha"] = _scaled(config["lora_alpha"], factor)
        config["alpha_pattern"] = {k: _scaled(v, factor) for k, v in (config.get("alpha_pattern") or {}).items()}
        return config
    config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    config |= {"init_lora_weights": True} | {key: None for key in _TUNING_ONLY if config.get(key)}
    config |= {"use_bdlora": None, "use_qalora": False}  # multiplied out
    config["fan_in_fan_out"] = any(c.get("fan_in_fan_out") for c in configs)
    config["lora_bias"] = any(c.get("lora_bias") for c in configs)
    tied = any(c.get("ensure_weight_tying") for c in configs)
    config["ensure_weight_tying"] = False  # both are in the file; PEFT would share A and B, but only B is scaled
    biases = {c.get("bias", "none") for c in configs} - {"none"}
    config["bias"] = "none" if not biases else biases.pop() if len(biases) == 1 else "all"
    saved = sorted({module for c in configs for module in c.get("modules_to_save") or ()})
    config["modules_to_save"] = saved or None
    if tied or len({_selection(c) for c in configs}) > 1:
        changes = {name: c for a in adapters for name, c in a.changes.items() if c.a}
        modules = {name.rpartition(".")[0] for name, c in changes.items() if c.position is None}
        parameters = sorted(name for name, c in changes.items() if c.position is not None)
        config |= dict.fromkeys(_SELECTS) | {"target_modules": sorted(modules), "target_parameters": parameters or None}
    if config["lora_bias"] and any(c.embedding for a in adapters for c in a.changes.values()):
        raise _incompatible("one adapter has lora_bias and another an embedding, which PEFT cannot combine")
    return config


def _selection(config: Mapping[str, Any]) -> str:
    """The modules that an adapter is on, as text; lists that PEFT writes from sets are sorted."""
    values = [config.get(key) for key in _SELECTS]
    return json.dumps([sorted(map(str, v)) if isinstance(v, list) else v for v in values])


def _scaled(alpha: Any, factor: float) -> float:
    """α times a factor; an integer if possible, which some readers require."""
    value = float(alpha) * factor
    return int(value) if value.is_integer() else value


def _manifest(inputs: BoundAdapters, job: Job, decisions: Decisions, written: Written) -> dict[str, Any]:
    """The record of how the output was made, as JSON, without a digest of the base, which was not read."""
    return {
        "format": 2,
        "kind": "lora",
        "method": job.method,
        "lambda": job.options.lam.to_json(),
        "options": options_to_json(job.method, job.options),
        "base": {"name": inputs.base.folder.resolve().name, "kind": "checkpoint"},
        "tuned": [source_entry(adapter, {}) for adapter in inputs.adapters],
        "tensors": {"all": len(written), "changed": len(inputs.names)},
        "decisions": decisions.by_tensor(),
        "notes": ["a LoRA adapter; the base's weights were not read"],
        **written_entry(written),
    }
