"""Merge LoRA adapters without leaving LoRA: (1−λ)·W + λ·(W + sBA) = W + λ·sBA, so the result is an adapter, exact."""

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from mooring.checkpoint import (
    ADAPTER_CONFIG,
    MANIFEST,
    NAMES,
    Adapter,
    TensorDigest,
    Writer,
    combine,
    content_digest,
    copy_side_files,
    file_digests,
    hash_part,
    is_adapter,
    open_adapter,
    open_checkpoint,
)
from mooring.checkpoint.lora import ADAPTER_WEIGHTS
from mooring.errors import MismatchError, UserError
from mooring.files import atomic_folder, need_room
from mooring.merge.adapter.shares import LEAVE_OUT, Inputs, Weights, fractions
from mooring.merge.adapter.weights import Entry, entries
from mooring.merge.belong import check_named_base
from mooring.merge.inputs import Target
from mooring.merge.job import Job
from mooring.merge.settings import Setting, as_plain
from mooring.merge.sites import plain, sites
from mooring.merge.stream import check_output, dtype_named
from mooring.merge.sweep import one_thread
from mooring.merge.values import check_finite
from mooring.merge.verify import verify

METHODS = ("linear", "task_arithmetic", "model_stock")
"""Those whose result is the base and a weighted sum of changes."""

Written: TypeAlias = Mapping[str, tuple[str, list[int], str]]
"""Name of a tensor to its type, shape and digest."""

_ROOM_FOR_SIDE_FILES = 64 * 2**20
_SELECTS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_TUNING_ONLY = ("eva_config", "corda_config", "lora_ga_config", "loftq_config", "velora_config")


def merge_adapters(base: Path, adapters: Sequence[Path], out: Path, job: Job) -> Path:
    """Merge LoRA adapters into one that PEFT and vLLM load on the same base, in place of a whole model.

    One adapter whose every change counts the same keeps A and B byte for byte, and its α is scaled. Otherwise ranks are
    stacked: A below A, cᵢ·sᵢ·Bᵢ beside each other (in float32), zeros up to one rank for all modules, α = rank. Of the
    base, only headers are read, and what an adapter saved whole.

    Args:
        base: Folder of the base.
        adapters: Folders of the adapters.
        out: A folder that does not exist yet, or is empty.
        job: Method and settings; `base` and `tuned` in it are not looked at.

    Returns:
        The output folder.

    Raises:
        UserError: The method, or λ, or DoRA cannot be had as an adapter; or a setting is out of range.
        ModelError: An input is missing, corrupt, not supported, or holds NaN or Inf.
        MismatchError: The adapters do not fit the base, or each other.
        OutputError: `out` holds something, lies in an input, or does not fit on the disk.
    """
    if job.method not in METHODS:
        raise UserError(f"method {job.method} does not give an adapter ({', '.join(METHODS)} do)", LEAVE_OUT)
    for folder in adapters:
        if not is_adapter(folder):
            raise UserError(f"{folder}: is not a LoRA adapter", LEAVE_OUT)
    check_output(out, base, *adapters)
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_thread())
        inputs = Inputs(stack.enter_context(open_checkpoint(base)), [])
        for folder in adapters:
            adapter = stack.enter_context(open_adapter(folder))
            if adapter.config.get("use_dora"):
                raise UserError(f"{folder}: DoRA scales the base's weights too, which is no sum of changes", LEAVE_OUT)
            adapter.bind(inputs.base)
            check_named_base(inputs.base, adapter)
            inputs = Inputs(inputs.base, [*inputs.adapters, adapter])
        if all(_changes_nothing(adapter) for adapter in inputs.adapters):
            names = " and ".join(map(str, adapters))
            raise MismatchError(f"{names}: its change is zero, so the merge would change nothing", "name a tuned one")
        decisions: dict[str, list[str]] = {}
        weights = _weights(inputs, job, decisions)
        rank = None if len(adapters) == 1 and len({c for (c,) in weights.values()}) == 1 else _rank(inputs)
        kind = dtype_named(job.dtype)
        tensors = entries(inputs, weights, rank, kind)
        config = _config(inputs.adapters, rank, next(iter(weights.values()))[0])
        need_room(out, sum(e.dtype.itemsize * torch.Size(e.shape).numel() for e in tensors) + _ROOM_FOR_SIDE_FILES)
        with atomic_folder(out) as scratch:
            written = _write(tensors, adapters, scratch)
            with_tokenizer = [folder for folder in adapters if (folder / "tokenizer_config.json").is_file()]
            if with_tokenizer:
                copy_side_files(with_tokenizer[0], scratch)
            _write_json(scratch / ADAPTER_CONFIG, config)
            _write_json(scratch / MANIFEST, _manifest(inputs, job, decisions, written))
            verify(scratch)
    return out


def merge_all_adapters(
    base: Path, adapters: Sequence[Path], out: Path, job: Job, lambdas: Sequence[float] = ()
) -> Path:
    """As `merge_adapters`; with several λ, `out` gets a folder such as `lam-0.4` for each.

    Raises:
        UserError: As `merge_adapters`, or two of the λ are the same.
    """
    if not lambdas:
        return merge_adapters(base, adapters, out, job)
    jobs = {
        f"lam-{lam:g}": dataclasses.replace(job, options=dataclasses.replace(job.options, lam=Setting.of(lam)))
        for lam in lambdas
    }
    if len(jobs) < len(lambdas):
        raise UserError("two of the λ are the same", "give each once")
    check_output(out, base, *adapters)
    with atomic_folder(out) as scratch:
        for name, each in jobs.items():
            merge_adapters(base, adapters, scratch / name, each)
    return out


