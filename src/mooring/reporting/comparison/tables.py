"""The tables of a comparison: methods side by side, every series, and what the responses took."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence

from mooring.attacks.names import without_attack
from mooring.merge_point import BASE, lam_label
from mooring.reporting.comparison.records import Cost, MethodComparison
from mooring.reporting.paper import details, paired
from mooring.reporting.paper.runs import Group, grouped, runs_of
from mooring.reporting.paper.tables import PaperTable, line_of, table_columns
from mooring.reporting.tables import Cell, Column, Table, agreement_table, columns, in_order
from mooring.text import MISSING, Number, name_of, number_of, score_number

METHODS, SERIES, COST = "methods", "series", "cost"
"""Names of the files."""
HEADINGS = {
    METHODS: "Merging methods",
    SERIES: "The chosen λ of each method and tuned model",
    paired.NAME: "In pairs",
    details.CATEGORIES: "By category",
    details.AGREEMENT: "Agreement of the judges",
    COST: "Cost",
}


def groups_of(found: MethodComparison) -> list[Group]:
    """The series by method, in the order of the recipe."""
    order = [each.method for each in found.series]
    groups, _ = grouped(runs_of(found))
    return sorted(groups, key=lambda group: order.index(str(group.first.results.recipe["merge"]["method"])))


def tuned_group(found: MethodComparison) -> Group:
    """Each tuned model once, whatever the methods."""
    first = next((each for each in found.series if each.series.has_lam), None)
    if first is None:  # as the tuned models of any method with λ
        first = dataclasses.replace(found.series[0], method="linear", options={})
    runs = []
    for model in found.tuned:
        runs += runs_of(dataclasses.replace(found, series=[dataclasses.replace(first, tuned=model.name, seed=None)]))
    return Group(runs)


def method_table(found: MethodComparison, groups: Sequence[Group]) -> PaperTable:
    """Base, tuned models and each method, as in the paper's Table 2: mean ± standard deviation over tuned models."""
    first = Group([groups[0].first])
    base = dataclasses.replace(line_of(first, "base"), seeds=MISSING)
    lines = [base, line_of(tuned_group(found), "tuned")]
    lines += [line_of(group, "merged") for group in groups]
    return PaperTable(2, f"Merging methods ({groups[0].first.base})", table_columns(groups), lines)


def series_table(found: MethodComparison) -> Table:
    """Each series with its chosen λ, whether it keeps the bound, and its scores on the test split."""
    names = in_order({name for each in found.series for t in each.trials if t.split == "test" for name in t.scores})
    names = [name for name in names if not {*without_attack(name).removeprefix("lm_eval:")} & {":", "/"}]
    rows: list[list[Cell]] = []
    for each in found.series:
        scores = next((trial.scores for trial in each.trials if trial.split == "test"), {})
        lam = each.choice.point.key if each.series.has_lam else None
        within = "yes" if each.choice.within else "no"
        mask = None if each.options.get("seed") is None else str(each.options["seed"])
        tuned = each.tuned or (" + ".join(m.name for m in found.tuned) if len(found.tuned) > 1 else "")
        words = each.verdict.words.lower()
        rows.append([each.method, tuned, mask, lam, within, words, *(score_number(scores.get(name)) for name in names)])
    heads = columns(["method", "tuned", "mask"], ["λ"])
    heads += [*columns(["within the bound", "verdict"], []), *(Column(name_of(name), numeric=True) for name in names)]
    sure = found.series[0].choice.confidence
    how = "" if sure is None else f", each with {100 * sure:.5g} % confidence by itself"
    bounds = sorted({round(each.choice.bound, 12) for each in found.series})
    bound = " … ".join(str(number_of(value, "asr")) for value in dict.fromkeys((bounds[0], bounds[-1])))
    caption = (
        f"λ was chosen on validation, by itself for each row. The bound on ASR: {bound}{how}. Scores and verdict: test "
        "split; a verdict is that of the row alone."
    )
    return Table(caption, heads, rows)


