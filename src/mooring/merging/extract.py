"""A LoRA adapter from two whole models: the best low-rank approximation of what tuning changed."""

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.errors import MismatchError, ModelError, UserError
from mooring.events import Event, OnEvent
from mooring.files import atomic_folder, need_room
from mooring.merging.job import dtype_named
from mooring.merging.manifest import source_entry, write_manifest, written_entry
from mooring.merging.merge import ROOM_FOR_SIDE_FILES, check_output
from mooring.merging.pair import ModelPair, OutputTensor, open_pair
from mooring.merging.slices import check_finite, cut, finite, hash_values
from mooring.merging.spectrum import blocks, product, times
from mooring.merging.verify import verify
from mooring.models import ADAPTER_CONFIG, NAMES, Adapter, TensorDigest, Writer, tied
from mooring.models.lora import ADAPTER_WEIGHTS
from mooring.records import ExtractedLora

_OVERSAMPLED, _ITERATIONS = 10, 4
"""Further columns of the random projection, and how often it is multiplied by δ·δᵀ."""
_SLICE = 2**20
"""Entries that are read at a time."""
_PREFIX = "base_model.model."


def extract_lora(
    base: Path,
    tuned: Path,
    out: Path,
    *,
    rank: int,
    dtype: torch.dtype | str | None = None,
    base_name: str | None = None,
    on_event: OnEvent | None = None,
) -> ExtractedLora:
    """Write what tuning changed as a LoRA adapter on the base.

    Every changed matrix δ = tuned − base becomes B·A = U·S·Vᵀ of the largest `rank` singular values, by a randomized
    decomposition with a fixed seed and four power iterations; its error ‖δ − B·A‖/‖δ‖ is measured with the factors as
    they are written. What LoRA cannot hold (embeddings, norms, biases, fused experts) is left out and reported. One
    matrix is in memory at a time, in float32.

    Source: Halko, Martinsson, Tropp 2011, Finding structure with randomness, arXiv:0909.4061, algorithm 4.4. In
    mergekit: `mergekit-extract-lora`, which decomposes completely.

    Args:
        base: Folder of the base.
        tuned: Folder of the tuned model, a whole model.
        out: A folder that does not exist yet, or is empty.
        rank: Rank of the adapter.
        dtype: Type of the factors; defaults to the base's.
        base_name: What the adapter calls its base; defaults to the base's folder.
        on_event: Receives the progress, in tensors.

    Raises:
        UserError: The rank is not positive, or the tuned model is an adapter (`usage.already_an_adapter`).
        ModelError: A model cannot be read, or holds NaN or Inf.
        MismatchError: The models do not belong together, or no matrix differs.
        OutputError: `out` is not empty, or does not fit on the disk.
    """
    if rank < 1:
        raise UserError(f"rank: {rank} is too small", "give 1 or more", code="usage.bad_option")
    kind = dtype_named(dtype)
    check_output(out, base, tuned)
    with open_pair(base, tuned) as pair:
        if isinstance(pair.tuned[0], Adapter):
            raise UserError(
                f"{tuned}: is a LoRA adapter already", "name a whole model", code="usage.already_an_adapter"
            )
        _check_linear(pair)
        factors, errors, left_out = _decompose(pair, rank, kind, on_event)
        if not factors:
            what = f"{tuned}: no matrix that LoRA can hold differs from {base}"
            raise MismatchError(what, "name another tuned model", code="model.equal")
        need_room(out, sum(value.nbytes for value in factors.values()) + ROOM_FOR_SIDE_FILES)
        found = ExtractedLora(folder=out, rank=rank, errors=errors, left_out=left_out)
        with atomic_folder(out) as scratch:
            _write(scratch, pair, factors, found, base_name or str(base.resolve()))
            verify(scratch)
            _check_names(pair, scratch, len(errors))
    return found


def _check_linear(pair: ModelPair) -> None:
    """Raise for models whose matrices are stored transposed, in `Conv1D`."""
    if pair.base.config.get("model_type") in ("gpt2", "gpt_bigcode", "openai-gpt", "imagegpt", "ctrl"):
        what = f"{pair.base.folder}: stores its matrices transposed"
        raise UserError(what, "extract the adapter of a model with linear layers", code="usage.no_linear_layers")


