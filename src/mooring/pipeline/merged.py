"""A merge from the models' names to a folder, with what is made of the folder afterwards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring import bounded
from mooring.config import Resources
from mooring.errors import ModelError, UserError
from mooring.events import OnEvent
from mooring.merge_methods import Role
from mooring.merging.job import Job, values_by_folder
from mooring.merging.manifest import write_manifest
from mooring.merging.pair import qlora_base, resolved
from mooring.merging.run_job import run_job
from mooring.models import ADAPTER_CONFIG, MANIFEST, is_adapter, read_json
from mooring.models.resolve import resolve_model
from mooring.models.to_gguf import Exported, GgufType, check_adapter, check_model, write_adapter, write_model
from mooring.records import MergeCheck

GGUF_TYPES: tuple[GgufType, ...] = ("q8_0", "f16", "bf16")


def make(
    job: Job,
    out: Path,
    *,
    lambdas: Sequence[float] = (),
    as_adapter: bool = False,
    check: bool = False,
    gguf: GgufType | None = None,
    on: str = "local",
    plugins: Sequence[str] = (),
    on_event: OnEvent | None = None,
    **options: Any,
) -> Path:
    """Do a merge, check it, and write it as GGUF too; arguments and errors as in `mooring.merge`.

    `plugins` are loaded already here, and are loaded by the tasks of a cluster.
    """
    if on != "local":
        from mooring.pipeline.cluster.merging import on_cluster

        options["fill_windows"] = on_cluster(Resources.parse(on), plugins)
    if gguf is not None:
        base = resolve_model(job.base)
        _check_type(gguf)
        if as_adapter:
            for ref in job.tuned:
                check_adapter(resolve_model(ref), base)
        else:
            check_model(base)
    folder = run_job(job, out, lambdas=lambdas, as_adapter=as_adapter, on_event=on_event, **options)
    for name in values_by_folder(job.method, lambdas) or [""]:
        made = folder / name
        if check:
            require_passed(made, check_written(made, *_inputs(job, options.get("qlora_base")), on_event))
        if gguf is not None:
            title = "-".join(part for part in (folder.resolve().name, name) if part)
            if as_adapter:
                write_adapter(made, resolve_model(job.base), made, gguf, name=title, on_event=on_event)
            else:
                write_model(made, made, gguf, name=title, on_event=on_event)
    return folder


def _inputs(job: Job, on: str | None) -> tuple[Path, list[Path], dict[Role, Path]]:
    """The folders of the base, of the tuned models, and of the further models that a merge reads."""
    base, tuned = resolve_model(job.base), [resolve_model(ref) for ref in job.tuned]
    return (qlora_base(base, tuned) if on == "dequantized" else base), tuned, resolved(job.references)


def check_written(
    folder: Path,
    base: Path,
    tuned: Sequence[Path],
    references: Mapping[Role, Path] | None = None,
    on_event: OnEvent | None = None,
) -> MergeCheck:
    """Check a merged model, and record the result in its manifest as `check`; errors as in `check_merge`."""
    from mooring.pipeline.check import check_merge

    found = check_merge(folder, base, tuned, references, on_event)
    write_manifest(folder, {**read_json(folder / MANIFEST, bounded.MANIFEST), "check": found.to_dict()})
    return found


def require_passed(folder: Path, found: MergeCheck) -> None:
    """Raise unless a merged model computes what it should.

    Raises:
        ModelError: It does not (`model.check_failed`). The folder stays; `verify` and `push` refuse it.
    """
    if not found.passed:
        what = f"{folder}: does not compute what it should: {'; '.join(found.faults)}"
        hint = "the folder was kept, marked as failed; --no-check (merge.check: false) goes on without this check"
        raise ModelError(what, hint, code="model.check_failed")


def to_gguf(
    model: str, out: Path, kind: GgufType, *, base: str | None = None, on_event: OnEvent | None = None
) -> Exported:
    """Write a model or an adapter as GGUF; arguments and errors as in `mooring.to_gguf`."""
    from mooring.files import atomic_folder, free_for_output

    _check_type(kind)
    folder = resolve_model(model)
    free_for_output(out)
    name = folder.resolve().name
    if not is_adapter(folder):
        check_model(folder)
        with atomic_folder(out) as scratch:
            made = write_model(folder, scratch, kind, name=name, on_event=on_event)
    else:
        on = resolve_model(base) if base else _named_base(folder)
        check_adapter(folder, on)
        with atomic_folder(out) as scratch:
            made = write_adapter(folder, on, scratch, kind, name=name, on_event=on_event)
    return made.moved_to(out)


def _named_base(folder: Path) -> Path:
    """The base that an adapter names, if it is on this machine."""
    named = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    try:
        return resolve_model(str(named or ""))
    except ModelError:
        what = f"{folder}: its base ({str(named)[:80]!a}) is not here"
        raise ModelError(what, "name it with --base", code="model.base_not_found") from None


def _check_type(kind: str) -> None:
    if kind not in GGUF_TYPES:
        raise UserError(f"gguf: {kind!r} is unknown", f"give {', '.join(GGUF_TYPES)}", code="usage.bad_option")
