"""Tables 1, 2 and 3: base, tuned and merged by task; methods by task; other models."""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_lowercase

from mooring.attacks.names import NONE, attack_of, without_attack
from mooring.merge_point import Role
from mooring.printable import one_line
from mooring.records import Score
from mooring.reporting.paper.runs import Group, why_not_comparable
from mooring.reporting.results import COLUMNS, is_task
from mooring.reporting.tables import Cell, Column, Table, in_order
from mooring.text import Number, is_rate, name_of, score_number, without_folders

READ = (
    "Test split. One seed: 95 % interval in brackets, over prompts. Several: mean ± standard deviation over seeds "
    "(n − 1), each with its own λ. ASR: attack success rate, lower is better. λ is the weight of the tuned model."
)
"""How a table is read."""
TASK_SCORE = "task score"
_FURTHER = ("over_refusal", "ordinary_refusal")
"""Rates of the tables besides the attack success rate."""
_UNDER_ATTACK = ("asr", "asr_worst")
LINEAR = "linear"
"""The method that stands for `merged` if a table has room for one."""

Key = tuple[str, str, str, str]
"""What names a published number: base, task, model (`base`, `tuned`, or a method), measure."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One number of a table: `measure` is the name of the task score or `asr:<set>`; `scores` has one per seed."""

    measure: str
    scores: Sequence[Score]


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One row of a table: a model, with its task score first and then its ASR on each set.

    `model` is `base`, `tuned`, or the method of a merge; `note` says why it does not compare with the rows above.
    """

    base: str
    task: str
    model: str
    lam: str
    seeds: str
    entries: Mapping[str, Entry]
    note: str = ""

    def key(self, column: str) -> Key:
        """What names the published number of a column."""
        return self.base, self.task, self.model, self.entries[column].measure


@dataclasses.dataclass(frozen=True, slots=True)
class PaperTable:
    """A table of the paper: its number and title, the columns with numbers, and its rows."""

    number: int
    title: str
    columns: Sequence[str]
    lines: Sequence[Line]

    @property
    def keys(self) -> list[Key]:
        """What names each of its numbers."""
        return [line.key(column) for line in self.lines for column in line.entries]

    def to_table(self, published: Mapping[Key, float]) -> Table:
        """The table as people read it, with the published numbers beside the measured ones."""
        with_base = self.number == 3 or len({line.base for line in self.lines}) > 1
        known = [
            column
            for column in self.columns
            if any(column in line.entries and line.key(column) in published for line in self.lines)
        ]
        heads = [Column("base", group=True)] if with_base else []
        heads += [Column("task", group=True), Column("model"), Column("λ", numeric=True), Column("task measure")]
        for column in self.columns:
            heads += [Column(name, numeric=True) for name in (column, *(["published"] if column in known else []))]
        heads.append(Column("seeds", numeric=True))
        noted = dict.fromkeys(line.note for line in self.lines if line.note)
        marks = {note: _mark(number) for number, note in enumerate(noted)}
        rows: list[list[Cell]] = []
        for line in self.lines:
            measure = name_of(line.entries[TASK_SCORE].measure) if TASK_SCORE in line.entries else None
            model = line.model if self.number == 2 or line.model in COLUMNS else f"merged ({line.model})"
            mark = f" [{marks[line.note]}]" if line.note else ""
            row: list[Cell] = [*([line.base] if with_base else []), line.task, model + mark, line.lam, measure]
            for column in self.columns:
                entry = line.entries.get(column)
                row.append(seeds_number(entry.scores) if entry else None)
                if column in known:
                    row.append(_published(line, column, published))
            rows.append([*row, line.seeds])
        notes = [f"[{mark}] {note}" for note, mark in marks.items()]
        return Table(self._caption(), heads, rows, title=f"Table {self.number}", notes=notes)

    def _caption(self) -> str:
        scores = [score for line in self.lines for entry in line.entries.values() for score in entry.scores]
        judges = dict.fromkeys(score.method for score in scores if score.name.partition(":")[0] == "asr")
        by = f" ASR by {', '.join(map(one_line, judges))}." if judges else ""
        return f"{self.title}. {READ}{by}"

    def to_numbers(self, published: Mapping[Key, float]) -> Table:
        """Its numbers, one per row, in percent or nats: an interval for one seed, a standard deviation for several."""
        heads = ("table", "base", "task", "model", "lambda", "measure", "value", "low", "high", "sd", "seeds", "n")
        rows: list[list[Cell]] = []
        for line in self.lines:
            for column in self.columns:
                entry = line.entries.get(column)
                if entry is None:
                    continue
                names = (self.number, line.base, line.task, line.model, line.lam, entry.measure)
                n = "; ".join(dict.fromkeys(str(score.n) for score in entry.scores))
                methods = "; ".join(dict.fromkeys(score.method for score in entry.scores))
                known = published.get(line.key(column))
                rows.append([*names, *_statistics(entry.scores), line.seeds, n, known, methods, line.note])
        return Table("", list(map(Column, (*heads, "published", "measured_by", "note"))), rows)


def _mark(number: int) -> str:
    return ascii_lowercase[number] if number < 26 else str(number)


def _published(line: Line, column: str, published: Mapping[Key, float]) -> str | None:
    """A published number, which is in the unit of the table already."""
    value = published.get(line.key(column)) if column in line.entries else None
    if value is None:
        return None
    return f"{value:.1f} %" if is_rate(line.entries[column].measure) else f"{value:.3f}"


# --- Numbers over seeds ---


def unit(scores: Sequence[Score]) -> int:
    """What a table multiplies a score by: 100, for percent, or 1."""
    return 100 if is_rate(scores[0].name) and all(0 <= value <= 1 for value in _values(scores)) else 1


def _values(scores: Sequence[Score]) -> list[float]:
    return [score.value for score in scores if score.value is not None]


def mean(scores: Sequence[Score]) -> float | None:
    """The mean over seeds; `None` if no value is defined."""
    values = _values(scores)
    return statistics.fmean(values) if values else None


def deviation(scores: Sequence[Score]) -> float | None:
    """The standard deviation over seeds (n − 1); `None` below two values."""
    values = _values(scores)
    return statistics.stdev(values) if len(values) > 1 else None


def seeds_number(scores: Sequence[Score]) -> Number | None:
    """A score with its 95 % interval, or, of several seeds, mean ± standard deviation (n − 1)."""
    if len(scores) < 2:
        return score_number(scores[0] if scores else None)
    spread, known = deviation(scores), len(_values(scores))
    return Number(
        value=mean(scores),
        sd=math.nan if spread is None else spread,
        rate=unit(scores) == 100,
        remark="" if known == len(scores) else f" (n = {known})",
    )


def _statistics(scores: Sequence[Score]) -> list[float | None]:
    """Value, low, high and standard deviation, in the unit of the table."""
    value = mean(scores)
    if value is None:
        return [None, None, None, None]
    one = scores[0] if len(scores) == 1 else None
    found = (value, one.low if one else None, one.high if one else None, deviation(scores))
    return [None if number is None else unit(scores) * number for number in found]


# --- Which rows a table has ---


def task_score(group: Group) -> str | None:
    """The task score that is reported: the recipe's first, or the one that chose λ, or the first that there is."""
    settings, results = group.first.settings, group.first.results
    trial = results.trial("merged")
    names = [name for name in (trial.scores if trial else {}) if is_task(name)]
    lm_eval = (f"lm_eval:{name}" for name in settings.get("score.lm_eval") or ())
    wanted = [*(settings.get("score.metrics") or ()), *lm_eval, results.choice.metric, *names]
    return next((str(name) for name in wanted if name in names), None)


