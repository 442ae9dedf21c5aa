"""The named data sets of `catalogue.toml`: its keys, and the readers and shapes that it names.

To add a set, add a table to `catalogue.toml`; only a set in an unusual format also needs a reader or a shape here.
"""

import csv
import dataclasses
import io
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from mooring.data.rows import Row, content, read_rows, read_text
from mooring.errors import DataError
from mooring.jsonio import convert
from mooring.plugins import Registry
from mooring.records import Kind, Prompt, Split

FETCH_AGAIN = "fetch the set again"
SPLIT_SEED = 42
"""Seed of the parts of task data: fixed, so that runs with other seeds tune, choose and report on the same rows."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of rows in one place: below `$MOORING_DATA` (`path`) or on the hub (`repo`).

    Attributes:
        path: Its file below `$MOORING_DATA`, or a glob pattern of its files.
        repo: Its id on the hub.
        config: The configuration to load with `datasets`.
        split: The split to load with `datasets`.
        files: Files of the repository that are read directly, instead of by `datasets`.
        optional: Those of `files` that some versions do not have.
        reader: How a file is read, a key of `READERS`; defaults to `read_rows`.
        where: Fields and their values: the rows to select.
        counts: Accepted numbers of selected rows; empty to accept any.
        fields: The fields to keep, by their new names; empty to keep all as they are.
        shape: What converts the rows to ones that `to_prompts` accepts, a key of `SHAPES`; defaults to nothing.
    """

    path: str = ""
    repo: str = ""
    config: str | None = None
    split: str = "train"
    files: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    reader: Literal["rows", "hex_phi", "flan_cot", "mbxp"] = "rows"
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    counts: tuple[int, ...] = ()
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shape: (
        Literal["with_context", "without_blanks", "transcripts", "distinct_questions", "humaneval", "mbxp"] | None
    ) = None

    def read(self, path: Path) -> list[Row]:
        """Read the rows of one of its files."""
        return READERS[self.reader](path)

    def convert(self, rows: Sequence[Row]) -> list[Row]:
        """Convert rows as they are published to rows that `to_prompts` accepts.

        Raises:
            DataError: A row lacks a field (`data.missing_field`) or is malformed (`data.malformed_row`).
        """
        if self.fields:
            rows = [Row(row.origin, {new: value(row, old) for new, old in self.fields.items()}) for row in rows]
        return SHAPES[self.shape](rows) if self.shape else list(rows)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamedSet:
    """A public data set.

    Attributes:
        kind: What the set is for.
        tables: Where its rows are looked for, in this order.
        reads: Which fields or rows are read, for the docs.
        licence: Its licence, as its publishers name it.
        gated: Whether the hub requires its terms to be accepted.
        validation: Share of the rows that is the validation part; 0 if the set has no parts. The rest is for training.
        test: Number of rows of the test part, drawn from `test_tables` or held out of the rows; 0 for all of
            `test_tables`.
        test_tables: As `tables`, for a separate test part.
        split_by: Prompts with the same content, or of the same problem, stay in one part.
        category_field: What the category is called in the published rows, for `#N/field`.
        instructions: How to get a set that is not on the hub.
        name: Its name.
        load: Of a plug-in, in place of tables: from the part (`tune`, `validation` or `test`; `test` for a set without
            parts) to its rows, in any shape that a file may have.
    """

    kind: Kind
    tables: tuple[Table, ...] = ()
    reads: str = ""
    licence: str = ""
    gated: bool = False
    validation: float = 0.0
    test: int = 0
    test_tables: tuple[Table, ...] = ()
    split_by: Literal["content", "problem"] = "content"
    category_field: str = "category"
    instructions: str = ""
    name: str = ""
    load: Callable[[Split], Iterable[Mapping[str, Any]]] | None = None

    def group(self, prompt: Prompt) -> str:
        """A key of a prompt: prompts with the same key stay in one part."""
        return prompt.id.rpartition("/")[2] if self.split_by == "problem" else content(prompt)


def value(row: Row, name: str) -> Any:
    """Return a field that every row of the set has.

    Raises:
        DataError: It is missing (`data.missing_field`).
    """
    if row.values.get(name) is None:
        raise DataError(f"{row.origin}: lacks `{name}`", FETCH_AGAIN, code="data.missing_field")
    return row.values[name]


# --- Readers ---

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
"""HEx-PHI's categories by the number in the name of their file."""


def read_hex_phi(path: Path) -> list[Row]:
    """Read a file of HEx-PHI: no header, one prompt per line; the number in the file's name is the category."""
    number = re.search(r"category_(\d+)", path.name)
    if number is None or int(number[1]) not in HARMS:
        message = f"{path}: is not one of HEx-PHI's files"
        raise DataError(message, "name them category_1.csv … category_11.csv", code="data.unexpected_file")
    # Commas outside of quotes belong to the text: there is one column.
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    cells = [(reader.line_num, ",".join(row).strip()) for row in reader]
    category = HARMS[int(number[1])]
    return [Row(f"{path}:{line}", {"prompt": text, "category": category}) for line, text in cells if text]


