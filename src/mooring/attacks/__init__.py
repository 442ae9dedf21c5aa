"""Attacks: ways of asking that may get around a model's refusal, as pure functions from prompts to prompts.

Each technique is in a file of its own, and `TECHNIQUES` lists them. None searches for an attack.
"""

import difflib

from mooring.attacks.artifacts import ARTIFACTS
from mooring.attacks.attack import Attack, Option, Technique
from mooring.attacks.best_of_n import BEST_OF_N, SAMPLES
from mooring.attacks.encodings import ENCODINGS
from mooring.attacks.instructions import INSTRUCTIONS
from mooring.attacks.many_shot import MANY_SHOT
from mooring.attacks.multi_turn import MULTI_TURN
from mooring.attacks.names import NONE, attack_of, kind_of, under, without_attack
from mooring.attacks.past_tense import PAST_TENSE
from mooring.attacks.prefill import PREFILL, PREFILL_TUNED
from mooring.attacks.role_play import ROLE_PLAY
from mooring.attacks.translation import TRANSLATION
from mooring.plugins import Registry

__all__ = [
    "NONE",
    "TECHNIQUES",
    "Attack",
    "Option",
    "Technique",
    "attack_of",
    "kind_of",
    "parse",
    "under",
    "without_attack",
]

_ALL = (
    PREFILL,
    PREFILL_TUNED,
    PAST_TENSE,
    ROLE_PLAY,
    *INSTRUCTIONS,
    *ENCODINGS,
    TRANSLATION,
    MANY_SHOT,
    MULTI_TURN,
    ARTIFACTS,
    SAMPLES,
    BEST_OF_N,
)
TECHNIQUES: Registry[Technique] = Registry("attacks", _ALL)
"""The techniques by name, in the order of the documentation."""


def parse(text: str) -> Attack:
    """An attack from its text, such as `prefill:8`.

    Raises:
        ValueError: There is no such technique, or its option is missing or wrong; the message says what is known.
    """
    name, colon, argument = text.partition(":")
    technique = TECHNIQUES.get(name)
    if technique is None:
        near = difflib.get_close_matches(name, TECHNIQUES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known attacks: {', '.join((NONE, *TECHNIQUES))}"
        raise ValueError(f"there is no attack {name!r}: {hint}")
    option = technique.option
    if option is None:
        if colon:
            raise ValueError(f"{name} has no option: leave out `:{argument}`")
        return Attack(technique)
    argument = argument or option.default or ""
    if not argument:
        raise ValueError(f"{name}: {option.what}")
    try:
        value = option.parse(argument)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Attack(technique, argument, value)
