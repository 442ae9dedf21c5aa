"""Merge models from folder to folder: open, check, write, verify."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from mooring.errors import OutputError, UserError
from mooring.events import OnEvent
from mooring.files import PARTIAL, atomic_folder, free_for_output, need_room
from mooring.merge_methods import Role, check_references
from mooring.merging.compatibility import pair_warnings
from mooring.merging.engine import Digests, Engine
from mooring.merging.job import DEFAULT_OUTPUT, Options, Output, bytes_of, options_of, values_by_folder
from mooring.merging.manifest import (
    Decisions,
    Record,
    check_tokenizer,
    links_away,
    manifest,
    write_manifest,
    write_side_files,
)
from mooring.merging.pair import ModelPair, OutputTensor, open_pair
from mooring.merging.parts import FillWindows, Parts, Shards
from mooring.merging.processes import in_processes, processes
from mooring.merging.requantize import RequantizingSink, check_kept, stored_tensors
from mooring.merging.slices import SLICE
from mooring.merging.tensor_value import Given
from mooring.merging.verify import compare
from mooring.models import Writer, open_checkpoint
from mooring.options import MethodOptions

ROOM_FOR_SIDE_FILES = 64 * 2**20


def merge(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    lam: "Given | None" = None,
    method: str = "linear",
    lambdas: Sequence[float] = (),
    references: Mapping[Role, str | Path] | None = None,
    output: Output = DEFAULT_OUTPUT,
    slice_bytes: int = SLICE,
    threads: int | None = None,
    on_event: OnEvent | None = None,
    **settings: Unpack[MethodOptions],
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
        references: Folders of further models that the method needs, by role.
        output: The form of the result.
        slice_bytes: Bytes of the base that a thread holds at a time, at least one cell of the grid.
        threads: Number of workers: processes where the models are large, else threads. Defaults to the number of cores
            (threads: up to 4).
        on_event: Receives progress in bytes written.
        settings: The method's other options (`options.MethodOptions`).

    Returns:
        The output folder.

    Raises:
        UserError: The method or an option is unknown, or λ or another number is out of range.
        ModelError: An input is missing, corrupt, not supported, or holds NaN or Inf.
        MismatchError: The inputs do not belong together, or are equal, so that a merge would change nothing.
        OutputError: `out` is not empty, is inside an input, is being written by another process, or does not fit on the
            disk.
    """
    options = options_of(method, lambdas[0] if lambdas else lam, **settings)
    folders = [tuned] if isinstance(tuned, (str, Path)) else list(tuned)
    further = {role: Path(folder) for role, folder in (references or {}).items()}
    check_references(method, further)
    check_output(Path(out), Path(base), *map(Path, folders), *further.values())
    with open_pair(base, folders, references=further) as pair:
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
    fill_windows: FillWindows | None = None,
) -> Path:
    """Merge models that are open already, with all options as one value; otherwise as `merge`.

    `fill_windows` fills the output instead of this process; the inputs and `out` have to be there as well.
    """
    out = Path(out)
    if fill_windows and output.keep_quantization:
        what = "on: quantized weights are written in the base's format in one process only"
        raise UserError(what, "leave out `on` or `keep_quantization`", code="usage.on_quantized")
    if threads is not None and threads < 1:
        raise UserError(f"threads: {threads} is too few", "give 1 or more, or leave it out", code="usage.bad_threads")
    values = values_by_folder(method, lambdas) or {"": options.lam}
    check_output(out, *(model.folder for model in pair.inputs))
    if output.keep_quantization:
        check_kept(pair)
    decisions = Decisions(pair.decisions)
    for remark in pair.remarks:
        decisions.add("", remark)
    engine = Engine(
        pair,
        method,
        options,
        list(values.values()),
        output,
        note=decisions.add,
        slice_bytes=slice_bytes,
        threads=threads,
        on_event=on_event,
    )
    check_tokenizer(pair, output.tokenizer)
    for sentence in (*pair_warnings(pair, output.tokenizer), *links_away(pair)):
        decisions.add("", sentence)
    tensors = list(stored_tensors(pair) if output.keep_quantization else pair.tensors.values())
    dtype = (lambda tensor: tensor.dtype) if output.keep_quantization else engine.dtype
    nbytes = sum(tensor.numel * dtype(tensor).itemsize for tensor in tensors)
    need_room(out, nbytes * len(values) + ROOM_FOR_SIDE_FILES)
    with atomic_folder(out) as scratch:
        folders = [scratch / name for name in values]
        layout = lay_out(tensors, dtype, bytes_of(output.max_shard_size))
        if output.keep_quantization:
            changed = [lam.constant != 0 for lam in values.values()]
            written, survival = _write_requantized(engine, pair, folders, layout, changed, threads)
        else:
            parts = Parts(
                base=pair.base.folder,
                tuned=[model.folder for model in pair.tuned],
                references={role: model.folder for role, model in pair.references.items()},
                method=method,
                options=options,
                lams=list(values.values()),
                output=output,
                slice_bytes=slice_bytes,
                folders=folders,
                shards=layout,
            )
            _write_tensors(engine, parts, threads, fill_windows)
            written, survival = engine.written, [{} for _ in folders]
        for model, equal in zip(pair.tuned, engine.equal, strict=True):
            if equal:
                decisions.add("", f"{model.folder.resolve().name} equals the base")
        record = Record(
            pair=pair,
            method=method,
            options=options,
            changed=len(engine.changed),
            decisions=decisions,
            read=engine.read,
            tokenizer=pair.tokenizer(output.tokenizer),
            allow_nonfinite=output.allow_nonfinite,
        )
        forms = {tensor.name: (dtype(tensor), tensor.shape) for tensor in tensors}
        for folder, lam, digests, left in zip(folders, values.values(), written, survival, strict=True):
            write_side_files(
                folder, pair, record.tokenizer, output.torch_dtype, keep_quantization=output.keep_quantization
            )
            content = manifest(record, lam, {name: (*forms[name], digest) for name, digest in digests.items()}, left)
            write_manifest(folder, content)
            if output.verify:
                # of values in 16 bits or more, each was checked as it was written
                finite = output.keep_quantization and not output.allow_nonfinite
                with open_checkpoint(folder, as_stored=True) as model:
                    compare(model, content["digests"], finite=finite, threads=threads, slice_bytes=slice_bytes)
    return out


