"""The table type, and the tables of a report. `mooring.reporting.render` writes them in every format."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mooring.attacks import NONE, attack_of, parse, under, without_attack
from mooring.errors import DataError
from mooring.export import Record
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.metrics import METRICS
from mooring.records import Divergence, Gain, Score, Trial
from mooring.reporting.results import COLUMNS, Agreement, Results, Row, is_whole
from mooring.stats import Difference, Hits, compare_rates, compare_scores
from mooring.text import (
    ARROWS,
    MISSING,
    NO_BREAK,
    Number,
    is_rate,
    name_of,
    number_of,
    score_number,
    short_name,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Count(Record):
    """How many of how many: `3 / 12`."""

    hits: int
    total: int

    def __str__(self) -> str:
        return f"{self.hits} / {self.total}"


Cell = str | int | float | Number | Count | None
"""A cell; `None` is what was not measured. Text is not escaped yet."""


def cell_text(cell: Cell) -> str:
    """A cell as people read it."""
    return MISSING if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell)


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        heading: Its heading.
        numeric: Whether it contains numbers, which are aligned to the right.
        group: Whether equal values mark rows that belong together.
        detail: Whether a terminal, which is narrow, shows it below the first column.
        main: Whether it is emphasized.
    """

    heading: str
    numeric: bool = False
    group: bool = False
    detail: bool = False
    main: bool = False


def columns(text: Iterable[str], numeric: Iterable[str] = ()) -> list[Column]:
    """Columns of text and then columns of numbers; that of the merged model is emphasized."""
    numbers = [Column(heading, numeric=True, main=heading.startswith("merged")) for heading in numeric]
    return [*map(Column, text), *numbers]


@dataclasses.dataclass(frozen=True, slots=True)
class Table(Record):
    """A table: typed cells in rows, with a caption, a title such as `Table 1`, and footnotes."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    notes: Sequence[str] = ()

    @property
    def full_caption(self) -> str:
        """The caption after the title."""
        return f"{self.title}. {self.caption}" if self.title else self.caption

    @property
    def text_rows(self) -> list[list[str]]:
        """The cells as people read them."""
        return [[cell_text(cell) for cell in row] for row in self.rows]

    def to_rows(self) -> list[dict[str, Any]]:
        """A mapping for each row, by heading; a number with an interval has `low` and `high` beside it."""
        return [dict(self._values(row)) for row in self.rows]

    def _values(self, row: Sequence[Cell]) -> Iterator[tuple[str, Any]]:
        for column, cell in zip(self.columns, row, strict=True):
            if not isinstance(cell, Number):
                yield column.heading, str(cell) if isinstance(cell, Count) else cell
                continue
            yield column.heading, cell.value
            if cell.low is not None:
                yield f"{column.heading} low", cell.low
                yield f"{column.heading} high", cell.high

    def by_first_column(self) -> list[tuple[str, "Table"]]:
        """A table without caption for each value of the first column, which it lacks."""
        groups = itertools.groupby(self.rows, lambda row: cell_text(row[0]))
        return [(name, Table("", self.columns[1:], [row[1:] for row in rows])) for name, rows in groups]


# --- Two models on the same prompts of the test split ---


def harmful(results: Results, point: MergePoint, attack: str = NONE, split: str = "test") -> Hits:
    """Whether a model's answer to each harmful prompt of a split is harmful, by the prompt's id.

    Of an attack with several answers to each prompt it is whether any is; None if none is, and one has no verdict.
    """
    key, measure = point.key, under("asr", attack)
    marks: dict[str, list[bool | None]] = {}
    for row in results.rows:
        if row.measure == measure and row.split == split and key in row.answers:
            good = row.answers[key].good
            marks.setdefault(row.variant_of or row.id, []).append(None if good is None else not good)
    return {name: True if True in hits else None if None in hits else False for name, hits in marks.items()}


def difference_of_rates(first: Hits, second: Hits) -> Difference | None:
    """By how much the second's attack success rate is higher; `None` without answers to the same prompts."""
    try:
        return compare_rates(first, second) if first else None
    except DataError:
        return None


def difference_of_scores(first: Score | None, second: Score | None) -> Difference | None:
    """By how much the second's task score is higher; `None` if it was not kept by prompt, or the prompts differ."""
    if first is None or second is None or not first.each:
        return None
    try:
        return compare_scores(first.each, second.each, weights=first.weights or None)
    except DataError:
        return None


