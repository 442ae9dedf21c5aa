"""Parts of all metrics: building a Score, and pairing responses with references."""

from collections.abc import Mapping, Sequence

from mooring.errors import DataError
from mooring.metrics import find_metric
from mooring.records import Completion, Prompt, Score
from mooring.stats import bootstrap_ratio, wilson
from mooring.thinking import split_thoughts

Interval = tuple[float, float] | None


def make_score(
    name: str,
    value: float | None,
    interval: Interval,
    *,
    n: int,
    method: str,
    details: Mapping[str, float],
    each: Mapping[str, float] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Score:
    """A Score with the direction of its metric in `mooring.metrics`; arguments as the fields of `Score`."""
    low, high = interval or (None, None)
    metric = find_metric(name)
    assert metric is not None, f"{name} is not in mooring.metrics"
    return Score(
        name=name,
        value=value,
        low=low,
        high=high,
        n=n,
        better=metric.better,
        method=method,
        details=details,
        each=each or {},
        weights=weights or {},
    )


def share_score(
    name: str,
    yes: int,
    n: int,
    *,
    method: str,
    misses: int | None = None,
    each: Mapping[str, float] | None = None,
) -> Score:
    """The Score of `yes` among `n`, with its 95 % Wilson interval and the counts in its details.

    `misses` of the n could not be judged and are left out of the share; None if the metric has no misses.
    """
    judged = n - (misses or 0)
    details = {"yes": yes, "total": n} | ({} if misses is None else {"miss": misses})
    value, interval = (yes / judged, wilson(yes, judged)) if judged else (None, None)
    return make_score(name, value, interval, n=n, method=method, details=details, each=each)


def mean_interval(values: Sequence[float], seed: int) -> Interval:
    """The 95 % bootstrap interval of a mean over prompts; None for fewer than two."""
    return bootstrap_ratio(values, [1.0] * len(values), seed=seed) if len(values) > 1 else None


def pair_references(name: str, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[tuple[str, str]]:
    """Each prompt's (answer, reference answer), in the order of the prompts, for the metric `name`.

    What was thought is in neither. Completions of other prompts are left out.

    Raises:
        DataError: A prompt has no completion (`data.no_completion`), or no reference (`data.no_reference`).
    """
    texts = {completion.prompt_id: split_thoughts(completion.text).answer for completion in completions}
    pairs = []
    for prompt in prompts:
        if prompt.reference is None:
            raise DataError(
                f"{prompt.place}: has no reference", f"{name} needs one for each prompt", code="data.no_reference"
            )
        if prompt.id not in texts:
            raise DataError(
                f"{prompt.place}: has no completion",
                "were the completions made for these prompts?",
                code="data.no_completion",
            )
        pairs.append((texts[prompt.id], split_thoughts(prompt.reference).answer))
    return pairs