def _decompose(
    pair: ModelPair, rank: int, dtype: torch.dtype | None, on_event: OnEvent | None
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, float]]:
    """The factors by their keys, the error of every matrix, and the share of ‖δ‖² in every tensor left out."""
    factors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    squares: dict[str, float] = {}
    left: dict[str, float] = {}
    for done, (name, tensor) in enumerate(pair.tensors.items(), start=1):
        change = _change(pair, tensor) if tensor.dtype.is_floating_point and tensor.shared else None
        if on_event:
            progress = Event(step="extract", kind="progress", done=done, total=len(pair.tensors), unit="tensors")
            on_event(progress)
        if change is None:
            if tensor.rest:
                left[name] = 0.0
            continue
        squares[name] = _square(change)
        if not _is_linear(tensor):
            left[name] = squares[name]
            continue
        matrix = change.view(tensor.shape)
        b, a = low_rank(matrix, rank, name)
        kind = dtype or tensor.dtype
        b, a = b.to(kind), a.to(kind)
        if not (finite(b) and finite(a)):
            what = f"{name}: a factor does not fit {kind}"
            raise ModelError(what, "write another --dtype, such as float32", code="model.overflow")
        module = _PREFIX + name.removesuffix(".weight")
        factors[f"{module}.lora_A.weight"], factors[f"{module}.lora_B.weight"] = a, b
        errors[name] = math.sqrt(_residual(matrix, b, a) / squares[name])
    total = math.fsum(squares.values())
    return factors, errors, {name: value / total if total else 0.0 for name, value in left.items()}


def _is_linear(tensor: OutputTensor) -> bool:
    """Whether a tensor is the weight of a linear layer, with as many rows in both models."""
    plain = len(tensor.shape) == 2 and tensor.name.endswith(".weight") and tensor.shared == tensor.numel
    return plain and not (tied.has_vocabulary_rows(tensor.name) and not tied.is_head(tensor.name))


def _change(pair: ModelPair, tensor: OutputTensor) -> Tensor | None:
    """tuned − base in float32, flat; None if the two are equal."""
    found = torch.empty(tensor.shared)
    for piece in cut(tensor.name, 0, tensor.shared, _SLICE):
        base, (tuned,) = pair.read(tensor, piece.start, piece.stop)
        check_finite(base, pair.base.folder, tensor.name)
        check_finite(tuned, pair.tuned[0].folder, tensor.name)
        found[piece.start : piece.stop] = tuned.double().sub_(base.double())
    return found if bool(found.any()) else None


def low_rank(matrix: Tensor, rank: int, name: str = "") -> tuple[Tensor, Tensor]:
    """Factors B, of shape (rows, rank), and A, of shape (rank, columns), of the best B·A of a rank; in float32.

    Randomized, with a seed from `name`. A matrix of a lower rank gets columns and rows of zeros.
    """
    rows, columns = matrix.shape
    width = min(rows, columns, rank + _OVERSAMPLED)
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "little")
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(columns, width, generator=generator, dtype=torch.float64)
    image = torch.empty(rows, width, dtype=torch.float64)
    for _ in range(_ITERATIONS):
        range_of, _ = torch.linalg.qr(times(matrix, basis, image))
        basis, _ = torch.linalg.qr(product(matrix, range_of))
    range_of, _ = torch.linalg.qr(times(matrix, basis, image))
    u, s, v = torch.linalg.svd(product(range_of, matrix), full_matrices=False)
    kept = min(rank, width)
    scale = s[:kept].sqrt()
    b, a = torch.zeros(rows, rank), torch.zeros(rank, columns)
    b[:, :kept] = (range_of @ u[:, :kept]) * scale
    a[:kept] = scale[:, None] * v[:kept]
    return b, a


def _square(values: Tensor) -> float:
    return math.fsum(float(part.double().square().sum()) for part in values.split(_SLICE))  # type: ignore[no-untyped-call]


def _residual(matrix: Tensor, b: Tensor, a: Tensor) -> float:
    """‖matrix − b·a‖² in float64."""
    right = a.double()
    return math.fsum(
        float((matrix[part].double() - b[part].double() @ right).square().sum()) for part in blocks(*matrix.shape)
    )


def _write(folder: Path, pair: ModelPair, factors: Mapping[str, Tensor], found: ExtractedLora, base_name: str) -> None:
    written = {}
    with Writer(folder, {ADAPTER_WEIGHTS: [(k, v.dtype, tuple(v.shape)) for k, v in factors.items()]}) as writer:
        for key, value in factors.items():
            flat = value.contiguous().view(-1)
            writer.write(key, 0, flat)
            digest = TensorDigest()
            digest.add(hash_values(0, flat))
            written[key] = (NAMES[value.dtype], list(value.shape), digest.hexdigest())
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": found.rank,
        "lora_alpha": found.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(name.removesuffix(".weight") for name in found.errors),
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    content = {
        "format": 2,
        "kind": "lora",
        "method": "extract_lora",
        "rank": found.rank,
        "base": source_entry(pair.base, {}),
        "tuned": [source_entry(model, {}) for model in pair.tuned],
        "tensors": {"all": len(written), "changed": len(found.errors)},
        "errors": dict(found.errors),
        "left_out": dict(found.left_out),
        "decisions": {},
        "notes": [f"extracted from {pair.tuned[0].folder.resolve().name}"],
        **written_entry(written),
    }
    write_manifest(folder, content)


def _check_names(pair: ModelPair, folder: Path, count: int) -> None:
    """Check that the adapter can be bound to the base, as `merge` does."""
    with contextlib.closing(open_pair(pair.base.folder, folder)) as bound:
        (adapter,) = bound.tuned
        assert isinstance(adapter, Adapter)
        assert len(adapter.changed) == count
