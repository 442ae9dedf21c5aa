"""The results of a run, and their file, `results.json`: written, read, checked, redacted."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mooring import jsonio
from mooring.attacks.names import without_attack
from mooring.config import Recipe
from mooring.errors import DataError, RecipeError
from mooring.export import Record
from mooring.jsonio import EDITED, convert, read_as
from mooring.latent_class import LatentClass
from mooring.ledger import LEDGER, check_all_unmodified, read_ledger
from mooring.merge_point import BASE, TUNED, MergePoint, Role
from mooring.metrics import find_metric
from mooring.plugins import of_run_folder
from mooring.records import Baselines, ByModule, Choice, Forgetting, Gain, Half, RunVerdict, Score, Trial

FORMAT = 5
"""Version of `results.json`: raised when an older reader could misread a newer file."""
COMPARISON = "comparison"
"""The key whose value is the version in the results of a run that compares methods or tuned models."""

COLUMNS: tuple[Role, ...] = ("base", "tuned", "merged")
"""The models of a report, in the order of its columns."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One model's response to one prompt.

    Attributes:
        response: The model's answer, unchanged: untrusted.
        verdict: The verdict of the judge or the metric, in a word: `refused`, `answered`, `match`, …
        good: Whether the verdict is the desired one for this prompt; `None` if it could not be read.
        judges: If there are several, the verdict of each by the judge's id: `harmful` or `harmless` for a harmful
            prompt, `refused` or `answered` for a harmless one.
        thoughts: What the model thought before it answered, unchanged: untrusted.
    """

    response: str
    verdict: str
    good: bool | None
    judges: Mapping[str, str] = dataclasses.field(default_factory=dict)
    thoughts: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt with the models' responses.

    Attributes:
        id: The prompt's id.
        measure: The name of the score that the prompt counts towards: `asr`, `over_refusal`, `task`, …
        split: λ is chosen on `validation` and reported on `test`.
        prompt: The user's text.
        answers: By the model's `MergePoint.key`.
        category: A group to report by.
        variant_of: The id of the prompt that it is one of several variants of, under an attack.
    """

    id: str
    measure: str
    split: Half
    prompt: str
    answers: Mapping[str, Answer]
    category: str | None = None
    variant_of: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agreement(Record):
    """How far two judges agree on the test split, over all three models.

    Attributes:
        measure: What the prompts count towards, as in `Row`.
        judges: The two.
        kappa: Cohen's κ of their verdicts; `None` where it is undefined.
        same: How many verdicts are the same.
        n: How many responses have a verdict of both.
        disagreements: Ids of the prompts on which they disagree, for any model.
    """

    measure: str
    judges: tuple[str, str]
    kappa: float | None
    same: int
    n: int
    disagreements: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes(Record):
    """How far tuning moved the weights: ‖tuned − base‖ / ‖base‖, Frobenius norms.

    Attributes:
        layers: Names of the layers, in order.
        modules: Kinds of module within a layer, `self_attn.q_proj.weight`.
        relative: Layers × modules; `None` if a layer has no such module, or the base is all zero there.
        outside: The same of tensors outside the layers, by name.
    """

    layers: Sequence[str]
    modules: Sequence[str]
    relative: Sequence[Sequence[float | None]]
    outside: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if [len(line) for line in self.relative] != [len(self.modules)] * len(self.layers):
            raise ValueError("`relative` is not layers × modules")
        if any(value is not None and value < 0 for line in (*self.relative, self.outside.values()) for value in line):
            raise ValueError("a change is below 0")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Results(Record):
    """Everything that a report shows. No dates, timings or absolute paths, so that one recipe gives one file.

    Attributes:
        verdict: Whether the merged model can be shipped.
        title: Heading of the page.
        recipe: The recipe as plain values, without the run folder.
        models: By role, a model's `source` and `digest`.
        trials: Of both splits; merges by module are in `by_module`.
        choice: The chosen λ.
        judges: Names of the safety judges; the verdicts of the first one count.
        notes: What a reader must know to interpret the numbers, a sentence each.
        gains: By task metric, the share of the tuned model's gain that the merged one keeps.
        curves: By tuning stage, the log: mappings with `step` and `loss` or `eval_loss` (nats per token).
        rows: The prompts of both splits with the responses; may be empty.
        agreement: Of every two judges.
        latent: The errors of several judges on harmful requests of the test split, and the true rates of base, tuned
            and merged model, by a latent-class model; None if the judges do not determine it.
        changes: How far tuning moved the weights, if it was measured.
        versions: By package.
        prompts: By split and set (`safety`, `task`, …), the digest of the prompts.
        redacted: Whether the texts of harmful prompts and the responses to them were left out.
        by_module: The result of a search for λ by module, if there was one.
        forgetting: How far the models have moved from the base on ordinary requests, if it was measured.
        baselines: The gentler tunings that the merge was compared with, if there were any.
    """

    verdict: RunVerdict
    title: str
    recipe: Mapping[str, Any]
    models: Mapping[str, Mapping[str, str]]
    trials: Sequence[Trial]
    choice: Choice
    judges: Sequence[str]
    notes: Sequence[str] = ()
    gains: Mapping[str, Gain] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    rows: Sequence[Row] = ()
    agreement: Sequence[Agreement] = ()
    latent: LatentClass | None = None
    changes: Changes | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    redacted: bool = False
    prompts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    by_module: ByModule | None = None
    forgetting: Forgetting | None = None
    baselines: Baselines | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of `results.json`."""
        # Converted to their types first, so that 0 and 0.0 are written alike.
        trials = sorted(self.trials, key=lambda t: (t.split, t.method, t.point))
        typed = convert(Results, dataclasses.asdict(dataclasses.replace(self, trials=trials)))
        data = dataclasses.asdict(typed)
        return {"format": FORMAT} | {
            key: value if key == "recipe" else sorted_keys(value) for key, value in data.items()
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """A row per model, split and score."""
        return [row for trial in self.trials for row in trial.to_rows()]

    def point(self, model: Role) -> MergePoint:
        """The model in a column of the report."""
        return {"base": BASE, "tuned": TUNED, "merged": self.choice.point}[model]

    @property
    def single(self) -> MergePoint:
        """The chosen single λ; if λ by module was chosen, the one around which it was."""
        return self.choice.point.single

    @property
    def single_is(self) -> Literal["chosen", "nearest", "single"]:
        """What the single λ is: `chosen`; `nearest` to the bound, if none is within it; or `single`, if λ by module was
        chosen around it."""
        return "single" if self.choice.point.by_module else "chosen" if self.choice.within else "nearest"

    def trial(self, model: Role, split: str = "test") -> Trial | None:
        """The trial of one model, or `None` if it was not measured. `merged` is the chosen model."""
        return self.trial_at(self.point(model), split)

    def trial_at(self, point: MergePoint, split: str) -> Trial | None:
        """The trial of the model at a point, or `None` if it was not measured."""
        found = self.by_module
        more = [*(each.trial for each in found.tried), *([found.test] if found.test else [])] if found else []
        return next((t for t in (*self.trials, *more) if (t.split, t.point) == (split, point)), None)

    def score(self, model: Role, name: str, split: str = "test") -> Score | None:
        """One score of `trial`, or `None` if it was not measured."""
        trial = self.trial(model, split)
        return trial.scores.get(name) if trial else None

    def keeps(self, point: MergePoint) -> bool | None:
        """Whether the model at a single λ is shown to keep the bound on ASR; `None` if that was not tested."""
        return self.choice.keeps.get(point.key)


def is_task(measure: str) -> bool:
    """Whether a score is a task's; that of one task of a group (`lm_eval:bbh/navigate`) is a detail."""
    metric = find_metric(measure)
    return (metric is None or metric.kind != "safety") and "/" not in measure


