"""Numbers and their names, for the reason of a choice."""

import math

from mooring.attacks.names import NONE, attack_of, without_attack
from mooring.errors import DataError
from mooring.metrics import METRICS
from mooring.records import Trial


def value_of(trial: Trial, name: str) -> float:
    """A score of a trial.

    Raises:
        DataError: It is missing or undefined.
    """
    point = trial.point
    who = f"the merged model at {point.label}" if point.role == "merged" else f"the {point.role} model"
    score = trial.scores.get(name)
    if score is None:
        known = ", ".join(trial.scores) or "nothing"
        raise DataError(
            f"select: {who} has no `{name}` on validation", f"measured are: {known}", code="data.missing_score"
        )
    if score.value is None or not math.isfinite(score.value):
        raise DataError(
            f"select: `{name}` of {who} is undefined on validation (n = {score.n})",
            "use more prompts, or a judge whose answers can be read",
            code="data.undefined_score",
        )
    return score.value


def loss(trial: Trial, metric: str) -> float:
    """The task score turned so that smaller is better."""
    value = value_of(trial, metric)
    return value if trial.scores[metric].better == "lower" else -value


def best(trial: Trial, metric: str) -> str:
    """Which end of a task score is best."""
    return "lowest" if trial.scores[metric].better == "lower" else "highest"


def label(metric: str) -> str:
    """A score's name for people."""
    name, attack = without_attack(metric), attack_of(metric)
    words = METRICS[name].short if name in METRICS else name.replace("_", " ")
    return words if attack == NONE else f"{words} under {attack}"


def show(trial: Trial, metric: str) -> str:
    """A task score for people: a rate in percent, a loss in nats."""
    value = value_of(trial, metric)
    return f"{value:.3f} nats per token" if metric == "response_loss" else percent(value)


def percent(rate: float) -> str:
    """A rate for people."""
    return f"{100 * rate:.1f} %"


def points(margin: float) -> str:
    """A difference of rates for people."""
    text = f"{100 * margin:.3g}"
    return f"{text} point" if text == "1" else f"{text} points"
