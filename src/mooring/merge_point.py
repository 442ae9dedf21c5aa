"""λ as a value: one point between the base and the tuned model, in a run of one method or of several."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Literal

from mooring.errors import RecipeError
from mooring.export import Record

Role = Literal["base", "tuned", "merged"]
NAMED_GROUPS = 15
"""Maximum number of groups of modules that the label of a point names one by one: all of a mixture of experts."""


@dataclasses.dataclass(frozen=True, slots=True)
class MergePoint(Record):
    """A model of a run: θ = (1−λ)·base + λ·tuned, with other λ for some groups of modules if `overrides` says so.

    It is built once where text enters (`parse`) or by a search, and passed on unopened: no other place decides what λ
    means, formats it, or reads it from a name.

    Args:
        lam: λ, the weight of the tuned model, from 0 (the base) to 1 (the tuned model).
        overrides: λ of groups of modules, such as `{"early attention": 0.2}`; `lam` applies to all else. Groups whose λ
            is `lam` are dropped.

    Raises:
        RecipeError: A λ is not from 0 to 1 (`recipe.lam_out_of_range`).
    """

    lam: float
    overrides: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in (self.lam, *self.overrides.values()):
            if not 0 <= value <= 1:  # NaN fails too
                raise RecipeError(
                    f"λ = {value:g} is not from 0 (the base) to 1 (the tuned model)",
                    "give a λ such as 0.5",
                    code="recipe.lam_out_of_range",
                )
        object.__setattr__(self, "lam", float(self.lam))
        changed = {name: float(value) for name, value in self.overrides.items() if value != self.lam}
        object.__setattr__(self, "overrides", changed)

    def __hash__(self) -> int:
        return hash((self.lam, frozenset(self.overrides.items())))

    def __lt__(self, other: "MergePoint") -> bool:
        return self._order < other._order

    def __repr__(self) -> str:
        return f"MergePoint({self.lam:g}, {dict(self.overrides)})" if self.overrides else f"MergePoint({self.lam:g})"

    @classmethod
    def parse(cls, text: str) -> "MergePoint":
        """Read a single λ that a person typed, such as `0.4`.

        Raises:
            RecipeError: It is not a number (`recipe.lam_not_a_number`), or not from 0 to 1.
        """
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise RecipeError(f"λ: {text!r} is not a number", "give a λ such as 0.5", code="recipe.lam_not_a_number")
        return cls(value)

    @property
    def by_module(self) -> bool:
        """Whether λ differs between groups of modules."""
        return bool(self.overrides)

    @property
    def is_base(self) -> bool:
        """Whether this is the base itself."""
        return self.lam == 0 and not self.by_module

    @property
    def is_tuned(self) -> bool:
        """Whether this is the tuned model itself."""
        return self.lam == 1 and not self.by_module

    @property
    def role(self) -> Role:
        """`base`, `tuned` or `merged`."""
        return "base" if self.is_base else "tuned" if self.is_tuned else "merged"

    @property
    def key(self) -> str:
        """A short text that is equal for equal points, for JSON keys: `0.4`, or `0.4;early attention=0.2`; a digest if
        λ differs for many groups."""
        changed = [f"{name}={value:g}" for name, value in sorted(self.overrides.items())]
        if len(changed) > NAMED_GROUPS:
            changed = [f"{len(changed)} groups {_digest(changed)}"]
        return ";".join([f"{self.lam:g}", *changed])

    @property
    def folder(self) -> str:
        """The name of a folder for this model's files: `lam-0.4`; a digest if λ differs by module."""
        if not self.by_module:
            return f"lam-{self.lam:g}"
        return f"modules-{_digest(self.key)}"

    @property
    def label(self) -> str:
        """What people read: `base`, `tuned`, `λ = 0.4`, or `λ by module (early attention 0.2, else 0.4)`."""
        if self.role != "merged":
            return self.role
        return f"λ by module ({self.groups_label})" if self.by_module else lam_label(self.lam)

    @property
    def long_label(self) -> str:
        """As `label`, with λ: `base (λ = 0)`, `tuned (λ = 1)`."""
        return self.label if self.role == "merged" else f"{self.role} ({lam_label(self.lam)})"

    @property
    def groups_label(self) -> str:
        """The groups whose λ differs, then the λ of all else: `early attention 0.2, else 0.4`; of many groups their
        number and range: `60 groups 0.1 … 0.9, else 0.4`."""
        changed = [f"{name} {value:g}" for name, value in self.overrides.items()]
        if len(changed) > NAMED_GROUPS:
            values = self.overrides.values()
            changed = [f"{len(changed)} groups {min(values):g} … {max(values):g}"]
        return ", ".join([*changed, f"else {self.lam:g}"])

    @property
    def single(self) -> "MergePoint":
        """The same λ for all modules."""
        return MergePoint(self.lam)

    @property
    def _order(self) -> tuple[float, str]:
        return self.lam, self.key


