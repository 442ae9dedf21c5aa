"""Scores of single samples in files that other tools wrote, for paired comparisons.

Read are logs of Inspect (`.eval` and `.json`), samples of lm-evaluation-harness, HarmBench's results, artifacts of
JailbreakBench, verdicts of Mooring, and rows of any file of data with an id and a score.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mooring.data.completions import IDS, harmbench_rows, inspect_samples, lm_eval_filter, request_text
from mooring.data.rows import Row, read_rows
from mooring.errors import DataError

SCORES = (
    *("score", "label", "correct", "passed", "harmful", "refused", "jailbroken", "is_jailbroken", "refusal"),
    *("convincingness", "specificity"),
)
"""Fields of a row that are scores where nothing says which are."""
_SAME = ("forbidden_prompt", "goal", "question")
"""Fields with a question that is the same for every model; an attack's text or a prompt in a chat template is not."""
LETTERS: Mapping[str, float] = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""Inspect's values of a graded answer: correct, incorrect, partly correct, no answer."""
WORDS: Mapping[str, float] = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""What Inspect reads as numbers besides."""
WANTED = 'write a line such as {"id": "…", "score": 0.5} for each sample, or name the field by --metric'


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The scores of one answer.

    Attributes:
        id: The sample's id.
        asked: Its question, or a digest of it; None if the file does not have it.
        scores: By metric; `None` where the answer was not scored.
    """

    id: str
    asked: str | None
    scores: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class EvalScores:
    """The scores in a file.

    Attributes:
        path: The file.
        samples: Each answer; those of several epochs have the same id.
    """

    path: Path
    samples: tuple[Sample, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of any sample, in order of appearance."""
        return tuple(dict.fromkeys(name for sample in self.samples for name in sample.scores))


def read_scores(path: Path, metrics: Iterable[str] = ()) -> EvalScores:
    """Read the scores of samples from a file of another tool.

    Args:
        path: The file.
        metrics: Fields of rows to read as scores, besides those that are known to be.

    Raises:
        DataError: The file cannot be read, or has no sample with a score (`data.no_scores`).
    """
    samples = tuple(_samples(path, frozenset(metrics)))
    if not any(sample.scores for sample in samples):
        what = f"{path}: has no scores of samples"
        raise DataError(what, f"score it first (mooring score), or {WANTED}", code="data.no_scores")
    return EvalScores(path, samples)


def _samples(path: Path, metrics: frozenset[str]) -> Iterator[Sample]:
    if (logged := inspect_samples(path)) is not None:
        yield from map(_inspect, logged)
        return
    documents: dict[str, Sample] = {}
    for row in harmbench_rows(path) or read_rows(path):
        values = {str(key).casefold(): value for key, value in row.values.items()}
        if (name := lm_eval_filter(values)) is None:
            yield _row(row, values, metrics)
        else:
            sample = _lm_eval(values, name)
            earlier = documents.get(sample.id, sample)
            if earlier.asked != sample.asked or (
                earlier is not sample and earlier.scores.keys() & sample.scores.keys()
            ):
                what = f"{row.origin}: the document {sample.id} is in the file twice"
                raise DataError(what, "compare the samples of one task and run", code="data.no_scores")
            documents[sample.id] = dataclasses.replace(sample, scores={**earlier.scores, **sample.scores})
    yield from documents.values()


def _inspect(row: Row) -> Sample:
    """A sample of Inspect: `scores` by scorer, each with a value that may have parts."""
    values = row.values
    scores: dict[str, float | None] = {}
    scored = values.get("scores")
    for scorer, score in scored.items() if isinstance(scored, dict) else ():
        value = score.get("value") if isinstance(score, dict) else score
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if parts is None:
            scores[scorer] = number(value)
        else:
            scores |= {f"{scorer}/{name}": number(part) for name, part in parts}
    return Sample(str(values.get("id")), request_text(values.get("input")), scores)


def _lm_eval(values: Mapping[str, Any], name: str) -> Sample:
    """A row of lm-evaluation-harness: a document's scores by the metrics that it names, under one filter of answers."""
    names = [metric for metric in _listed(values.get("metrics")) if isinstance(metric, str)]
    found = {f"{metric},{name}": values.get(metric.casefold()) for metric in names}
    digest = values.get("doc_hash")
    scores = {metric: number(value) for metric, value in found.items() if not isinstance(value, list | dict)}
    return Sample(str(values["doc_id"]), digest if isinstance(digest, str) else None, scores)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _row(row: Row, values: Mapping[str, Any], metrics: frozenset[str]) -> Sample:
    named = next((values[name] for name in IDS if isinstance(values.get(name), str | int)), None)
    asked = next((text for name in _SAME if (text := request_text(values.get(name)))), None)
    id_ = (asked or request_text(values.get("prompt"))) if named is None else str(named)
    if id_ is None:
        raise DataError(f"{row.origin}: has no id of its sample", WANTED, code="data.no_scores")
    shown = {name: name for name in SCORES} | {metric.casefold(): metric for metric in metrics}
    return Sample(id_, asked, {shown[name]: number(value) for name, value in values.items() if name in shown})


LARGEST = 1e100
"""The largest score; sums of squares of larger ones are not finite."""


def number(value: Any) -> float | None:
    """A score as a number, read as Inspect does; None if it is none, or beyond `LARGEST`."""
    if isinstance(value, str):
        if value in LETTERS:
            return LETTERS[value]
        if value.strip().casefold() in WORDS:
            return WORDS[value.strip().casefold()]
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, bool | int | float) and abs(value) <= LARGEST else None
