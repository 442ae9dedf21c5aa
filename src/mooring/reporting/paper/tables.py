"""Tables 1, 2 and 3: base, tuned and merged by task; methods by task; other models. Numbers, not yet set in type."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence

from mooring.merge_point import Role
from mooring.records import Score
from mooring.reporting.paper.runs import Run, differences, other_prompts, short
from mooring.reporting.results import COLUMNS, is_task
from mooring.text import MISSING, is_rate, with_interval

# --- Runs by base, task and method: several seeds of one are one cell, with their mean and ---


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """The runs of one base, task and method, a seed each, all measured alike.

    Attributes:
        runs: At least one, by seed.
    """

    runs: Sequence[Run]

    @property
    def first(self) -> Run:
        """The one whose settings stand for all."""
        return self.runs[0]

    @property
    def seeds(self) -> str:
        """The seeds, or how many of one (several tuned models that were made elsewhere)."""
        found = sorted({run.seed for run in self.runs})
        return ", ".join(map(str, found)) if len(found) == len(self.runs) else f"{len(self.runs)} models"

    @property
    def lam(self) -> str:
        """The λ that were chosen, in the order of the seeds; one where all are equal."""
        points = [run.results.choice.point for run in self.runs]
        return ", ".join(dict.fromkeys(f"{p.single.key}{' by module' if p.by_module else ''}" for p in points))

    def scores(self, model: Role, name: str, split: str = "test") -> list[Score]:
        """A score of every seed; those that were not measured are left out."""
        found = (run.results.score(model, name, split) for run in self.runs)
        return [score for score in found if score is not None]


def cells(runs: Sequence[Run]) -> tuple[list[Cell], list[str]]:
    """Sort runs into cells.

    Of one cell's runs, those that were measured in the same way are kept, the larger group if there are two; each of
    the others gets a note. So does a run of a tuned model that another run has measured already, and seeds that drew
    their prompts separately, which are kept.

    Returns:
        The cells by base, task and method, and a line for each run that was left out.
    """
    lines: list[str] = []
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (*run.cell, run.seed, run.name)):
        found.setdefault(run.cell, []).append(run)
    made = []
    for members in found.values():
        kept = _largest_party(members)
        for run in members:
            if run not in kept:
                said = differences(run, kept[0], drawn=True)
                lines.append(f"{run.name}: left out, since it does not compare with {kept[0].name}: {_some(said)}")
        cell = Cell(_once(kept, lines))
        made.append(cell)
        lines += _draws(cell)
    return made, lines


def _largest_party(members: Sequence[Run]) -> list[Run]:
    parties: list[list[Run]] = []
    for run in members:
        for party in parties:
            if not differences(run, party[0], drawn=True):
                party.append(run)
                break
        else:
            parties.append([run])
    return max(parties, key=len)  # the first of equal ones


def _once(members: Sequence[Run], lines: list[str]) -> list[Run]:
    """Each tuned model once."""
    known: dict[str, Run] = {}
    for run in members:
        if run.tuned in known:
            lines.append(
                f"{run.name}: left out, since {known[run.tuned].name} measured the same tuned model by the same rule"
            )
        else:
            known[run.tuned] = run
    return list(known.values())


def _draws(cell: Cell) -> list[str]:
    """A line where the seeds of a cell drew their prompts each for itself."""
    for run in cell.runs[1:]:
        if others := other_prompts(run, cell.first):
            what = f"drew other prompts than {cell.first.name} by its seed ({', '.join(others)})"
            return [f"{run.name}: {what}: mean ± standard deviation over seeds hold the draw of prompts too"]
    return []


def _some(phrases: Sequence[str]) -> str:
    shown = "; ".join(phrases[:3])
    return f"{shown}; and {len(phrases) - 3} more" if len(phrases) > 3 else shown


def odds(cell: Cell, beside: Cell, *, safety_only: bool = False) -> str:
    """Why a row of a table does not compare with another, in one line; empty where it does.

    Args:
        cell: The row that is spoken of.
        beside: The one that it stands beside.
        safety_only: The two are of different tasks, so that only what ASR depends on must be the same.
    """
    said = differences(cell.first, beside.first, safety_only=safety_only)
    if not safety_only and cell.seeds != beside.seeds:
        said.append(f"seeds {cell.seeds}, not {beside.seeds}")
    return f"does not compare with {beside.first.name}: {_some(said)}" if said else ""


def shown(scores: Sequence[Score]) -> str:
    """A score with its 95 % interval, or, of several seeds, mean ± standard deviation (n − 1)."""
    if len(scores) < 2:
        return with_interval(scores[0] if scores else None)
    center, spread = mean(scores), deviation(scores)
    if center is None:
        return "undefined"
    digits, sign = (1, " %") if unit(scores) == 100 else (3, "")
    known = len(_values(scores))
    count = "" if known == len(scores) else f" (n = {known})"
    return f"{center:.{digits}f} ± {MISSING if spread is None else f'{spread:.{digits}f}'}{sign}{count}"


def unit(scores: Sequence[Score]) -> int:
    """What a table multiplies a score by: 100, for percent, or 1."""
    return 100 if is_rate(scores[0].name) and all(0 <= value <= 1 for value in _values(scores)) else 1


def mean(scores: Sequence[Score]) -> float | None:
    """The mean over seeds, in the unit that a table shows; `None` where no value is defined."""
    values = _values(scores)
    return statistics.fmean(values) * unit(scores) if values else None


def deviation(scores: Sequence[Score]) -> float | None:
    """The standard deviation over seeds (n − 1), in the same unit; `None` below two values."""
    values = _values(scores)
    return statistics.stdev(values) * unit(scores) if len(values) > 1 else None


def _values(scores: Sequence[Score]) -> list[float]:
    return [score.value for score in scores if score.value is not None]


def task_score(cell: Cell) -> str | None:
    """The task score that is reported: the recipe's first, or the one that chose λ, or the first that there is."""
    settings, results = cell.first.settings, cell.first.results
    trial = results.trial("merged")
    names = [name for name in (trial.scores if trial else {}) if is_task(name)]
    lm_eval = (f"lm_eval:{name}" for name in settings.get("score.lm_eval") or ())
    wanted = [*(settings.get("score.metrics") or ()), *lm_eval, results.choice.metric, *names]
    return next((str(name) for name in wanted if name in names), None)


def safety_sets(cell: Cell) -> Mapping[str, str]:
    """The score of ASR on each safety set, by the set's name."""
    refs = [str(ref) for ref in cell.first.settings.get("score.safety") or ()]
    return {short(refs[0]): "asr"} if len(refs) == 1 else {short(ref): f"asr:{ref}" for ref in refs}


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


def _line(cell: Cell, model: Role, odd: str) -> Line:
    entries = {}
    if metric := task_score(cell):
        entries[TASK_SCORE] = Entry(metric, cell.scores(model, metric))
    for name, score in safety_sets(cell).items():
        entries[_asr(name)] = Entry(f"asr:{name}", cell.scores(model, score))
    return Line(
        base=cell.first.base,
        task=cell.first.task,
        model=cell.first.method if model == "merged" else model,
        lam=cell.lam if model == "merged" else cell.first.results.point(model).key,
        seeds=cell.seeds,
        entries=entries,
        odd=odd,
    )