def cost_table(found: MethodComparison, costs: Sequence[Cost]) -> Table | None:
    """What the responses to the test split took, by method; None if nothing was generated."""
    by_model = {cost.model: cost for cost in costs if cost.responses}
    rows = [row for name, keys in _models(found).items() if (row := _cost_row(name, [*keys], by_model))]
    if not rows:
        return None
    heads = columns(
        ["model"], ["models", "responses", "tokens", "tokens per response", "seconds", "seconds per response"]
    )
    caption = (
        "Responses to the test split, thoughts included. Tokens and seconds per response: mean ± standard deviation "
        "over models. Seconds are those of generating on this machine; drafts and models that answer at the same "
        "time change them."
    )
    return Table(caption, heads, rows)


def _models(found: MethodComparison) -> Mapping[str, Sequence[str]]:
    """The keys of the chosen models by method."""
    models: dict[str, list[str]] = {"base": [BASE.key], "tuned": [model.point.key for model in found.tuned]}
    for each in found.series:
        models.setdefault(each.method, []).append(each.series.at(each.choice.point).key)
    return models


def _cost_row(name: str, keys: Sequence[str], costs: Mapping[str, Cost]) -> list[Cell] | None:
    known = [costs[key] for key in keys if key in costs]
    if not known:
        return None
    timed = [cost.seconds for cost in known if cost.seconds is not None]
    tokens = _mean([cost.tokens / cost.responses for cost in known], 1)
    seconds = _mean([cost.seconds / cost.responses for cost in known if cost.seconds is not None], 3)
    total: Cell = Number(value=sum(timed), digits=1) if len(timed) == len(known) else None
    counts = (len(known), sum(cost.responses for cost in known), sum(cost.tokens for cost in known))
    return [name, *counts, tokens, total, seconds if total else None]


def _mean(values: Sequence[float], digits: int) -> Number | None:
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Number(value=statistics.fmean(values), sd=sd, digits=digits)


def all_tables(found: MethodComparison, costs: Sequence[Cost] = ()) -> Iterator[tuple[str, Table, Table]]:
    """The tables by the names of their files: as people read them, and their numbers."""
    groups = groups_of(found)
    methods = method_table(found, groups)
    yield METHODS, methods.to_table({}), methods.to_numbers({})
    series = series_table(found)
    yield SERIES, series, series
    if pairs := paired.pairs(groups):
        yield paired.NAME, paired.to_table(pairs, "tuned model"), paired.to_numbers(pairs)
    if categories := details.category_table(groups):
        yield details.CATEGORIES, categories, categories
    if agreement := agreement_table(found.agreement, "base, tuned and chosen models"):
        yield details.AGREEMENT, agreement, agreement
    if cost := cost_table(found, costs):
        yield COST, cost, cost


def sentences(found: MethodComparison) -> list[str]:
    """The choice and the verdict of each series."""
    return [
        f"{each.series.label}: {each.verdict.words}: {each.verdict.sentence} {each.choice.reason} "
        f"{each.choice.sensitivity}".rstrip()
        for each in found.series
    ]


def summary(found: MethodComparison) -> str:
    """What was compared, and for how many series a λ keeps the bound, in a sentence or two."""
    count, within = len(found.series), sum(each.choice.within for each in found.series)
    methods = ", ".join(dict.fromkeys(each.method for each in found.series))
    models = f"{len(found.tuned)} tuned model{'s' * (len(found.tuned) != 1)}"
    whole = f"{methods}, on {models}: {within} of {count} keep the bound on ASR by their own test"
    lams = sorted({each.choice.point.lam for each in found.series if each.series.has_lam})
    chosen = f", at {lam_label(*dict.fromkeys((lams[0], lams[-1])))}" if lams else ""
    ship = sum(each.verdict.passed for each in found.series)
    held = f"By the test half, {ship} of {count} can be shipped."
    return f"{whole[0].upper()}{whole[1:]}{chosen}. {held} No model was written: `mooring merge` writes the one to use."
