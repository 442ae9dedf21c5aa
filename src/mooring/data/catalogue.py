"""The named data sets: for each, where its rows are, how they are read, and how they are split.

To add a set, add an entry to `NAMED`; docs/sets.md is generated from it.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mooring.data.rows import Row, content, read_rows, read_text
from mooring.errors import DataError
from mooring.records import Kind, Prompt

Shape = Callable[[Sequence[Row]], list[Row]]
"""Converts rows as they are published to rows that `to_prompts` accepts."""
FETCH_AGAIN = "fetch the set again"


def unchanged(rows: Sequence[Row]) -> list[Row]:
    """Return rows that `to_prompts` accepts as they are."""
    return list(rows)


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
        read: Reads the rows of a file.
        where: A field and its value: the rows to select.
        counts: Accepted numbers of selected rows; empty to accept any.
        shape: Converts them to rows that `to_prompts` accepts.
    """

    path: str = ""
    repo: str = ""
    config: str | None = None
    split: str | None = None
    files: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    read: Callable[[Path], list[Row]] = read_rows
    where: tuple[str, str] | None = None
    counts: tuple[int, ...] = ()
    shape: Shape = unchanged


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
        split_by: Prompts for which it returns the same value stay in one part.
        category_field: What the category is called in the published rows, for `#N/field`.
        instructions: How to get a set that is not on the hub.
    """

    kind: Kind
    tables: tuple[Table, ...]
    reads: str
    licence: str
    gated: bool = False
    validation: float = 0
    test: int = 0
    test_tables: tuple[Table, ...] = ()
    split_by: Callable[[Prompt], str] = content
    category_field: str = "category"
    instructions: str = ""


# --- Shapes and readers ---

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
TURN = re.compile(r"\n\n(Human|Assistant):")
"""The beginning of a turn in HH-RLHF's transcripts."""
ROLES = {"Human": "user", "Assistant": "assistant"}


def value(row: Row, name: str) -> Any:
    """Return a field that every row of the set has.

    Raises:
        DataError: It is missing (`data.missing_field`).
    """
    if row.values.get(name) is None:
        raise DataError(f"{row.origin}: lacks `{name}`", FETCH_AGAIN, code="data.missing_field")
    return row.values[name]


def fields(**names: str) -> Shape:
    """Return a shape that renames fields: `fields(prompt="Behavior")`."""
    return lambda rows: [Row(row.origin, {new: value(row, old) for new, old in names.items()}) for row in rows]


def pairs(**names: str) -> Shape:
    """Return a shape like `fields` that leaves out rows whose prompt or completion is blank."""

    def shape(rows: Sequence[Row]) -> list[Row]:
        named = fields(**names)(rows)
        return [row for row in named if all(str(row.values[key]).strip() for key in ("prompt", "completion"))]

    return shape


def with_context(prompt: str, context: str, category: str) -> Shape:
    """Return a shape that puts a context in front of a prompt, as HarmBench's direct requests do.

    `extra` keeps the two separately, as `behavior` and `context`, for HarmBench's classifier.
    """

    def shape(row: Row) -> Row:
        parts = {"behavior": value(row, prompt), "context": value(row, context)}
        text = f"{parts['context']}\n\n---\n\n{parts['behavior']}"
        return Row(row.origin, {"prompt": text, "category": value(row, category), "extra": parts})

    return each(shape)


def each(shape: Callable[[Row], Row]) -> Shape:
    """Return a shape that applies a function to each row."""
    return lambda rows: [shape(row) for row in rows]


def harms(path: Path) -> list[Row]:
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


def columns(*names: str) -> Callable[[Path], list[Row]]:
    """Return a reader of tab-separated lines without header and quoting, with `\\n` for a line break.

    The name of the file up to its last `_` becomes the field `file`.
    """

    def read(path: Path) -> list[Row]:
        rows = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            cells = [cell.replace("\\n", "\n") for cell in line.rstrip("\r").split("\t")]
            if len(cells) != len(names):
                message = f"{path}:{number}: has {len(cells)} cells, not {len(names)}"
                raise DataError(message, FETCH_AGAIN, code="data.malformed_row")
            file = path.name.partition(".")[0].rpartition("_")[0]
            rows.append(Row(f"{path}:{number}", {**dict(zip(names, cells, strict=True)), "file": file}))
        return rows

    return read


def solved(path: Path) -> list[Row]:
    """Read the rows of MBXP that have a solution."""
    return [row for row in read_rows(path) if row.values.get("canonical_solution")]


@each
def reasoned(row: Row) -> Row:
    """End a rationale with the sentence of BIG-Bench Hard's chain-of-thought prompts, which its scorer parses."""
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


@each
def completed(row: Row) -> Row:
    """Convert a problem of MBXP: the head of a function, with the complete function as the response."""
    head = str(value(row, "prompt"))
    whole = f"{head}{value(row, 'canonical_solution')}".strip("\n")
    named = {"id": value(row, "task_id"), "category": value(row, "language")}
    return Row(row.origin, {"prompt": head.strip("\n"), "completion": whole, **named})


