"""Labels of a run's answers: the sample to label, labels from a file, and what they say of the judge and its rates."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.correction import (
    Labelled,
    labels_needed,
    rogan_gladen,
    sensitivity,
    specificity,
    weighted_kappa,
)
from mooring.data.rows import Row as FileRow
from mooring.data.rows import read_rows
from mooring.errors import DataError, UserError
from mooring.labels import (
    Label,
    Word,
    add_labels,
    annotator_agreement,
    consensus,
    draw,
    item_id,
    known_only,
    read_labels,
)
from mooring.merge_point import BASE, MergePoint
from mooring.pipeline.paths import RunPaths
from mooring.printable import shorten
from mooring.records import Half
from mooring.reporting.judge_error import Corrected, JudgeError
from mooring.reporting.results import Results, Row, load_run
from mooring.selection.corrected import Correction
from mooring.stats import compare_rates, wilson

LONGEST_NAME = 60
"""Characters of an annotator's name."""
HALVES: tuple[Half, ...] = ("validation", "test")
NEEDED_LABELS = 1.5
"""A warning says how many labels are needed where the corrected interval is wider than this many times that with a
label for every answer."""
WORDS: Mapping[str, Word] = {
    **dict.fromkeys(("harmful", "unsafe", "true", "yes", "1", "1.0"), "harmful"),
    **dict.fromkeys(("harmless", "safe", "false", "no", "0", "0.0"), "harmless"),
    **dict.fromkeys(("unsure", "unknown", "skip", "none", "null", ""), "unsure"),
}
"""What may stand for a label in a file, in lower case."""


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """An answer to label: its id, the half and the id of its prompt, and both texts."""

    id: str
    split: Half
    prompt_id: str
    prompt: str
    response: str


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """The answers to harmful requests of one half that the deciding judge has a verdict on.

    Attributes:
        answers: By model (`MergePoint.key`) and prompt, the answer's id and whether it was judged harmful.
        items: The answers by id.
    """

    answers: Mapping[str, Mapping[str, tuple[str, bool]]]
    items: Mapping[str, Item]


def judged(rows: Sequence[Row], split: Half, points: Sequence[MergePoint]) -> Judged:
    """The answers of models to harmful requests; those that could not be judged are left out."""
    answers: dict[str, dict[str, tuple[str, bool]]] = {point.key: {} for point in points}
    items: dict[str, Item] = {}
    for row in rows:
        if row.measure != "asr" or row.split != split:
            continue
        for key, given in answers.items():
            answer = row.answers.get(key)
            if answer is not None and answer.good is not None:
                item = Item(item_id(split, row.id, answer.response), split, row.id, row.prompt, answer.response)
                items[item.id] = item
                given[row.id] = item.id, not answer.good
    return Judged({key: given for key, given in answers.items() if given}, items)