def _changes_nothing(adapter: Adapter) -> bool:
    """Whether every change is a product of which one factor is zero, as before the first step of tuning."""
    return all(
        c.stored is None
        and c.shift is None
        and bool(c.a and c.b)
        and not (bool(adapter.tensor(str(c.a)).any()) and bool(adapter.tensor(str(c.b)).any()))
        for c in adapter.changes.values()
    )


def _weights(inputs: Inputs, job: Job, decisions: dict[str, list[str]]) -> Weights:
    """What each change counts for; notes in `decisions` what was decided for a tensor alone."""
    heads = {head: source for adapter in inputs.adapters for head, source in adapter.unties.items()}
    places = {name: name for name in inputs.base.tensors} | heads
    targets = {}
    for name, source in places.items():
        info = inputs.base.tensors[source]
        targets[name] = Target(name, info.dtype, info.shape, info.numel, (), 0, "")

    def note(name: str, sentence: str) -> None:
        if sentence not in decisions.setdefault(name, []):
            decisions[name].append(sentence)

    found = sites(job.method, job.options, targets, len(inputs.adapters), [job.options.lam], note)
    return fractions(inputs, job.method, found)


def _rank(inputs: Inputs) -> int:
    """The most that a module's ranks sum to."""
    sums = [
        sum(adapter.tensors[c.a].shape[0] for _, adapter, c in inputs.changes(name) if c.a) for name in inputs.names
    ]
    return max([1, *sums])


def _write(tensors: Sequence[Entry], adapters: Sequence[Path], folder: Path) -> Written:
    layout = [(entry.key, entry.dtype, entry.shape) for entry in tensors]
    where = adapters[0] if len(adapters) == 1 else adapters[0].parent
    written = {}
    with Writer(folder, {ADAPTER_WEIGHTS: layout}) as writer:
        for entry in tensors:
            digest = TensorDigest()
            for start, part in entry.values():
                values = part.contiguous()
                check_finite(values, where, f"{entry.key}, once merged,")
                writer.write(entry.key, start, values)
                data = values.view(-1).view(torch.uint8).numpy().data
                digest.add(hash_part(start * entry.dtype.itemsize, data))
            written[entry.key] = (NAMES[entry.dtype], list(entry.shape), digest.hexdigest())
    return written


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(adapters: Sequence[Adapter], rank: int | None, factor: float) -> dict[str, Any]:
    """The configuration: the first adapter's, with what the merge changed."""
    configs = [dict(adapter.config) for adapter in adapters]
    config = configs[0] | {"inference_mode": True}
    if rank is None:
        config["lora_alpha"] = _scaled(config["lora_alpha"], factor)
        config["alpha_pattern"] = {k: _scaled(v, factor) for k, v in (config.get("alpha_pattern") or {}).items()}
        return config
    config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    config |= {"init_lora_weights": True} | {key: None for key in _TUNING_ONLY if config.get(key)}
    config["fan_in_fan_out"] = any(c.get("fan_in_fan_out") for c in configs)
    config["lora_bias"] = any(c.get("lora_bias") for c in configs)
    tied = any(c.get("ensure_weight_tying") for c in configs)
    config["ensure_weight_tying"] = False  # both are in the file, and PEFT would share A and B, where c is in B alone
    biases = {c.get("bias", "none") for c in configs} - {"none"}
    config["bias"] = "none" if not biases else biases.pop() if len(biases) == 1 else "all"
    saved = sorted({module for c in configs for module in c.get("modules_to_save") or ()})
    config["modules_to_save"] = saved or None
    if tied or len({_selection(c) for c in configs}) > 1:
        names = {name.rpartition(".")[0] for a in adapters for name, c in a.changes.items() if c.a}
        config |= dict.fromkeys(_SELECTS) | {"target_modules": sorted(names)}
    if config["lora_bias"] and any(c.embedding for a in adapters for c in a.changes.values()):
        raise MismatchError(
            "one adapter has lora_bias and another an embedding, which PEFT cannot hold together", LEAVE_OUT
        )
    return config


def _selection(config: Mapping[str, Any]) -> str:
    """Which modules an adapter is on, as text: lists that PEFT keeps as sets come sorted."""
    values = [config.get(key) for key in _SELECTS]
    return json.dumps([sorted(map(str, v)) if isinstance(v, list) else v for v in values])


def _scaled(alpha: Any, factor: float) -> float:
    """α times a factor; whole where it can be, since some readers want it so."""
    value = float(alpha) * factor
    return int(value) if value.is_integer() else value


def _manifest(inputs: Inputs, job: Job, decisions: Mapping[str, list[str]], written: Written) -> dict[str, Any]:
    """How the output was made, as plain values; no dates and no paths. The base's weights were not read, so have no
    digest here."""
    tuned = []
    for adapter in inputs.adapters:
        digest = f"sha256:{combine(file_digests(adapter.folder))}"
        tuned.append({"name": adapter.folder.resolve().name, "kind": "lora", "digest": digest})
    return {
        "format": 2,
        "kind": "lora",
        "method": job.method,
        "lambda": as_plain(job.options.lam),
        "options": plain(job.method, job.options),
        "base": {"name": inputs.base.folder.resolve().name, "kind": "checkpoint"},
        "tuned": tuned,
        "tensors": {"all": len(written), "changed": len(inputs.names)},
        "decisions": {name: "; ".join(said) for name, said in sorted(decisions.items())},
        "notes": ["a LoRA adapter; the base's weights were not read"],
        "digest": content_digest(written),
        "digests": {name: list(entry) for name, entry in sorted(written.items())},
        "made_with": {"mooring": _version(), "torch": torch.__version__},
    }


def _version() -> str:
    try:
        return importlib.metadata.version("mooring")
    except importlib.metadata.PackageNotFoundError:
        return "source"