def is_whole(measure: str) -> bool:
    """Whether a score is not that of a single set, judge or task of a group; it may be of one attack."""
    return measure.startswith("pass@") or not set(without_attack(measure).removeprefix("lm_eval:")) & set(":@/")


def dumps(results: Results) -> str:
    """`results.json`: the same results give the same bytes, in whatever order they were gathered."""
    return jsonio.dumps(results.to_dict(), allow_nan=False, indent=1) + "\n"


def sorted_keys(value: Any) -> Any:
    """Mappings with their keys in order."""
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list | tuple) else value


def load(path: Path) -> Results:
    """Read `results.json`, or the one in a folder.

    Raises:
        DataError: It is missing, not JSON, of another version, compares methods, or holds something else.
    """
    path = path / "results.json" if path.is_dir() else path
    data = read_as(path, Any, "results")
    if isinstance(data, dict) and COMPARISON in data:
        what = f"{path}: compares methods or tuned models, and has no single choice"
        raise DataError(what, "read it by mooring.load_comparison, or see report/index.html", code="data.comparison")
    found = data.pop("format", None) if isinstance(data, dict) else None
    if found != FORMAT:
        what = f"{path}: not results of format {FORMAT}"
        if isinstance(found, int):
            age = "an older" if found < FORMAT else "a newer"
            what = f"{path}: written by {age} Mooring (format {found}, not {FORMAT})"
        hint = "make the report again: `mooring run` on its recipe keeps what is done"
        raise DataError(what, hint, code="data.results_format")
    try:
        results: Results = convert(Results, data)
    except ValueError as error:
        raise DataError(f"{path}: {error}", EDITED, code="data.bad_results") from None
    return results


