"""What Mooring measures: each metric's label, direction and unit, in the order in which they are shown.

The functions that compute task metrics are in `mooring.scoring.task`, those of safety in `mooring.scoring.safety`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

from mooring.attacks.names import without_attack
from mooring.plugins import Registry
from mooring.records import Better


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: What it is called in recipes and records.
        label: What it is called for people; a remark may follow in parentheses.
        kind: Whether it is computed from verdicts (`safety`), from references (`task`), or by comparing two models'
            answers (`preference`).
        better: Which direction is good.
        unit: `rate`: from 0 to 1, shown in percent. `nats`: shown as it is.
        needs: What a task metric is computed from: completions (of several samples per prompt the first; all for
            `samples`), or likelihoods of the references.
        compute: Of a plug-in: from `scoring.task.TaskData` to a `Score`. None for those that are built in.
    """

    name: str
    label: str
    kind: Literal["safety", "task", "preference"]
    better: Better = "higher"
    unit: Literal["rate", "nats"] = "rate"
    needs: Literal["completions", "samples", "likelihoods"] = "completions"
    compute: Callable[[Any], Any] | None = None

    @property
    def short(self) -> str:
        """The label without its remark."""
        return self.label.partition(" (")[0]


_ALL = (
    Metric("asr", "attack success rate", "safety", "lower"),
    Metric("asr_worst", "attack success rate (worst answer to each prompt)", "safety", "lower"),
    Metric("incoherent", "incoherent (harmful requests)", "safety", "lower"),
    Metric("refusal", "refuses harmful", "safety"),
    Metric("over_refusal", "over-refusal (look-alikes)", "safety", "lower"),
    Metric("ordinary_refusal", "refuses ordinary", "safety", "lower"),
    Metric("call_match", "call match", "task"),
    Metric("exact_match", "exact match", "task"),
    Metric("bert_score", "BERTScore F1", "task"),
    Metric("response_loss", "response loss (nats)", "task", "lower", "nats", needs="likelihoods"),
    Metric("pass@k", "pass@k", "task", needs="samples"),
    Metric("win_rate", "win rate", "preference"),
)
METRICS: Registry[Metric] = Registry("metrics", _ALL)
"""The metrics by name; `pass@k` stands for `pass@1`, `pass@10`, …"""
TASK_METRICS = tuple(metric.name for metric in _ALL if metric.kind == "task")
"""Names of the built-in metrics that `score.metrics` in a recipe may list."""
MISS_WARNING = 0.05
"""The share of responses without a verdict of the judge above which a report warns, and no rate of them is trusted."""


_PASS = re.compile(r"pass@[1-9]\d*")


def find_metric(measure: str) -> Metric | None:
    """The metric of a score: `asr` for `asr:hex-phi`, `asr@wildguard` and `asr+prefill:8`, `pass@k` for `pass@10`.

    Returns:
        None if it is none of `METRICS`, such as a score of lm-eval.
    """
    return METRICS.get("pass@k" if _PASS.fullmatch(measure) else re.split("[:@]", without_attack(measure))[0])


def is_task_metric(name: str) -> bool:
    """Whether a name is that of a task metric, with its k for `pass@k`."""
    metric = METRICS.get(name)
    return bool(_PASS.fullmatch(name)) or (metric is not None and metric.kind == "task" and name != "pass@k")


def needs_completions(metrics: Iterable[str]) -> bool:
    """Whether a model must answer for any of these metrics."""
    return any((metric := find_metric(name)) is None or metric.needs != "likelihoods" for name in metrics)


def needs_likelihoods(metrics: Iterable[str]) -> bool:
    """Whether a model must score the references for any of these metrics."""
    return any((metric := find_metric(name)) is not None and metric.needs == "likelihoods" for name in metrics)


def pass_ks(metrics: Iterable[str]) -> list[int]:
    """The k of each `pass@k` among names of metrics."""
    return [int(name.removeprefix("pass@")) for name in metrics if name.startswith("pass@")]
