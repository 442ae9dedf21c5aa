"""Names of sets under attack, and of their scores: `safety+prefill:8` is scored as `asr+prefill:8`."""

from typing import cast

from mooring.records import Kind

NONE = "none"
"""The name of asking directly, which is no attack."""
SEPARATOR = "+"


def under(name: str, attack: str) -> str:
    """The name of a set, or of a score, under an attack: itself for `none`."""
    return name if attack == NONE else f"{name}{SEPARATOR}{attack}"


def attack_of(name: str) -> str:
    """The attack in the name of a set or a score; `none` if there is none."""
    return name.partition(SEPARATOR)[2].partition("@")[0] or NONE


def without_attack(name: str) -> str:
    """The name of a set or a score without its attack; the judge of a score stays."""
    first, _, rest = name.partition(SEPARATOR)
    judge = rest.partition("@")[2]
    return f"{first}@{judge}" if judge else first


def kind_of(name: str) -> Kind:
    """What the prompts of a set are for."""
    return cast(Kind, name.partition(SEPARATOR)[0])
