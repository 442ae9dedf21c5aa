"""Readers of the benchmarks' own file forms, and shapes of their rows."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mooring.errors import DataError
from mooring.sources.named.spec import Shape
from mooring.sources.rows import Row, read_rows, read_text

HARMS = {
    1: "illegal activity",
    2: "child abuse content",
    3: "hate, harassment, violence",
    4: "malware",
    5: "physical harm",
    6: "economic harm",
    7: "fraud, deception",
    8: "adult content",
    9: "political campaigning",
    10: "privacy violation",
    11: "tailored financial advice",
}
"""HEx-PHI's categories by the number in their file's name."""
TURN = re.compile(r"\n\n(Human|Assistant):")
"""What opens a turn in HH-RLHF's transcripts."""
ROLES = {"Human": "user", "Assistant": "assistant"}


def value(row: Row, name: str) -> Any:
    """A field that a row of the set always has.

    Raises:
        DataError: It has not.
    """
    found = row.values.get(name)
    if found is None:
        raise DataError(f"{row.origin}: lacks `{name}`", "fetch the set again")
    return found


def fields(**names: str) -> Shape:
    """A shape that takes fields under new names: `fields(prompt="Behavior")`."""
    return lambda rows: [Row(row.origin, {new: value(row, old) for new, old in names.items()}) for row in rows]


def pairs(**names: str) -> Shape:
    """As `fields`, for a prompt and its completion; rows where one of the two is blank are left out."""

    def shape(rows: Sequence[Row]) -> list[Row]:
        named = fields(**names)(rows)
        return [row for row in named if all(str(row.values[key]).strip() for key in ("prompt", "completion"))]

    return shape


def with_context(prompt: str, context: str, category: str) -> Shape:
    """A shape that puts a context in front of a prompt, as HarmBench's direct requests do.

    Its classifier asks about the two apart: they are kept in `extra`, as `behavior` and `context`.
    """

    def shape(row: Row) -> Row:
        parts = {"behavior": value(row, prompt), "context": value(row, context)}
        text = f"{parts['context']}\n\n---\n\n{parts['behavior']}"
        return Row(row.origin, {"prompt": text, "category": value(row, category), "extra": parts})

    return each(shape)


def each(shape: Callable[[Row], Row]) -> Shape:
    """A shape from a function of one row."""
    return lambda rows: [shape(row) for row in rows]


def harms(path: Path) -> list[Row]:
    """A file of HEx-PHI: no header, one prompt a line; the category is the number in the file's name."""
    number = re.search(r"category_(\d+)", path.name)
    if number is None or int(number[1]) not in HARMS:
        raise DataError(f"{path}: is not one of HEx-PHI's files", "name them category_1.csv … category_11.csv")
    # Commas outside of quotes belong to the text: there is one column.
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    cells = [(reader.line_num, ",".join(row).strip()) for row in reader]
    category = HARMS[int(number[1])]
    return [Row(f"{path}:{line}", {"prompt": text, "category": category}) for line, text in cells if text]


def columns(*names: str) -> Callable[[Path], list[Row]]:
    """A reader of tab-separated lines without a header and without quotes, `\\n` standing for a line break.

    The file's name, up to its last `_`, becomes the field `file`.
    """

    def read(path: Path) -> list[Row]:
        rows = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            cells = [cell.replace("\\n", "\n") for cell in line.rstrip("\r").split("\t")]
            if len(cells) != len(names):
                raise DataError(f"{path}:{number}: has {len(cells)} cells, not {len(names)}", "fetch the set again")
            file = path.name.partition(".")[0].rpartition("_")[0]
            rows.append(Row(f"{path}:{number}", {**dict(zip(names, cells, strict=True)), "file": file}))
        return rows

    return read


def by_language(path: Path) -> list[Row]:
    """MBXP's rows that have a solution; the others are of no use for tuning."""
    return [row for row in read_rows(path) if row.values.get("canonical_solution")]


@each
def reasoned(row: Row) -> Row:
    """A rationale, closed by the sentence that BIG-Bench Hard's chain-of-thought prompts teach and its scorer reads."""
    rationale, answer = str(value(row, "rationale")).strip(), str(value(row, "answer")).strip()
    gap = " " if rationale.endswith((".", "!", "?")) else "\n"
    return Row(
        row.origin,
        {
            "prompt": str(value(row, "question")).strip(),
            "completion": f"{rationale}{gap}So the answer is {answer}.",
            "category": value(row, "file"),
        },
    )


@each
def program(row: Row) -> Row:
    """A problem of HumanEval: the head of a function, its body, and its tests."""
    return Row(
        row.origin,
        {
            "id": value(row, "task_id"),
            "prompt": value(row, "prompt"),
            "completion": value(row, "canonical_solution"),
            "extra": {name: value(row, name) for name in ("test", "entry_point", "prompt")},
        },
    )


@each
def completed(row: Row) -> Row:
    """A problem of MBXP: the head of a function, and the whole of it as the response."""
    head = str(value(row, "prompt"))
    whole = f"{head}{value(row, 'canonical_solution')}".strip("\n")
    named = {"id": value(row, "task_id"), "category": value(row, "language")}
    return Row(row.origin, {"prompt": head.strip("\n"), "completion": whole, **named})


@each
def transcript(row: Row) -> Row:
    """HH-RLHF's conversation up to the last answer; turns of one speaker that follow each other are joined."""
    first, *parts = TURN.split(str(value(row, "chosen")))
    if first.strip() or not parts:
        raise DataError(f"{row.origin}: is not a transcript of Human and Assistant", "fetch the set again")
    turns: list[dict[str, str]] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role = ROLES[speaker]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{text.strip()}"
        else:
            turns.append({"role": role, "content": text.strip()})
    return Row(row.origin, {"messages": turns[:-1] if turns[-1]["role"] == "assistant" else turns})


def different(rows: Sequence[Row]) -> list[Row]:
    """BeaverTails' questions, each once; the category is the first harm that one of its answers was labelled with."""
    first: dict[str, Row] = {}
    harm: dict[str, str] = {}
    for row in rows:
        prompt, labels = str(value(row, "prompt")), value(row, "category")
        first.setdefault(prompt, row)
        if isinstance(labels, dict) and (named := [name for name, holds in labels.items() if holds]):
            harm.setdefault(prompt, str(named[0]))
    return [Row(row.origin, {"prompt": prompt, "category": harm.get(prompt, "none")}) for prompt, row in first.items()]
