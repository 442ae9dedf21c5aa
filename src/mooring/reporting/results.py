"""What a report is made of, and its file, `results.json`."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mooring.errors import DataError
from mooring.jsonio import EDITED, convert, read_as
from mooring.metrics import find_metric
from mooring.records import ByModule, Choice, Half, Score, Trial, lam_words

FORMAT = 3
"""Version of `results.json`: raised when an older reader could misread a newer file."""

COLUMNS: tuple[Literal["base", "tuned", "merged"], ...] = ("base", "tuned", "merged")
"""The models of a report, in the order of its columns."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One model's response to one prompt.

    Attributes:
        response: The model's text as it came: untrusted.
        verdict: What the judge or the metric said of it, in a word: `refused`, `answered`, `match`, …
        good: Whether that is what one wants of this prompt; `None` where the verdict could not be read.
        judges: Where there are several, the word of each on what all of them judge, by the judge's id: `harmful` or
            `harmless` of a response to a harmful prompt, `refused` or `answered` of one to a harmless prompt.
    """

    response: str
    verdict: str
    good: bool | None
    judges: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt with what the models answered.

    Attributes:
        id: The prompt's id.
        measure: The name of the score that the prompt counts towards: `asr`, `over_refusal`, `task`, …
        split: The half that it is of. λ is chosen on `validation`, and reported on `test`.
        prompt: The user's text.
        answers: By λ (see `lam_key`), of every model that was asked; of λ by module that was taken under `BY_MODULE`.
        category: A group to report by.
    """

    id: str
    measure: str
    split: Half
    prompt: str
    answers: Mapping[str, Answer]
    category: str | None = None


BY_MODULE = "by module"
"""Stands for λ among the answers to a prompt where λ by module was taken."""


def lam_key(lam: float) -> str:
    """How λ is written as a key: `0`, `0.5`, `1`."""
    return f"{lam:g}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two judges agree on the test split, over all three models.

    Attributes:
        measure: What the prompts count towards, as in `Row`.
        judges: The two.
        kappa: Cohen's κ of their verdicts; `None` where it is undefined.
        same: How many verdicts are the same.
        n: Of how many that both could be read on.
        parted: Ids of the prompts on which they part, for some model.
    """

    measure: str
    judges: tuple[str, str]
    kappa: float | None
    same: int
    n: int
    parted: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How far tuning moved the weights: ‖tuned − base‖ / ‖base‖, Frobenius norms.

    Attributes:
        layers: Names of the layers, in order.
        modules: Kinds of module within a layer, `self_attn.q_proj.weight`.
        relative: Layers × modules; `None` where a layer has no such module, or the base is all zero there.
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
class Results:
    """All that a report shows. It holds no dates, timings or absolute paths, so that one recipe gives one file.

    Attributes:
        title: Heading of the page.
        recipe: The recipe as plain values, without the run folder.
        models: By role, what is known of a model: `source`, `digest`.
        trials: Both splits; merged ones of a single λ alone.
        choice: The chosen λ.
        judges: Names of the safety judges, the one whose verdicts count first.
        notes: What a reader must know to judge the numbers, a sentence each.
        gains: By task metric, the share of the tuned model's gain that the merged one keeps (see `kept_gains`).
        curves: By tuning stage, the log: mappings with `step` and `loss` or `eval_loss` (nats a token).
        rows: The prompts of both splits with the answers; may be empty.
        agreement: Of every two judges.
        changes: How far tuning moved the weights, where it was measured.
        versions: By package.
        prompts: By split and set (`safety`, `task`, …), the digest of what was asked.
        redacted: Whether the texts of harmful prompts, and of the answers to them, were left out.
        by_module: What a search for λ by module found, where it was made.
    """

    title: str
    recipe: Mapping[str, Any]
    models: Mapping[str, Mapping[str, str]]
    trials: Sequence[Trial]
    choice: Choice
    judges: Sequence[str]
    notes: Sequence[str] = ()
    gains: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    rows: Sequence[Row] = ()
    agreement: Sequence[Agreement] = ()
    changes: Changes | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    redacted: bool = False
    prompts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    by_module: ByModule | None = None

    def lam(self, model: str) -> float:
        """The λ of a column of the report: 0 of the base, 1 of the tuned model, else the chosen single one."""
        return {"base": 0.0, "tuned": 1.0}.get(model, self.choice.lam)

    @property
    def merged_at(self) -> str:
        """The merged model's λ, for people."""
        return lam_words(self.choice.lam, self.choice.modules)

    @property
    def stands(self) -> str:
        """What the λ of `choice` is, in a word: `chosen`; `nearest`, where none is within the bound; or `single`, where
        λ by module was chosen around it."""
        return "single" if self.choice.modules else "chosen" if self.choice.within else "nearest"

    def answers_of(self, model: str) -> str:
        """The key in `Row.answers` of what a column's model answered."""
        return BY_MODULE if model == "merged" and self.choice.modules else lam_key(self.lam(model))

    def trial(self, model: str, split: str = "test") -> Trial | None:
        """The trial of one model; of the merged ones, that at the chosen λ. `None` where it was not measured."""
        if model == "merged" and self.choice.modules:
            return self.at_modules(split)
        found = (t for t in self.trials if (t.model, t.split, t.lam) == (model, split, self.lam(model)))
        return next(found, None)

    def at_modules(self, split: str) -> Trial | None:
        """The trial of the merge with λ by module that was taken, where one was."""
        if self.by_module is None or self.by_module.chosen is None:
            return None
        return self.by_module.test if split == "test" else self.by_module.tried[self.by_module.chosen].trial

    def score(self, model: str, name: str, split: str = "test") -> Score | None:
        """One number of `trial`, or `None` where it was not measured."""
        trial = self.trial(model, split)
        return trial.scores.get(name) if trial else None

    def keeps(self, lam: float) -> bool | None:
        """Whether the model at λ is shown to keep the bound on ASR, by validation.

        With a confidence: whether its upper limit and those of all smaller λ lie within, since the smallest that fails
        ends the test; else whether its estimate does. `None` where that was not asked: of the base, by a policy without
        a bound, or of a tuned model that was not tested and lies within by its estimate.
        """
        scored = next((t for t in self.trials if (t.split, t.lam) == ("validation", lam)), None)
        rate = scored.scores["asr"].value if scored and "asr" in scored.scores else None
        if self.choice.policy != "bound" or lam == 0 or rate is None:
            return None
        most = self.choice.bound + _TOLERANCE
        if self.choice.confidence is None:
            return rate <= most
        if rate > most or any(upper > most for key, upper in self.choice.upper.items() if float(key) <= lam):
            return False
        return True if lam_key(lam) in self.choice.upper else None


