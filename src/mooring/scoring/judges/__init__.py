"""Safety judges: the questions about a completion, and the meaning of the answers. No judge loads a model.

A judge is a `Judge` in a file of its own, listed in `JUDGES`.
"""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterable, Sequence

from mooring.errors import DataError, RecipeError
from mooring.metrics import MISS_WARNING
from mooring.plugins import Registry
from mooring.records import Completion, Prompt, Verdict
from mooring.scoring.judges.agreement import Agreement, measure_agreement
from mooring.scoring.judges.base import Judge, Reading
from mooring.scoring.judges.built_in import CLASSIFIER, RULES, verdict, without_model
from mooring.scoring.judges.chat_judge import CHAT_JUDGE
from mooring.scoring.judges.granite_guardian import GRANITE_GUARDIAN, GRANITE_GUARDIAN_3_2
from mooring.scoring.judges.harmbench import HARMBENCH
from mooring.scoring.judges.llama_guard import LLAMA_GUARD_3, LLAMA_GUARD_3_1B, LLAMA_GUARD_4
from mooring.scoring.judges.qwen3guard import QWEN3GUARD, QWEN3GUARD_STRICT
from mooring.scoring.judges.shieldgemma import SHIELDGEMMA
from mooring.scoring.judges.strongreject import STRONGREJECT
from mooring.scoring.judges.wildguard import WILDGUARD
from mooring.thinking import CUT_OFF, NO_ANSWER, joined

__all__ = [
    "JUDGES",
    "MISS_IMBALANCE",
    "MISS_WARNING",
    "Agreement",
    "Judge",
    "Reading",
    "by_wording",
    "find",
    "is_without_model",
    "label",
    "measure_agreement",
    "misses",
    "model_of",
    "questions",
    "verdicts",
    "without_model",
]

MISS_IMBALANCE = 0.01
"""How far the share of misses of a model may differ from the base's before a report warns."""

_ALL = (
    CLASSIFIER,
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
JUDGES: Registry[Judge] = Registry("judges", _ALL)
"""The judges by name."""


def is_without_model(label: str) -> bool:
    """Whether `Verdict.judge` is that of a judge that needs no model: its misses are unsure, not unreadable."""
    return any(not judge.needs_model and judge.version == label for judge in JUDGES.values())


def find(name: str) -> Judge:
    """The judge of that name.

    Raises:
        RecipeError: There is none (`recipe.unknown_judge`).
    """
    if name in JUDGES:
        return JUDGES[name]
    near = difflib.get_close_matches(name, JUDGES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known judges: {', '.join(JUDGES)}"
    raise RecipeError(f"there is no judge {name!r}", hint, code="recipe.unknown_judge")


def model_of(judge: Judge, given: str | None) -> str | None:
    """The model of a judge: `given`, or the judge's own; None if it asks none.

    Raises:
        RecipeError: It works with any model, and none is given (`recipe.judge_without_model`).
    """
    if not judge.needs_model:
        return None
    if not given and judge.model is None:
        hint = f"give it one: `{{name: {judge.name}, model: …}}` in a recipe, `--judge-model …` on the command line"
        raise RecipeError(f"the judge {judge.name} has no model of its own", hint, code="recipe.judge_without_model")
    return given or judge.model


def label(judge: Judge, model: str | None = None) -> str:
    """The content of `Verdict.judge`: `wildguard (allenai/wildguard)`, or the version of a judge without a model."""
    model = model_of(judge, model)
    return judge.version if model is None else f"{judge.name} ({model})"


def questions(judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Prompt]:
    """A judge's questions about completions, in their order: none by a judge without a model, nor about a
    response without an answer.

    Raises:
        DataError: A completion is a duplicate, or belongs to no prompt; a prompt has no completion, or no user's turn.
    """
    return [
        dataclasses.replace(question, origin=f"{prompt.place}: the question to the judge {judge.name}")
        for prompt, completion in _pairs(prompts, completions)
        for question in _ask(judge, prompt, completion)
    ]


def verdicts(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion], answers: Sequence[Completion], by: str
) -> list[Verdict]:
    """A judge's verdicts on completions, in their order, with the unchanged answers in `raw`.

    A judge's answer that cannot be read, or that was cut off before it was complete, is a miss, and so is a response
    that has thoughts and no answer; `why` says which.

    Args:
        judge: The judge.
        prompts: The prompts.
        completions: The completions, one or more per prompt.
        answers: The judge's answers to its `questions`, in any order.
        by: The content of `Verdict.judge`; see `label`.

    Raises:
        DataError: As `questions`; or an answer is missing, a duplicate, or answers none of the questions.
    """
    if not judge.needs_model:
        return by_wording(judge, prompts, completions)
    pairs = [(completion, _ask(judge, prompt, completion)) for prompt, completion in _pairs(prompts, completions)]
    _check_unique(answer.prompt_id for answer in answers)
    by_id = {answer.prompt_id: answer for answer in answers}
    expected = {question.id for _, asked in pairs for question in asked}
    if differing := sorted(expected ^ by_id.keys()):
        what = "no answer to a question about it" if differing[0] in expected else "an answer to no question"
        hint = "judge again: the answers do not belong to these completions"
        raise DataError(f"{differing[0]!r}: {what}", hint, code="data.judge_answers_mismatch")
    return [_verdict(judge, completion, [by_id[question.id] for question in asked], by) for completion, asked in pairs]


def by_wording(judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
    """The verdicts of a judge without a model on completions, in their order; errors as those of `questions`."""
    return [
        unanswered(completion, judge.version) if completion.unanswered else verdict(judge, prompt, completion)
        for prompt, completion in _pairs(prompts, completions)
    ]


def unanswered(completion: Completion, judge: str) -> Verdict:
    """The verdict on a response that has thoughts and no answer: a miss."""
    why = CUT_OFF if completion.finish == "length" else NO_ANSWER
    return Verdict(prompt_id=completion.prompt_id, harmful=None, refused=None, judge=judge, why=why)


def _ask(judge: Judge, prompt: Prompt, completion: Completion) -> list[Prompt]:
    return [] if completion.unanswered else judge.ask(prompt, completion)


def misses(verdicts: Sequence[Verdict]) -> float:
    """The share of verdicts that do not say whether the response is harmful; 0 without verdicts."""
    return sum(v.harmful is None for v in verdicts) / len(verdicts) if verdicts else 0.0


def _verdict(judge: Judge, completion: Completion, answers: Sequence[Completion], by: str) -> Verdict:
    if completion.unanswered:
        return unanswered(completion, by)
    cut = [answer for answer in answers if answer.finish == "length" and not judge.is_complete(answer.text)]
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
        raw="\n---\n".join(joined(answer.thoughts, answer.text) for answer in answers),
        category=reading.category,
    )


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
