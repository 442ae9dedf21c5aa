"""An upper bound on what a job on a paid server costs, before it starts."""

import dataclasses
import math
from collections.abc import Sequence

from mooring.chat import DEFAULT_SYSTEM, with_system
from mooring.records import Prompt
from mooring.sampling import SamplingParams

CHARACTERS_PER_TOKEN = 4
"""The rule of thumb for English."""


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """The size and cost of a job.

    Attributes:
        requests: Number of responses.
        tokens_in: Estimated tokens of all requests, at four characters per token.
        tokens_out_most: Tokens of all responses if each is as long as `max_tokens` allows.
        dollars: The cost of both.
    """

    requests: int
    tokens_in: int
    tokens_out_most: int
    dollars: float


def estimate(
    prompts: Sequence[Prompt],
    params: SamplingParams,
    price_in: float,
    price_out: float,
    *,
    system: str | None = DEFAULT_SYSTEM,
) -> Estimate:
    """Estimate the cost of a job; the prices are in dollars per million tokens.

    `system` is the system prompt of prompts that have none.
    """
    tokens_in = sum(math.ceil(text_length(prompt, system) / CHARACTERS_PER_TOKEN) for prompt in prompts) * params.n
    requests = len(prompts) * params.n
    tokens_out = requests * params.max_tokens
    return Estimate(requests, tokens_in, tokens_out, (tokens_in * price_in + tokens_out * price_out) / 1e6)


def text_length(prompt: Prompt, system: str | None) -> int:
    """Characters of all that is sent for a prompt."""
    if prompt.rendered is not None:
        return len(prompt.rendered)
    return sum(len(message.content) for message in with_system(prompt, system))
