"""Files of completions: those of `mooring generate`, and those that other tools write.

Read are samples of lm-evaluation-harness, logs of Inspect (`.eval` and `.json`), results of batches of OpenAI, vLLM and
Anthropic, HarmBench's completions, and rows of any file of data with an id or a prompt and a text, as AlpacaEval,
LLaMA-Factory, EvalPlus and others write them.
"""

import dataclasses
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from mooring.bounded import (
    DATA,
    LINE,
    Limit,
    ShortReads,
    UnusableError,
    check_size,
    count_marks,
    expanded_limit,
    open_regular,
    parse_json,
)
from mooring.calls import answer_parts
from mooring.data.rows import RESPONSES, Row, is_data_file, read_rows, read_text
from mooring.errors import DataError, MissingExtraError
from mooring.jsonio import read_lines
from mooring.printable import shorten
from mooring.records import Completion, Prompt, read_jsonl
from mooring.thinking import separated

OWN = {"prompt_id", "text", "tokens", "finish"}
"""The fields of a line of `mooring generate`."""
IDS = ("prompt_id", "custom_id", "task_id", "question_id", "behavior_id", "behaviorid", "id", "uid", "doc_id", "index")
"""Names of a prompt's id, the best first."""
TEXTS = (
    *("text", "completion", "response", "generation", "output", "answer", "prediction", "predict", "generated_text"),
    *("model_output", "model_response", "model_answer", "output_text", "responses", "outputs", "completions"),
)
"""Names of what a model answered, the best first."""
ASKED = (
    *("forbidden_prompt", "prompt", "instruction", "question", "goal", "test_case", "request", "query", "behavior"),
    "input",
)
"""Names of what it was asked."""
WANTED = 'write a line such as {"prompt_id": "…", "text": "…"} for each answer: jq -c \'{prompt_id: .ID, text: .TEXT}\''
_MESSAGES = ("messages", "conversations", "conversation")


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """An answer as another tool wrote it.

    Attributes:
        origin: Where it is.
        texts: The answers to one request: a text, and what was thought apart from it.
        ids: What may be the prompt's id, by the name of the field.
        asked: The request, or a text that contains it.
        finish: Why it ended.
        tokens: Its length; 0 if that is not known.
    """

    origin: str
    texts: Sequence[tuple[str, str | None]]
    ids: Mapping[str, str] = dataclasses.field(default_factory=dict)
    asked: str | None = None
    finish: str = "stop"
    tokens: int = 0


def read_completions(path: Path, prompts: Sequence[Prompt]) -> list[Completion]:
    """Read the answers to prompts from a file of `mooring generate` or of another tool, thoughts apart.

    Answers of other tools are matched with the prompts by their text, by id, or by their number.

    Raises:
        DataError: The file cannot be read, holds no answers (`data.not_completions`), or does not answer exactly these
            prompts (`data.other_prompts`).
    """
    completions = read_jsonl(path, Completion) if _is_own(path) else _matched(path, list(_answers(path)), prompts)
    if different := {c.prompt_id for c in completions} ^ {p.id for p in prompts}:
        problem = f"{path}: does not answer these prompts (for one, {min(different)!r})"
        hint = "name the set, split and seed that it was generated from"
        raise DataError(problem, hint, code="data.other_prompts")
    return separated(completions)


def _is_own(path: Path) -> bool:
    """Whether a file is one of `mooring generate`; a file that cannot be read is treated as one."""
    if path.suffix == ".eval" or not path.is_file():
        return path.suffix != ".eval"
    try:
        line = next((line for line in read_lines(path) if line.strip()), "")
        first = parse_json(line, LINE)
    except (ValueError, DataError):
        return not is_data_file(path.name)
    return not line.strip() or (isinstance(first, dict) and first.keys() >= OWN)


# --- Formats ----------------------------------------------------------------------------------------------------------


def _answers(path: Path) -> Iterator[_Found]:
    """The answers in a file of another tool."""
    if (samples := inspect_samples(path)) is not None:
        yield from map(_inspect, samples)
        return
    if (answers := harmbench_rows(path)) is not None:
        yield from (_row(answer, path) for answer in answers)
        return
    filters: set[str] = set()
    for row in read_rows(path):
        if (name := lm_eval_filter(row.values)) is not None:  # lm-eval writes a row for each filter of the answers
            filters.add(name)
            if len(filters) > 1:
                return
        yield _row(row, path)


def lm_eval_filter(values: Mapping[str, Any]) -> str | None:
    """The filter of a sample of lm-evaluation-harness; None if a row is no such sample."""
    return str(values["filter"]) if "filter" in values and "doc_id" in values else None


