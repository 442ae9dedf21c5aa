"""An engine that gives the answers it is told to give: for tests, and for trying a pipeline without a model."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from mooring.inference.engine import check_prompts, plan_batches, sample_indices, unfinished
from mooring.records import Completion, Likelihood, Prompt, sample_key
from mooring.sampling import SamplingParams


class ScriptedEngine:
    """Answers from a mapping or a function; counts a word as a token.

    Args:
        answers: Answers by prompt id or by the text of the last message, the same for every sample; or a function of
            the prompt, called once a sample.
        default: The answer where `answers` has none.
        nll: −log p a token, in nats, of any reference; or a function of the prompt.
        batch_size: Prompts a batch.
    """

    def __init__(
        self,
        answers: Mapping[str, str] | Callable[[Prompt], str],
        *,
        default: str = "",
        nll: float | Callable[[Prompt], float] = 1.0,
        batch_size: int = 4,
    ) -> None:
        self.answers = answers
        self.default = default
        self.nll = nll
        self.batch_size = batch_size
        self.asked: list[str] = []
        """Ids in the order in which they were asked."""

    @property
    def about(self) -> Mapping[str, Any]:
        """As `Engine.about`."""
        return {"engine": "scripted", "batch_size": self.batch_size}

    def complete(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        done: Collection[str] = (),
        drafts: Mapping[str, str] | None = None,
    ) -> Iterator[list[Completion]]:
        """As `Engine.complete`; an answer is cut after `max_tokens` words."""
        asked = sample_indices(prompts, params)
        check_prompts(prompts)
        keys = [sample_key(prompts[i].id, sample) for i, sample in asked]
        lengths = [_words(prompts[i]) for i, _ in asked]
        for batch in unfinished(plan_batches(lengths, self.batch_size), keys, done):
            yield [self._complete(prompts[i], sample, params) for i, sample in (asked[number] for number in batch)]

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """As `Engine.likelihood`."""
        check_prompts(examples)
        batches = plan_batches([_words(example) for example in examples], self.batch_size)
        for batch in unfinished(batches, [example.id for example in examples], done):
            yield [self._likelihood(examples[i]) for i in batch]

    def _complete(self, prompt: Prompt, sample: int, params: SamplingParams) -> Completion:
        self.asked.append(prompt.id)
        if callable(self.answers):
            text = self.answers(prompt)
        else:
            text = self.answers.get(prompt.id, self.answers.get(prompt.messages[-1].content, self.default))
        words = text.split(" ")
        if len(words) > params.max_tokens:
            cut = words[: params.max_tokens]
            text = " ".join(cut)
            return Completion(prompt_id=prompt.id, text=text, tokens=len(cut), finish="length", sample=sample)
        return Completion(prompt_id=prompt.id, text=text, tokens=len(words), finish="stop", sample=sample)

    def _likelihood(self, prompt: Prompt) -> Likelihood:
        self.asked.append(prompt.id)
        tokens = len((prompt.reference or "").split()) + 1
        nll = self.nll(prompt) if callable(self.nll) else self.nll
        return Likelihood(prompt_id=prompt.id, nll=nll * tokens, tokens=tokens)


def _words(prompt: Prompt) -> int:
    return len(prompt.messages[-1].content.split())
