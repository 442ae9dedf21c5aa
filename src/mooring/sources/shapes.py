"""The ecosystem's shapes of a row, turned into `Prompt` records."""

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from mooring.errors import DataError
from mooring.records import Message, Prompt, Role, to_dict
from mooring.sources.rows import Row

RESPONSES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("completion", "response", "answer", "output"),
    "instruction": ("output", "response", "completion", "answer"),
    "question": ("answer", "response", "output"),
    "goal": (),  # its neighbour `target` is what an attack wants to hear, not the right answer
    "input": ("target", "output", "response", "answer"),
}
"""What a prompt may be called, the first one found counting, and beside each what its response may be called."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can hold half a surrogate pair; UTF-8 and tokenizers cannot."""

ACCEPTED = (
    "accepted: `messages`; `prompt` + `completion`; `instruction` (+ `input`) + `output`; "
    "or a prompt alone, as `prompt`, `instruction`, `question`, `goal` or `input`"
)


def to_prompts(rows: Sequence[Row]) -> list[Prompt]:
    """Rows as records. Names of fields are compared without regard to case; a field that is null counts as absent.

    Ids are the rows' own (`id`) where every row has one and no two are alike; else digests of the content, which do
    not change when rows move.

    Raises:
        DataError: A row lacks its fields, or one of them is not what it should be; the message names file and line.
    """
    parsed = [_parse(row) for row in rows]
    own = [_own_id(row) for row in rows]
    ids = own if all(own) and len(set(own)) == len(own) else _content_ids(parsed)
    return [dataclasses.replace(prompt, id=id_) for prompt, id_ in zip(parsed, ids, strict=True)]


def content(prompt: Prompt) -> str:
    """What is asked, as canonical JSON: equal for two prompts exactly if a model sees the same."""
    return json.dumps([[m.role, m.content] for m in prompt.messages], ensure_ascii=False)


def alike(prompt: Prompt) -> str:
    """What is asked, whatever its case, spacing and Unicode form (NFKC): what differs in no more counts as the same
    prompt where none may be in two halves."""
    return json.dumps([[m.role, " ".join(_folded(m.content).split())] for m in prompt.messages])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of a data set: of its ids, messages, references, categories, extras in order, not of where they lay."""
    values = [
        # fields that came later count only where they say something
        {k: v for k, v in to_dict(p).items() if k != "origin" and (v or k not in ("rendered", "extra"))}
        for p in prompts
    ]
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(row: Row) -> Prompt:
    values = {key.casefold(): value for key, value in row.values.items() if isinstance(key, str) and value is not None}
    if "messages" in values:
        messages, reference = _conversation(_turns(values["messages"], "messages", row.origin), row.origin)
    elif isinstance(values.get("prompt"), list):
        messages = _turns(values["prompt"], "prompt", row.origin)
        reference = _response("prompt", values, row.origin)
        if messages[-1].role == "assistant":
            raise DataError(f"{row.origin}: the prompt ends with the assistant", "put that turn into `completion`")
    else:
        messages, reference = _plain(values, row.origin)
    groups = (_text(values[key], key, row.origin) for key in ("category", "type") if isinstance(values.get(key), str))
    category = next((group for group in groups if group), None)
    extra = values.get("extra", {})
    if not isinstance(extra, dict):
        raise DataError(f"{row.origin}: `extra` is not an object", 'write {"test": "…", …}')
    return Prompt(
        id="",
        messages=messages,
        reference=reference,
        category=category,
        origin=row.origin,
        extra={name: _text(value, f"extra.{name}", row.origin) for name, value in extra.items()},
    )


def _plain(values: Mapping[str, Any], origin: str) -> tuple[tuple[Message, ...], str | None]:
    """A prompt that is one string, and its response."""
    name = next((name for name in RESPONSES if name in values), None)
    if name is None:
        raise DataError(f"{origin}: no prompt among its fields ({_names(values)})", ACCEPTED)
    text = _text(values[name], name, origin)
    if name == "instruction" and "input" in values:
        extra = _text(values["input"], "input", origin)
        text = f"{text}\n\n{extra}" if extra.strip() else text
    if not text.strip():
        raise DataError(f"{origin}: `{name}` is empty", "fill it in, or remove the row")
    return (Message("user", text),), _response(name, values, origin)


def _response(prompt: str, values: Mapping[str, Any], origin: str) -> str | None:
    """The response that goes with a prompt of this name; an empty one counts as absent."""
    found = {}
    for name in RESPONSES[prompt]:
        value = values.get(name)
        if isinstance(value, list) and name == "completion":
            turns = _turns(value, name, origin)
            if len(turns) != 1 or turns[0].role != "assistant":
                raise DataError(f"{origin}: `{name}` is not one turn of the assistant", "keep one")
            value = turns[0].content
        if value is not None and (text := _text(value, name, origin)).strip():
            found[name] = text
    if len(found) > 1:
        raise DataError(f"{origin}: more than one response: {', '.join(f'`{n}`' for n in found)}", "keep one of them")
    return next(iter(found.values()), None)


def _conversation(turns: tuple[Message, ...], origin: str) -> tuple[tuple[Message, ...], str | None]:
    """A conversation as what is asked and, where the assistant has the last word, its response."""
    reference = None
    if turns[-1].role == "assistant":
        turns, reference = turns[:-1], turns[-1].content
    if not turns or turns[-1].role not in ("user", "tool"):
        raise DataError(f"{origin}: no turn of the user before the last answer", "mend `messages`")
    return turns, reference if reference and reference.strip() else None


def _turns(value: Any, name: str, origin: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: `{name}` is not a list of turns", 'write [{"role": "user", "content": …}, …]')
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
            raise DataError(f"{origin}: turn {number} of `{name}` lacks `role` or `content`", "add it")
        if turn["role"] not in get_args(Role):
            raise DataError(
                f"{origin}: turn {number} of `{name}` has the role {turn['role']!r}",
                f"known are {', '.join(get_args(Role))}",
            )
        turns.append(Message(turn["role"], _text(turn["content"], f"content` of turn {number} of `{name}", origin)))
    return tuple(turns)


def _text(value: Any, name: str, origin: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{origin}: `{name}` is not text but {type(value).__name__}", "write it as a string")
    if SURROGATE.search(value):
        raise DataError(f"{origin}: `{name}` holds half a surrogate pair", "mend its \\u escapes")
    return value


def _names(values: Mapping[str, Any]) -> str:
    """Names of fields for a message; the first ones, cut short, since a file without a header may show its text."""
    names = [f"`{key[:24]}…`" if len(key) > 24 else f"`{key}`" for key in values]
    return ", ".join(names[:6] + ["…"] * (len(names) > 6)) or "none"


def _own_id(row: Row) -> str:
    """The row's own id, or nothing."""
    value = row.values.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "id", row.origin) if isinstance(value, str) else ""


def _content_ids(prompts: Sequence[Prompt]) -> list[str]:
    seen: Counter[str] = Counter()
    ids = []
    for prompt in prompts:
        text = json.dumps([content(prompt), prompt.reference], ensure_ascii=False)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        seen[key] += 1
        ids.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return ids
