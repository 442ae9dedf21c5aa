"""Tables 1, 2 and 3: base, tuned and merged by task; methods by task; other models. Numbers, not yet set in type."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from mooring.records import Score
from mooring.report.paper.cells import Cell, odds, safety_sets, task_score
from mooring.report.results import COLUMNS

Key = tuple[str, str, str, str]
"""What names a published number: base, task, model (`base`, `tuned`, or a method), measure."""
LINEAR = "linear"
"""The method that stands for `merged` where one must."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One number of a table.

    Attributes:
        measure: Its name: that of the task score, or `asr:<set>`.
        scores: One a seed; none where it was not measured.
    """

    measure: str
    scores: Sequence[Score]


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One row of a table: a model, with its task score first and then its ASR on each set.

    Attributes:
        base: The aligned model.
        task: What was tuned for.
        model: `base`, `tuned`, or the method of a merge.
        lam: λ; several where the seeds chose several.
        seeds: Seeds behind it.
        entries: By column.
        odd: Why it does not compare with the rows above; empty where it does.
    """

    base: str
    task: str
    model: str
    lam: str
    seeds: str
    entries: Mapping[str, Entry]
    odd: str = ""

    def key(self, column: str) -> Key:
        """What names the published number of a column."""
        return self.base, self.task, self.model, self.entries[column].measure


@dataclasses.dataclass(frozen=True, slots=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: The paper's.
        title: What it shows.
        columns: The columns that hold numbers, in order.
        lines: The rows.
    """

    number: int
    title: str
    columns: Sequence[str]
    lines: Sequence[Line]


TASK_SCORE = "task score"


def all_tables(cells: Sequence[Cell], main: str) -> list[PaperTable]:
    """The tables that there are runs for.

    Args:
        cells: The runs, sorted.
        main: The base of Tables 1 and 2; the others are in Table 3.
    """
    own = [cell for cell in cells if cell.first.base == main]
    merged = _one_method(own)
    methods = [cell for cell in own if sum(other.first.task == cell.first.task for other in own) > 1]
    others = _one_method([cell for cell in cells if cell.first.base != main])
    found = [
        PaperTable(1, f"Base, tuned and merged ({main})", _columns(merged), list(_three_models(merged, []))),
        PaperTable(2, f"Merging methods ({main})", _columns(methods), list(_by_method(methods))),
        PaperTable(3, "Other models", _columns(others), list(_three_models(others, merged))),
    ]
    return [table for table in found if table.lines]


def main_base(cells: Sequence[Cell]) -> str:
    """The base that most cells are of; of equal ones, the first by name."""
    names = sorted({cell.first.base for cell in cells})
    return max(names, key=lambda name: sum(cell.first.base == name for cell in cells))


def _one_method(cells: Sequence[Cell]) -> list[Cell]:
    """One cell for each base and task: the linear one, or the first."""
    found: dict[tuple[str, str], Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.first.method != LINEAR):
        found.setdefault((cell.first.base, cell.first.task), cell)
    return [cell for cell in cells if cell in found.values()]


def _columns(cells: Sequence[Cell]) -> list[str]:
    sets = dict.fromkeys(name for cell in cells for name in safety_sets(cell))
    return [TASK_SCORE, *map(_asr, sets)]


def _asr(name: str) -> str:
    return f"ASR, {name}"


def _three_models(cells: Sequence[Cell], beside: Sequence[Cell]) -> Iterator[Line]:
    """Base, tuned and merged of each; the notes compare with a cell of the same task, or else with the first row."""
    for cell in cells:
        same = next((other for other in beside if other.first.task == cell.first.task), None)
        first = same or (beside[0] if beside else cells[0])
        odd = odds(cell, first, safety_only=same is None)
        for model in COLUMNS:
            yield _line(cell, model, odd if model == "base" else "")


def _by_method(cells: Sequence[Cell]) -> Iterator[Line]:
    firsts: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: (cell.first.task, cell.first.method != LINEAR, cell.first.method)):
        yield _line(cell, "merged", odds(cell, firsts.setdefault(cell.first.task, cell)))


def _line(cell: Cell, model: str, odd: str) -> Line:
    entries = {}
    if metric := task_score(cell):
        entries[TASK_SCORE] = Entry(metric, cell.scores(model, metric))
    for name, score in safety_sets(cell).items():
        entries[_asr(name)] = Entry(f"asr:{name}", cell.scores(model, score))
    return Line(
        base=cell.first.base,
        task=cell.first.task,
        model=cell.first.method if model == "merged" else model,
        lam={"base": "0", "tuned": "1"}.get(model, cell.lam),
        seeds=cell.seeds,
        entries=entries,
        odd=odd,
    )
