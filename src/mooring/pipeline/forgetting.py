"""Forgetting: how far the tuned model and its merges have moved from the base on ordinary requests."""

from collections.abc import Callable, Mapping, Sequence

from mooring.inference.divergence import divergences
from mooring.inference.spans import base_spans
from mooring.inference.transformers import TransformersEngine
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.records import Divergence, Forgetting, Prompt, Score
from mooring.stats import bootstrap_ratio

ANSWER_TOKENS = 32
"""Maximum number of tokens of the base's answers. The base's distribution at all of them is in memory."""
FIRST_TOKENS = 8
"""What counts as the beginning of an answer."""
NOTHING = 1e-3
"""Nats per token below which a model is said not to have moved."""


def measure_forgetting(
    points: Sequence[MergePoint],
    chosen: MergePoint,
    prompts: Sequence[Prompt],
    engine: Callable[[MergePoint], TransformersEngine],
    seed: int,
) -> Forgetting:
    """Measure how far models have moved from the base on the base's own answers.

    Args:
        points: The models, the tuned one among them.
        chosen: The one that the run ends with.
        prompts: The requests.
        engine: Returns the engine of a model; it is not used after the next call.
        seed: Seed of the bootstrap.

    Raises:
        DataError: A prompt does not fit the context.
    """
    spans = base_spans(engine(BASE), prompts, ANSWER_TOKENS)
    found = []
    for point in points:
        by_prompt = divergences(engine(point), spans)
        first = {key: values[:FIRST_TOKENS] for key, values in by_prompt.items()}
        found.append(
            Divergence(point=point, first=_score("kl_first", first, seed), whole=_score("kl_whole", by_prompt, seed))
        )
    return Forgetting(
        points=found, first_tokens=FIRST_TOKENS, tokens=spans.tokens, sentence=_sentence(found, chosen, seed)
    )


def _score(name: str, values: Mapping[str, Sequence[float]], seed: int) -> Score:
    """The mean per token over all prompts, with a bootstrap interval over prompts."""
    each = {key: sum(row) for key, row in values.items()}
    weights = {key: float(len(row)) for key, row in values.items()}
    interval = bootstrap_ratio(list(each.values()), list(weights.values()), seed=seed) if len(each) > 1 else None
    low, high = interval or (None, None)
    return Score(
        name=name,
        value=sum(each.values()) / sum(weights.values()),
        low=low,
        high=high,
        n=len(each),
        better="lower",
        method="KL(base ‖ model) on the base's answers",
        each=each,
        weights=weights,
    )


def _sentence(found: Sequence[Divergence], chosen: MergePoint, seed: int) -> str:
    """What tuning forgot, and how much of it the merge brought back."""
    at = {each.point: each for each in found}
    tuned, merged = at[TUNED], at[chosen]
    whole, first = tuned.whole.value or 0.0, tuned.first.value or 0.0
    sentence = f"On {tuned.whole.n} ordinary requests the tuned model is {whole:.3g} nats per token away from the base"
    sentence += f" ({first:.3g} at the first {FIRST_TOKENS})"
    if whole < NOTHING:
        return f"{sentence}: it has hardly moved, and there is nothing to bring back."
    back, interval = brought_back(tuned.whole, merged.whole, seed)
    near = "" if interval is None else f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"
    what = "the merge brought back" if back >= 0 else "the merge brought back none of it:"
    return (
        f"{sentence}, the model at {chosen.label} {merged.whole.value or 0.0:.3g} ({merged.first.value or 0.0:.3g}): "
        f"{what} {100 * back:.0f}{near} % of what tuning moved."
    )


def brought_back(tuned: Score, merged: Score, seed: int) -> tuple[float, tuple[float, float] | None]:
    """The share of a tuned model's divergence that a merge does not have, with a paired bootstrap interval."""
    keys = sorted(tuned.each)
    ones, others = [merged.each[key] for key in keys], [tuned.each[key] for key in keys]
    interval = bootstrap_ratio(ones, others, seed=seed) if len(keys) > 1 and all(others) else None
    value = 1 - sum(ones) / sum(others)
    return value, None if interval is None else (1 - interval[1], 1 - interval[0])