@each
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


# --- The sets ---

SPLIT_SEED = 42
"""Seed of the parts of task data: fixed, so that runs with other seeds tune, choose and report on the same rows."""


def _tables(
    path: str,
    repo: str,
    *counts: int,
    config: str | None = None,
    split: str | None = "train",
    files: tuple[str, ...] = (),
    where: tuple[str, str] | None = None,
    shape: Shape = unchanged,
    hub_shape: Shape | None = None,
) -> tuple[Table, Table]:
    """The same rows below `$MOORING_DATA` and on the hub; `hub_shape` if the hub's have other fields."""
    here = Table(path=path, where=where, counts=counts, shape=shape)
    split, shape = None if files else split, hub_shape or shape
    return here, dataclasses.replace(here, path="", repo=repo, config=config, split=split, files=files, shape=shape)


def _harmbench(config: str, count: int, shape: Shape, hub_shape: Shape, note: str = "") -> NamedSet:
    path, repo = "harmbench/harmbench_behaviors_text_all.csv", "walledai/HarmBench"
    here, there = _tables(path, repo, count, config=config, shape=shape, hub_shape=hub_shape)
    return NamedSet(
        kind="safety",
        tables=(dataclasses.replace(here, where=("FunctionalCategory", config)), there),
        reads=f"`{config}`; hub: `prompt`; folder: HarmBench's own csv, `Behavior`{note}",
        licence="MIT",
        gated=True,
    )


def _jailbreakbench(kind: Kind, split: str) -> NamedSet:
    path, repo = f"jailbreakbench/{split}-behaviors.csv", "JailbreakBench/JBB-Behaviors"
    tables = _tables(path, repo, 100, config="behaviors", split=split)
    return NamedSet(kind=kind, tables=tables, reads="`Goal`, `Category`", licence="MIT")


def _xstest(kind: Kind, label: str, count: int) -> NamedSet:
    path, where = "xstest/xstest_prompts.csv", ("label", label)
    tables = _tables(path, "walledai/XSTest", count, split="test", where=where)
    return NamedSet(
        kind=kind, tables=tables, reads=f"`prompt` where `label` is {label}, `type`", licence="CC BY 4.0", gated=True
    )


def _or_bench(kind: Kind, config: str, count: int, note: str = "") -> NamedSet:
    shape = fields(prompt="prompt", category="category")
    tables = _tables(f"or_bench/{config}.csv", "bench-llm/or-bench", count, config=config, shape=shape)
    return NamedSet(kind=kind, tables=tables, reads=f"{note}`prompt`, `category`", licence="CC BY 4.0")


