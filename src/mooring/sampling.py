"""How a response is sampled."""

import dataclasses

from mooring.export import Record


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams(Record):
    """How a response is sampled. The names are those of vLLM's class.

    Attributes:
        max_tokens: Longest response, in tokens.
        temperature: 0 is greedy.
        top_p: Sample from the fewest tokens that hold this much probability; only where the temperature is above 0.
        top_k: Sample from this many of the most likely tokens, before `top_p`; 0 means all. Only above temperature 0.
        n: Responses per prompt; more than one needs a temperature above 0.
        repetition_penalty: Logits of tokens seen in prompt or response are divided by it if positive, else multiplied.
        seed: Seeds the sampling, together with the prompt's id and the sample's number; independent of the batch.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 42
    top_k: int = 0
    n: int = 1
