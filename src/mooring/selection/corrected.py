"""Attack success rates corrected for the judge's error, in place of the judge's, for the choice of λ."""

import dataclasses
from collections.abc import Mapping, Sequence

from mooring.correction import CorrectedDifference, CorrectedRate
from mooring.errors import DataError
from mooring.merge_point import MergePoint
from mooring.records import Trial


@dataclasses.dataclass(frozen=True, slots=True)
class Correction:
    """One model's corrected rate, and its corrected difference to the base; None for the base itself."""

    rate: CorrectedRate
    rise: CorrectedDifference | None


Corrections = Mapping[MergePoint, Correction]
"""The corrections by model."""


def corrected_trials(trials: Sequence[Trial], corrections: Corrections) -> list[Trial]:
    """The same trials with the corrected attack success rate as `asr`, without the judge's counts.

    Raises:
        DataError: A model has no labels (`data.too_few_labels`).
    """
    return [_corrected(trial, corrections) for trial in trials]


def _corrected(trial: Trial, corrections: Corrections) -> Trial:
    score, found = trial.scores.get("asr"), corrections.get(trial.point)
    if score is None:
        return trial
    if found is None or found.rate.value is None or not found.rate.labelled:
        raise DataError(
            f"select: no answer of the {trial.point.long_label} model on validation has a label",
            "label more answers, or leave out `select.corrected`",
            code="data.too_few_labels",
        )
    low, high = found.rate.limits()
    method = f"{score.method}, corrected by {found.rate.labelled} labels"
    changed = dataclasses.replace(
        score, value=found.rate.value, low=low, high=high, n=found.rate.n, method=method, details={}
    )
    return dataclasses.replace(trial, scores={**trial.scores, "asr": changed})
