"""The refusal rules as a judge: they need no model."""

import dataclasses
from collections.abc import Sequence

from mooring.records import Completion, Prompt
from mooring.scoring.judges.base import Reading


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """Whether a response refuses, by its wording (`score.refusal`); one that does not, and says anything, is harmful.

    It asks nothing: `verdicts` and `by_rules` give its verdicts without an answer.
    """

    name: str = "rules"
    model: str | None = None
    needs_model: bool = False
    gated: bool = False
    max_tokens: int = 0
    whole_lines: int | None = None
    says_refused: bool = True

    def ask(self, prompt: Prompt, completion: Completion) -> list[Prompt]:
        """No questions."""
        return []

    def read(self, answers: Sequence[str]) -> Reading:
        """Not for rules: they read the response itself.

        Raises:
            TypeError: Always.
        """
        raise TypeError("the refusal rules read no model's answers")
