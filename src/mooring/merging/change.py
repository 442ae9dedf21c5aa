"""How much a tensor changed, and what follows from the numbers: relative change, angle, groups, shares kept."""

import dataclasses
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

Histogram = tuple[tuple[int, int], ...]
"""(bin, entries), ascending, without empty bins. An entry's bin is the exponent and the first two mantissa bits of
|δ| in float32; bin 0 is no change."""

_LARGEST = 0x7F7FFFFF
"""The bits of the largest float32."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rank:
    """The effective rank of a change δ, from 64 random probes: both are upper bounds, exact up to rank 64.

    Attributes:
        directions: The fewest singular directions found that carry 90 % of ‖δ‖²; None if 64 do not suffice.
        stable: The stable rank ‖δ‖² / σ₁², σ₁ the largest singular value.
    """

    directions: int | None
    stable: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How much a tensor changed; δ is tuned − base, norms are Frobenius, sums are in float64.

    Attributes:
        name: The tensor.
        shape: Its shape.
        base_square: ‖base‖².
        change_square: ‖δ‖².
        along: ⟨base, δ⟩.
        floating: Whether its type is floating-point; other tensors are never merged.
        histogram: The entries by |δ|; empty if nothing changed.
        rank: For a matrix that changed; None if it was not measured.
    """

    name: str
    shape: tuple[int, ...]
    base_square: float
    change_square: float
    along: float
    floating: bool = True
    histogram: Histogram = dataclasses.field(default=(), repr=False)
    rank: Rank | None = None

    @property
    def entries(self) -> int:
        """How many entries the tensor has."""
        return math.prod(self.shape)

    @property
    def changed(self) -> int:
        """How many entries changed."""
        return sum(count for place, count in self.histogram if place > 0)

    @property
    def tuned_square(self) -> float:
        """‖tuned‖²."""
        return max(0.0, self.base_square + 2 * self.along + self.change_square)

    @property
    def relative(self) -> float:
        """‖δ‖ / ‖base‖; infinite if the base is zero and the tuned model is not."""
        return ratio(self.change_square, self.base_square)

    @property
    def angle(self) -> float | None:
        """The angle between base and tuned, in radians; None if one of them is zero.

        Computed from the part of δ orthogonal to the base, not from a cosine, which cannot resolve angles below 1e-8:
        tan ω = ‖δ⊥‖·‖base‖ / (‖base‖² + ⟨base, δ⟩).
        """
        if self.base_square == 0 or self.tuned_square == 0:
            return None
        across = max(0.0, self.change_square * self.base_square - self.along**2)
        return math.atan2(math.sqrt(across), self.base_square + self.along)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """How much some tensors changed together.

    Attributes:
        relative: ‖δ‖ / ‖base‖ over all of them.
        angle: The largest angle among them, in degrees; None if none has one.
        changed: The share of entries that changed.
        directions: The most directions that any of the changes needs (`Rank.directions`); None if none was measured,
            infinite if one needs more than were probed.
    """

    relative: float
    angle: float | None
    changed: float
    directions: float | None

    @classmethod
    def of(cls, changes: Iterable[Change]) -> "Group":
        """Sum up changes."""
        changes = list(changes)
        angles = [math.degrees(c.angle) for c in changes if c.angle is not None]
        ranks = [c.rank for c in changes if c.rank]
        return cls(
            relative=ratio(math.fsum(c.change_square for c in changes), math.fsum(c.base_square for c in changes)),
            angle=max(angles, default=None),
            changed=sum(c.changed for c in changes) / max(1, sum(c.entries for c in changes)),
            directions=max((math.inf if r.directions is None else r.directions for r in ranks), default=None),
        )


def ratio(change_square: float, base_square: float) -> float:
    """The quotient of two norms, from their squares."""
    if base_square == 0:
        return 0.0 if change_square == 0 else math.inf
    return math.sqrt(change_square / base_square)


def grouped(changes: Iterable[Change], key: Callable[[str], str]) -> dict[str, Group]:
    """Changes summed up by a key of their names, in the order of first occurrence."""
    members: dict[str, list[Change]] = {}
    for change in changes:
        members.setdefault(key(change.name), []).append(change)
    return {name: Group.of(group) for name, group in members.items()}


def kept_share(histogram: Histogram, density: float, gamma: float = 0.0) -> float:
    """The share of ‖δ‖² that remains if the largest `gamma` of the entries are dropped and the next `density` kept.

    Approximate: within a bin, entries are assumed to be spread evenly.
    """
    entries = sum(count for _, count in histogram)
    first = max(0.0, min(gamma, 1 - density)) * entries
    last = first + density * entries
    total = kept = 0.0
    rank = 0
    for place, count in reversed(histogram):
        inside = max(0.0, min(rank + count, last) - max(rank, first))
        total += count * _mean_square(place)
        kept += inside * _mean_square(place)
        rank += count
    return kept / total if total else 1.0


def keep_chances(histogram: Histogram, density: float, epsilon: float) -> Iterator[tuple[float, float]]:
    """(keep probability, share of ‖δ‖²) of each bin under DELLA.

    The probability rises with rank from density − ε for the smallest entry to density + ε for the largest.
    """
    entries = max(1, sum(count for _, count in histogram))
    total = math.fsum(count * _mean_square(place) for place, count in histogram) or 1.0
    rank = 0
    for place, count in histogram:
        middle = (rank + count / 2) / entries
        chance = min(1.0, max(1e-6, density + epsilon * (2 * middle - 1)))
        yield chance, count * _mean_square(place) / total
        rank += count


def _mean_square(place: int) -> float:
    """The mean of x² over a bin of a histogram."""
    if place == 0:
        return 0.0
    ends = (min(bits << 21, _LARGEST) for bits in (place, place + 1))
    low, high = (struct.unpack("<f", struct.pack("<I", bits))[0] for bits in ends)
    return float(low * low + low * high + high * high) / 3


def another_base(changes: Sequence[Change]) -> list[str]:
    """A warning if the tuned model seems to come from another base: tuning seldom moves a model that far.

    Matrices of models trained separately are about orthogonal; those of a fine-tuned model are within a few degrees.
    """
    cosines = [math.cos(c.angle) for c in changes if len(c.shape) == 2 and c.floating and c.angle is not None]
    mean = math.fsum(cosines) / len(cosines) if cosines else 1.0
    whole = Group.of(c for c in changes if c.floating).relative
    if mean >= 0.9 and whole <= 0.5:
        return []
    return [
        f"this looks like it was tuned from another base: the mean cosine between matrices is {mean:.2f}, "
        f"and the change is {whole:.0%} of the base's norm"
    ]
