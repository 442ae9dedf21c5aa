"""Merge models from folder to folder: the one function that opens, checks, writes and verifies."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mooring.errors import MismatchError, OutputError, UserError
from mooring.files import PARTIAL, atomic_folder, free_for_output, need_room
from mooring.merging.engine import Engine, lay_out
from mooring.merging.inputs import Inputs, open_inputs
from mooring.merging.job import Options, Setting
from mooring.merging.manifest import Record, manifest, write_manifest, write_side_files
from mooring.merging.parameters import method_named, options_of, sites
from mooring.merging.slices import SLICE
from mooring.merging.verify import compare
from mooring.models import Writer, open_checkpoint

Progress = Callable[[int, int], None]
"""Called now and then with bytes written and bytes to write."""

_ROOM_FOR_SIDE_FILES = 64 * 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How the merged model is to lie on the disk.

    Attributes:
        dtype: Type of its floating-point tensors; the base's own without.
        max_shard_size: Bytes of a file at most (a larger tensor has one of its own); the base's files without.
        tokenizer: Whose tokenizer goes along where vocabularies differ: `larger` or `base`.
        allow_nonfinite: Go on where an input, or a merged value, is NaN or Inf.
        verify: Read the result again and compare it with what was written.
    """

    dtype: torch.dtype | None = None
    max_shard_size: int | None = None
    tokenizer: str = "larger"
    allow_nonfinite: bool = False
    verify: bool = True


PLAIN = Output()


