"""What one model answered to one set, with the scores of each answer: what the formats are written from."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mooring.calls import as_text
from mooring.merge_point import MergePoint
from mooring.records import Completion, Half, Prompt, Score, SetName


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredSet:
    """What one model answered to one set.

    Attributes:
        point: The model.
        name: The set.
        split: Its half.
        prompts: The prompts.
        completions: The answers; one or more for each prompt.
        scores: By metric, the score of each prompt's answers, by the prompt's id: `harmful` and `refused` of the first
            judge (1 or 0), `harmful@wildguard` of another, and those of the task. An answer that could not be judged
            has none.
        totals: The scores of the set.
        time: When the answers were written, in seconds since 1970.
    """

    point: MergePoint
    name: SetName
    split: Half
    prompts: Sequence[Prompt]
    completions: Sequence[Completion]
    scores: Mapping[str, Mapping[str, float]]
    totals: Mapping[str, Score]
    time: float = 0.0

    @property
    def task(self) -> str:
        """The set and its half, as the name of a task: `safety-test`."""
        return f"{self.name.replace(':', '-')}-{self.split}"

    @property
    def answers(self) -> Iterator[tuple[Prompt, list[Completion]]]:
        """Each prompt with its answers."""
        by_id: dict[str, list[Completion]] = {}
        for completion in self.completions:
            by_id.setdefault(completion.prompt_id, []).append(completion)
        for prompt in self.prompts:
            if prompt.id in by_id:
                yield prompt, sorted(by_id[prompt.id], key=lambda each: each.sample)

    def scores_of(self, prompt: Prompt) -> dict[str, float]:
        """The scores of a prompt's answers, by metric."""
        return {metric: each[prompt.id] for metric, each in self.scores.items() if prompt.id in each}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What formats say of a run as a whole.

    Attributes:
        name: Its name.
        base: The base, as the recipe names it, without folders.
        tuned: The tuned model.
        judge: The first judge.
        version: Mooring's version.
        sampling: By set, how its answers were sampled.
    """

    name: str
    base: str
    tuned: str
    judge: str
    version: str
    sampling: Mapping[SetName, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def asked(prompt: Prompt) -> str:
    """What the user says last."""
    return as_text(prompt.messages[-1])


def encodable(text: str) -> str:
    """A text without halves of surrogate pairs, which no file of UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()