def _write_tensors(engine: Engine, parts: Parts, threads: int | None, fill_windows: FillWindows | None) -> None:
    with contextlib.ExitStack() as stack:
        for folder in parts.folders:
            folder.mkdir(exist_ok=True)
        writers = [stack.enter_context(Writer(folder, parts.shards)) for folder in parts.folders]
        if fill_windows:
            windows = engine.windows()
            names = {number: [tensor.name for tensor in windows[number]] for number in engine.order()}
            engine.run(writers, functools.partial(fill_windows, parts, names))
        elif (count := processes(engine, threads)) > 1:
            engine.run(writers, functools.partial(in_processes, engine, writers, count))
        else:
            engine.run(writers)


def _write_requantized(
    engine: Engine,
    pair: ModelPair,
    folders: Sequence[Path],
    layout: Shards,
    changed: Sequence[bool],
    threads: int | None,
) -> tuple[list[Digests], list[Mapping[str, Any]]]:
    """Write outputs in the base's quantized format: the digests of each, and what survives of its change.

    An output that equals the base is refused where `changed`, which is so unless λ is 0.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            folder.mkdir(exist_ok=True)
        sinks = [RequantizingSink(pair.base, stack.enter_context(Writer(folder, layout))) for folder in folders]
        if (count := processes(engine, threads)) > 1:
            engine.run(sinks, functools.partial(in_processes, engine, sinks, count))
        else:
            engine.run(sinks)
        plain = bool(engine.changed.keys() - pair.base.quantized.keys())
        for sink, differs in zip(sinks, changed, strict=True):
            if differs:
                sink.check_differs(plain)
        return [sink.finish() for sink in sinks], [sink.to_json() for sink in sinks]


def lay_out(
    tensors: Iterable[OutputTensor], dtype: Callable[[OutputTensor], torch.dtype], max_bytes: int | None
) -> Shards:
    """The files of an output: the base's own if `max_bytes` is None, or filled in order up to this size."""
    tensors = list(tensors)
    if max_bytes is None:
        shards: Shards = {}
        for tensor in tensors:
            shards.setdefault(tensor.file, []).append((tensor.name, dtype(tensor), tensor.shape))
        return shards
    groups: list[list[tuple[str, torch.dtype, tuple[int, ...]]]] = [[]]
    size = 0
    for tensor in tensors:
        nbytes = tensor.numel * dtype(tensor).itemsize
        if groups[-1] and size + nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append((tensor.name, dtype(tensor), tensor.shape))
        size += nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{n:05}-of-{len(groups):05}.safetensors": group for n, group in enumerate(groups, 1)}


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
