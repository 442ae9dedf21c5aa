"""A merge of models given by reference: describe it, resolve the models, and write a checkpoint or an adapter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, get_args

import torch

from mooring.config import Merge
from mooring.errors import UserError
from mooring.events import OnEvent
from mooring.merge_methods import as_references, check_references, method_named
from mooring.merging.adapter import merge_adapters
from mooring.merging.job import Job, Output, dtype_named, options_of
from mooring.merging.merge import check_output, merge_pair
from mooring.merging.pair import QloraBase, Tokenizer, open_pair, resolved
from mooring.merging.pair import qlora_base as quantized_base
from mooring.merging.parts import FillWindows
from mooring.merging.tensor_value import Given
from mooring.models.resolve import resolve_model
from mooring.options import MethodOptions


def make_job(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    lam: "Given | None" = None,
    *,
    method: str | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Tokenizer = "larger",
    unaligned: str | Path | None = None,
    safety_adapter: str | Path | None = None,
    **options: Unpack[MethodOptions],
) -> Job:
    """Describe a merge; arguments and errors as in `mooring.merge`."""
    method = method or Merge().method
    kind = dtype_named(dtype)
    references = as_references(unaligned, safety_adapter)
    check_references(method, references)
    models = (str(tuned),) if isinstance(tuned, (str, Path)) else tuple(map(str, tuned))
    found = options_of(method, lam, **options)
    method_named(method).refuse_dropping_nothing([density.constant for density in found.density], len(models))
    return Job(
        method=method,
        base=str(base),
        tuned=models,
        options=found,
        dtype=None if kind is None else str(kind).removeprefix("torch."),
        tokenizer=tokenizer,
        references=references,
    )


def run_job(
    job: Job,
    out: Path,
    *,
    lambdas: Sequence[float] = (),
    max_shard_size: int | str | None = None,
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    qlora_base: QloraBase = "given",
    keep_quantization: bool = False,
    threads: int | None = None,
    on_event: OnEvent | None = None,
    fill_windows: FillWindows | None = None,
) -> Path:
    """Do a merge; arguments and errors as in `mooring.merge`, and `fill_windows` as in `merge_pair`."""
    output = Output(
        dtype=job.dtype,
        max_shard_size=max_shard_size,
        tokenizer=job.tokenizer,
        allow_nonfinite=allow_nonfinite,
        keep_quantization=keep_quantization,
    )
    if as_adapter and output != Output(dtype=job.dtype):
        problem = "as_adapter: an adapter has no shards, tokenizer, quantization or non-finite weights"
        hint = "leave out max_shard_size, tokenizer, keep_quantization, allow_nonfinite"
        raise UserError(problem, hint, code="usage.adapter_options")
    if qlora_base not in get_args(QloraBase):
        raise UserError(f"qlora_base: {qlora_base!r} is unknown", "give given or dequantized", code="usage.bad_option")
    base, tuned = resolve_model(job.base), [resolve_model(ref) for ref in job.tuned]
    if qlora_base == "dequantized":
        base = quantized_base(base, tuned)
    if as_adapter:
        if fill_windows:
            what = "on: an adapter is merged in one process, in seconds"
            raise UserError(what, "leave out `on`", code="usage.on_adapter")
        return merge_adapters(base, tuned, out, job, lambdas)
    references = resolved(job.references)
    check_output(out, base, *tuned, *references.values())
    with open_pair(base, tuned, references=references) as pair:
        return merge_pair(
            pair,
            out,
            method=job.method,
            options=job.options,
            lambdas=lambdas,
            output=output,
            threads=threads,
            on_event=on_event,
            fill_windows=fill_windows,
        )
