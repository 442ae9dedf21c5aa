"""What a job on a paid server will cost at most, before it starts."""

import dataclasses
import math
from collections.abc import Sequence

from mooring.chat import DEFAULT_SYSTEM, with_system
from mooring.generate.engine import Settings
from mooring.records import Prompt

CHARACTERS = 4
"""Characters a token: the rule of thumb for English."""


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """What a job takes.

    Attributes:
        requests: Answers asked for.
        tokens_in: Tokens of all requests, by the rule of four characters a token.
        tokens_out_most: Tokens of all answers, were each as long as it may be.
        dollars: What these cost.
    """

    requests: int
    tokens_in: int
    tokens_out_most: int
    dollars: float


def estimate(
    prompts: Sequence[Prompt],
    settings: Settings,
    price_in: float,
    price_out: float,
    *,
    system: str | None = DEFAULT_SYSTEM,
) -> Estimate:
    """Estimate a job's cost.

    Args:
        prompts: What is asked.
        settings: How long and how many the answers are.
        price_in: Dollars per million tokens of input.
        price_out: Dollars per million tokens of output.
        system: System prompt for prompts that bring none.
    """
    tokens_in = sum(math.ceil(_characters(prompt, system) / CHARACTERS) for prompt in prompts) * settings.samples
    requests = len(prompts) * settings.samples
    tokens_out = requests * settings.max_new_tokens
    return Estimate(requests, tokens_in, tokens_out, (tokens_in * price_in + tokens_out * price_out) / 1e6)


def _characters(prompt: Prompt, system: str | None) -> int:
    if prompt.rendered is not None:
        return len(prompt.rendered)
    return sum(len(message.content) for message in with_system(prompt, system))
