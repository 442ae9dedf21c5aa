"""What `parity.py` merges with both programs, and on which tensors and entries they are the same function."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from parity_numbers import cosine, opened, tied

TIGHT, LOOSE = 1e-6, 1e-4
THRESHOLD = 0.9995
"""mergekit's SLERP turns into Linear above this cosine."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One setting that both merge.

    Attributes:
        method: Its name, the same in both.
        tuned: Folders of the tuned models.
        lam: λ.
        bound: The greatest ‖ours − theirs‖ / ‖theirs‖.
        more: `density`, `gamma`, `epsilon`, `normalize`; `rescale` is mergekit's, `l1`, where there is one.
    """

    method: str
    tuned: tuple[str, ...]
    lam: float
    bound: float = TIGHT
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def angles(self) -> bool:
        """Whether the method takes the tensors' angles, for which mergekit's float32 is too coarse to compare with."""
        return self.method in ("slerp", "model_stock", "karcher")

    def __str__(self) -> str:
        return ", ".join([f"λ {self.lam:.3g}", *(f"{key} {value}" for key, value in self.more.items())])


ONE, TWO = ("tuned",), ("tuned", "other")
WHOLE = {"density": 1.0}
EXACT = (
    Case("linear", ONE, 0.6),
    Case("linear", TWO, 0.6),
    Case("slerp", ("far",), 0.6),
    Case("task_arithmetic", TWO, 0.7),
    Case("ties", ONE, 0.7, more={"density": 0.5}),
    Case("ties", TWO, 0.7, more={"density": 0.5}),
    Case("ties", TWO, 0.7, more={"density": 0.2, "normalize": False}),
    Case("breadcrumbs", TWO, 0.7, more={"density": 0.9, "gamma": 0.01}),
    Case("breadcrumbs_ties", TWO, 0.7, more={"density": 0.9, "gamma": 0.01}),
    Case("model_stock", TWO, 1.0),
    Case("model_stock", ("tuned", "other", "far"), 1.0),
    Case("karcher", TWO, 2 / 3, LOOSE),
    Case("karcher", ("tuned", "far"), 2 / 3, LOOSE),
    Case("dare_linear", TWO, 0.7, more=WHOLE),
    Case("dare_ties", TWO, 0.7, more=WHOLE),
    Case("della", TWO, 0.7, more=WHOLE),
    Case("della_linear", TWO, 0.7, more=WHOLE),
)
HALF = {"density": 0.5}
RANDOM = (
    Case("dare_linear", ONE, 0.7, more=HALF),
    Case("dare_linear", ONE, 0.7, more={"density": 0.1}),
    Case("dare_ties", TWO, 0.7, more=HALF),
    Case("della", ONE, 0.7, more=HALF | {"epsilon": 0.15}),
    Case("della_linear", ONE, 0.7, more=HALF | {"epsilon": 0.15}),
)


def comparable(case: Case, models: Path) -> tuple[list[str], str]:
    """The tensors on which both are the same function, and why the others are left out."""
    base, tuned = opened(models / "base"), [opened(models / name) for name in case.tuned]
    names = sorted(base)
    if case.method == "slerp":
        kept = [name for name in names if abs(cosine(base[name], tuned[0][name])) <= THRESHOLD]
        return kept, f"{len(names) - len(kept)} tensors where mergekit uses Linear"
    if case.method == "model_stock":
        kept = [name for name in names if _mean_cosine(base[name], [other[name] for other in tuned]) >= 0]
        return kept, f"{len(names) - len(kept)} tensors whose ratio is clamped" if len(kept) < len(names) else ""
    return names, ""


def _mean_cosine(base: torch.Tensor, tuned: Sequence[torch.Tensor]) -> float:
    """Of the changes, over pairs."""
    changes = [other.double() - base.double() for other in tuned]
    pairs = [cosine(a, b) for i, a in enumerate(changes) for b in changes[i + 1 :]]
    return sum(pairs) / len(pairs)


def left_open(case: Case, models: Path) -> Callable[[str], torch.Tensor | None]:
    """For a tensor's name, the entries that a method by rank may keep or drop: they tie at a threshold."""
    base, tuned = opened(models / "base"), [opened(models / name) for name in case.tuned]

    def mask(name: str) -> torch.Tensor | None:
        if not case.method.startswith(("ties", "breadcrumbs")):
            return None
        found = torch.zeros_like(base[name], dtype=torch.bool)
        count = found.numel()
        kept = int(case.more["density"] * count)
        first = max(0, count - kept - int(case.more.get("gamma", 0) * count))
        for other in tuned:
            found |= tied(other[name] - base[name], first, first + kept)
        return found

    return mask
