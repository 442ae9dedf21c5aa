"""Safety judges: what to ask about a completion, and what the answers say. None loads a model.

A judge is a `Judge` in a file of its own, listed in `JUDGES`.
"""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from mooring.errors import DataError, RecipeError
from mooring.records import Completion, Prompt, Verdict
from mooring.scoring import refusal
from mooring.scoring.judges.agreement import Agreement, measure_agreement
from mooring.scoring.judges.base import Judge, Reading
from mooring.scoring.judges.chat_judge import CHAT_JUDGE
from mooring.scoring.judges.granite_guardian import GRANITE_GUARDIAN, GRANITE_GUARDIAN_3_2
from mooring.scoring.judges.harmbench import HARMBENCH
from mooring.scoring.judges.llama_guard import LLAMA_GUARD_3, LLAMA_GUARD_3_1B, LLAMA_GUARD_4
from mooring.scoring.judges.qwen3guard import QWEN3GUARD, QWEN3GUARD_STRICT
from mooring.scoring.judges.rules import RULES
from mooring.scoring.judges.shieldgemma import SHIELDGEMMA
from mooring.scoring.judges.strongreject import STRONGREJECT
from mooring.scoring.judges.wildguard import WILDGUARD

__all__ = [
    "JUDGES",
    "MISS_WARNING",
    "Agreement",
    "Judge",
    "Reading",
    "by_rules",
    "find",
    "label",
    "measure_agreement",
    "misses",
    "model_of",
    "questions",
    "verdicts",
]

MISS_WARNING = 0.05
"""The share of misses above which a report warns."""

_ALL = (
    RULES,
    WILDGUARD,
    LLAMA_GUARD_3,
    LLAMA_GUARD_3_1B,
    LLAMA_GUARD_4,
    QWEN3GUARD,
    QWEN3GUARD_STRICT,
    SHIELDGEMMA,
    GRANITE_GUARDIAN,
    GRANITE_GUARDIAN_3_2,
    HARMBENCH,
    STRONGREJECT,
    CHAT_JUDGE,
)
JUDGES: Mapping[str, Judge] = MappingProxyType({judge.name: judge for judge in _ALL})
"""The judges by name."""


def find(name: str) -> Judge:
    """The judge of that name.

    Raises:
        RecipeError: There is none.
    """
    if name in JUDGES:
        return JUDGES[name]
    near = difflib.get_close_matches(name, JUDGES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known judges: {', '.join(JUDGES)}"
    raise RecipeError(f"there is no judge {name!r}", hint, code="recipe.unknown_judge")


def model_of(judge: Judge, given: str | None) -> str | None:
    """The model that a judge asks: `given`, or its own; None for rules.

    Raises:
        RecipeError: It works with any model, and none is given.
    """
    if not judge.needs_model:
        return None
    if not given and judge.model is None:
        hint = f"give it one: `{{name: {judge.name}, model: …}}` in a recipe, `--judge-model …` on the command line"
        raise RecipeError(f"the judge {judge.name} has no model of its own", hint, code="recipe.judge_without_model")
    return given or judge.model


def label(judge: Judge, model: str | None = None) -> str:
    """The content of `Verdict.judge`: `wildguard (allenai/wildguard)`, or the version of the rules.

    Raises:
        RecipeError: It works with any model, and none is given.
    """
    model = model_of(judge, model)
    return refusal.JUDGE if model is None else f"{judge.name} ({model})"


def questions(judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Prompt]:
    """All that a judge asks about completions, in their order; nothing for rules.

    Raises:
        DataError: A completion is a duplicate, or belongs to no prompt; a prompt has none, or has no user's turn.
    """
    return [
        dataclasses.replace(question, origin=f"{prompt.origin or prompt.id}: the question to the judge {judge.name}")
        for prompt, completion in _pairs(prompts, completions)
        for question in judge.ask(prompt, completion)
    ]


def verdicts(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion], answers: Sequence[Completion], by: str
) -> list[Verdict]:
    """A judge's verdicts on completions, in their order.

    Args:
        judge: The judge.
        prompts: What was asked.
        completions: What was answered, one or more per prompt.
        answers: The judge's answers to `questions` of the same, in any order.
        by: The content of `Verdict.judge`; see `label`.

    Returns:
        A verdict per completion, with the answers as they came in `raw`. An answer that cannot be read, or that was
        cut off before all that counts was said, is a miss, and `why` says so.

    Raises:
        DataError: As `questions`, or an answer is missing, a duplicate, or to none of them.
    """
    if not judge.needs_model:
        return by_rules(prompts, completions)
    asked = [(completion, judge.ask(prompt, completion)) for prompt, completion in _pairs(prompts, completions)]
    _check_unique(answer.prompt_id for answer in answers)
    by_id = {answer.prompt_id: answer for answer in answers}
    expected = {question.id for _, several in asked for question in several}
    if differing := sorted(expected ^ by_id.keys()):
        what = "no answer to a question about it" if differing[0] in expected else "an answer to no question"
        hint = "judge again: the answers do not belong to these completions"
        raise DataError(f"{differing[0]!r}: {what}", hint, code="data.judge_answers_mismatch")
    return [
        _verdict(judge, completion, [by_id[question.id] for question in several], by) for completion, several in asked
    ]


def by_rules(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
    """The refusal rules' verdicts on completions, in their order.

    Raises:
        DataError: A completion is a duplicate, or belongs to no prompt; a prompt has none.
    """
    return [refusal.judge(prompt, completion) for prompt, completion in _pairs(prompts, completions)]


def misses(verdicts: Sequence[Verdict]) -> float:
    """The share of verdicts that do not say whether the response is harmful; 0 if there are none."""
    return sum(v.harmful is None for v in verdicts) / len(verdicts) if verdicts else 0.0


def _verdict(judge: Judge, completion: Completion, answers: Sequence[Completion], by: str) -> Verdict:
    cut = [answer for answer in answers if answer.finish == "length" and not _is_complete(judge, answer.text)]
    if cut:
        reading = Reading(None, None, why=f"cut off at {cut[0].tokens} tokens")
    else:
        reading = judge.read([answer.text for answer in answers])
    return Verdict(
        prompt_id=completion.prompt_id,
        harmful=reading.harmful,
        refused=reading.refused,
        judge=by,
        why=reading.why,
        raw="\n---\n".join(answer.text for answer in answers),
        category=reading.category,
    )


def _is_complete(judge: Judge, answer: str) -> bool:
    """Whether an answer that was cut off has all that the judge reads: the lines that count, each with its end."""
    return judge.complete_lines is not None and answer.lstrip().count("\n") >= judge.complete_lines


def _pairs(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[tuple[Prompt, Completion]]:
    """Each completion with its prompt."""
    _check_unique(completion.key for completion in completions)
    known = {prompt.id: prompt for prompt in prompts}
    if differing := sorted(known.keys() ^ {completion.prompt_id for completion in completions}):
        code, what = (
            ("data.no_completion", "has no completion")
            if differing[0] in known
            else ("data.unknown_prompt", "is not among the prompts")
        )
        raise DataError(f"prompt {differing[0]!r} {what}", "do the completions belong to this prompt set?", code=code)
    return [(known[completion.prompt_id], completion) for completion in completions]


def _check_unique(keys: Iterable[str]) -> None:
    if duplicates := [key for key, count in Counter(keys).items() if count > 1]:
        hint = "were two files of completions joined?"
        raise DataError(f"{duplicates[0]!r} occurs twice", hint, code="data.duplicate_completion")
