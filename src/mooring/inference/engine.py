"""The interface of an engine, and the batching that engines share."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from mooring.errors import DataError
from mooring.records import Completion, Likelihood, Prompt
from mooring.sampling import SamplingParams


class SmallerBatchesError(Exception):
    """Memory ran out, so the engine has halved its batch size. All prompts have to be started again.

    So the batches of a list of prompts all have one size, and which prompts are in a batch does not depend on when the
    memory ran out.
    """


class Engine(Protocol):
    """A model that generates completions and computes likelihoods.

    Batches are a function of the whole list of prompts, so that a resumed run (the same list, with the finished keys in
    `done`) computes the same results as an uninterrupted one, bit for bit.
    """

    @property
    def about(self) -> Mapping[str, Any]:
        """The engine, its versions and everything else that its results depend on, as plain JSON values."""
        ...

    def complete(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        done: Collection[str] = (),
        drafts: Mapping[str, str] | None = None,
    ) -> Iterator[list[Completion]]:
        """Generate completions; yield each batch when it is finished, in the engine's own order.

        Args:
            prompts: The whole list; ids are unique.
            params: How responses are sampled.
            done: Keys (`records.sample_key`) of finished responses. A batch with any unfinished response is recomputed
                completely.
            drafts: Completions of another model by key, for speculative decoding: they change no completion, up to
                rounding. An engine that uses them counts the accepted tokens in `made_by`; others ignore them.

        Raises:
            DataError: A prompt and `max_tokens` do not fit the model's context; raised before anything is generated.
            ModelError: A batch does not fit the memory, and the batch size was set, or is 1.
            SmallerBatchesError: A batch does not fit the memory, and the next call makes smaller ones.
        """
        ...

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """Compute the negative log-likelihood of each prompt's reference, including its end-of-turn token.

        Raises:
            DataError: A prompt has no reference or does not fit the context; raised before anything is computed.
        """
        ...


def accepted_share(completions: Iterable[Completion]) -> float | None:
    """The share of generated tokens that drafts predicted; None if no completion had a draft."""
    completions = list(completions)
    tokens = sum(c.tokens for c in completions)
    if not tokens or not any("accepted" in c.made_by for c in completions):
        return None
    return sum(int(c.made_by.get("accepted", 0)) for c in completions) / tokens


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Raise DataError if there are no prompts, or an id is repeated."""
    if not prompts:
        raise DataError("there are no prompts", "is the data set empty?", code="data.no_prompts")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            place = prompt.origin or "prompts"
            raise DataError(f"{place}: the id {prompt.id!r} is repeated", "use unique ids", code="data.repeated_id")
        seen.add(prompt.id)


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices into `lengths` (tokens per prompt) in batches of similar length; a function of the lengths alone.

    The longest come first, so that the batch that needs the most memory fails first.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def unfinished(batches: Sequence[list[int]], keys: Sequence[str], done: Collection[str]) -> list[list[int]]:
    """The batches with any unfinished item; `batches` holds indices into `keys`."""
    finished = frozenset(done)
    return [batch for batch in batches if any(keys[i] not in finished for i in batch)]


def sample_indices(prompts: Sequence[Prompt], params: SamplingParams) -> list[tuple[int, int]]:
    """All requested responses as (index of the prompt, number of the sample), grouped by prompt.

    Raises DataError if more than one sample is requested at temperature 0.
    """
    if params.n > 1 and params.temperature == 0:
        hint = "set a temperature, or request one sample"
        raise DataError(f"{params.n} samples at temperature 0 are identical", hint, code="data.greedy_samples")
    return [(index, sample) for index in range(len(prompts)) for sample in range(params.n)]
