"""Merging, and looking at what would be merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mooring.merge.inspect import Inspection
    from mooring.merge.job import Job


def merge(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    lam: Any = None,
    lambdas: Sequence[float] = (),
    method: str = "linear",
    dtype: str | None = None,
    tokenizer: Literal["base", "larger"] = "larger",
    max_shard_size: int | None = None,
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Path:
    """Merge tuned models into their base: θ = (1−λ)·base + λ·tuned for `linear`.

    Args:
        base: The aligned model.
        tuned: The model tuned from it, a checkpoint or a LoRA adapter; or several of them.
        out: Folder for the merged model; it must not hold anything.
        lam: λ, the weight of the tuned models, from 0 to 1: a number, a ramp from the first layer to the last such as
            `(0.2, 0.8)`, or patterns of tensors' names to either, such as `{"layers.{0-9}.mlp.*": 0.3, "*": 0.6}`.
        lambdas: Several λ at once, reading each input once: `out` gets a folder such as `lam-0.4` for each.
        method: The merging rule (docs/methods.md).
        dtype: Type of the merged weights, as torch names it; the base's own without.
        tokenizer: Whose tokenizer goes along where vocabularies differ in size: the larger one's, or the base's.
        max_shard_size: Bytes of a file at most; the base's files without.
        as_adapter: Write a LoRA adapter instead of a whole model; the inputs must be adapters.
        allow_nonfinite: Go on where a weight is NaN or Inf.
        threads: How many work at once.
        on_progress: Told (bytes written, bytes to write).
        settings: What the method takes: `weights`, `density`, `gamma`, `epsilon`, `normalize`, `rescale`, `seed`,
            `base_weight`.

    Raises:
        UserError: The models cannot be merged, a setting is bad, or the output cannot be written.
    """
    from mooring.merge.job import Job
    from mooring.merge.sites import options_of

    refs = [tuned] if isinstance(tuned, (str, Path)) else list(tuned)
    options = options_of(method, lambdas[0] if lambdas else lam, **settings)
    job = Job(
        method=method,
        base=str(base),
        tuned=tuple(map(str, refs)),
        options=options,
        dtype=dtype,
        tokenizer=tokenizer,
    )
    return merge_job(
        job,
        out=out,
        lambdas=lambdas,
        max_shard_size=max_shard_size,
        as_adapter=as_adapter,
        allow_nonfinite=allow_nonfinite,
        threads=threads,
        on_progress=on_progress,
    )


def merge_job(
    job: Job,
    *,
    out: str | Path,
    lambdas: Sequence[float] = (),
    max_shard_size: int | None = None,
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Do a merge that is written down as a `Job`, such as `merge.mergekit.read` gives; arguments as in `merge`.

    Raises:
        UserError: As `merge`.
    """
    from mooring import sources
    from mooring.merge.stream import Output, dtype_named, merge

    output = Output(
        dtype=dtype_named(job.dtype),
        max_shard_size=max_shard_size,
        tokenizer=job.tokenizer,
        allow_nonfinite=allow_nonfinite,
    )
    base, tuned = sources.resolve_model(job.base), [sources.resolve_model(ref) for ref in job.tuned]
    if as_adapter:
        from mooring.merge.adapter import merge_all_adapters

        return merge_all_adapters(base, tuned, Path(out), job, lambdas)
    return merge(
        base,
        tuned,
        Path(out),
        method=job.method,
        lambdas=lambdas,
        options=job.options,
        output=output,
        threads=threads,
        progress=on_progress,
    )


def export_mergekit(job: Job) -> str:
    """A merge as a configuration for `mergekit-yaml`, as YAML.

    Raises:
        UserError: mergekit cannot do it, or a model is not there.
    """
    from mooring import sources
    from mooring.checkpoint import open_checkpoint
    from mooring.merge.mergekit.export import write

    with open_checkpoint(sources.resolve_model(job.base)) as base:
        return write(job, list(base.tensors))


def verify(folder: str | Path) -> dict[str, Any]:
    """Read a merged model again and hold that it is what its manifest says; returns the manifest.

    Raises:
        ModelError: It is not.
    """
    from mooring.merge.verify import verify

    return verify(folder)


def push(
    folder: str | Path,
    hub_id: str,
    *,
    base: str = "",
    tuned: Sequence[str] = (),
    command: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """Give a merged model its card and upload it to the hub.

    Args:
        folder: A folder that `merge` wrote; its README.md is written anew.
        hub_id: `owner/name`.
        base: What the base was called: a hub id is linked, a path is not shown.
        tuned: The same of the tuned models.
        command: The command that made it, for the card.
        private: Make a new repository private.
        overwrite: Put it in place of other weights that are there.

    Returns:
        The model's address.

    Raises:
        ModelError: The folder was not written by `merge`.
        OutputError: The hub does not take it.
    """
    from mooring import sources
    from mooring.checkpoint import MANIFEST, is_adapter, read_json
    from mooring.errors import ModelError
    from mooring.files import atomic_text
    from mooring.merge.card import card, license_of
    from mooring.report.card import card as run_card
    from mooring.report.results import load
    from mooring.sources import upload

    upload.check_hub_id(hub_id)
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ModelError(
            f"{folder}: has no {MANIFEST}, so it was not merged by Mooring", "name a merged model's folder"
        )
    terms = license_of(Path(base)) if base and Path(base).is_dir() else None
    measured = folder.parent / "report" / "results.json"
    if folder.name == "model" and measured.is_file():  # a run's model: its card has the numbers
        text = run_card(load(measured), terms=terms)
    else:
        text = card(
            read_json(folder / MANIFEST),
            title=hub_id.partition("/")[2] or hub_id,
            base_ref=sources.hub_name(base) if base else None,
            tuned_refs=[sources.hub_name(ref) for ref in tuned],
            command=command,
            terms=terms,
            adapter=is_adapter(folder),
        )
    atomic_text(folder / "README.md", text)
    return upload.push(folder, hub_id, private=private, overwrite=overwrite)


def inspect(
    base: str | Path,
    tuned: str | Path,
    *,
    lam: float = 0.5,
    quick: bool = False,
    heatmap: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Whether two models belong together, what changed between them, and what a merge would do and cost.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        lam: λ for which to say what each method would do.
        quick: Leave out the effective ranks, half of the work.
        heatmap: Draw the change by layer and module to this PNG; nothing is drawn where nothing changed.
        on_progress: Told (bytes of the base done, bytes of the base).

    Raises:
        UserError: λ lies outside [0, 1], `heatmap` does not end in .png, or a model is not there.
        OutputError: The picture cannot be written.
    """
    from mooring import sources
    from mooring.merge.inspect import inspect
    from mooring.merge.inspect.heatmap import check_name, write

    drawing = check_name(Path(heatmap)) if heatmap else None
    models = sources.resolve_model(str(base)), sources.resolve_model(str(tuned))
    found = inspect(*models, lam=lam, quick=quick, progress=on_progress)
    if drawing and any(change.change_square for change in found.changes):
        write(found.changes, drawing)
    return found