def harmbench_rows(path: Path) -> list[Row] | None:
    """HarmBench's completions or results, lists by behavior, as rows with the behavior's `id`; None for other files.

    Raises:
        DataError: The file cannot be read.
    """
    whole = _whole(path) if path.suffix == ".json" else None
    if not isinstance(whole, dict) or not all(map(_is_rows, whole.values())):
        return None
    if len(whole) == 1 and not all("generation" in each for answers in whole.values() for each in answers):
        return None  # an object that contains the one list of rows
    return [Row(f"{path}:{key}", {"id": key, **each}) for key, answers in whole.items() for each in answers]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _whole(path: Path) -> Any:
    try:
        return parse_json(read_text(path), DATA)
    except UnusableError as error:
        raise DataError(f"{path}: {error}", "write it as JSON Lines", code="data.too_large") from None
    except ValueError:
        return None  # JSON Lines under the name .json


def inspect_samples(path: Path) -> list[Row] | None:
    """The samples of a log of Inspect; None for other files.

    An `.eval` file is a ZIP archive with a JSON file for each sample. Recent versions of Inspect compress it with
    Zstandard, which Python's `zipfile` reads from 3.14 on: `inspect_ai` reads it where it is installed.

    Raises:
        DataError: The file cannot be read (`data.unreadable`).
        MissingExtraError: It takes `inspect_ai` to read it (`extra.inspect`).
    """
    if path.suffix == ".eval":
        return _eval_samples(path)
    whole = _whole(path) if path.suffix == ".json" else None
    if not isinstance(whole, dict) or "eval" not in whole or not isinstance(whole.get("samples"), list):
        return None
    samples = enumerate(whole["samples"], 1)
    return [Row(f"{path}:sample {number}", sample) for number, sample in samples if isinstance(sample, dict)]