@dataclasses.dataclass(frozen=True, slots=True)
class Labelling:
    """A run's answers to harmful requests, and its labels."""

    results: Results
    paths: RunPaths
    halves: Mapping[Half, Judged]

    @classmethod
    def open(cls, run: Path) -> "Labelling":
        """Open a finished run.

        Raises:
            DataError: It is not a finished run, or its results hold no answers (`data.no_answers`).
        """
        return cls.of(load_run(run), run)

    @classmethod
    def of(cls, results: Results, run: Path) -> "Labelling":
        """The answers in a run's results; errors as in `open`."""
        if results.redacted or not any(row.measure == "asr" for row in results.rows):
            raise DataError(
                f"{run}: its results hold no answers to harmful requests",
                "label the run itself",
                code="data.no_answers",
            )
        halves: dict[Half, Judged] = {}
        for half in HALVES:
            points = [t.point for t in results.trials if t.split == half]
            if results.choice.point.by_module:
                points.append(results.choice.point)
            ordered = sorted(set(points), key=lambda point: (point.by_module, point))
            halves[half] = judged(results.rows, half, ordered)
        return cls(results, RunPaths(run), halves)

    @property
    def items(self) -> dict[str, Item]:
        """All answers by id."""
        return {key: item for half in self.halves.values() for key, item in half.items.items()}

    def sample(self, n: int, seed: int = 0) -> list[Item]:
        """Answers to label, spread evenly over splits, models and verdicts, in random order."""
        items = self.items
        answers = {
            f"{split}\0{key}": given for split, half in self.halves.items() for key, given in half.answers.items()
        }
        return [items[key] for key in draw(answers, n, seed)]

    def labels(self) -> list[Label]:
        """The labels of the run folder."""
        return read_labels(self.paths.labels)

    def add(self, labels: Sequence[Label]) -> list[Label]:
        """Add labels to those of the run folder, and return all."""
        return add_labels(self.paths.labels, labels)

    def import_file(self, path: Path, annotator: str) -> list[Label]:
        """Add the labels of a CSV, TSV, JSON, JSONL or Parquet file.

        A row has `label` (or `harmful`), and names the answer by `item`, as the page saves it; or by `prompt_id` (or
        `id`) and `model` (`base`, `tuned`, or λ), with `split` if the id is in both halves. `annotator` is who labelled
        rows that do not say so.

        Raises:
            DataError: A row has no label, or names no answer of the run; the message names it as file:line.
        """
        rows = read_rows(path)
        found = [self._label(row, annotator) for row in rows]
        if not found:
            raise DataError(f"{path}: holds no labels", "give at least one", code="data.empty")
        self.add(found)
        return found

    def _label(self, row: FileRow, annotator: str) -> Label:
        values = {str(key).casefold(): value for key, value in row.values.items()}
        said = values.get("label", values.get("harmful"))
        word = WORDS.get("" if said is None else str(said).strip().casefold())
        if word is None or ("label" not in values and "harmful" not in values):
            shown = "has no label" if word is not None else f"{shorten(str(said))!r} is not a label"
            hint = "write harmful, harmless or unsure as `label`"
            raise DataError(f"{row.origin}: {shown}", hint, code="data.bad_label")
        item = self._named(row.origin, values)
        who = values.get("annotator")
        return Label(
            item=item.id,
            label=word,
            annotator=("" if who is None else str(who).strip()[:LONGEST_NAME]) or annotator,
            split=item.split,
            prompt_id=item.prompt_id,
        )

    def _named(self, origin: str, values: Mapping[str, Any]) -> Item:
        """The answer that a row of a file names."""
        items = self.items
        if values.get("item"):
            key = str(values["item"])
            if key in items:
                return items[key]
            raise DataError(
                f"{origin}: {shorten(key)!r} is no answer of this run",
                "was it labelled on another run?",
                code="data.unknown_answer",
            )
        prompt = values.get("prompt_id", values.get("id"))
        model = values.get("model", values.get("lam"))
        if prompt is None or model is None:
            hint = "give `item`, or `prompt_id` and `model`"
            raise DataError(f"{origin}: names no answer", hint, code="data.unknown_answer")
        key = _model_key(str(model))
        wanted = values.get("split")
        for split, half in self.halves.items():
            given = half.answers.get(key, {})
            if wanted in (None, "", split) and str(prompt) in given:
                return items[given[str(prompt)][0]]
        what = f"prompt {shorten(str(prompt))!r} of model {shorten(str(model))!r}"
        hint = f"models: {', '.join(dict.fromkeys(k for h in self.halves.values() for k in h.answers))}"
        raise DataError(f"{origin}: this run has no judged answer to {what}", hint, code="data.unknown_answer")

    # --- what the labels say ---

    def labelled(self, split: Half, truth: Mapping[str, bool]) -> Labelled:
        """The answers of one half with their labels."""
        return Labelled(self.halves[split].answers, truth)

    def corrections(self, split: Half, truth: Mapping[str, bool]) -> dict[MergePoint, Correction]:
        """The corrected rate and difference to the base of every model of a half that has labels."""
        return corrections(self.halves[split], truth, [t.point for t in self.results.trials if t.split == split])

    def estimate(self) -> JudgeError:
        """The judge's error, and the corrected rates.

        Raises:
            DataError: There are no labels (`data.no_labels`).
        """
        labels, stale = known_only(self.labels(), self.items)
        truth = consensus(labels)
        if not truth:
            raise no_labels(self.paths.folder)
        whole = Labelled(
            {f"{s}\0{k}": given for s, half in self.halves.items() for k, given in half.answers.items()}, truth
        )
        groups, per_prompt = whole.pooled()
        se, sp = (find(groups, per_prompt=max(1.0, per_prompt)) for find in (sensitivity, specificity))
        models = []
        for split, half in self.halves.items():
            found = self.labelled(split, truth)
            for key, given in half.answers.items():
                verdicts = {prompt: hit for prompt, (_, hit) in given.items()}
                hits, n = sum(verdicts.values()), len(verdicts)
                rate = found.rate(key)
                base = half.answers.get(BASE.key)
                difference = found.difference(BASE.key, key) if base and key != BASE.key else None
                plain = None
                if base and key != BASE.key:
                    shared = [prompt for prompt in verdicts if prompt in base]
                    plain = compare_rates({p: base[p][1] for p in shared}, {p: verdicts[p] for p in shared})
                low, high = rate.limits()
                by_error = rogan_gladen(hits / n, n, se, sp) if se and sp else None
                models.append(
                    Corrected(
                        split=split,
                        point=_point(self.results, key),
                        n=n,
                        labelled=rate.labelled,
                        judged=(hits / n, *wilson(hits, n)),
                        corrected=(rate.value or 0.0, low, high),
                        rogan_gladen=by_error,
                        judged_difference=_triple(plain.value, plain.low, plain.high) if plain else None,
                        corrected_difference=_triple(difference.value, *difference.limits()) if difference else None,
                        needed=labels_needed(rate, width=NEEDED_LABELS),
                    )
                )
        return JudgeError(
            judge=self.results.judges[0] if self.results.judges else "the judge",
            labels=len(truth),
            annotators=_counts(labels),
            unsettled=len({label.item for label in labels} - truth.keys()),
            unknown=stale,
            sensitivity=se,
            specificity=sp,
            kappa=weighted_kappa(groups),
            agreement=annotator_agreement(labels),
            models=models,
        )


