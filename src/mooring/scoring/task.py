"""Task scores by name: calls and texts that match, the loss of the reference, BERTScore, programs that pass."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from mooring.config import Metric
from mooring.errors import DataError
from mooring.records import Completion, Likelihood, Prompt, Score
from mooring.scoring.function_calls import call_match, parse_call
from mooring.stats import bootstrap_ratio, wilson


def default_metrics(references: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics that fit the references, the one that λ is chosen by first."""
    references = list(references)
    if references and all(parse_call(reference) is not None for reference in references):
        return ("call_match", "response_loss")
    return ("response_loss", "exact_match")


@dataclasses.dataclass(frozen=True, slots=True)
class TaskOptions:
    """What single metrics need to know.

    Attributes:
        bertscore_model: The encoder of BERTScore.
        bertscore_layer: Its layer; the model's own where it is not given.
        unsafe_exec: Run programs without the sandbox.
    """

    bertscore_model: str = "microsoft/deberta-xlarge-mnli"
    bertscore_layer: int | None = None
    unsafe_exec: bool = False


def needs_completions(metrics: Iterable[Metric]) -> bool:
    """Whether a model must answer for these; the response loss needs likelihoods alone."""
    return any(metric != "response_loss" for metric in metrics)


def task_scores(
    metrics: Iterable[Metric],
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    likelihoods: Sequence[Likelihood],
    *,
    seed: int = 0,
    options: TaskOptions = TaskOptions(),
) -> dict[str, Score]:
    """Each of the metrics, by name; arguments as those of the single ones.

    Where a prompt has several samples, all count for `pass@k`, the first one for the other metrics.

    Raises:
        DataError: As they do, or there are no likelihoods for `response_loss`.
        MissingExtraError: A metric's package is not installed.
        UserError: There is no sandbox for `pass@k`.
    """
    metrics = tuple(metrics)
    found: dict[str, Score] = {}
    first = [completion for completion in completions if completion.sample == 0]
    if ks := [int(metric.removeprefix("pass@")) for metric in metrics if metric.startswith("pass@")]:
        from mooring.scoring.code import code_scores

        found |= code_scores(prompts, completions, ks, seed=seed, unsafe=options.unsafe_exec)
    for metric in metrics:
        if metric == "bert_score":
            from mooring.scoring.bertscore import bert_score_f1

            model, layer = options.bertscore_model, options.bertscore_layer
            found[metric] = bert_score_f1(prompts, first, model=model, layer=layer, seed=seed)
        elif metric.startswith("pass@"):
            continue
        elif metric == "call_match":
            found[metric] = call_match_score(prompts, first)
        elif metric == "exact_match":
            found[metric] = exact_match_score(prompts, first)
        else:
            if not likelihoods:
                raise DataError("response_loss: no likelihoods were given", "make them with `generate --likelihood`")
            found[metric] = response_loss_score(likelihoods, seed)
    return {metric: found[metric] for metric in metrics}


def call_match_score(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Score:
    """The share of completions that are the reference's function call: the Score `call_match`, Wilson interval.

    Raises:
        DataError: A prompt has no completion, or no reference.
    """
    return _share("call_match", "parsed function call equal to the reference's", call_match, prompts, completions)


def exact_match_score(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Score:
    """The share of completions equal to the reference, white space aside: the Score `exact_match`, Wilson interval.

    Raises:
        DataError: A prompt has no completion, or no reference.
    """
    return _share("exact_match", "text equal to the reference, white space aside", text_match, prompts, completions)


def response_loss_score(likelihoods: Sequence[Likelihood], seed: int = 0) -> Score:
    """Mean −log p a token over all response tokens, in nats: the Score `response_loss`.

    The interval is a bootstrap over prompts, not tokens: those of one response are not independent.

    Args:
        likelihoods: One a prompt.
        seed: Seed of the bootstrap.
    """
    sums = [likelihood.nll for likelihood in likelihoods]
    tokens = [likelihood.tokens for likelihood in likelihoods]
    interval = bootstrap_ratio(sums, tokens, seed=seed)
    return Score(
        name="response_loss",
        value=sum(sums) / sum(tokens) if interval else None,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        n=len(likelihoods),
        better="lower",
        method="mean negative log-likelihood of the reference response, nats per token",
        details={"tokens": sum(tokens)},
        each={likelihood.prompt_id: likelihood.nll for likelihood in likelihoods},
        weights={likelihood.prompt_id: likelihood.tokens for likelihood in likelihoods},
    )


def text_match(text: str, reference: str) -> bool:
    """Whether two texts are the same, runs of white space aside."""
    return text.split() == reference.split()


def _share(
    name: str,
    method: str,
    match: Callable[[str, str], bool],
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
) -> Score:
    texts = {completion.prompt_id: completion.text for completion in completions}
    same = {}
    for prompt in prompts:
        where = prompt.origin or f"prompt {prompt.id}"
        if prompt.reference is None:
            raise DataError(f"{where}: has no reference", f"{name} needs one for each prompt")
        if prompt.id not in texts:
            raise DataError(f"{where}: has no completion", "were the completions made for these prompts?")
        same[prompt.id] = match(texts[prompt.id], prompt.reference)
    yes, total = sum(same.values()), len(prompts)
    low, high = wilson(yes, total) if total else (None, None)
    return Score(
        name=name,
        value=yes / total if total else None,
        low=low,
        high=high,
        n=total,
        better="higher",
        method=method,
        details={"yes": yes, "total": total},
        each={key: float(value) for key, value in same.items()},
    )
