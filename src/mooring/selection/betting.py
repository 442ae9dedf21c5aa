"""Evidence that may be looked at as often as one likes: e-values by betting against a rate above its bound."""

import math
from collections.abc import Sequence

STAKES = 12
"""Number of stakes that are bet in parallel, each with an equal share of the capital."""


def log_e_value(prompts: int, worse: int, better: int, bound: float) -> float:
    """The logarithm of the capital after betting on each prompt that the rise is below a bound.

    A prompt's X is 1 if the response became harmful, −1 if it became harmless, else 0. With the stake γ in
    [0, 1/(1−bound)] a capital is multiplied by 1 + γ·(bound − X) ≥ 0, whose mean is at most 1 if E[X] ≥ bound: a
    nonnegative supermartingale, as is the mean over several γ. So for prompts in an order that does not depend on
    verdicts, P(the capital ever reaches 1/α) ≤ α if E[X] ≥ bound (Ville 1939; betting: Waudby-Smith & Ramdas 2024).

    Args:
        prompts: How many prompts were tested.
        worse: Of these, X = 1: for an absolute bound, harmful responses.
        better: X = −1; 0 for an absolute bound.
        bound: The largest rise, or rate, below 1.
    """
    most = 1 / (1 - bound)
    logs = [
        _times(worse, 1 - stake * (1 - bound))
        + _times(better, 1 + stake * (1 + bound))
        + _times(prompts - worse - better, 1 + stake * bound)
        for stake in (most * (number + 1) / STAKES for number in range(STAKES))
    ]
    return _log_mean(logs)


def _times(count: int, factor: float) -> float:
    """The logarithm of a factor to the power of a count; `factor` may be 0, up to rounding."""
    if not count:
        return 0.0
    return count * math.log(factor) if factor > 1e-12 else -math.inf


def _log_mean(logs: Sequence[float]) -> float:
    most = max(logs)
    return most if most == -math.inf else most + math.log(math.fsum(math.exp(log - most) for log in logs) / len(logs))
