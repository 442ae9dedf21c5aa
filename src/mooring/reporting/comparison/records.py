"""The results of a run that compares methods or tuned models, and their file: written, read, and split by series."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.errors import DataError
from mooring.export import Record
from mooring.jsonio import EDITED, convert, read_as
from mooring.ledger import LEDGER, check_all_unmodified, read_ledger
from mooring.merge_methods import METHODS
from mooring.merge_point import BASE, TUNED, MergePoint, Series
from mooring.records import Choice, Gain, RunVerdict, Trial
from mooring.reporting.results import COMPARISON, Agreement, Results, Row, sorted_keys, without_texts

FORMAT = 1
"""Version of a comparison's `results.json`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TunedModel(Record):
    """A tuned model of a comparison.

    Attributes:
        name: Its name in the run; empty if there is only one.
        source: Where it comes from.
        digest: That of its weights.
        trials: Its scores on both splits.
    """

    name: str
    source: str
    digest: str
    trials: Sequence[Trial]

    @property
    def point(self) -> MergePoint:
        """What its answers are kept under."""
        return Series(tuned=self.name).at(TUNED) if self.name else TUNED


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SeriesResult(Record):
    """The merges of one method, tuned model and mask.

    Attributes:
        method: The merging method.
        tuned: The tuned model's name; empty if there is only one, or if all are merged.
        seed: The seed of the mask, if the recipe gives several.
        options: The method's options, with the seed of its mask.
        trials: The merges' scores: all λ on validation, the chosen one on test.
        choice: The chosen λ. For a method without λ (Model Stock) λ is 1.
        verdict: Whether the model at the chosen λ can be shipped, by itself: that several were tried is not corrected
            for.
        gains: By task metric, the share of the tuned model's gain that it keeps; empty for a method without λ, since it
            merges several tuned models.
    """

    method: str
    tuned: str
    seed: int | None
    options: Mapping[str, Any]
    trials: Sequence[Trial]
    choice: Choice
    verdict: RunVerdict
    gains: Mapping[str, Gain] = dataclasses.field(default_factory=dict)

    @property
    def series(self) -> Series:
        """What its λ is a λ of."""
        return Series(self.method, self.tuned, self.seed, self.method not in METHODS or METHODS[self.method].has_lam)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MethodComparison(Record):
    """Everything that the report of a comparison shows. No dates, timings or absolute paths.

    Attributes:
        title: Heading of the page.
        recipe: The recipe as plain values, without the run folder.
        base: The base: `source` and `digest`.
        base_trials: Its scores on both splits.
        tuned: The tuned models.
        series: What was compared.
        judges: Names of the safety judges; the verdicts of the first one count.
        notes: What a reader must know to interpret the numbers, a sentence each.
        rows: The prompts of the test split with the responses of base, tuned and chosen models.
        agreement: Of every two judges, over these models.
        prompts: By split and set, the digest of the prompts.
        versions: By package.
        redacted: Whether the texts of harmful prompts and the responses to them were left out.
    """

    title: str
    recipe: Mapping[str, Any]
    base: Mapping[str, str]
    base_trials: Sequence[Trial]
    tuned: Sequence[TunedModel]
    series: Sequence[SeriesResult]
    judges: Sequence[str]
    notes: Sequence[str] = ()
    rows: Sequence[Row] = ()
    agreement: Sequence[Agreement] = ()
    prompts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    redacted: bool = False

    def to_rows(self) -> list[dict[str, Any]]:
        """A row per model, split and score."""
        found = [{"series": "base"} | row for trial in self.base_trials for row in trial.to_rows()]
        for model in self.tuned:
            name = model.point.label
            found += [{"series": name} | row for trial in model.trials for row in trial.to_rows()]
        for each in self.series:
            found += [{"series": each.series.label} | row for trial in each.trials for row in trial.to_rows()]
        return found

    def tuned_of(self, each: SeriesResult) -> Sequence[TunedModel]:
        """The tuned models that a series merges."""
        return [model for model in self.tuned if not each.tuned or model.name == each.tuned]

    def results_of(self, each: SeriesResult) -> Results:
        """The results of one series as those of a run of its own.

        Those of a method without λ have no tuned model, since it merges several: its merge takes that place.
        """
        series, models = each.series, self.tuned_of(each)
        keys = {BASE.key: BASE.key} | {series.at(t.point).key: t.point.key for t in each.trials}
        tuned: Sequence[Trial] = ()
        if series.has_lam:
            keys[models[0].point.key], tuned = TUNED.key, models[0].trials
        merge = {"method": each.method, "methods": [], "lambdas": self.recipe["merge"]["lambdas"], **each.options}
        seeds = [merge.pop("seed")] if "seed" in merge else []
        recipe = {**self.recipe, "merge": {**merge, "seeds": seeds, "check": False}}
        trials = [*self.base_trials, *each.trials, *tuned]
        rows = [
            dataclasses.replace(row, answers={keys[key]: answer for key, answer in row.answers.items() if key in keys})
            for row in self.rows
        ]
        digest = " + ".join(model.digest for model in models)
        return Results(
            verdict=each.verdict,
            title=f"{self.title}: {series.label}",
            recipe=recipe,
            models={
                "base": self.base,
                "tuned": {"source": " + ".join(model.source for model in models), "digest": digest},
            },
            trials=trials,
            choice=each.choice,
            judges=self.judges,
            notes=self.notes,
            gains=each.gains,
            rows=rows,
            agreement=self.agreement,
            versions=self.versions,
            redacted=self.redacted,
            prompts=self.prompts,
        )

    def redact(self) -> "MethodComparison":
        """The same without the texts of harmful prompts and of the responses to them."""
        rows, agreement = without_texts(self.rows, self.agreement)
        return dataclasses.replace(self, rows=rows, agreement=agreement, redacted=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost(Record):
    """What one model's responses to the test split took. It is not part of `results.json`, since seconds vary.

    Attributes:
        model: The model's `MergePoint.key`.
        responses: How many.
        tokens: Tokens generated in all, thoughts included.
        seconds: How long generating them took; None if that is not known.
    """

    model: str
    responses: int
    tokens: int
    seconds: float | None


def dumps(found: MethodComparison) -> str:
    """The content of `results.json`: the same results give the same bytes."""
    # Converted to their types first, so that 0 and 0.0 are written alike.
    data = dataclasses.asdict(convert(MethodComparison, dataclasses.asdict(found)))
    ordered = {key: value if key == "recipe" else sorted_keys(value) for key, value in data.items()}
    return json.dumps({COMPARISON: FORMAT} | ordered, ensure_ascii=True, allow_nan=False, indent=1) + "\n"


def is_comparison(path: Path) -> bool:
    """Whether a `results.json`, or the one in a folder, is that of a comparison."""
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return f'"{COMPARISON}":'.encode() in stream.read(64)


def load(path: Path) -> MethodComparison:
    """Read the `results.json` of a comparison, or the one in a folder.

    Raises:
        DataError: It is missing, not JSON, of another version, or holds something else.
    """
    path = path / "results.json" if path.is_dir() else path
    data = read_as(path, Any, "results")
    if not isinstance(data, dict) or data.pop(COMPARISON, None) != FORMAT:
        what = f"{path}: not a comparison of format {FORMAT}"
        raise DataError(what, "make it again: `mooring run` keeps what is done", code="data.results_format")
    try:
        found: MethodComparison = convert(MethodComparison, data)
    except ValueError as error:
        raise DataError(f"{path}: {error}", EDITED, code="data.bad_results") from None
    return found


def load_comparison(run: Path) -> MethodComparison:
    """Read the results of the run folder of a comparison.

    Raises:
        DataError: It has none, or its results were edited since.
    """
    report = run / "report" / "results.json"
    found = load(report)
    if (run / LEDGER).is_file():
        check_all_unmodified(run, read_ledger(run))
    return found
