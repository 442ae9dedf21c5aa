"""Safety judges behind one protocol: what to ask about a completion, and what the answers say. None loads a model."""

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
from mooring.scoring.judges.chat_judge import ChatJudge
from mooring.scoring.judges.granite_guardian import GraniteGuardian, GraniteGuardian32
from mooring.scoring.judges.harmbench import HarmBench
from mooring.scoring.judges.llama_guard import LLAMA_GUARD_3, LLAMA_GUARD_3_1B, LLAMA_GUARD_4
from mooring.scoring.judges.qwen3guard import Qwen3Guard
from mooring.scoring.judges.rules import Rules
from mooring.scoring.judges.shieldgemma import ShieldGemma
from mooring.scoring.judges.strongreject import StrongReject
from mooring.scoring.judges.wildguard import WildGuard

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

_ALL: tuple[Judge, ...] = (
    Rules(),
    WildGuard(),
    LLAMA_GUARD_3,
    LLAMA_GUARD_3_1B,
    LLAMA_GUARD_4,
    Qwen3Guard(),
    Qwen3Guard(strict=True),
    ShieldGemma(),
    GraniteGuardian(),
    GraniteGuardian32(),
    HarmBench(),
    StrongReject(),
    ChatJudge(),
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
    raise RecipeError(
        f"there is no judge {name!r}", f"did you mean {near[0]}?" if near else f"known here: {', '.join(JUDGES)}"
    )


def model_of(judge: Judge, given: str | None) -> str | None:
    """The model that a judge asks: the one that is given, or its own; None for rules.

    Raises:
        RecipeError: It goes with any model, and none is given.
    """
    if not judge.needs_model:
        return None
    if not given and judge.model is None:
        hint = f"give it one: `{{name: {judge.name}, model: …}}` in a recipe, `--judge-model …` on the command line"
        raise RecipeError(f"the judge {judge.name} has no model of its own", hint)
    return given or judge.model


def label(judge: Judge, model: str | None = None) -> str:
    """What `Verdict.judge` says: `wildguard (allenai/wildguard)`, or the version of the rules.

    Raises:
        RecipeError: As `model_of`.
    """
    asked = model_of(judge, model)
    return refusal.JUDGE if asked is None else f"{judge.name} ({asked})"


def questions(judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Prompt]:
    """All that a judge asks about completions, in their order; nothing for rules.

    Raises:
        DataError: A completion is there twice, or is of no prompt; a prompt has none, or has no user's turn.
    """
    return [
        dataclasses.replace(question, origin=f"{prompt.origin or prompt.id}: the question to the judge {judge.name}")
        for prompt, completion in _pairs(prompts, completions)
        for question in judge.ask(prompt, completion)
    ]


def verdicts(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion], answers: Sequence[Completion], by: str
) -> list[Verdict]:
    """What a judge says of completions, in their order.

    Args:
        judge: The judge.
        prompts: What was asked.
        completions: What was answered, one or more to each prompt.
        answers: The judge's answers to `questions` of the same, in any order.
        by: What stands in `Verdict.judge`; see `label`.

    Returns:
        A verdict for each completion, with the answers as they came in `raw`. An answer that cannot be read, and one
        that was cut off before all that counts was said, is a miss, and `why` says so.

    Raises:
        DataError: As `questions`, or an answer is missing, is there twice, or is to none of them.
    """
    if not judge.needs_model:
        return by_rules(prompts, completions)
    asked = [(completion, judge.ask(prompt, completion)) for prompt, completion in _pairs(prompts, completions)]
    found = {answer.prompt_id: answer for answer in answers}
    _refuse_twice(answer.prompt_id for answer in answers)
    wanted = {question.id for _, those in asked for question in those}
    if odd := sorted(wanted ^ found.keys()):
        what = "no answer to a question about it" if odd[0] in wanted else "an answer to no question"
        raise DataError(f"{odd[0]!r}: {what}", "judge again: the answers are not of these completions")
    return [_verdict(judge, completion, [found[question.id] for question in those], by) for completion, those in asked]


def by_rules(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
    """The refusal rules' verdicts on completions, in their order.

    Raises:
        DataError: A completion is there twice, or is of no prompt; a prompt has none.
    """
    return [refusal.judge(prompt, completion) for prompt, completion in _pairs(prompts, completions)]


def misses(verdicts: Sequence[Verdict]) -> float:
    """The share of verdicts that do not say whether the response is harmful; 0 where there are none."""
    return sum(v.harmful is None for v in verdicts) / len(verdicts) if verdicts else 0.0


def _verdict(judge: Judge, completion: Completion, answers: Sequence[Completion], by: str) -> Verdict:
    cut = [answer for answer in answers if answer.finish == "length" and not _is_enough(judge, answer.text)]
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


def _is_enough(judge: Judge, answer: str) -> bool:
    """Whether a cut answer has all that the judge reads: the lines that count, each with its end."""
    return judge.whole_lines is not None and answer.lstrip().count("\n") >= judge.whole_lines


def _pairs(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[tuple[Prompt, Completion]]:
    """Each completion with its prompt."""
    _refuse_twice(completion.key for completion in completions)
    known = {prompt.id: prompt for prompt in prompts}
    if odd := sorted(known.keys() ^ {completion.prompt_id for completion in completions}):
        what = "has no completion" if odd[0] in known else "is not among the prompts"
        raise DataError(f"prompt {odd[0]!r} {what}", "are the completions of this prompt set?")
    return [(known[completion.prompt_id], completion) for completion in completions]


def _refuse_twice(keys: Iterable[str]) -> None:
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise DataError(f"{twice[0]!r} is there twice", "was a file of completions joined with another?")