_TOLERANCE = 1e-9
"""Rounding: a rate at the bound keeps it."""


def is_task(measure: str) -> bool:
    """Whether a score is the task's; what one task of a group scored (`lm_eval:bbh/navigate`) is a detail of it."""
    metric = find_metric(measure)
    return (metric is None or metric.kind != "safety") and "/" not in measure


def is_whole(measure: str) -> bool:
    """Whether a score is of no single set, judge or task of a group."""
    if measure.startswith("pass@"):
        return True
    return not set(measure.removeprefix("lm_eval:")) & set(":@/")


def kept_gains(trials: Sequence[Trial], lam: float) -> dict[str, float | None]:
    """The share of the tuned model's gain that the merged model keeps, on the test split, by task metric.

    (merged − base) / (tuned − base): 1 keeps all of it, above 1 betters the tuned model, below 0 falls behind the
    base. `None` where a number is missing, or where tuning gained nothing, so that there is nothing to keep.

    Args:
        trials: The trials; those of the test split count.
        lam: The chosen λ.
    """
    found = {t.model: t.scores for t in trials if t.split == "test" and (t.model != "merged" or t.lam == lam)}
    gains: dict[str, float | None] = {}
    for name in dict.fromkeys(name for scores in found.values() for name in scores if is_task(name)):
        gains[name] = _kept(*(found.get(model, {}).get(name) for model in COLUMNS))
    return gains


def _kept(base: Score | None, tuned: Score | None, merged: Score | None) -> float | None:
    if base is None or tuned is None or merged is None:
        return None
    if base.value is None or tuned.value is None or merged.value is None:
        return None
    gain = tuned.value - base.value
    gained = gain > 0 if base.better == "higher" else gain < 0
    return (merged.value - base.value) / gain if gained else None


def dumps(results: Results) -> str:
    """`results.json`: the same results give the same bytes, in whatever order they were gathered."""
    from pydantic import TypeAdapter

    # Validated first, so that 0 and 0.0 are written alike.
    data = dataclasses.asdict(TypeAdapter(Results).validate_python(dataclasses.asdict(results)))
    data["trials"].sort(key=lambda t: (t["split"], t["method"], t["lam"], t["model"]))
    ordered = {key: value if key == "recipe" else _sorted(value) for key, value in data.items()}
    text = json.dumps({"format": FORMAT, **ordered}, ensure_ascii=False, allow_nan=False, indent=1)
    # A lone surrogate has no UTF-8; it can only stand inside a string, where JSON can escape it.
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def _sorted(value: Any) -> Any:
    """Mappings with their keys in order."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value


def load(path: Path) -> Results:
    """Read `results.json`, or the one in a folder.

    Raises:
        DataError: It is missing, not JSON, of another version, or holds something else.
    """
    path = path / "results.json" if path.is_dir() else path
    data = read_as(path, Any, "results")
    found = data.pop("format", None) if isinstance(data, dict) else None
    if isinstance(found, int) and found != FORMAT:
        age = "an older" if found < FORMAT else "a newer"
        raise DataError(
            f"{path}: written by {age} Mooring (format {found}, not {FORMAT})",
            "make the report again: `mooring run` on its recipe keeps what is done",
        )
    if found is None or found != FORMAT:
        raise DataError(f"{path}: not results of format {FORMAT}", "make the report again from its run folder")
    try:
        results: Results = convert(Results, data)
    except ValueError as error:
        raise DataError(f"{path}: {error}", EDITED) from None
    return results


# --- Leave the texts of harmful prompts, and of the answers to them, out of a report ---


HARMFUL = ("asr", "refusal")
"""Measures whose prompts are harmful requests."""


def redact(results: Results) -> Results:
    """The same results without the text of any harmful prompt, or of any answer to one; verdicts and numbers stay.

    Their ids, which may be words of a user's own, become digests; categories stay, since numbers are told by them.
    """
    rows = [_bare(row) if row.measure in HARMFUL else row for row in results.rows]
    agreement = [
        dataclasses.replace(each, parted=[_unnamed(key) for key in each.parted]) if each.measure in HARMFUL else each
        for each in results.agreement
    ]
    return dataclasses.replace(results, rows=rows, agreement=agreement, redacted=True)


def _bare(row: Row) -> Row:
    answers = {lam: dataclasses.replace(answer, response="") for lam, answer in row.answers.items()}
    return dataclasses.replace(row, id=_unnamed(row.id), prompt="", answers=answers)


def _unnamed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
