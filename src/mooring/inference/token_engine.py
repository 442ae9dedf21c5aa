"""What all engines share that take and return tokens; a subclass runs the model on one batch."""

import abc
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mooring.chat import DEFAULT_SYSTEM, prefill_tokens
from mooring.inference.encode import decode_completion, encode_examples, encode_prompts
from mooring.inference.engine import plan_batches, sample_indices, unfinished
from mooring.records import Completion, Likelihood, Prompt, sample_key
from mooring.sampling import SamplingParams
from mooring.thinking import Thinking

Encoded = tuple[list[int], int]
"""The tokens of an example, and how many of them belong to the prompt."""
Sample = tuple[Prompt, int]
"""A prompt, and which of its responses is meant, from 0."""


class TokenEngine(abc.ABC):
    """An engine with a tokenizer of transformers.

    Args:
        tokenizer: The model's tokenizer, with a chat template.
        stops: Tokens that end a response.
        system: System prompt for prompts that have none.
        batch_size: Maximum number of prompts per batch.
        thinking: Whether the chat template asks the model to think.
    """

    reserve = 0
    """Number of tokens that `_score` generates in addition."""

    def __init__(
        self,
        tokenizer: Any,
        stops: Collection[int],
        *,
        system: str | None = DEFAULT_SYSTEM,
        batch_size: int,
        thinking: Thinking | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.stops = frozenset(stops)
        self.system, self.thinking = system, thinking
        self.batch_size = batch_size

    @property
    @abc.abstractmethod
    def context(self) -> int | None:
        """Maximum number of tokens of a prompt and its response together; None if the model has no limit."""

    @abc.abstractmethod
    def _generate(self, rows: list[list[int]], keys: list[str], params: SamplingParams) -> list[list[int]]:
        """New tokens of each row, including the stop token. `keys` seed the sampling."""

    @abc.abstractmethod
    def _score(self, examples: list[Encoded]) -> list[float]:
        """−Σ log p of the tokens after each prompt, in nats."""

    def complete(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        done: Collection[str] = (),
        drafts: Mapping[str, str] | None = None,
    ) -> Iterator[list[Completion]]:
        """See `Engine.complete`; drafts are ignored."""
        for batch in self.batches(prompts, params, done):
            yield self.complete_batch(batch, params)

    def batches(
        self, prompts: Sequence[Prompt], params: SamplingParams, done: Collection[str] = ()
    ) -> list[list[Sample]]:
        """The batches of `complete`, without those that are finished. They can be completed in any order, anywhere.

        Raises:
            DataError: A prompt and `max_tokens` do not fit the model's context.
        """
        rows = self._encode(prompts, params)
        samples = sample_indices(prompts, params)
        keys = [sample_key(prompts[i].id, sample) for i, sample in samples]
        planned = plan_batches([len(rows[i]) for i, _ in samples], self.batch_size)
        return [[(prompts[samples[n][0]], samples[n][1]) for n in batch] for batch in unfinished(planned, keys, done)]

    def complete_batch(self, batch: Sequence[Sample], params: SamplingParams) -> list[Completion]:
        """The completions of one batch, in its order."""
        prompts = {prompt.id: prompt for prompt, _ in batch}
        rows = dict(zip(prompts, self._encode([*prompts.values()], params), strict=True))
        asked = [rows[prompt.id] for prompt, _ in batch]
        made = self._generate(asked, [sample_key(prompt.id, sample) for prompt, sample in batch], params)
        return [
            self._decode(prompt, row, tokens, sample)
            for (prompt, sample), tokens, row in zip(batch, made, asked, strict=True)
        ]

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """See `Engine.likelihood`."""
        for batch in self.likelihood_batches(examples, done):
            yield self.likelihood_batch(batch)

    def likelihood_batches(self, examples: Sequence[Prompt], done: Collection[str] = ()) -> list[list[Prompt]]:
        """The batches of `likelihood`, as `batches` gives those of `complete`.

        Raises:
            DataError: A prompt has no reference or does not fit the context.
        """
        encoded = self._encode_examples(examples)
        planned = plan_batches([len(row) for row, _ in encoded], self._score_batch_size(encoded))
        keys = [example.id for example in examples]
        return [[examples[i] for i in batch] for batch in unfinished(planned, keys, done)]

    def likelihood_batch(self, batch: Sequence[Prompt]) -> list[Likelihood]:
        """The likelihoods of one batch, in its order."""
        encoded = self._encode_examples(batch)
        return [
            Likelihood(prompt_id=example.id, nll=nll, tokens=len(row) - start)
            for example, nll, (row, start) in zip(batch, self._score(encoded), encoded, strict=True)
        ]

    def _encode_examples(self, examples: Sequence[Prompt]) -> list[Encoded]:
        return encode_examples(self.tokenizer, examples, self.system, self.context, self.reserve, self.thinking)

    def _encode(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
        return encode_prompts(self.tokenizer, prompts, self.system, params.max_tokens, self.context, self.thinking)

    def _decode(self, prompt: Prompt, row: Sequence[int], tokens: list[int], sample: int = 0) -> Completion:
        """The completion of a prompt with the tokens `row` by the tokens of a response."""
        prefill = len(prefill_tokens(self.tokenizer, prompt))
        return decode_completion(self.tokenizer, tokens, self.stops, prompt.id, sample, row, prefill)

    def _score_batch_size(self, encoded: Sequence[Encoded]) -> int:
        return self.batch_size
