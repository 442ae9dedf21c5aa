"""Merge models from folder to folder: open, check, write, verify."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mooring.errors import MismatchError, OutputError, UserError
from mooring.events import OnEvent
from mooring.files import PARTIAL, atomic_folder, free_for_output, need_room
from mooring.merge_methods import method_named
from mooring.merging.engine import Engine, lay_out
from mooring.merging.job import Options, bytes_of, dtype_named, options_of, tensor_params
from mooring.merging.manifest import Record, manifest, write_manifest, write_side_files
from mooring.merging.pair import ModelPair, Tokenizer, open_pair
from mooring.merging.slices import SLICE
from mooring.merging.tensor_value import TensorValue
from mooring.merging.verify import compare
from mooring.models import Writer, open_checkpoint

ROOM_FOR_SIDE_FILES = 64 * 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The form of a merged model.

    Attributes:
        dtype: Type of its floating-point tensors, as torch's type or its name; defaults to the base's.
        max_shard_size: The largest file, in bytes or as text such as `5GB` (a larger tensor has a file of its own);
            defaults to the base's files.
        tokenizer: Whose tokenizer it gets if vocabularies differ: `larger` or `base`.
        allow_nonfinite: Continue if an input or a merged value is NaN or Inf.
        verify: Read the result again and compare it with what was written.

    Raises:
        UserError: A value is invalid.
    """

    dtype: torch.dtype | str | None = None
    max_shard_size: int | str | None = None
    tokenizer: Tokenizer = "larger"
    allow_nonfinite: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        bytes_of(self.max_shard_size)
        dtype_named(self.dtype)
        if self.tokenizer not in ("larger", "base"):
            raise UserError(f"tokenizer: {self.tokenizer!r} is unknown", "give larger or base", code="usage.bad_option")

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The type of its floating-point tensors; None for the base's."""
        return dtype_named(self.dtype)


DEFAULT_OUTPUT = Output()