def _eval_samples(path: Path) -> list[Row]:
    try:
        with os.fdopen(open_regular(path), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            check_size(size, DATA)
            with zipfile.ZipFile(ShortReads(stream, _LARGEST_DIRECTORY)) as archive:
                files = [
                    each for each in archive.infolist() if each.filename.startswith("samples/") and not each.is_dir()
                ]
                if any(each.compress_type == _ZSTANDARD for each in files):
                    return _read_by_inspect(path)
                files.sort(key=lambda each: each.filename)
                return _members(path, archive, files, expanded_limit(size))
    except MissingExtraError:
        raise
    except Exception as error:  # of a damaged archive, the libraries raise nearly anything
        message = f"{path}: is not a readable log of Inspect ({shorten(str(error) or type(error).__name__)})"
        hint = f"convert it: inspect log convert {path.name} --to json --output-dir ."
        raise DataError(message, hint, code="data.unreadable") from None


_ZSTANDARD = 93
"""The method of compression in a ZIP archive (APPNOTE 6.3.8)."""
_LARGEST_DIRECTORY = 2**25
"""Bytes of an archive's directory; enough for 300,000 samples."""
_CHUNK = 2**20


def _members(path: Path, archive: zipfile.ZipFile, files: Sequence[zipfile.ZipInfo], limit: Limit) -> list[Row]:
    """The samples of an archive, all of which together are within a limit."""
    rows: list[Row] = []
    size = marks = 0
    for each in files:
        data = _decompressed(archive, each, Limit(limit.size - size, limit.marks))
        text = data.decode("utf-8")
        size, marks = size + len(data), marks + count_marks(text)
        if marks > limit.marks:
            raise UnusableError(f"its samples hold more than {limit.marks:,} values, the most that is read")
        value = parse_json(text, limit)
        if not isinstance(value, dict):
            raise ValueError(f"{each.filename} is not a sample")
        rows.append(Row(f"{path}:{each.filename}", value))
    return rows


def _decompressed(archive: zipfile.ZipFile, file: zipfile.ZipInfo, limit: Limit) -> bytes:
    """The content of a file, of which no more is decompressed than may be kept, whatever size it states."""
    parts: list[bytes] = []
    size = 0
    with archive.open(file) as stream:
        while part := stream.read(_CHUNK):
            parts.append(part)
            size += len(part)
            if size > limit.size:
                raise UnusableError("its samples are far larger than the file")
    return b"".join(parts)


def _read_by_inspect(path: Path) -> list[Row]:
    """The samples of an `.eval` file, by Inspect's own reader."""
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise MissingExtraError("inspect-ai", "pip install 'mooring[inspect]'", code="extra.inspect") from None
    log = read_eval_log(str(path), resolve_attachments="core")
    return [
        Row(f"{path}:sample {sample.id}", sample.model_dump(mode="json", exclude={"events"}))
        for sample in log.samples or ()
    ]


def _inspect(row: Row) -> _Found:
    """A sample of Inspect: `input` is a text or messages, `output.choices` have the answer."""
    values = row.values
    output = values.get("output")
    if values.get("error") and not (isinstance(output, dict) and output.get("choices")):
        raise _failed(row, f"sample {shorten(repr(values.get('id')))}")
    found = _choices(row, output)
    return dataclasses.replace(found, ids=_ids(values), asked=request_text(values.get("input")))


def _row(row: Row, path: Path) -> _Found:
    values = {str(key).casefold(): value for key, value in row.values.items() if value is not None}
    ids, asked = _ids(values), _asked(values)
    if isinstance(values.get("resps"), list):
        return dataclasses.replace(_lm_eval(row, values), ids=ids, asked=asked)
    if isinstance(values.get("output"), dict) and "choices" in values["output"]:
        return _inspect(row)
    if "custom_id" in values and ("response" in values or "result" in values or "error" in values):
        return dataclasses.replace(_batch(row, values), ids=ids, asked=asked)
    if "choices" in values:
        return dataclasses.replace(_choices(row, values), ids=ids, asked=asked)
    for name in _MESSAGES:
        turns = values.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            last = turns[-1]
            if last.get("role", last.get("from")) in ("assistant", "gpt"):
                return _Found(row.origin, [_said(last)], ids, request_text(turns[:-1]))
    # An answer's field is not one that holds the request: `output` beside `instruction`, `completion` beside `prompt`.
    for name in (*TEXTS, *RESPONSES["input"]):
        value = values.get(name)
        several = value if isinstance(value, list) else [value]
        if several and all(isinstance(each, str) for each in several):
            thoughts = values.get("reasoning_content")
            apart = thoughts if isinstance(thoughts, str) and thoughts.strip() else None
            return _Found(row.origin, [(str(each), apart) for each in several], ids, asked)
    names = ", ".join(f"`{name}`" for name in list(values)[:SHOWN]) or "none"
    raise DataError(
        f"{row.origin}: has no answer of a model (its fields: {names})", WANTED, code="data.not_completions"
    )


SHOWN = 8
"""Names of fields in an error."""


def _lm_eval(row: Row, values: Mapping[str, Any]) -> _Found:
    """A sample of lm-evaluation-harness: `resps` has the answers to each request of a document."""
    first = values["resps"][0] if values["resps"] else None
    texts = first if isinstance(first, list) else [first]
    if not texts or not all(isinstance(text, str) for text in texts):
        hint = "only tasks of the kind generate_until have answers"
        raise DataError(f"{row.origin}: has log-likelihoods and no text", hint, code="data.not_completions")
    return _Found(row.origin, [(str(text), None) for text in texts])


def _batch(row: Row, values: Mapping[str, Any]) -> _Found:
    """A result of a batch: of OpenAI and vLLM, or of Anthropic."""
    result = values.get("result")
    if isinstance(result, dict) and isinstance(result.get("message"), dict):
        message = result["message"]
        finish = "length" if message.get("stop_reason") == "max_tokens" else "stop"
        return _Found(row.origin, [_said(message)], finish=finish)
    response = values.get("response")
    body = response.get("body", response) if isinstance(response, dict) else None
    if values.get("error") or not isinstance(body, dict) or not body.get("choices"):
        raise _failed(row, f"request {shorten(repr(values.get('custom_id')))}")
    return _choices(row, body)


def _failed(row: Row, what: str) -> DataError:
    hint = "run the failed requests again, and join the files"
    return DataError(f"{row.origin}: {what} failed and has no answer", hint, code="data.failed_request")


def _choices(row: Row, body: Any) -> _Found:
    """A response in the format of OpenAI's API, as Inspect keeps it too."""
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise DataError(f"{row.origin}: has no answer of a model", WANTED, code="data.not_completions")
    ended = choices[0].get("finish_reason") or choices[0].get("stop_reason")
    usage = body.get("usage")
    tokens = (usage.get("completion_tokens") or usage.get("output_tokens")) if isinstance(usage, dict) else 0
    texts = [
        _said(choice["message"]) if isinstance(choice.get("message"), dict) else _said(choice) for choice in choices
    ]
    finish = "length" if ended in ("length", "max_tokens", "model_length") else "stop"
    return _Found(row.origin, texts, finish=finish, tokens=tokens if _is_count(tokens) else 0)


def _is_count(value: Any) -> TypeGuard[int]:
    """Whether a value is a number of tokens that an answer can have."""
    return type(value) is int and 0 < value < 2**31


def _said(message: Mapping[str, Any]) -> tuple[str, str | None]:
    """The answer and the thoughts of a message."""
    try:
        return answer_parts(message)
    except (TypeError, AttributeError, LookupError, ValueError):
        return "", None


def _ids(values: Mapping[str, Any]) -> dict[str, str]:
    found = {name: values[name] for name in IDS if isinstance(values.get(name), str | int)}
    if isinstance(doc := values.get("doc"), dict):
        found |= {f"doc.{name}": doc[name] for name in doc if name in IDS and isinstance(doc[name], str | int)}
    return {name: str(value) for name, value in found.items()}


def _asked(values: Mapping[str, Any]) -> str | None:
    """The text of a request, or one that contains it."""
    if isinstance(doc := values.get("doc"), dict) and (text := _asked(doc)) is not None:
        return text
    if "arguments" in values and (text := _first_text(values["arguments"])) is not None:
        return text
    names = (name for name in ASKED if values.get(name) not in (None, "", []))
    text = next((found for name in names if (found := request_text(values[name])) is not None), None)
    extra = values.get("input")
    return (
        f"{text}\n\n{extra}" if text and "instruction" in values and isinstance(extra, str) and extra.strip() else text
    )


def request_text(value: Any) -> str | None:
    """The last turn that is not the assistant's, of a text or of messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        users = [turn for turn in value if turn.get("role", turn.get("from")) in ("user", "human")]
        return _said({"content": users[-1].get("content", users[-1].get("value"))})[0] if users else None
    return None


def _first_text(value: Any) -> str | None:
    """The first text in nested lists and objects: lm-eval's `arguments` differ by version."""
    if isinstance(value, str):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((text for part in parts if (text := _first_text(part)) is not None), None)


# --- Which prompt an answer is to -------------------------------------------------------------------------------------


def _matched(path: Path, found: Sequence[_Found], prompts: Sequence[Prompt]) -> list[Completion]:
    if not found:
        raise DataError(f"{path}: holds no answers", WANTED, code="data.not_completions")
    ids = (
        _by_id(found, prompts, IDS[:1])
        or _by_text(found, prompts)
        or _by_id(found, prompts, IDS)
        or _by_number(found, prompts)
    )
    if ids is None:
        problem = (
            f"{path}: its {len(found)} answers do not belong to these {len(prompts)} prompts, by text, id or number"
        )
        raise DataError(problem, f"name the set that they answer, or {WANTED}", code="data.other_prompts")
    samples: Counter[str] = Counter()
    completions = []
    for each, prompt_id in zip(found, ids, strict=True):
        for text, thoughts in each.texts:
            completions.append(
                Completion(
                    prompt_id=prompt_id,
                    text=text,
                    tokens=each.tokens,
                    finish="length" if each.finish == "length" else "stop",
                    made_by={"file": path.name},
                    sample=samples[prompt_id],
                    thoughts=thoughts,
                )
            )
            samples[prompt_id] += 1
    order = {prompt.id: number for number, prompt in enumerate(prompts)}
    return sorted(completions, key=lambda c: (order[c.prompt_id], c.sample))


def _by_id(found: Sequence[_Found], prompts: Sequence[Prompt], names: Sequence[str]) -> list[str] | None:
    """The ids in the first field of which every value is a prompt's id, and which names every prompt."""
    known = {prompt.id for prompt in prompts}
    for name in (*names, *(f"doc.{name}" for name in names)):
        ids = [each.ids.get(name, "") for each in found]
        if known and set(ids) == known:
            return ids
    return None


def _by_text(found: Sequence[_Found], prompts: Sequence[Prompt]) -> list[str] | None:
    """The prompts whose last turn was asked, or, of what a chat template made of it, the longest in it."""
    known: dict[str, list[str]] = {}
    for prompt in prompts:
        known.setdefault(_plain(prompt.messages[-1].content), []).append(prompt.id)
    longest = sorted(known, key=len, reverse=True)
    turn: Counter[str] = Counter()
    ids = []
    for each in found:
        if each.asked is None:
            return None
        asked = _plain(each.asked)
        key = asked if asked in known else next((text for text in longest if text and text in asked), None)
        if key is None:
            return None
        ids.append(known[key][turn[key] % len(known[key])])  # prompts with one text take turns
        turn[key] += 1
    return ids if set(ids) == {prompt.id for prompt in prompts} else None


def _by_number(found: Sequence[_Found], prompts: Sequence[Prompt]) -> list[str] | None:
    """The prompts by the numbers in a field such as `doc_id` or `custom_id` (`request-0`)."""
    for name in IDS:
        values = [number for each in found if (number := _last_number(each.ids.get(name, ""))) is not None]
        if len(values) == len(found) and set(values) in (set(range(len(prompts))), set(range(1, len(prompts) + 1))):
            return [prompts[value - min(values)].id for value in values]
    return None


def _last_number(text: str) -> int | None:
    """The number at the end of an id; None if there is none, or it is longer than that of any prompt."""
    digits = re.search(r"(?<![0-9])[0-9]+$", text[-_DIGITS - 1 :])
    return int(digits[0]) if digits and len(digits[0]) <= _DIGITS else None


_DIGITS = 12


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