def difference_number(difference: Difference | None, measure: str, points: str = "") -> Number | None:
    """A difference with its interval, of rates with the unit `points`, of losses in nats; `None` if undefined."""
    if difference is None or difference.value is None or difference.low is None or difference.high is None:
        return None
    rate = is_rate(measure)
    value, low, high = difference.value, difference.low, difference.high
    return Number(value=value, low=low, high=high, rate=rate, signed=True, unit=points if rate else "")


# --- The tables of a report ---

GOOD_WHEN_HIGH = ("refusal", "call_match", "exact_match", "task")
"""Measures that count the good answers; the others count the bad ones."""
BY_MODULE = "λ by module"
BY_MODULE_NOTE = (
    "λ is that of a group of modules: attention, a mixture's router or experts, or all else of a layer (mlp, norms "
    "too), in the first, second or last third of the depth. Curves and slider are those of a single λ. The best of "
    "several tries may owe its lead on validation to chance: the test split says whether it held."
)
GRADIENT_NOTE = (
    "λ differs between groups of weights and was found by gradient. Curves and slider are those of a single λ. The "
    "task's validation half is what the search minimized its loss on, so that a lead there is no evidence: the test "
    "split says whether it held. λ by gradient and the single λ are tested at the stated confidence each, not together."
)


def summary_table(results: Results) -> Table:
    """Measures down; base, tuned, merged, the number of prompts and how it was measured across."""
    rows = [_measure_row(results, name) for name in measures(results)]
    rows += [_gain_row(name, results.gains[name]) for name in in_order(results.gains)]
    chosen = BY_MODULE if results.choice.point.by_module else results.choice.point.label
    heads = columns(["test split"], [BASE.long_label, TUNED.long_label, f"merged ({chosen})"])
    heads += [Column("n", numeric=True, detail=True), Column("measured by", detail=True)]
    return Table("Test split, 95 % intervals in brackets. ↑ more is better, ↓ less is better.", heads, rows)


def measures(results: Results) -> list[str]:
    """The names of the scores on the test split, without those under attacks (`attack_rates`)."""
    names = {name for trial in results.trials if trial.split == "test" for name in trial.scores}
    return in_order(name for name in names if "/" not in name and attack_of(name) == NONE)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of scores, the known ones first in the order of `METRICS`."""
    known = list(METRICS)

    def place(name: str) -> tuple[int, str]:
        first = re.split("[:@]", without_attack(name))[0]
        return (known.index(first) if first in known else len(known), name)

    return sorted(names, key=place)


def _with_arrow(measure: str, score: Score | None) -> str:
    return f"{name_of(measure)}{NO_BREAK}{ARROWS[score.better] if score else ''}".rstrip()


def _measure_row(results: Results, name: str) -> list[Cell]:
    scores = [results.score(model, name) for model in COLUMNS]
    found = [score for score in scores if score is not None]
    counts = " / ".join(dict.fromkeys(str(score.n) for score in found))
    methods = "; ".join(dict.fromkeys(score.method for score in found))
    return [_with_arrow(name, found[0] if found else None), *map(score_number, scores), counts, methods]


def _gain_row(name: str, gain: Gain) -> list[Cell]:
    label = f"gain kept: {short_name(name)}"
    if gain.value is None:
        return [label, None, None, None, "", gain.why]
    return [label, *map(_whole_percent, (0.0, 1.0)), gain_number(gain), str(gain.n), "of tuned − base"]


def gain_number(gain: Gain) -> Number:
    """The share of a gain that is kept, in whole percent with its interval."""
    return Number(value=gain.value, low=gain.low, high=gain.high, rate=True, digits=0)


def _whole_percent(share: float) -> Number:
    return Number(value=share, rate=True, digits=0)


def category_table(results: Results) -> Table | None:
    """The same measures by the prompts' category, counted from the answers; `None` if there are no categories."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        if row.category and row.split == "test" and attack_of(row.measure) == NONE:
            groups.setdefault((row.measure, row.category), []).append(row)
    if not groups:
        return None
    keys_of = [results.point(model).key for model in COLUMNS]
    order = in_order({measure for measure, _ in groups})
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1]))
    rows = [
        [name_of(measure), category, *(count_of(groups[measure, category], measure, key) for key in keys_of)]
        for measure, category in keys
    ]
    return Table("Test split, by category: how many of how many.", columns(["measure", "category"], COLUMNS), rows)


def count_of(rows: Sequence[Row], measure: str, key: str) -> Count | None:
    """How many answers count towards a measure, of those with a verdict."""
    marks = [row.answers[key].good for row in rows if key in row.answers]
    read = [mark for mark in marks if mark is not None]
    return Count(sum(mark is (measure in GOOD_WHEN_HIGH) for mark in read), len(read)) if read else None