def safety_sets(group: Group) -> Mapping[str, str]:
    """The score of ASR on each safety set, by the set's name."""
    refs = [str(ref) for ref in group.first.settings.get("score.safety") or ()]
    if len(refs) == 1:
        return {without_folders(refs[0]): "asr"}
    return {without_folders(ref): f"asr:{ref}" for ref in refs}


def all_tables(groups: Sequence[Group], main: str) -> list[PaperTable]:
    """The tables that there are runs for; `main` is the base of Tables 1 and 2, and the others are in Table 3."""
    own = [group for group in groups if group.first.base == main]
    merged = _one_method(own)
    methods = [group for group in own if sum(other.first.task == group.first.task for other in own) > 1]
    others = _one_method([group for group in groups if group.first.base != main])
    found = [
        PaperTable(1, f"Base, tuned and merged ({main})", table_columns(merged), list(_three_models(merged, []))),
        PaperTable(2, f"Merging methods ({main})", table_columns(methods), list(_by_method(methods))),
        PaperTable(3, "Other models", table_columns(others), list(_three_models(others, merged))),
    ]
    return [table for table in found if table.lines]


def main_base(groups: Sequence[Group]) -> str:
    """The base of most groups; of equal ones, the first by name."""
    names = sorted({group.first.base for group in groups})
    return max(names, key=lambda name: sum(group.first.base == name for group in groups))


