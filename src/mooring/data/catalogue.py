"""Task data by name: rows to tune on, to choose λ by, and to report on."""

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

# --- What a named set is: where its rows lie, how they are read, and how they are split ---


Shape = Callable[[Sequence[Row]], list[Row]]
"""Rows as they are published, made rows that `to_prompts` knows."""


def as_they_are(rows: Sequence[Row]) -> list[Row]:
    """For rows that `to_prompts` knows already."""
    return list(rows)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of rows, in one place: below `$MOORING_DATA` (`path`) or on the hub (`repo`).

    Attributes:
        path: Its file below `$MOORING_DATA`, or, with `*`, its files.
        repo: Its id on the hub.
        config, split: What `datasets` is asked for.
        files: The repository's files, where they are read as they lie and not by `datasets`.
        may_lack: Those of `files` that some versions do not have.
        read: How a file becomes rows.
        only: A field and its value: the rows to keep.
        counts: How many rows are then left: one of these. Empty where no number is known.
        shape: Makes them rows that `to_prompts` knows.
    """

    path: str = ""
    repo: str = ""
    config: str | None = None
    split: str | None = None
    files: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()
    read: Callable[[Path], list[Row]] = read_rows
    only: tuple[str, str] | None = None
    counts: tuple[int, ...] = ()
    shape: Shape = as_they_are


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamedSet:
    """A public data set.

    Attributes:
        kind: What it measures.
        tables: Where its rows are looked for, in this order.
        reads: What is read, in a few words.
        licence: Its licence, as its publishers name it.
        gated: Whether the hub gives it only to those who accept its terms.
        validation: Share of the rows that is the validation part; 0 where the set is not split. What is left is the
            training part.
        test: How many rows make up the test part: drawn from `test_tables`, or held out of the rows before all else; 0
            is all of `test_tables`.
        test_tables: As `tables`, for a test part that lies elsewhere.
        same: What is equal for prompts that no two parts may share out.
        group: What its category is called in its own rows, for `#N/field`.
        lacking: What to do where it is neither below `$MOORING_DATA` nor on the hub.
    """

    kind: Kind
    tables: tuple[Table, ...]
    reads: str
    licence: str
    gated: bool = False
    validation: float = 0
    test: int = 0
    test_tables: tuple[Table, ...] = ()
    same: Callable[[Prompt], str] = content
    group: str = "category"
    lacking: str = ""


# --- Readers of the benchmarks' own file forms, and shapes of their rows ---


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


# --- Prompt sets by name: requests to refuse, harmless ones that sound harmful, and answers in ---


_HARMBENCH = "harmbench/harmbench_behaviors_text_all.csv"
_HEX_PHI = tuple(f"category_{number}.csv" for number in HARMS)
_HARMBENCH_READS = "`{}`; hub: `prompt`; folder: HarmBench's own csv, `Behavior`"

_ALPACA = fields(prompt="instruction", completion="output", category="dataset")


def _jailbreakbench(half: str) -> tuple[Table, ...]:
    repo = "JailbreakBench/JBB-Behaviors"
    path = f"jailbreakbench/{half}-behaviors.csv"
    return Table(path=path, counts=(100,)), Table(repo=repo, config="behaviors", split=half, counts=(100,))


def _xstest(label: str, count: int) -> tuple[Table, ...]:
    only, counts = ("label", label), (count,)
    return (
        Table(path="xstest/xstest_prompts.csv", only=only, counts=counts),
        Table(repo="walledai/XSTest", split="test", only=only, counts=counts),
    )


def _or_bench(config: str, count: int) -> tuple[Table, ...]:
    shape = fields(prompt="prompt", category="category")
    return (
        Table(path=f"or_bench/{config}.csv", counts=(count,), shape=shape),
        Table(repo="bench-llm/or-bench", config=config, split="train", counts=(count,), shape=shape),
    )


def _strongreject() -> tuple[Table, ...]:
    own = fields(prompt="forbidden_prompt", category="category")
    return (
        Table(path="strongreject/strongreject_dataset.csv", counts=(313,), shape=own),
        Table(
            repo="walledai/StrongREJECT",
            split="train",
            counts=(313,),
            shape=fields(prompt="prompt", category="category"),
        ),
    )


SAFETY: dict[str, NamedSet] = {
    "advbench": NamedSet(
        kind="safety",
        tables=(
            Table(path="advbench/harmful_behaviors.csv", counts=(520,)),
            Table(repo="walledai/AdvBench", split="train", counts=(520,)),
        ),
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
                files=_HEX_PHI,
                may_lack=("category_2.csv",),  # withdrawn by its authors
                read=harms,
                counts=(300, 330),
            ),
        ),
        reads="30 a category, a headerless csv each; 11 categories as published, 10 now",
        licence="its own agreement",
        gated=True,
    ),
    "harmbench": NamedSet(
        kind="safety",
        tables=(
            Table(
                path=_HARMBENCH,
                only=("FunctionalCategory", "standard"),
                counts=(200,),
                shape=fields(id="BehaviorID", prompt="Behavior", category="SemanticCategory"),
            ),
            Table(
                repo="walledai/HarmBench",
                config="standard",
                split="train",
                counts=(200,),
                shape=fields(prompt="prompt", category="category"),
            ),
        ),
        reads=_HARMBENCH_READS.format("standard"),
        licence="MIT",
        gated=True,
    ),
    "harmbench-contextual": NamedSet(
        kind="safety",
        tables=(
            Table(
                path=_HARMBENCH,
                only=("FunctionalCategory", "contextual"),
                counts=(100,),
                shape=with_context("Behavior", "ContextString", "SemanticCategory"),
            ),
            Table(
                repo="walledai/HarmBench",
                config="contextual",
                split="train",
                counts=(100,),
                shape=with_context("prompt", "context", "category"),
            ),
        ),
        reads=_HARMBENCH_READS.format("contextual") + "; the context in front, `---` between",
        licence="MIT",
        gated=True,
    ),
    "harmbench-copyright": NamedSet(
        kind="safety",
        tables=(
            Table(
                path=_HARMBENCH,
                only=("FunctionalCategory", "copyright"),
                counts=(100,),
                shape=fields(id="BehaviorID", prompt="Behavior"),
            ),
            Table(
                repo="walledai/HarmBench",
                config="copyright",
                split="train",
                counts=(100,),
                shape=fields(prompt="prompt"),
            ),
        ),
        reads=_HARMBENCH_READS.format("copyright"),
        licence="MIT",
        gated=True,
    ),
    "strongreject": NamedSet(
        kind="safety",
        tables=_strongreject(),
        reads="`forbidden_prompt` (hub: `prompt`), `category`",
        licence="MIT",
        gated=True,
    ),
    "jailbreakbench": NamedSet(
        kind="safety",
        tables=_jailbreakbench("harmful"),
        reads="`Goal`, `Category`",
        licence="MIT",
    ),
    "hh-rlhf": NamedSet(
        kind="safety",
        tables=(
            Table(path="hh_harmless/hh_harmless_base_test.jsonl.gz", counts=(2312,), shape=transcript),
            Table(
                repo="Anthropic/hh-rlhf",
                files=("harmless-base/test.jsonl.gz",),
                counts=(2312,),
                shape=transcript,
            ),
        ),
        reads="harmless-base, test: `chosen` up to its last answer, as a conversation",
        licence="MIT",
    ),
    "beavertails": NamedSet(
        kind="safety",
        tables=(
            Table(path="beavertails/test.jsonl.gz", counts=(3021,), shape=different),
            Table(repo="PKU-Alignment/BeaverTails", split="30k_test", counts=(3021,), shape=different),
        ),
        reads="`30k_test`: the questions of its 3,021 answers, each once",
        licence="CC BY-NC 4.0",
    ),
    "or-bench-toxic": NamedSet(
        kind="safety",
        tables=_or_bench("or-bench-toxic", 655),
        reads="`prompt`, `category`",
        licence="CC BY 4.0",
    ),
    "xstest-unsafe": NamedSet(
        kind="safety",
        tables=_xstest("unsafe", 200),
        reads="`prompt` where `label` is unsafe, `type`",
        licence="CC BY 4.0",
        gated=True,
    ),
    "xstest": NamedSet(
        kind="over_refusal",
        tables=_xstest("safe", 250),
        reads="`prompt` where `label` is safe, `type`",
        licence="CC BY 4.0",
        gated=True,
    ),
    "or-bench": NamedSet(
        kind="over_refusal",
        tables=_or_bench("or-bench-hard-1k", 1319),
        reads="hard-1k: `prompt`, `category`",
        licence="CC BY 4.0",
    ),
    "or-bench-80k": NamedSet(
        kind="over_refusal",
        tables=_or_bench("or-bench-80k", 80359),
        reads="`prompt`, `category`",
        licence="CC BY 4.0",
    ),
    "jailbreakbench-benign": NamedSet(
        kind="over_refusal",
        tables=_jailbreakbench("benign"),
        reads="`Goal`, `Category`",
        licence="MIT",
    ),
    "alpaca-eval": NamedSet(
        kind="quality",
        tables=(
            Table(path="alpaca_eval/alpaca_eval.json", counts=(805,), shape=_ALPACA),
            Table(repo="tatsu-lab/alpaca_eval", files=("alpaca_eval.json",), counts=(805,), shape=_ALPACA),
        ),
        reads="`instruction`, `output` (of text-davinci-003), `dataset`",
        licence="CC BY-NC 4.0",
        group="dataset",
    ),
}
"""The sets that are asked of a model and not tuned on."""


SPLIT_SEED = 42
"""Of the parts of task data: fixed, so that runs with other seeds tune, choose and report on the same rows."""
_DOCTOR = pairs(prompt="input", completion="output")
_ICLINIQ = pairs(prompt="input", completion="answer_icliniq")
_MAGICODER = pairs(prompt="problem", completion="solution", category="lang")

TASKS: dict[str, NamedSet] = {
    "flan-cot": NamedSet(
        kind="task",
        tables=(
            Table(
                path="flan_cot/*.tsv",
                read=columns("question", "answer", "rationale"),
                counts=(33443,),
                shape=reasoned,
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
            Table(path="chatdoctor/chatdoctor5k.json", counts=(5452,), shape=_DOCTOR),
            Table(
                repo="lavita/ChatDoctor-HealthCareMagic-100k",
                split="train",
                counts=(112165,),
                shape=_DOCTOR,
            ),
        ),
        test_tables=(
            Table(path="chatdoctor/iCliniq.json", counts=(7321,), shape=_ICLINIQ),
            Table(
                repo="lavita/ChatDoctor-iCliniq",
                split="train",
                counts=(7321,),
                shape=_ICLINIQ,
            ),
        ),
        reads="`input`, `output`; test: 1,000 of iCliniq, or held out where only the 5k file is at hand",
        licence="Apache-2.0 (folder); none named (hub)",
        validation=0.1,
        test=1000,
    ),
    "magicoder": NamedSet(
        kind="task",
        tables=(
            Table(path="magicoder/data-oss_instruct-decontaminated.jsonl", counts=(75197,), shape=_MAGICODER),
            Table(repo="ise-uiuc/Magicoder-OSS-Instruct-75K", split="train", counts=(75197,), shape=_MAGICODER),
        ),
        reads="`problem`, `solution`, `lang`; evenly over nine languages: `magicoder:train#10000/lang`",
        licence="MIT",
        validation=0.1,
        test=1000,
        group="lang",
    ),
    "mbxp": NamedSet(
        kind="task",
        tables=(Table(path="mbxp/*.jsonl", read=by_language, counts=(5251,), shape=completed),),
        reads="six languages, rows with a solution: the head of a function; the whole of it",
        licence="CC BY 4.0",
        validation=0.1,
        test=500,
        same=lambda prompt: prompt.id.rpartition("/")[2],  # the same problem in another language
        group="language",
        lacking="put mbxp's *_release_v1*.jsonl into $MOORING_DATA/mbxp (github.com/amazon-science/mxeval)",
    ),
    "openfunctions": NamedSet(
        kind="task",
        tables=(Table(path="openfunctions/openfunctions_train.json", counts=(2211,)),),
        test_tables=(Table(path="openfunctions/openfunctions_test.json", counts=(112,)),),
        reads="`instruction`, `output`; test: its whole test file",
        licence="Apache-2.0",
        validation=0.1,
        lacking="put openfunctions_train.json and openfunctions_test.json into $MOORING_DATA/openfunctions "
        "(github.com/sail-sg/sdft, data/openfunction)",
    ),
    "humaneval": NamedSet(
        kind="task",
        tables=(
            Table(path="humaneval/HumanEval.jsonl.gz", counts=(164,), shape=program),
            Table(repo="openai/openai_humaneval", split="test", counts=(164,), shape=program),
        ),
        reads="`prompt`, `canonical_solution`; `test` and `entry_point` for the checker",
        licence="MIT",
    ),
}
"""The paper's task data, and a local stand-in for MagiCoder."""