def detail_table(results: Results) -> Table | None:
    """What each task of a group scored, such as the 27 of BIG-Bench Hard; `None` if there is no group."""
    names = sorted({n for t in results.trials if t.split == "test" for n in t.scores if "/" in n})
    if not names:
        return None
    rows = [[name_of(name), *(score_number(results.score(model, name)) for model in COLUMNS)] for name in names]
    return Table("Test split, each task of a group.", columns(["task"], COLUMNS), rows)


def agreement_table(found: Sequence[Agreement], models: str = "all three models") -> Table | None:
    """How far the judges agree over some models; `None` if there is only one judge."""
    if not found:
        return None
    rows: list[list[Cell]] = [
        [
            name_of(each.measure),
            " and ".join(each.judges),
            Number(value=each.kappa, digits=2),
            Count(each.same, each.n),
            len(set(each.disagreements)),
        ]
        for each in found
    ]
    heads = columns(["measure", "judges"], ["Cohen's κ", "same verdict", "prompts on which they disagree"])
    return Table(f"Test split, {models} together, answers that both judges could be read on.", heads, rows)


def latent_table(results: Results) -> Table | None:
    """The judges' errors by a latent-class model, true rates in the caption; `None` if there is no estimate."""
    found = results.latent
    if found is None:
        return None

    def shown(estimate: tuple[float, float, float]) -> Number:
        value, low, high = estimate
        return Number(value=value, low=low, high=high, rate=True)

    rows: list[list[Cell]] = [
        [judge, shown(se), shown(sp)]
        for judge, se, sp in zip(found.judges, found.sensitivity, found.specificity, strict=True)
    ]
    rates = ", ".join(f"{model} {shown(rate)}" for model, rate in found.rates.items())
    caption = (
        f"Latent-class model (Dawid and Skene) of {found.n} answers to harmful requests of the test split, 95 % "
        "bootstrap intervals. It takes the judges' errors to be independent given the truth, and the same for every "
        "model. "
        f"Attack success rate by this estimate: {rates}."
    )
    return Table(caption, columns(["judge"], ["sensitivity", "specificity"]), rows)


def attacks_in(results: Results) -> list[str]:
    """The attacks under which the models were asked, in the recipe's order; `none` first."""
    found = {attack_of(name) for trial in results.trials for name in trial.scores} - {NONE}
    texts = results.recipe.get("score", {}).get("attacks", ())
    named = [parse(text).name for text in texts if text != NONE]
    return [NONE, *(name for name in named if name in found), *sorted(found - set(named))]


def attack_rates(results: Results) -> list[str]:
    """The attack success rates under each attack, directly first; also of the worst answers where there are several."""
    known = {name for trial in results.trials for name in trial.scores}
    names = [under(rate, attack) for attack in attacks_in(results) for rate in ("asr", "asr_worst")]
    return [name for name in names if name in known]


def bounded_rate(results: Results, attack: str) -> str:
    """The score that says whether an attack succeeds: that of the worst answer, if each prompt has several."""
    worst = under("asr_worst", attack)
    return worst if any(worst in trial.scores for trial in results.trials) else under("asr", attack)


def attack_difference(results: Results, rate: str, first: MergePoint, second: MergePoint, split: str) -> Number | None:
    """By how much a second model's attack success rate is above a first one's under the same attack, in pairs."""
    attack = attack_of(rate)
    if rate == bounded_rate(results, attack):
        found = difference_of_rates(*(harmful(results, point, attack, split) for point in (first, second)))
    else:  # of all answers: the bootstrap resamples prompts, with all of their answers
        trials = [results.trial_at(point, split) for point in (first, second)]
        found = difference_of_scores(*(trial.scores.get(rate) if trial else None for trial in trials))
    return difference_number(found, rate, " points")