def _one_method(groups: Sequence[Group]) -> list[Group]:
    """One group for each base and task: the linear one, or the first."""
    found: dict[tuple[str, str], Group] = {}
    for group in sorted(groups, key=lambda group: group.first.method != LINEAR):
        found.setdefault((group.first.base, group.first.task), group)
    return [group for group in groups if group in found.values()]


def table_columns(groups: Sequence[Group]) -> list[str]:
    """The columns with numbers: the task score, ASR on each safety set, and the other rates that were measured."""
    sets = map(_asr, dict.fromkeys(name for group in groups for name in safety_sets(group)))
    return [TASK_SCORE, *sets, *dict.fromkeys(name_of(name) for group in groups for name in further(group))]


def further(group: Group) -> list[str]:
    """The other rates that were measured: over-refusal, refusals of ordinary prompts, ASR under attacks, by judges."""
    names = {name for run in group.runs if (trial := run.results.trial("merged")) for name in trial.scores}
    rates = {*_FURTHER, *(name for name in names if attack_of(name) != NONE and without_attack(name) in _UNDER_ATTACK)}
    by_judge = {name for name in names if name.startswith("asr@") and ":" not in name}
    return in_order((names & rates) | by_judge)


def _asr(name: str) -> str:
    return f"ASR, {name}"


def _three_models(groups: Sequence[Group], beside: Sequence[Group]) -> Iterator[Line]:
    """Base, tuned and merged of each; the notes compare with a group of the same task, or else with the first row."""
    for group in (each for each in groups if each.first.has_lam):
        same = next((other for other in beside if other.first.task == group.first.task), None)
        first = same or (beside[0] if beside else groups[0])
        note = why_not_comparable(group, first, safety_only=same is None)
        for model in COLUMNS:
            yield line_of(group, model, note if model == "base" else "")


def _by_method(groups: Sequence[Group]) -> Iterator[Line]:
    firsts: dict[str, Group] = {}
    for group in sorted(groups, key=lambda each: (each.first.task, each.first.method != LINEAR, each.first.method)):
        yield line_of(group, "merged", why_not_comparable(group, firsts.setdefault(group.first.task, group)))


def line_of(group: Group, model: Role, note: str = "") -> Line:
    """The numbers of one model of a group: base, tuned or merged."""
    entries = {}
    if metric := task_score(group):
        entries[TASK_SCORE] = Entry(metric, group.scores(model, metric))
    for name, score in safety_sets(group).items():
        entries[_asr(name)] = Entry(f"asr:{name}", group.scores(model, score))
    for name in further(group):
        entries[name_of(name)] = Entry(name, group.scores(model, name))
    return Line(
        base=group.first.base,
        task=group.first.task,
        model=group.first.method if model == "merged" else model,
        lam=group.lam if model == "merged" else group.first.results.point(model).key,
        seeds=group.seeds,
        entries=entries,
        note=note,
    )
