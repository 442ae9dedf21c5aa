"""The paper's four tasks by name: what they are tuned on, asked, and measured by (Farn et al., arXiv 2412.19512)."""

from collections.abc import Iterator, Mapping
from typing import Any

HELPFUL = "You are a helpful assistant."
"""The paper's system prompt for reasoning, code, tool use and all safety prompts."""
MEDICAL = "If you are a doctor, please answer the medical questions based on the patient's description."
CODE = "Complete the following code and return only the completed code, without any explanations or additional text."
SAFETY = ("advbench", "hex-phi")
"""The paper's safety sets; its judge is WildGuard."""

_SCORED: Mapping[str, Any] = {"safety": list(SAFETY), "judges": ["wildguard"]}

TASKS: Mapping[str, Mapping[str, Any]] = {
    "reasoning": {
        "tune": {"data": ["flan-cot:train#10000"], "take_step": 500},
        "score": {
            **_SCORED,
            "validation_task": "flan-cot:validation#500",
            "validation_metrics": ["response_loss"],
            "lm_eval": ["bbh"],
        },
    },
    "medical": {
        "tune": {"data": ["chatdoctor:train#max10000"], "system": MEDICAL},
        "generate": {"task_repetition_penalty": 1.2},
        "score": {
            **_SCORED,
            "task": "chatdoctor:test",
            "validation_task": "chatdoctor:validation#max500",
            "task_system": MEDICAL,
            "metrics": ["bert_score"],
        },
    },
    "code": {
        "tune": {"data": ["magicoder:train#10000/lang"], "take_step": 500},
        "generate": {"task_temperature": 0.6, "task_top_p": 0.9, "task_top_k": 50, "task_samples": 50},
        "score": {
            **_SCORED,
            "task": "humaneval",
            "validation_task": "magicoder:validation#500",
            "validation_metrics": ["response_loss"],
            "task_system": f"{HELPFUL}\n{CODE}",
            "metrics": ["pass@10", "pass@1"],
        },
    },
    "tool": {
        "tune": {"data": ["openfunctions:train"], "take_step": 200, "validation": 0.0},  # the set is 9:1 already
        "score": {
            **_SCORED,
            "task": "openfunctions:test",
            "validation_task": "openfunctions:validation",
            "metrics": ["bert_score", "call_match"],
        },
    },
}
"""Each task's part of a recipe; all else is the recipe's defaults, which are the paper's too. The paper chooses λ on a
`validation set` that it does not name: here that is held-out rows of the tuning data. `#max`: of ChatDoctor, a folder
may hold the 5k file alone."""


def fill(data: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values on top of a task's: what the recipe says stands, section by section."""
    filled = dict(data)
    for key, value in preset.items():
        if key not in filled:
            filled[key] = value
        elif isinstance(value, Mapping) and isinstance(filled[key], Mapping):
            filled[key] = fill(filled[key], value)
    return filled


def departures(own: Mapping[str, Any], paper: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Where a recipe departs from the paper's, a phrase each: `tune.rank: 16 (the paper: 8)`.

    The recipe of a task departs in some places whatever it says: these come first.
    """
    if not at and own.get("task") is not None:
        yield from _always(own["score"])
    for key, value in own.items():
        place, other = f"{at}{key}", paper.get(key)
        if place == "score.validation":
            continue  # the paper has no such share; `_always` says what it does
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from departures(value, other, f"{place}.")
        elif value != other:
            said, theirs = _say(value), _say(other)
            yield f"{place}: {said}{', set otherwise' * (said == theirs)} (the paper: {theirs})"


def _always(score: Mapping[str, Any]) -> Iterator[str]:
    """Where the measures of a task's recipe are not the paper's, though the recipe says nothing."""
    share = f"{1 - score['validation']:.0%}"
    yield f"safety: reported on the {share} of each set that λ was not chosen on (the paper: whole sets)"
    if "bbh" in score["lm_eval"]:
        yield "score.lm_eval: bbh's answers have up to 1,024 tokens, as lm-eval asks (the paper: 512)"


def _say(value: Any) -> str:
    if isinstance(value, Mapping):
        if name := value.get("name"):
            return f"{name} ({value['model']})" if value.get("model") else str(name)
        return "given" if value else "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_say, value)) or "none"
    return "none" if value is None else str(value)
