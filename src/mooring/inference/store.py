"""From an engine to a file of records: batch by batch, so that a killed run goes on from what it had made."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mooring.chat import DEFAULT_SYSTEM, with_system
from mooring.errors import DataError
from mooring.files import explained
from mooring.inference.engine import Drafting, Engine, check_prompts, each_sample
from mooring.jsonio import loads
from mooring.records import Completion, Likelihood, Prompt, dumps, from_dict, sample_key, to_dict, write_jsonl
from mooring.sampling import SamplingParams

# --- What a job on a paid server will cost at most, before it starts ---


CHARACTERS = 4
"""Characters a token: the rule of thumb for English."""


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """What a job takes.

    Attributes:
        requests: Answers asked for.
        tokens_in: Tokens of all requests, by the rule of four characters a token.
        tokens_out_most: Tokens of all answers, were each as long as it may be.
        dollars: What these cost.
    """

    requests: int
    tokens_in: int
    tokens_out_most: int
    dollars: float


def estimate(
    prompts: Sequence[Prompt],
    settings: SamplingParams,
    price_in: float,
    price_out: float,
    *,
    system: str | None = DEFAULT_SYSTEM,
) -> Estimate:
    """Estimate a job's cost.

    Args:
        prompts: What is asked.
        settings: How long and how many the answers are.
        price_in: Dollars per million tokens of input.
        price_out: Dollars per million tokens of output.
        system: System prompt for prompts that bring none.
    """
    tokens_in = sum(math.ceil(_characters(prompt, system) / CHARACTERS) for prompt in prompts) * settings.n
    requests = len(prompts) * settings.n
    tokens_out = requests * settings.max_tokens
    return Estimate(requests, tokens_in, tokens_out, (tokens_in * price_in + tokens_out * price_out) / 1e6)


def _characters(prompt: Prompt, system: str | None) -> int:
    if prompt.rendered is not None:
        return len(prompt.rendered)
    return sum(len(message.content) for message in with_system(prompt, system))


Progress = Callable[[int, int, int], None]
"""Called with (prompts done, prompts in all, tokens made by this call)."""
Record = TypeVar("Record", Completion, Likelihood)


def complete_to_file(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: SamplingParams,
    path: Path,
    made_by: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    *,
    drafts: Mapping[str, str] | None = None,
    known: Mapping[str, Completion] | None = None,
) -> list[Completion]:
    """Answer prompts into a JSON Lines file, one completion a line, in the order of the prompts and their samples.

    While it grows it is `<path>.part`; the file appears under its own name when it is whole. Called again after a
    kill with the same engine, prompts and settings, it goes on from the batches that were whole, and the file is the
    same as if nothing had happened. A `.part` of anything else is thrown away.

    Args:
        engine: What answers.
        prompts: What is asked; ids unique.
        settings: How responses are drawn.
        path: The file to write; one that is there is replaced.
        made_by: What the engine does not know of itself, such as the model's digest: kept in every completion,
            beside the engine and the settings.
        on_progress: Called once at the start and after every batch.
        drafts: Another model's answers by their keys, for an engine that takes such help (`engine.Drafting`).
        known: Completions of the same model by their keys, which are taken as they are.

    Returns:
        The completions, as written.

    Raises:
        DataError: No prompts, an id twice, or a prompt that does not fit the model's context.
        OutputError: The disk is full, or the folder may not be written.
    """
    made = {**(made_by or {}), "engine": dict(engine.about), "settings": dataclasses.asdict(settings)}
    known = known or {}
    check_prompts(prompts)
    each = each_sample(prompts, settings)
    missing = {index for index, sample in each if sample_key(prompts[index].id, sample) not in known}
    asked = [prompt for index, prompt in enumerate(prompts) if index in missing]

    def batches(done: Collection[str]) -> Iterator[list[Completion]]:
        if not asked:
            return
        if drafts and isinstance(engine, Drafting):
            answers = engine.complete_drafted(asked, settings, drafts, done=done)
        else:
            answers = engine.complete(asked, settings, done=done)
        for batch in answers:
            yield [dataclasses.replace(c, made_by={**made, **c.made_by}) for c in batch]

    keys = [sample_key(prompts[index].id, sample) for index, sample in each]
    return _to_file(batches, Completion, asked, keys, path, made, on_progress, known)


def likelihood_to_file(
    engine: Engine,
    examples: Sequence[Prompt],
    path: Path,
    made_by: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> list[Likelihood]:
    """The likelihood of every reference into a JSON Lines file, as `complete_to_file` does it for completions."""
    made = {**(made_by or {}), "engine": dict(engine.about)}
    check_prompts(examples)

    def batches(done: Collection[str]) -> Iterator[list[Likelihood]]:
        return engine.likelihood(examples, done=done)

    return _to_file(batches, Likelihood, examples, [e.id for e in examples], path, made, on_progress)


def _to_file(
    batches: Callable[[Collection[str]], Iterator[list[Record]]],
    kind: type[Record],
    prompts: Sequence[Prompt],
    keys: Sequence[str],
    path: Path,
    made_by: Mapping[str, Any],
    on_progress: Progress | None,
    known: Mapping[str, Record] | None = None,
) -> list[Record]:
    what = json.dumps([kind.__name__, made_by, [to_dict(prompt) for prompt in prompts]], sort_keys=True)
    header = json.dumps({"part_of": hashlib.sha256(what.encode()).hexdigest()}) + "\n"
    part = path.with_name(path.name + ".part")
    tell = on_progress or (lambda done, total, tokens: None)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        made, size = read_part(part, kind, header)
        stored = frozenset(made)
        wanted = frozenset(keys)
        made = {key: record for key, record in (known or {}).items() if key in wanted} | made
        tell(len(made), len(keys), 0)
        tokens = 0
        stream = batches(stored)
        first = next(stream, None)  # a prompt that does not fit is refused here, before a file is made
        with part.open("r+b" if size else "wb") as file:
            file.truncate(size)
            file.seek(size)
            if not size:
                file.write(header.encode())
            for batch in itertools.chain([] if first is None else [first], stream):
                # One write a batch; a batch that was half there is written again, and the later line counts.
                file.write("".join(dumps(record) + "\n" for record in batch).encode())
                file.flush()
                os.fsync(file.fileno())
                made.update((record.key, record) for record in batch)
                tokens += sum(record.tokens for record in batch)
                tell(len(made), len(keys), tokens)
        records = [made[key] for key in keys]
        write_jsonl(path, records)
        part.unlink()
    return records


def read_part(part: Path, kind: type[Record], header: str) -> tuple[dict[str, Record], int]:
    """What an earlier run left.

    Returns:
        Its records by key, and how many bytes they take with the header; a half-written line, and whatever
        follows it, is not among them. Nothing where the header is another's.
    """
    data = part.read_bytes() if part.is_file() else b""
    size = len(header.encode())
    if data[:size] != header.encode():
        return {}, 0
    records: dict[str, Record] = {}
    for line in data[size:].split(b"\n")[:-1]:
        try:
            record = from_dict(kind, loads(line.decode()))
        except (ValueError, DataError):
            break
        records[record.key] = record
        size += len(line) + 1
    return records, size