BASE, TUNED = MergePoint(0.0), MergePoint(1.0)


def _digest(value: object) -> str:
    """Twelve hexadecimal digits that are equal for equal JSON values."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True, slots=True)
class Series(Record):
    """What λ is a λ of, in a run that compares several: a method, a tuned model, and the seed of a random mask.

    Attributes:
        method: A name in `merge_methods.METHODS`; empty for a tuned model by itself.
        tuned: The tuned model's name in the run; empty if all are merged, or if there is only one.
        seed: The seed of the mask; None if it is the run's, or if the method draws none.
        has_lam: Whether λ is chosen; if not, the series is a single point (Model Stock).
    """

    method: str = ""
    tuned: str = ""
    seed: int | None = None
    has_lam: bool = True

    @property
    def key(self) -> str:
        """A short text that is equal for equal series, for ids and the names of files: `dare_linear-seed1-mask43`."""
        mask = "" if self.seed is None else f"mask{self.seed}"
        return "-".join(filter(None, (self.method, self.tuned, mask)))

    @property
    def label(self) -> str:
        """What people read: `dare_linear, seed1, mask 43`."""
        mask = "" if self.seed is None else f"mask {self.seed}"
        return ", ".join(filter(None, (self.method, self.tuned, mask)))

    def at(self, point: MergePoint) -> MergePoint:
        """A point of this series. The base is none of it: all series share it."""
        return BASE if point.is_base else SeriesPoint(point.lam, point.overrides, self)


@dataclasses.dataclass(frozen=True, slots=True)
class SeriesPoint(MergePoint):
    """A model of a run that compares several series: a λ, and what it is a λ of."""

    series: Series = Series()

    def __hash__(self) -> int:
        return hash((self.lam, frozenset(self.overrides.items()), self.series))

    @property
    def is_tuned(self) -> bool:
        """Whether this is a tuned model itself. A method without λ merges them, whatever `lam` is."""
        return self.lam == 1 and not self.by_module and self.series.has_lam

    @property
    def key(self) -> str:
        """As that of `MergePoint`, after that of the series: `slerp-seed1:0.4`."""
        return f"{self.series.key}:{self.plain.key}"

    @property
    def folder(self) -> str:
        """The name of a folder for this model's files: `slerp-seed1-lam-0.4`."""
        return f"{self.series.key}-{self.plain.folder}" if self.series.has_lam else self.series.key

    @property
    def label(self) -> str:
        """What people read: `tuned (seed1)`, `λ = 0.4 (slerp, seed1)`, `merged (model_stock)`."""
        where = self.plain.label if self.series.has_lam else "merged"
        return f"{where} ({self.series.label})"

    @property
    def plain(self) -> MergePoint:
        """The point without its series."""
        return MergePoint(self.lam, self.overrides)

    @property
    def single(self) -> MergePoint:
        """The same λ for all modules."""
        return SeriesPoint(self.lam, {}, self.series)


def plain(point: MergePoint) -> MergePoint:
    """A point without its series."""
    return point.plain if isinstance(point, SeriesPoint) else point


def lam_label(*values: float) -> str:
    """What people read for a λ, `λ = 0.4`, or for one per layer, `λ = 0.2 … 0.4`."""
    return f"λ = {' … '.join(f'{value:g}' for value in values)}"


def grid(lambdas: Iterable[float]) -> tuple[MergePoint, ...]:
    """Points of single λ, in ascending order, each once."""
    return tuple(sorted({MergePoint(lam) for lam in lambdas}))