def merge(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    lam: Any = None,
    method: str = "linear",
    lambdas: Sequence[float] = (),
    options: Options | None = None,
    output: Output = PLAIN,
    slice_bytes: int = SLICE,
    threads: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Path:
    """Merge tuned models into their base, and write the result as an ordinary model folder.

    Memory stays bounded: a few slices a thread, whatever the size of the models and of their tensors. The output has
    the base's shards, types, configuration and tokenizer, and a manifest, `mooring.json`; the same inputs give the
    same bytes, whatever the slices, the threads and the shards. It appears under its name when it is whole and has been
    read again and compared with what was written.

    Args:
        base: Folder of the aligned model.
        tuned: Folder of the tuned model, or of a LoRA adapter on the base; or several of them.
        out: A folder that does not exist yet, or is empty.
        lam: λ, the weight of the tuned models: a number, a ramp over depth `(0.2, 0.8)`, patterns of names to either,
            or a `Setting`.
        method: A name in `rules.METHODS`.
        lambdas: Several λ at once: every input is read once, and `out` gets a folder such as `lam-0.4` for each.
        options: All settings of the method at once, in place of `lam` and `settings`.
        output: How the result is to lie on the disk.
        slice_bytes: Bytes of the base that a thread holds at a time, at least a cell of the grid.
        threads: How many work at once; as many as cores, up to 4, where it is not given.
        progress: Told how far it is.
        settings: Other fields of `job.Options`: `weights`, `density`, `gamma`, `epsilon`, `normalize`, `rescale`,
            `seed`, `base_weight`.

    Returns:
        The output folder.

    Raises:
        UserError: The method or an option is unknown, or λ or another number is out of range.
        ModelError: An input is missing, corrupt, not supported, or holds NaN or Inf.
        MismatchError: The inputs do not belong together, or are equal, so that a merge would change nothing.
        OutputError: `out` holds something, lies in an input, is being written by another process, or does not fit on
            the disk.
    """
    folders = [Path(tuned)] if isinstance(tuned, (str, Path)) else [Path(folder) for folder in tuned]
    base, out = Path(base), Path(out)
    if not folders:
        raise UserError("there is no tuned model", "name at least one")
    method_named(method)
    _check_settings(output, threads)
    options = options or options_of(method, lambdas[0] if lambdas else lam, **settings)
    lams = {f"lam-{lam:g}": options_of(method, lam).lam for lam in lambdas} or {"": options.lam}
    if len(lams) < len(lambdas):
        raise UserError("two of the λ are the same", "give each once")
    check_output(out, base, *folders)
    with open_inputs(base, folders, tokenizer=output.tokenizer) as inputs:
        decisions = {name: [said] for name, said in inputs.decisions.items()}

        def note(name: str, sentence: str) -> None:
            if sentence not in decisions.setdefault(name, []):
                decisions[name].append(sentence)

        engine = engine_for(inputs, method, options, list(lams.values()), output, note, slice_bytes, threads, progress)
        need_room(out, engine.nbytes * len(lams) + _ROOM_FOR_SIDE_FILES)
        with atomic_folder(out) as scratch:
            places = [scratch / name for name in lams]
            _write_tensors(engine, inputs, places, output)
            for model, equal in zip(inputs.tuned, engine.equal, strict=True):
                if equal:
                    note("", f"{model.folder.resolve().name} equals the base")
            record = Record(
                inputs, method, options, list(engine.changed), decisions, engine.read, output.allow_nonfinite
            )
            for place, lam, digests in zip(places, lams.values(), engine.written, strict=True):
                write_side_files(place, record, output.dtype)
                targets = inputs.targets
                tensors = {n: (engine.dtype(targets[n]), targets[n].shape, d) for n, d in digests.items()}
                content = manifest(record, lam, tensors)
                write_manifest(place, content)
                with open_checkpoint(place) as written:
                    if output.verify:
                        finite = not output.allow_nonfinite
                        compare(
                            place, written, content["digests"], finite=finite, threads=threads, slice_bytes=slice_bytes
                        )
    return out


def engine_for(
    inputs: Inputs,
    method: str,
    options: Options,
    lams: Sequence[Setting],
    output: Output,
    note: Callable[[str, str], None],
    slice_bytes: int = SLICE,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Engine:
    """The engine of a merge, whatever its outputs are written to; arguments as `merge` has them.

    Raises:
        UserError: A number is out of range for some tensor, or a pattern matches none.
    """
    return Engine(
        inputs,
        method,
        sites(method, options, inputs.targets, len(inputs.tuned), lams, note, output.dtype),
        # Where coefficients sum to 1 by definition, entries that no tuned model changed are the base's.
        keeps=method_named(method).keeps and (options.base_weight is None or options.normalize is not False),
        dtype=output.dtype,
        check=not output.allow_nonfinite,
        slice_bytes=slice_bytes,
        threads=threads,
        progress=progress,
    )


def _write_tensors(engine: Engine, inputs: Inputs, places: Sequence[Path], output: Output) -> None:
    """Merge all tensors into new folders.

    Raises:
        MismatchError: No tuned model differs from the base.
    """
    layout = lay_out(inputs.targets.values(), engine.dtype, output.max_shard_size)
    with contextlib.ExitStack() as stack:
        writers = []
        for place in places:
            place.mkdir(exist_ok=True)
            writers.append(stack.enter_context(Writer(place, layout)))
        engine.run(writers)
    refuse_equal(engine, inputs)


def refuse_equal(engine: Engine, inputs: Inputs) -> None:
    """Refuse, after the engine's run, tuned models that are the base.

    Raises:
        MismatchError: No tuned model differs from the base.
    """
    if all(engine.equal):
        names = " and ".join(str(model.folder) for model in inputs.tuned)
        verb = "equal" if len(inputs.tuned) > 1 else "equals"
        what = f"{names}: {verb} {inputs.base.folder}, so the merge would change nothing"
        raise MismatchError(what, "name a tuned model")


def _check_settings(output: Output, threads: int | None) -> None:
    """Refuse what a caller in Python may give, and the command line does not.

    Raises:
        UserError: A number is too small, or a word unknown.
    """
    for name, count in (("threads", threads), ("max_shard_size", output.max_shard_size)):
        if count is not None and count < 1:
            raise UserError(f"{name}: {count} is too few", "give 1 or more, or leave it out")
    if output.tokenizer not in ("larger", "base"):
        raise UserError(f"tokenizer: {output.tokenizer!r} is unknown", "give larger or base")


def check_output(out: Path, *inputs: Path) -> None:
    """Refuse an output folder that is in use.

    Raises:
        OutputError: It holds something, or is or lies in an input, or an input lies where it is made.
    """
    whole = Path(os.path.realpath(out))  # `resolve` fails where a link leads back to itself
    scratch = whole.with_name(PARTIAL + whole.name)  # `atomic_folder` empties it
    for folder in inputs:
        if whole.is_relative_to(folder.resolve()):
            raise OutputError(f"{out}: lies inside the input {folder}", "name a folder outside it")
        if folder.resolve().is_relative_to(scratch):
            raise OutputError(f"{out}: would be made in the input {folder}", "choose another name for it")
    free_for_output(out)


def dtype_named(name: str | None) -> torch.dtype | None:
    """A floating-point type by torch's name for it.

    Raises:
        UserError: It is no type that a merged model can have.
    """
    if name is None:
        return None
    found = getattr(torch, name.removeprefix("torch."), None)
    if found not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise UserError(f"--dtype: {name!r} is unknown", "give bfloat16, float16, float32 or float64")
    return found  # type: ignore[no-any-return]
