"""Gentler tunings, which reach some safety by themselves: the baselines that a merge must beat."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

Settings = Mapping[str, Any]
"""The settings of a tuning: a recipe's `tune` section as plain values."""
Change = Callable[[Settings, float], Settings]
"""From the settings and a baseline's number to the fields that it changes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A way of tuning more gently.

    Attributes:
        what: What its number is, for people.
        default: Its number if none is given.
        low: The number must be above this.
        high: The number must be below this; None if it has no such limit.
        change: The fields that it changes.
        same_run: Whether it comes out of the same training as the tuned model.
    """

    what: str
    default: float
    low: float
    high: float | None
    change: Change
    same_run: bool = False


def _lower_rank(tune: Settings, by: float) -> Settings:
    rank = max(1, int(tune["r"] / by))
    return {"r": rank, "lora_alpha": tune["lora_alpha"] * rank / tune["r"]}


KINDS: Mapping[str, Kind] = {
    "gentle-lr": Kind(
        "the learning rate is divided by it", 3, 1, None, lambda tune, by: {"learning_rate": tune["learning_rate"] / by}
    ),
    "low-rank": Kind("the rank is divided by it, at the same α / r", 4, 1, None, _lower_rank),
    "early-stop": Kind(
        "the share of the steps that are done",
        0.5,
        0,
        1,
        lambda tune, share: {"early_stop": share * (tune["early_stop"] or 1)},
        same_run=True,
    ),
    "ema": Kind(
        "the decay of an exponential moving average of the adapter's weights",
        0.99,
        0,
        1,
        lambda tune, decay: {"ema": decay},
        same_run=True,
    ),
    "kl": Kind("the weight of KL(base ‖ tuned) on ordinary answers", 1, 0, None, lambda tune, weight: {"kl": weight}),
}
"""The kinds by name, in the order of the documentation."""


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
    """A gentler tuning: its kind and its number, such as `gentle-lr:3`."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> "Baseline":
        """A baseline from its text: `gentle-lr`, or with its number `gentle-lr:3`.

        Raises:
            ValueError: There is no such kind, or its number is out of range; the message says what is known.
        """
        name, _, number = text.strip().partition(":")
        kind = KINDS.get(name)
        if kind is None:
            near = difflib.get_close_matches(name, KINDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(KINDS)}"
            raise ValueError(f"there is no gentler tuning {name!r}: {hint}")
        try:
            value = float(number) if number else kind.default
        except ValueError:
            raise ValueError(f"{name}: {number!r} is not a number ({kind.what})") from None
        if not (kind.low < value and value < (float("inf") if kind.high is None else kind.high)):  # NaN fails too
            below = "" if kind.high is None else f" and below {kind.high:g}"
            raise ValueError(f"{name}: {kind.what}, and must be above {kind.low:g}{below}")
        return cls(name, value)

    @property
    def text(self) -> str:
        """The text that it is parsed from, its number written out."""
        return f"{self.kind}:{self._number}"

    @property
    def key(self) -> str:
        """A name for ids and files: `gentle-lr-3`."""
        return f"{self.kind}-{self._number}"

    @property
    def _number(self) -> str:
        """The shortest text that stands for the number."""
        return repr(float(self.value)).removesuffix(".0")

    @property
    def same_run(self) -> bool:
        """Whether it comes out of the same training as the tuned model."""
        return KINDS[self.kind].same_run

    def changes(self, settings: Settings) -> Settings:
        """The fields of the settings of a tuning that it changes, and their values."""
        return KINDS[self.kind].change(settings, self.value)