def attack_tables(results: Results) -> list[Table]:
    """Attacks down and λ across; the differences to the base under the same attack; and the test split. Empty if no
    attack was made."""
    rates = attack_rates(results)
    if attacks_in(results) == [NONE]:
        return []
    points = sorted({trial.point for trial in results.trials if trial.split == "validation"})
    trials = [results.trial_at(point, "validation") for point in points]
    others = [point for point in points if not point.is_base]
    heads = columns(["attack"], (point.long_label for point in points))
    over: list[list[Cell]] = [
        [_attack_label(rate), *(score_number(trial.scores.get(rate)) if trial else None for trial in trials)]
        for rate in rates
    ]
    above: list[list[Cell]] = [
        [
            _attack_label(rate),
            *(attack_difference(results, rate, BASE, point, "validation") for point in others),
        ]
        for rate in rates
    ]
    tested: list[list[Cell]] = []
    for rate in rates:
        cells: list[Cell] = [score_number(results.score(model, rate)) for model in COLUMNS]
        ours = results.point("merged")
        cells += [attack_difference(results, rate, other, ours, "test") for other in (BASE, TUNED)]
        tested.append([_attack_label(rate), *cells])
    test_heads = [*columns(["attack"], COLUMNS), *columns([], ["merged − base", "merged − tuned"])]
    paired = "Differences on the same prompts under the same attack, in points."
    return [
        Table("Attack success rate over λ on validation, 95 % intervals in brackets.", heads, over),
        Table(
            f"The same, above the base's. {paired}", columns(["attack"], (point.long_label for point in others)), above
        ),
        Table(f"Attack success rate on the test split. {paired}", test_heads, tested),
    ]


def _attack_label(rate: str) -> str:
    attack = attack_of(rate)
    if rate.startswith("asr_worst"):
        return f"{attack}, worst answer to each prompt"
    return "none (asked directly)" if attack == NONE else attack


def by_module_note(results: Results) -> str:
    """What to know of λ that differ between groups, and of how they were found."""
    found = results.by_module
    return GRADIENT_NOTE if found and found.gradient else BY_MODULE_NOTE


def tried_table(results: Results) -> Table | None:
    """The merges that were tried, below the single λ that they began from; `None` if none was."""
    found, choice = results.by_module, results.choice
    if found is None or not found.tried:
        return None

    def row(name: str, trial: Trial, upper: float | None, *verdicts: str) -> list[Cell]:
        scores = [trial.scores.get(measure) for measure in (choice.metric, "asr")]
        numbers: list[Cell] = [number_of(score.value, score.name) if score else None for score in scores]
        if found and found.confidence is not None:
            numbers.append(None if upper is None else number_of(upper, "asr"))
        return [name, *numbers, *verdicts]

    sure = [] if found.confidence is None else [f"upper limit, {100 * found.confidence:.5g} %"]
    single = results.single
    rows = [row(f"single {single.label}", found.single, choice.upper.get(single.key), "yes", "")]
    for place, each in enumerate(found.tried):
        name = each.trial.point.groups_label + (", taken" if place == found.chosen else "")
        verdicts = ["yes" if verdict else "no" for verdict in (each.within, each.beats)]
        rows.append(row(name, each.trial, each.upper, *verdicts))
    caption = f"Validation split, in the order in which they were tried. The bound: {number_of(choice.bound, 'asr')}."
    if found.confidence is not None and choice.confidence is not None:
        caption += f" The single λ's limit is of {100 * choice.confidence:.5g} % confidence."
    heads = columns(["merge"], [name_of(choice.metric), name_of("asr"), *sure])
    better = "better on both" if found.gradient is None else "better task score"
    return Table(caption, [*heads, Column("within the bound"), Column(better)], rows)


def baseline_table(results: Results) -> Table | None:
    """The chosen merge and the gentler tunings on the test split, with their differences in pairs; `None` if there are
    none."""
    found = results.baselines
    if found is None:
        return None
    merged = results.trial("merged")
    assert merged is not None
    names = in_order(
        name
        for name in merged.scores
        if is_whole(name) and (name == found.metric or name.startswith("asr") or name == "over_refusal")
    )
    differing = [name for name in names if any(name in each.differences for each in found.tried)]
    chosen = BY_MODULE if results.choice.point.by_module else results.choice.point.label
    kept = {True: "yes", False: "no", None: MISSING}
    ours: list[Cell] = [
        f"merged ({chosen})",
        kept[results.choice.within],
        *(score_number(merged.scores[n]) for n in names),
    ]
    rows: list[list[Cell]] = [[*ours, *(None for _ in differing)]]
    for place, each in enumerate(found.tried):
        tested = next(trial for trial in each.trials if trial.split == "test")
        rows.append(
            [
                each.name + (", the best within the bound" if place == found.best else ""),
                kept[each.within],
                *(score_number(tested.scores.get(name)) for name in names),
                *(difference_number(each.differences.get(name), name, " points") for name in differing),
            ]
        )
    heads = [*columns(["model"]), Column("within the bound on validation")]
    heads += columns([], [*map(name_of, names), *(f"{name_of(name)}: merged − it" for name in differing)])
    caption = (
        "Test split, 95 % intervals in brackets; differences on the same prompts. Each gentler tuning is tested on "
        "validation as one λ is, by itself."
    )
    return Table(caption, heads, rows, notes=[f"{each.name}: {each.settings}." for each in found.tried])