# --- The results of a run folder, which are refused if they were edited ---


def load_run(run: Path) -> Results:
    """Read the results of a run folder.

    Raises:
        DataError: It is not a run folder, its run has not ended, or its results were edited since or contradict
            themselves.
    """
    report = run / "report" / "results.json"
    ledger = read_ledger(run) if (run / LEDGER).exists() else None
    if not report.exists():
        if ledger is None:
            what = "is not a run folder: it has no report/results.json" if run.exists() else "there is no such folder"
            raise DataError(f"{run}: {what}", "name a folder that `mooring run` wrote", code="data.not_a_run")
        at = f"it stopped at `{ledger.unfinished}`" if ledger.unfinished else "it has no report yet"
        raise DataError(
            f"{run}: is half done: {at}",
            f"`mooring run {run / 'recipe.yaml'}` continues it",
            code="data.unfinished_run",
        )
    results = load(report)
    if ledger:
        check_all_unmodified(run, ledger)
    try:
        with of_run_folder():
            Recipe.parse(dict(results.recipe))
        check(results)
    except RecipeError as error:
        if error.code == "recipe.plugin_not_trusted":
            raise
        raise _edited(f"{report}: its recipe is not one: {error.message}") from None
    except DataError as error:
        raise _edited(f"{report}: {error.message}") from None
    return results


def _edited(problem: str) -> DataError:
    return DataError(problem, EDITED, code="data.edited_results")


def check(results: Results) -> None:
    """Check that results agree with themselves, which an edit by hand usually breaks.

    Raises:
        DataError: A value lies outside its interval, or is not what its counts say, or a model is missing.
    """
    found = results.by_module
    of_modules = [found.single, *(each.trial for each in found.tried), found.test] if found else []
    for trial in [*results.trials, *filter(None, of_modules)]:
        for name, score in trial.scores.items():
            where = f"{name} of {trial.point.label} ({trial.split})"
            if score.value is None:
                continue
            if score.low is not None and score.high is not None and not _within(score.low, score.value, score.high):
                raise _edited(f"{where} lies outside its own interval")
            counts = score.details
            if {"yes", "total", "miss"} <= counts.keys():
                judged = counts["total"] - counts["miss"]
                if judged <= 0 or not math.isclose(score.value, counts["yes"] / judged, abs_tol=1e-6):
                    raise _edited(f"{where} is not what its counts say")
    for model in COLUMNS:
        if results.trial(model) is None:
            raise _edited(f"the {model} model has no trial on the test split")


def _within(low: float, value: float, high: float) -> bool:
    # The percentiles of a bootstrap do not always include the value itself, but are near it.
    slack = 1e-6 + 0.5 * (high - low)
    return low - slack <= value <= high + slack


# --- Redaction: the texts of harmful prompts and of the responses to them ---


HARMFUL = ("asr", "asr_worst", "refusal")
"""Measures of responses to harmful requests, under any attack."""


def is_harmful(measure: str) -> bool:
    """Whether a score is of responses to harmful requests."""
    return without_attack(measure) in HARMFUL


def redact(results: Results) -> Results:
    """The same results without the text of any harmful prompt, or of any answer to one; verdicts and numbers stay."""
    rows, agreement = without_texts(results.rows, results.agreement)
    return dataclasses.replace(results, rows=rows, agreement=agreement, redacted=True)


def without_texts(rows: Sequence[Row], agreement: Sequence[Agreement]) -> tuple[list[Row], list[Agreement]]:
    """Rows and agreement without the text of any harmful prompt, or of any answer to one.

    Their ids, which may be words of the user, become digests; categories stay, since numbers are given by category.
    """
    bare = [_bare(row) if is_harmful(row.measure) else row for row in rows]
    unnamed = [
        dataclasses.replace(each, disagreements=[_unnamed(key) for key in each.disagreements])
        if is_harmful(each.measure)
        else each
        for each in agreement
    ]
    return bare, unnamed


def _bare(row: Row) -> Row:
    answers = {key: dataclasses.replace(answer, response="", thoughts="") for key, answer in row.answers.items()}
    source = None if row.variant_of is None else _unnamed(row.variant_of)
    return dataclasses.replace(row, id=_unnamed(row.id), prompt="", answers=answers, variant_of=source)


def _unnamed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