def read_flan_cot(path: Path) -> list[Row]:
    """Read question, answer and rationale: tab-separated, without header and quoting, with `\\n` for a line break.

    A rationale ends with the sentence of BIG-Bench Hard's chain-of-thought prompts, which its scorer parses. The
    category is the name of the file up to its last `_`.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        cells = [cell.replace("\\n", "\n").strip() for cell in line.rstrip("\r").split("\t")]
        if len(cells) != 3:
            message = f"{path}:{number}: has {len(cells)} cells, not 3"
            raise DataError(message, FETCH_AGAIN, code="data.malformed_row")
        question, answer, rationale = cells
        gap = " " if rationale.endswith((".", "!", "?")) else "\n"
        completion = f"{rationale}{gap}So the answer is {answer}."
        category = path.name.partition(".")[0].rpartition("_")[0]
        rows.append(Row(f"{path}:{number}", {"prompt": question, "completion": completion, "category": category}))
    return rows


def read_mbxp(path: Path) -> list[Row]:
    """Read the rows of MBXP that have a solution."""
    return [row for row in read_rows(path) if row.values.get("canonical_solution")]


READERS: Mapping[str, Callable[[Path], list[Row]]] = {
    "rows": read_rows,
    "hex_phi": read_hex_phi,
    "flan_cot": read_flan_cot,
    "mbxp": read_mbxp,
}


# --- Shapes ---

TURN = re.compile(r"\n\n(Human|Assistant):")
"""The beginning of a turn in HH-RLHF's transcripts."""
ROLES = {"Human": "user", "Assistant": "assistant"}


def without_blanks(rows: Sequence[Row]) -> list[Row]:
    """Leave out rows whose prompt or completion is blank."""
    return [row for row in rows if all(str(row.values[key]).strip() for key in ("prompt", "completion"))]


def with_context(row: Row) -> Row:
    """Put the context in front of the behavior, as HarmBench's direct requests do; its classifier reads both apart."""
    parts = {name: row.values[name] for name in ("behavior", "context")}
    text = f"{parts['context']}\n\n---\n\n{parts['behavior']}"
    return Row(row.origin, {"prompt": text, "category": row.values["category"], "extra": parts})


def humaneval(row: Row) -> Row:
    """Convert a problem of HumanEval: the head of a function, its body, and its tests."""
    return Row(
        row.origin,
        {
            "id": value(row, "task_id"),
            "prompt": value(row, "prompt"),
            "completion": value(row, "canonical_solution"),
            "extra": {name: value(row, name) for name in ("test", "entry_point", "prompt")},
        },
    )


def mbxp(row: Row) -> Row:
    """Convert a problem of MBXP: the head of a function, with the complete function as the response."""
    head = str(value(row, "prompt"))
    whole = f"{head}{value(row, 'canonical_solution')}".strip("\n")
    named = {"id": value(row, "task_id"), "category": value(row, "language")}
    return Row(row.origin, {"prompt": head.strip("\n"), "completion": whole, **named})


def transcript(row: Row) -> Row:
    """Convert a transcript of HH-RLHF up to its last answer; consecutive turns of one speaker are joined."""
    first, *parts = TURN.split(str(value(row, "chosen")))
    if first.strip() or not parts:
        message = f"{row.origin}: is not a transcript of Human and Assistant"
        raise DataError(message, FETCH_AGAIN, code="data.malformed_row")
    turns: list[dict[str, str]] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role = ROLES[speaker]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{text.strip()}"
        else:
            turns.append({"role": role, "content": text.strip()})
    return Row(row.origin, {"messages": turns[:-1] if turns[-1]["role"] == "assistant" else turns})


def distinct_questions(rows: Sequence[Row]) -> list[Row]:
    """Return the questions of BeaverTails, each once, with the first harm of an answer as category."""
    first: dict[str, Row] = {}
    harm: dict[str, str] = {}
    for row in rows:
        prompt, labels = str(value(row, "prompt")), value(row, "category")
        first.setdefault(prompt, row)
        if isinstance(labels, dict) and (named := [name for name, holds in labels.items() if holds]):
            harm.setdefault(prompt, str(named[0]))
    return [Row(row.origin, {"prompt": prompt, "category": harm.get(prompt, "none")}) for prompt, row in first.items()]


def each(function: Callable[[Row], Row]) -> Callable[[Sequence[Row]], list[Row]]:
    """Return a shape that applies a function to each row."""
    return lambda rows: [function(row) for row in rows]


SHAPES: Mapping[str, Callable[[Sequence[Row]], list[Row]]] = {
    "with_context": each(with_context),
    "without_blanks": without_blanks,
    "transcripts": each(transcript),
    "distinct_questions": distinct_questions,
    "humaneval": each(humaneval),
    "mbxp": each(mbxp),
}


def read_catalogue() -> list[NamedSet]:
    """Read `catalogue.toml`."""
    text = (resources.files("mooring.data") / "catalogue.toml").read_text(encoding="utf-8")
    sets: dict[str, NamedSet] = convert(dict[str, NamedSet], tomllib.loads(text))
    return [dataclasses.replace(known, name=name) for name, known in sets.items()]


NAMED: Registry[NamedSet] = Registry("prompt_sets", read_catalogue())
"""The sets that have a name: prompts to be answered, then task data."""
