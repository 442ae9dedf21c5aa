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
        rows = self._encode(prompts, params)
        samples = sample_indices(prompts, params)
        keys = [sample_key(prompts[i].id, sample) for i, sample in samples]
        for batch in unfinished(plan_batches([len(rows[i]) for i, _ in samples], self.batch_size), keys, done):
            asked = [rows[samples[n][0]] for n in batch]
            made = self._generate(asked, [keys[n] for n in batch], params)
            yield [
                self._decode(prompts[samples[n][0]], row, tokens, samples[n][1])
                for n, tokens, row in zip(batch, made, asked, strict=True)
            ]

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """See `Engine.likelihood`."""
        encoded = encode_examples(self.tokenizer, examples, self.system, self.context, self.reserve, self.thinking)
        batches = plan_batches([len(row) for row, _ in encoded], self._score_batch_size(encoded))
        for batch in unfinished(batches, [example.id for example in examples], done):
            sums = self._score([encoded[i] for i in batch])
            yield [
                Likelihood(prompt_id=examples[i].id, nll=nll, tokens=len(encoded[i][0]) - encoded[i][1])
                for i, nll in zip(batch, sums, strict=True)
            ]

    def _encode(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
        return encode_prompts(self.tokenizer, prompts, self.system, params.max_tokens, self.context, self.thinking)

    def _decode(self, prompt: Prompt, row: Sequence[int], tokens: list[int], sample: int = 0) -> Completion:
        """The completion of a prompt with the tokens `row` by the tokens of a response."""
        prefill = len(prefill_tokens(self.tokenizer, prompt))
        return decode_completion(self.tokenizer, tokens, self.stops, prompt.id, sample, row, prefill)

    def _score_batch_size(self, encoded: Sequence[Encoded]) -> int:
        return self.batch_size
