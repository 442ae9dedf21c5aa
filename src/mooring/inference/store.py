"""From an engine to a JSON Lines file, batch by batch, so that a killed run resumes where it stopped."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mooring.errors import DataError
from mooring.events import Event, OnEvent, ignore
from mooring.files import explained
from mooring.inference.engine import Engine, SmallerBatchesError, check_prompts, sample_indices
from mooring.jsonio import loads
from mooring.records import Completion, Likelihood, Prompt, dumps, from_dict, sample_key, write_jsonl
from mooring.sampling import SamplingParams
from mooring.thinking import separated

Record = TypeVar("Record", Completion, Likelihood)


def complete_to_file(
    engine: Engine,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    path: Path,
    *,
    made_by: Mapping[str, Any] | None = None,
    drafts: Mapping[str, str] | None = None,
    known: Mapping[str, Completion] | None = None,
    on_event: OnEvent | None = None,
) -> list[Completion]:
    """Write the completions of prompts to a JSON Lines file, in the order of the prompts and their samples.

    The file grows as `<path>.part` and is renamed when it is complete. If the process is killed, the same call (same
    engine, prompts and parameters) continues after the last complete batch and writes the same bytes as an
    uninterrupted run. The `.part` file of a different call is discarded. If memory runs out and the engine makes
    smaller batches, all responses are generated again, so that a file is made with one batch size.

    Args:
        engine: The model.
        prompts: The prompts; ids are unique.
        params: How responses are sampled.
        path: The file to write; an existing one is replaced.
        made_by: Provenance that the engine does not know, such as the model's digest; stored in each completion,
            beside the engine and the sampling parameters.
        drafts: Completions of another model by key; see `Engine.complete`.
        known: Completions of the same model by key, which are not generated again.
        on_event: Receives a progress event (`generate`, in responses) at the start and after each batch.

    Returns:
        The completions, as written. Thoughts that a server left in the text are in a field of their own.

    Raises:
        DataError: There are no prompts, an id is repeated, or a prompt does not fit the model's context.
        OutputError: The disk is full, or the folder is not writable.
    """
    known = known or {}
    check_prompts(prompts)
    samples = sample_indices(prompts, params)
    missing = {index for index, sample in samples if sample_key(prompts[index].id, sample) not in known}
    pending = [prompt for index, prompt in enumerate(prompts) if index in missing]

    def batches(done: Collection[str]) -> Iterator[list[Completion]]:
        if not pending:
            return
        for batch in engine.complete(pending, params, done=done, drafts=drafts):
            yield [dataclasses.replace(c, made_by={**provenance(), **c.made_by}) for c in batch]

    def provenance() -> dict[str, Any]:
        return {**(made_by or {}), "engine": dict(engine.about), "settings": dataclasses.asdict(params)}

    def header() -> str:
        return _header(Completion, provenance(), pending)

    keys = [sample_key(prompts[index].id, sample) for index, sample in samples]
    return _to_file(engine, batches, Completion, header, keys, path, known, "generate", on_event, separated)


def likelihood_to_file(
    engine: Engine,
    examples: Sequence[Prompt],
    path: Path,
    *,
    made_by: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> list[Likelihood]:
    """Write the likelihood of each reference to a JSON Lines file; resumes as `complete_to_file` does.

    Args:
        engine: The model.
        examples: Prompts with references; ids are unique.
        path: The file to write; an existing one is replaced.
        made_by: Provenance: a `.part` file of another one is discarded.
        on_event: Receives a progress event (`likelihood`, in responses) at the start and after each batch.

    Raises:
        DataError: There are no examples, an id is repeated, a reference is missing, or an example does not fit.
        OutputError: The disk is full, or the folder is not writable.
    """
    check_prompts(examples)
    keys = [example.id for example in examples]

    def batches(done: Collection[str]) -> Iterator[list[Likelihood]]:
        return engine.likelihood(examples, done=done)

    def header() -> str:
        return _header(Likelihood, {**(made_by or {}), "engine": dict(engine.about)}, examples)

    return _to_file(engine, batches, Likelihood, header, keys, path, {}, "likelihood", on_event)


def _header(record_type: type[Record], provenance: Mapping[str, Any], prompts: Sequence[Prompt]) -> str:
    """The first line of a `.part` file: a digest of everything that its records depend on, and the batch size."""
    engine = {name: value for name, value in provenance["engine"].items() if name != "base_url"}  # a server may move
    depends = {**provenance, "engine": engine}
    inputs = json.dumps([record_type.__name__, depends, [prompt.to_dict() for prompt in prompts]], sort_keys=True)
    digest = hashlib.sha256(inputs.encode()).hexdigest()
    return json.dumps({"part_of": digest, "batch_size": engine.get("batch_size")}) + "\n"


def _continue_batch_size(engine: Any, part: Path) -> None:
    """Let an engine that finds its batch size continue with the one that a `.part` file was made with."""
    if getattr(engine, "adapts", False) and part.is_file():
        with part.open("rb") as file, contextlib.suppress(ValueError, TypeError, KeyError):  # another file, or cut off
            size = int(loads(file.readline().decode())["batch_size"])
            engine.batch_size = min(engine.batch_size, max(1, size))


def _to_file(
    engine: Engine,
    batches: Callable[[Collection[str]], Iterator[list[Record]]],
    record_type: type[Record],
    header: Callable[[], str],
    keys: Sequence[str],
    path: Path,
    known: Mapping[str, Record],
    step: str,
    on_event: OnEvent | None,
    finish: Callable[[Sequence[Record]], list[Record]] = list,
) -> list[Record]:
    """Write batches to a file; from the beginning whenever the engine has made them smaller."""
    _continue_batch_size(engine, path.with_name(path.name + ".part"))
    while True:
        try:
            return _write(batches, record_type, header(), keys, path, known, step, on_event, finish)
        except SmallerBatchesError:
            continue


def _write(
    batches: Callable[[Collection[str]], Iterator[list[Record]]],
    record_type: type[Record],
    header: str,
    keys: Sequence[str],
    path: Path,
    known: Mapping[str, Record],
    step: str,
    on_event: OnEvent | None,
    finish: Callable[[Sequence[Record]], list[Record]],
) -> list[Record]:
    part = path.with_name(path.name + ".part")
    emit = on_event or ignore
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        resumed, size = _read_part(part, record_type, header)
        records = {key: known[key] for key in keys if key in known} | resumed

        def progress(tokens: int) -> None:
            done, total = len(records), len(keys)
            emit(Event(step=step, kind="progress", done=done, total=total, unit="responses", tokens=tokens))

        progress(0)
        tokens = 0
        stream = batches(frozenset(resumed))
        first = next(stream, None)  # raises if a prompt does not fit, before the file is created
        with part.open("r+b" if size else "wb") as file:
            file.truncate(size)
            file.seek(size)
            if not size:
                file.write(header.encode())
            for batch in itertools.chain([] if first is None else [first], stream):
                # One write per batch; if a batch was only half written, its later lines replace the earlier ones.
                file.write("".join(dumps(record) + "\n" for record in batch).encode())
                file.flush()
                os.fsync(file.fileno())
                records.update((record.key, record) for record in batch)
                tokens += sum(record.tokens for record in batch)
                progress(tokens)
        ordered = finish([records[key] for key in keys])
        write_jsonl(path, ordered)
        part.unlink()
    return ordered


def _read_part(part: Path, record_type: type[Record], header: str) -> tuple[dict[str, Record], int]:
    """The records of an interrupted run by key, and their size in bytes including the header.

    They end at the first line that is incomplete or invalid; there are none if the header is that of a different call.
    """
    data = part.read_bytes() if part.is_file() else b""
    size = len(header.encode())
    if data[:size] != header.encode():
        return {}, 0
    records: dict[str, Record] = {}
    for line in data[size:].split(b"\n")[:-1]:
        try:
            record = from_dict(record_type, loads(line.decode()))
        except (ValueError, DataError):
            break
        records[record.key] = record
        size += len(line) + 1
    return records, size
