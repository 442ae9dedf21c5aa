"""Task metrics: each is a function from a model's responses to a Score, registered under its name.

A metric's label, direction, unit and needs are in `mooring.metrics`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from mooring.config import Metric
from mooring.errors import DataError
from mooring.events import OnEvent
from mooring.metrics import METRICS, pass_ks
from mooring.records import Completion, Likelihood, Prompt, Score
from mooring.scoring.function_calls import call_match, parse_call
from mooring.scoring.scores import make_score, pair_references, share_score
from mooring.stats import bootstrap_ratio
from mooring.thinking import split_thoughts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskData:
    """The data of task metrics, and their settings.

    Attributes:
        prompts: With references.
        completions: One or more samples per prompt.
        likelihoods: One per prompt.
        seed: Seed of bootstraps.
        ks: The k of each `pass@k` to compute.
        bertscore_model: The encoder of BERTScore.
        bertscore_layer: Its layer; None for the recommended one.
        unsafe_exec: Run programs without the sandbox.
        on_event: Called with the progress of running programs.
    """

    prompts: Sequence[Prompt] = ()
    completions: Sequence[Completion] = ()
    likelihoods: Sequence[Likelihood] = ()
    seed: int = 0
    ks: Sequence[int] = (1,)
    bertscore_model: str = "microsoft/deberta-xlarge-mnli"
    bertscore_layer: int | None = None
    unsafe_exec: bool = False
    on_event: OnEvent | None = None

    @functools.cached_property
    def first(self) -> list[Completion]:
        """The first sample of each prompt."""
        return [completion for completion in self.completions if completion.sample == 0]


TaskMetric = Callable[[TaskData], Score | Mapping[str, Score]]
"""Computes a Score or, for a family such as `pass@k`, several by name."""
TASK_METRICS: dict[str, TaskMetric] = {}
"""The function of every task metric, by its name in `mooring.metrics`."""

_M = TypeVar("_M", bound=TaskMetric)


def task_metric(name: str) -> Callable[[_M], _M]:
    """Register a function as the task metric of this name."""

    def register(function: _M) -> _M:
        TASK_METRICS[name] = function
        return function

    return register


def default_metrics(references: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics that suit the references; λ is chosen by the first."""
    calls = [parse_call(split_thoughts(reference).answer) is not None for reference in references]
    return ("call_match", "response_loss") if calls and all(calls) else ("response_loss", "exact_match")


def task_scores(metrics: Iterable[Metric], data: TaskData) -> dict[str, Score]:
    """Compute task metrics: a Score per metric, by name, in their order.

    Raises:
        DataError: A prompt lacks a reference, a completion or the fields of a program, or there are no likelihoods
            for `response_loss`.
        ModelError: BERTScore's encoder cannot be used.
        MissingExtraError: A metric's package is not installed.
        SandboxError: No sandbox can be made for `pass@k`.
    """
    names = tuple(metrics)
    data = dataclasses.replace(data, ks=pass_ks(names))
    functions = dict.fromkeys("pass@k" if name.startswith("pass@") else name for name in names)
    scores: dict[str, Score] = {}
    for name in sorted(functions, key=lambda name: name != "pass@k"):  # programs first: the most likely to raise
        score = _function(name)(data)
        scores |= score if isinstance(score, Mapping) else {name: score}
    return {name: scores[name] for name in names}


def _function(name: str) -> TaskMetric:
    """The function of a metric, which a plug-in brings along."""
    return TASK_METRICS[name] if name in TASK_METRICS else METRICS[name].compute or TASK_METRICS[name]


@task_metric("call_match")
def call_match_score(data: TaskData) -> Score:
    """The share of completions that are the reference's function call, with a Wilson interval."""
    return _matches(data, "call_match", call_match, "parsed function call equal to the reference's")


@task_metric("exact_match")
def exact_match_score(data: TaskData) -> Score:
    """The share of completions equal to the reference up to white space, with a Wilson interval."""
    return _matches(data, "exact_match", text_match, "text equal to the reference, white space aside")


@task_metric("response_loss")
def response_loss_score(data: TaskData) -> Score:
    """Mean −log p per token over all response tokens, in nats.

    The interval is a bootstrap over prompts, not tokens: the tokens of one response are not independent.
    """
    losses = data.likelihoods
    if not losses:
        raise DataError(
            "response_loss: no likelihoods were given",
            "make them with `generate --likelihood`",
            code="data.no_likelihoods",
        )
    sums, tokens = [loss.nll for loss in losses], [loss.tokens for loss in losses]
    interval = bootstrap_ratio(sums, tokens, seed=data.seed)
    return make_score(
        "response_loss",
        math.fsum(sums) / sum(tokens) if interval else None,
        interval,
        n=len(losses),
        method="mean negative log-likelihood of the reference response, nats per token",
        details={"tokens": sum(tokens)},
        each={loss.prompt_id: loss.nll for loss in losses},
        weights={loss.prompt_id: loss.tokens for loss in losses},
    )


@task_metric("bert_score")
def bert_score(data: TaskData) -> Score:
    """See `bertscore.bert_score_f1`."""
    from mooring.scoring.bertscore import bert_score_f1

    model, layer = data.bertscore_model, data.bertscore_layer
    return bert_score_f1(data.prompts, data.first, model=model, layer=layer, seed=data.seed)


@task_metric("pass@k")
def pass_at(data: TaskData) -> Mapping[str, Score]:
    """See `code.code_scores`."""
    from mooring.scoring.code import code_scores

    return code_scores(
        data.prompts, data.completions, data.ks, seed=data.seed, unsafe=data.unsafe_exec, on_event=data.on_event
    )


def text_match(text: str, reference: str) -> bool:
    """Whether two texts are the same up to white space."""
    return text.split() == reference.split()


def _matches(data: TaskData, name: str, match: Callable[[str, str], bool], method: str) -> Score:
    pairs = pair_references(name, data.prompts, data.first)
    each = {prompt.id: float(match(*pair)) for prompt, pair in zip(data.prompts, pairs, strict=True)}
    return share_score(name, sum(map(bool, each.values())), len(pairs), method=method, each=each)