def corrections(half: Judged, truth: Mapping[str, bool], points: Sequence[MergePoint]) -> dict[MergePoint, Correction]:
    """The corrected rate and difference to the base of every model."""
    found = Labelled(half.answers, truth)
    return {
        point: Correction(
            rate=found.rate(point.key),
            rise=None if point.is_base or BASE.key not in half.answers else found.difference(BASE.key, point.key),
        )
        for point in points
        if point.key in half.answers
    }


def corrections_from(folder: Path, rows: Sequence[Row], points: Sequence[MergePoint]) -> dict[MergePoint, Correction]:
    """The corrections of the validation half, from the answers of a run and the labels in its folder.

    Raises:
        DataError: There are no labels of these answers (`data.no_labels`).
    """
    half = judged(rows, "validation", sorted(points))
    labels, _ = known_only(read_labels(RunPaths(folder).labels), half.items)
    truth = consensus(labels)
    if not truth:
        raise no_labels(folder)
    return corrections(half, truth, points)


def estimate_if_labelled(results: Results, folder: Path) -> JudgeError | None:
    """What the labels in a run folder say of its judge; None if no answer of the run has one."""
    try:
        return Labelling.of(results, folder).estimate() if RunPaths(folder).labels.is_file() else None
    except DataError as error:
        if error.code in ("data.no_labels", "data.no_answers"):
            return None
        raise


def no_labels(folder: Path) -> DataError:
    """The error of a run without labels."""
    return DataError(
        f"{folder}: none of its answers has a label",
        f"label some: `mooring label {folder}`, on a run that has ended",
        code="data.no_labels",
    )


def _counts(labels: Sequence[Label]) -> dict[str, int]:
    """Labels by annotator, `unsure` left out."""
    found: dict[str, int] = {}
    for label in labels:
        found[label.annotator] = found.get(label.annotator, 0) + (label.label != "unsure")
    return dict(sorted(found.items()))


def _triple(value: float | None, low: float | None, high: float | None) -> tuple[float, float, float] | None:
    return None if value is None or low is None or high is None else (value, low, high)


def _point(results: Results, key: str) -> MergePoint:
    return next(p for p in (*(t.point for t in results.trials), results.choice.point) if p.key == key)


def _model_key(name: str) -> str:
    """A model's key: `base` and `tuned` are λ = 0 and 1."""
    text = name.strip().casefold().removeprefix("λ").removeprefix("lam").strip(" =-")
    if text in ("base", "tuned"):
        return {"base": "0", "tuned": "1"}[text]
    try:
        return MergePoint(float(text)).key
    except (ValueError, UserError):
        return name