def merge(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    lam: Any = None,
    method: str = "linear",
    lambdas: Sequence[float] = (),
    options: Options | None = None,
    output: Output = DEFAULT_OUTPUT,
    slice_bytes: int = SLICE,
    threads: int | None = None,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Path:
    """Merge tuned models into their base and write the result as an ordinary model folder.

    Memory stays bounded: a few slices per thread, whatever the size of the models and their tensors. The output has the
    base's shards, types, configuration and tokenizer, and a manifest, `mooring.json`. The same inputs give the same
    bytes for any slicing, threading and sharding. The folder appears under its name when it is complete and has been
    read again and compared with what was written.

    Args:
        base: Folder of the aligned model.
        tuned: Folder of the tuned model, or of a LoRA adapter on the base; or several of them.
        out: A folder that does not exist yet, or is empty.
        lam: λ, the weight of the tuned models: a number, a ramp over depth `(0.2, 0.8)`, patterns of names to either,
            or a `TensorValue`.
        method: A name in `merge_methods.METHODS`.
        lambdas: Several λ at once: every input is read once, and `out` gets a folder such as `lam-0.4` for each.
        options: All options of the method, instead of `lam` and `settings`.
        output: The form of the result.
        slice_bytes: Bytes of the base that a thread holds at a time, at least one cell of the grid.
        threads: Number of worker threads; defaults to the number of cores, up to 4.
        on_event: Receives progress in bytes written.
        settings: Other fields of `job.Options`: `weights`, `density`, `gamma`, `epsilon`, `normalize`, `rescale`,
            `seed`, `base_weight`.

    Returns:
        The output folder.

    Raises:
        UserError: The method or an option is unknown, or λ or another number is out of range.
        ModelError: An input is missing, corrupt, not supported, or holds NaN or Inf.
        MismatchError: The inputs do not belong together, or are equal, so that a merge would change nothing.
        OutputError: `out` is not empty, is inside an input, is being written by another process, or does not fit on the
            disk.
    """
    method_named(method)
    if options is None:
        options = options_of(method, lambdas[0] if lambdas else lam, **settings)
    folders = [tuned] if isinstance(tuned, (str, Path)) else list(tuned)
    check_output(Path(out), Path(base), *map(Path, folders))
    with open_pair(base, folders) as pair:
        return merge_pair(
            pair,
            out,
            method=method,
            options=options,
            lambdas=lambdas,
            output=output,
            slice_bytes=slice_bytes,
            threads=threads,
            on_event=on_event,
        )


def merge_pair(
    pair: ModelPair,
    out: str | Path,
    *,
    method: str,
    options: Options,
    lambdas: Sequence[float] = (),
    output: Output = DEFAULT_OUTPUT,
    slice_bytes: int = SLICE,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> Path:
    """Merge models that are open already, as `merge` does, which has the arguments, results and errors."""
    out = Path(out)
    _check_threads(threads)
    values = {f"lam-{lam:g}": options_of(method, lam).lam for lam in lambdas} or {"": options.lam}
    if len(values) < len(lambdas):
        raise UserError("two of the λ are the same", "give each once", code="usage.repeated_lambda")
    check_output(out, *(model.folder for model in pair.models))
    decisions = {name: [sentence] for name, sentence in pair.decisions.items()}

    def note(name: str, sentence: str) -> None:
        if sentence not in decisions.setdefault(name, []):
            decisions[name].append(sentence)

    engine = engine_for(pair, method, options, list(values.values()), output, note, slice_bytes, threads, on_event)
    need_room(out, engine.nbytes * len(values) + ROOM_FOR_SIDE_FILES)
    with atomic_folder(out) as scratch:
        folders = [scratch / name for name in values]
        _write_tensors(engine, pair, folders, output)
        for model, equal in zip(pair.tuned, engine.equal, strict=True):
            if equal:
                note("", f"{model.folder.resolve().name} equals the base")
        record = Record(
            pair=pair,
            method=method,
            options=options,
            changed=list(engine.changed),
            decisions=decisions,
            read=engine.read,
            tokenizer=pair.tokenizer(output.tokenizer),
            allow_nonfinite=output.allow_nonfinite,
        )
        for folder, lam, digests in zip(folders, values.values(), engine.written, strict=True):
            write_side_files(folder, pair, record.tokenizer, output.torch_dtype)
            tensors = {n: (engine.dtype(pair.tensors[n]), pair.tensors[n].shape, d) for n, d in digests.items()}
            content = manifest(record, lam, tensors)
            write_manifest(folder, content)
            if output.verify:
                with open_checkpoint(folder) as written:
                    compare(
                        folder,
                        written,
                        content["digests"],
                        finite=not output.allow_nonfinite,
                        threads=threads,
                        slice_bytes=slice_bytes,
                    )
    return out


def engine_for(
    pair: ModelPair,
    method: str,
    options: Options,
    lams: Sequence[TensorValue],
    output: Output,
    note: Callable[[str, str], None],
    slice_bytes: int = SLICE,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> Engine:
    """The engine of a merge, for any kind of output; arguments as in `merge_pair`.

    Raises:
        UserError: A number is out of range for some tensor, or a pattern matches none.
    """
    dtype = output.torch_dtype
    return Engine(
        pair,
        method,
        tensor_params(method, options, pair.tensors, len(pair.tuned), lams, note, dtype),
        # If coefficients sum to 1 by definition, entries that no tuned model changed are the base's.
        keeps=method_named(method).keeps and (options.base_weight is None or options.normalize is not False),
        dtype=dtype,
        check=not output.allow_nonfinite,
        slice_bytes=slice_bytes,
        threads=threads,
        on_event=on_event,
    )


def _write_tensors(engine: Engine, pair: ModelPair, folders: Sequence[Path], output: Output) -> None:
    """Merge all tensors into new folders.

    Raises:
        MismatchError: No tuned model differs from the base.
    """
    layout = lay_out(pair.tensors.values(), engine.dtype, bytes_of(output.max_shard_size))
    with contextlib.ExitStack() as stack:
        writers = []
        for folder in folders:
            folder.mkdir(exist_ok=True)
            writers.append(stack.enter_context(Writer(folder, layout)))
        engine.run(writers)
    check_differs(engine, pair)


def check_differs(engine: Engine, pair: ModelPair) -> None:
    """Check, after the engine's run, that a tuned model differs from the base.

    Raises:
        MismatchError: None does.
    """
    if all(engine.equal):
        names = " and ".join(str(model.folder) for model in pair.tuned)
        verb = "equal" if len(pair.tuned) > 1 else "equals"
        what = f"{names}: {verb} {pair.base.folder}, so the merge would change nothing"
        raise MismatchError(what, "name a tuned model", code="model.equal")


def _check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise UserError(f"threads: {threads} is too few", "give 1 or more, or leave it out", code="usage.bad_threads")


def check_output(out: Path, *inputs: Path) -> None:
    """Check that an output folder can be used.

    Raises:
        OutputError: It is not empty, is an input or inside one, or an input is where it would be made.
    """
    resolved = Path(os.path.realpath(out))  # `resolve` fails for a link that leads back to itself
    scratch = resolved.with_name(PARTIAL + resolved.name)  # `atomic_folder` empties it
    for folder in inputs:
        if resolved.is_relative_to(folder.resolve()):
            what = f"{out}: is inside the input {folder}"
            raise OutputError(what, "name a folder outside it", code="output.inside_input")
        if folder.resolve().is_relative_to(scratch):
            what = f"{out}: would be made in the input {folder}"
            raise OutputError(what, "choose another name for it", code="output.inside_input")
    free_for_output(out)