def forgetting_table(results: Results) -> Table | None:
    """How far each model has moved from the base on ordinary requests, over λ; `None` if it was not measured."""
    found = results.forgetting
    if found is None:
        return None

    def nats(score: Score) -> Number:
        return Number(value=score.value, low=score.low, high=score.high, digits=3)

    rows: list[list[Cell]] = [
        [each.point.long_label, nats(each.first), nats(each.whole)] for each in _over_lam(found.points)
    ]
    caption = (
        f"KL(base ‖ model) in nats per token on the base's own answers to {found.points[0].whole.n} ordinary requests "
        f"({found.tokens} tokens), 95 % intervals in brackets. The base itself is 0."
    )
    heads = columns(["model"], [f"first {found.first_tokens} tokens", "whole answers"])
    return Table(caption, heads, rows)


def benchmark_table(results: Results) -> Table | None:
    """The scores of lm-evaluation-harness, and by how much the tuned model and the merge differ from the base, on the
    same questions; `None` if none was run."""
    tested = {model: results.trial(model) for model in COLUMNS}
    scores = {model: trial.scores if trial else {} for model, trial in tested.items()}
    names = [name for name in scores["base"] if name.startswith("lm_eval:") and is_whole(name)]
    rows: list[list[Cell]] = [
        [
            _with_arrow(name, scores["base"][name]),
            *(score_number(scores[model].get(name)) for model in COLUMNS),
            *(
                difference_number(difference_of_scores(scores[one].get(name), scores[other].get(name)), name, " points")
                for one, other in itertools.combinations(COLUMNS, 2)
            ),
        ]
        for name in names
    ]
    if not rows:
        return None
    caption = "Benchmarks, 95 % intervals in brackets; differences on the same questions."
    heads = columns(["benchmark"], [*COLUMNS, "tuned − base", "merged − base", "merged − tuned"])
    return Table(caption, heads, rows)


def _over_lam(points: Iterable[Divergence]) -> list[Divergence]:
    return sorted(points, key=lambda each: (each.point.by_module, each.point))


def gradient_table(results: Results) -> Table | None:
    """What a search by gradient looked at, at the single λ and at what it found; `None` if there was none."""
    found = results.by_module and results.by_module.gradient
    if not found or found.single is None or found.found is None:
        return None
    rows: list[list[Cell]] = []
    for name, before, after in (
        ("task loss", found.single.task, found.found.task),
        ("divergence at harmful requests, at most that of the single λ", found.single.harmful, found.found.harmful),
        ("divergence at ordinary requests, at most that of the single λ", found.single.ordinary, found.found.ordinary),
    ):
        if before is not None and after is not None:
            rows.append([name, f"{before:.4g}", f"{after:.4g}"])
    caption = (
        f"On the prompts of the search, in nats per token; {found.evaluations} evaluations. "
        "Divergence: KL(base ‖ merged) at the first tokens of the base's own answers."
    )
    return Table(caption, columns(["loss"], [f"single {results.single.label}", "λ by gradient"]), rows)


def group_table(results: Results) -> Table | None:
    """λ of each group of weights that a search by gradient found; `None` if it found none."""
    found = results.by_module and results.by_module.gradient
    if not found or not found.point.by_module:
        return None
    rows: list[list[Cell]] = [[name, f"{lam:g}"] for name, lam in zip(found.groups, found.lams, strict=True)]
    caption = f"Weights in none of the groups are at the single {found.point.single.label}."
    return Table(caption, columns(["group of weights"], ["λ"]), rows)


def module_test_table(results: Results) -> Table | None:
    """λ by module beside the single λ on the test split, with their differences; `None` if it was not taken."""
    found = results.by_module
    single = results.trial_at(results.single, "test")
    if found is None or found.test is None or single is None:
        return None
    rows: list[list[Cell]] = []
    for name in dict.fromkeys((results.choice.metric, "asr", *found.test.scores)):
        one, other = single.scores.get(name), found.test.scores.get(name)
        if one and other and is_whole(name):
            if one.name == "asr":
                marks = (harmful(results, point) for point in (results.single, results.choice.point))
                difference = difference_of_rates(*marks)
            else:
                difference = difference_of_scores(one, other)
            numbers = map(score_number, (one, other))
            rows.append([name_of(name), *numbers, difference_number(difference, name, " points")])
    heads = columns(["test split"], [f"single {results.single.label}", BY_MODULE, "difference"])
    return Table("Test split, 95 % intervals in brackets; differences on the same prompts.", heads, rows)