NAMED: dict[str, NamedSet] = {
    "advbench": NamedSet(
        kind="safety",
        tables=_tables("advbench/harmful_behaviors.csv", "walledai/AdvBench", 520),
        reads="harmful behaviours: `goal` (hub: `prompt`), no `target`",
        licence="MIT",
        gated=True,
    ),
    "hex-phi": NamedSet(
        kind="safety",
        tables=(
            Table(path="hex_phi/category_*.csv", read=harms, counts=(300, 330)),
            Table(
                repo="LLM-Tuning-Safety/HEx-PHI",
                files=tuple(f"category_{number}.csv" for number in HARMS),
                optional=("category_2.csv",),  # withdrawn by its authors
                read=harms,
                counts=(300, 330),
            ),
        ),
        reads="30 per category, a headerless csv each; 11 categories as published, 10 now",
        licence="its own agreement",
        gated=True,
    ),
    "harmbench": _harmbench(
        "standard",
        200,
        fields(id="BehaviorID", prompt="Behavior", category="SemanticCategory"),
        fields(prompt="prompt", category="category"),
    ),
    "harmbench-contextual": _harmbench(
        "contextual",
        100,
        with_context("Behavior", "ContextString", "SemanticCategory"),
        with_context("prompt", "context", "category"),
        "; the context in front, `---` between",
    ),
    "harmbench-copyright": _harmbench(
        "copyright", 100, fields(id="BehaviorID", prompt="Behavior"), fields(prompt="prompt")
    ),
    "strongreject": NamedSet(
        kind="safety",
        tables=_tables(
            "strongreject/strongreject_dataset.csv",
            "walledai/StrongREJECT",
            313,
            shape=fields(prompt="forbidden_prompt", category="category"),
            hub_shape=fields(prompt="prompt", category="category"),
        ),
        reads="`forbidden_prompt` (hub: `prompt`), `category`",
        licence="MIT",
        gated=True,
    ),
    "jailbreakbench": _jailbreakbench("safety", "harmful"),
    "hh-rlhf": NamedSet(
        kind="safety",
        tables=_tables(
            "hh_harmless/hh_harmless_base_test.jsonl.gz",
            "Anthropic/hh-rlhf",
            2312,
            files=("harmless-base/test.jsonl.gz",),
            shape=transcript,
        ),
        reads="harmless-base, test: `chosen` up to its last answer, as a conversation",
        licence="MIT",
    ),
    "beavertails": NamedSet(
        kind="safety",
        tables=_tables(
            "beavertails/test.jsonl.gz", "PKU-Alignment/BeaverTails", 3021, split="30k_test", shape=distinct_questions
        ),
        reads="`30k_test`: the questions of its 3,021 answers, each once",
        licence="CC BY-NC 4.0",
    ),
    "or-bench-toxic": _or_bench("safety", "or-bench-toxic", 655),
    "xstest-unsafe": _xstest("safety", "unsafe", 200),
    "xstest": _xstest("over_refusal", "safe", 250),
    "or-bench": _or_bench("over_refusal", "or-bench-hard-1k", 1319, "hard-1k: "),
    "or-bench-80k": _or_bench("over_refusal", "or-bench-80k", 80359),
    "jailbreakbench-benign": _jailbreakbench("over_refusal", "benign"),
    "alpaca-eval": NamedSet(
        kind="quality",
        tables=_tables(
            "alpaca_eval/alpaca_eval.json",
            "tatsu-lab/alpaca_eval",
            805,
            files=("alpaca_eval.json",),
            shape=fields(prompt="instruction", completion="output", category="dataset"),
        ),
        reads="`instruction`, `output` (of text-davinci-003), `dataset`",
        licence="CC BY-NC 4.0",
        category_field="dataset",
    ),
    # The paper's task data, and a local stand-in for MagiCoder (mbxp).
    "flan-cot": NamedSet(
        kind="task",
        tables=(
            Table(
                path="flan_cot/*.tsv", read=columns("question", "answer", "rationale"), counts=(33443,), shape=reasoned
            ),
            Table(
                repo="SirNeural/flan_v2",
                files=("cot_zs_opt_train.jsonl.gz",),
                shape=pairs(prompt="inputs", completion="targets", category="task"),
            ),
        ),
        reads="zero-shot chain of thought: the question; the rationale and `So the answer is X.`",
        licence="Apache-2.0",
        validation=0.1,
        test=1000,
    ),
    "chatdoctor": NamedSet(
        kind="task",
        tables=(
            Table(
                path="chatdoctor/chatdoctor5k.json", counts=(5452,), shape=pairs(prompt="input", completion="output")
            ),
            Table(
                repo="lavita/ChatDoctor-HealthCareMagic-100k",
                split="train",
                counts=(112165,),
                shape=pairs(prompt="input", completion="output"),
            ),
        ),
        test_tables=_tables(
            "chatdoctor/iCliniq.json",
            "lavita/ChatDoctor-iCliniq",
            7321,
            shape=pairs(prompt="input", completion="answer_icliniq"),
        ),
        reads="`input`, `output`; test: 1,000 of iCliniq, or held out where only the 5k file is at hand",
        licence="Apache-2.0 (folder); none named (hub)",
        validation=0.1,
        test=1000,
    ),
    "magicoder": NamedSet(
        kind="task",
        tables=_tables(
            "magicoder/data-oss_instruct-decontaminated.jsonl",
            "ise-uiuc/Magicoder-OSS-Instruct-75K",
            75197,
            shape=pairs(prompt="problem", completion="solution", category="lang"),
        ),
        reads="`problem`, `solution`, `lang`; evenly over nine languages: `magicoder:train#10000/lang`",
        licence="MIT",
        validation=0.1,
        test=1000,
        category_field="lang",
    ),
    "mbxp": NamedSet(
        kind="task",
        tables=(Table(path="mbxp/*.jsonl", read=solved, counts=(5251,), shape=completed),),
        reads="six languages, rows with a solution: the head of a function; the whole of it",
        licence="CC BY 4.0",
        validation=0.1,
        test=500,
        split_by=lambda prompt: prompt.id.rpartition("/")[2],  # the same problem in another language
        category_field="language",
        instructions="put mbxp's *_release_v1*.jsonl into $MOORING_DATA/mbxp (github.com/amazon-science/mxeval)",
    ),
    "openfunctions": NamedSet(
        kind="task",
        tables=(Table(path="openfunctions/openfunctions_train.json", counts=(2211,)),),
        test_tables=(Table(path="openfunctions/openfunctions_test.json", counts=(112,)),),
        reads="`instruction`, `output`; test: its whole test file",
        licence="Apache-2.0",
        validation=0.1,
        instructions="put openfunctions_train.json and openfunctions_test.json into $MOORING_DATA/openfunctions "
        "(github.com/sail-sg/sdft, data/openfunction)",
    ),
    "humaneval": NamedSet(
        kind="task",
        tables=_tables("humaneval/HumanEval.jsonl.gz", "openai/openai_humaneval", 164, split="test", shape=program),
        reads="`prompt`, `canonical_solution`; `test` and `entry_point` for the checker",
        licence="MIT",
    ),
}
"""The sets that have a name: prompts to be answered, then task data."""
