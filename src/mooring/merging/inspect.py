"""Look at two models before merging them: do they belong together, what did the tuning change, what will it cost."""

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mooring.errors import UserError
from mooring.files import gibibytes
from mooring.merging.change import Change, Group, another_base, grouped, keep_chances, kept_share, module, stacks
from mooring.merging.compatibility import warnings
from mooring.merging.inputs import Inputs, Target, open_inputs
from mooring.merging.job import depths
from mooring.merging.measure import Extent, Measured, measure
from mooring.merging.slices import Slice
from mooring.models import is_adapter

# --- What each method would do to two models, from the numbers of `change` alone: no merge is ---


DENSITY, GAMMA, EPSILON = 0.5, 0.01, 0.15
"""What the sparse methods are told of here: half of the entries kept, Breadcrumbs' and DELLA's usual γ and ε."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Where a method would put the merged model.

    Attributes:
        methods: Its name; more than one where, with one tuned model, they come to the same.
        from_base: ‖merged − base‖ / ‖δ‖ over the whole model; None where it needs a second tuned model.
        from_tuned: ‖merged − tuned‖ / ‖δ‖, likewise.
        remark: What is worth knowing, in a line.
    """

    methods: tuple[str, ...]
    from_base: float | None
    from_tuned: float | None
    remark: str


Squares = Callable[[Change], tuple[float, float]]
"""A tensor to ‖merged − base‖² and ‖merged − tuned‖²."""


def outlook(changes: Iterable[Change], lam: float) -> tuple[Outlook, ...]:
    """What each method would do at λ; of DARE and DELLA what is to be expected, of those that rank entries about.

    Args:
        changes: Every tensor.
        lam: λ, the weight of the tuned model, from 0 to 1.
    """
    merged = [c for c in changes if c.floating and c.change_square > 0]
    total = math.fsum(c.change_square for c in merged)
    if not total:
        return ()
    depth = depths(c.name for c in merged)

    def told(methods: Sequence[str], squares: Squares, remark: str) -> Outlook:
        both = [squares(c) for c in merged]
        near, far = (math.sqrt(max(0.0, math.fsum(values)) / total) for values in zip(*both, strict=True))
        return Outlook(methods=tuple(methods), from_base=near, from_tuned=far, remark=remark)

    def ramp(c: Change) -> tuple[float, float]:
        return _scaled(c, lam * depth[c.name])

    def kept(density: float, gamma: float = 0.0) -> float:
        return _share(merged, total, lambda c: kept_share(c.histogram, density, gamma))

    noise = lam * math.sqrt((1 - DENSITY) / DENSITY)
    della = lam * math.sqrt(_share(merged, total, _della_noise))
    sparse = f"at density {DENSITY:g}"
    return (
        told(["linear", "task_arithmetic"], lambda c: _scaled(c, lam), f"keeps {lam:.0%} of the change everywhere"),
        told(["slerp"], lambda c: _slerp(c, lam), _slerp_remark(merged, total, lam)),
        told(["karcher"], lambda c: _karcher(c, lam), "with one tuned model: SLERP of directions, the mean of norms"),
        told(["lines"], ramp, f"λ rises from 0 in the first layer to {lam:g} in the last"),
        told(
            ["ties"],
            lambda c: _thinned(c, lam, kept_share(c.histogram, DENSITY)),
            f"{sparse} keeps about {kept(DENSITY):.0%} of ‖δ‖², at 0.2 about {kept(0.2):.0%}; nothing to elect",
        ),
        told(
            ["breadcrumbs", "breadcrumbs_ties"],
            lambda c: _thinned(c, lam, kept_share(c.histogram, DENSITY, GAMMA)),
            f"{sparse}, the largest {GAMMA:.0%} dropped, keeps about {kept(DENSITY, GAMMA):.0%} of ‖δ‖²",
        ),
        told(
            ["dare_linear", "dare_ties"],
            lambda c: _noisy(c, lam, (1 - DENSITY) / DENSITY),
            f"{sparse} adds noise of {noise:.2f} ‖δ‖ to linear",
        ),
        told(
            ["della", "della_linear"],
            lambda c: _noisy(c, lam, _della_noise(c)),
            f"{sparse} ± {EPSILON:g} adds noise of about {della:.2f} ‖δ‖ to linear",
        ),
        Outlook(methods=("model_stock",), from_base=None, from_tuned=None, remark="needs two tuned models or more"),
    )


def _share(changes: Sequence[Change], total: float, share: Callable[[Change], float]) -> float:
    """The mean of a number over tensors, weighted by ‖δ‖²."""
    return math.fsum(share(c) * c.change_square for c in changes) / total


def _scaled(c: Change, lam: float) -> tuple[float, float]:
    """base + λδ."""
    return lam**2 * c.change_square, (1 - lam) ** 2 * c.change_square


def _thinned(c: Change, lam: float, share: float) -> tuple[float, float]:
    """base + λ·(the entries of δ that hold this share of ‖δ‖²); the others stay the base's."""
    return lam**2 * share * c.change_square, ((1 - lam) ** 2 * share + 1 - share) * c.change_square


def _noisy(c: Change, lam: float, variance: float) -> tuple[float, float]:
    """base + λ·(δ + noise of mean 0 and a variance of so many ‖δ‖²), in expectation."""
    noise = lam**2 * variance * c.change_square
    near, far = _scaled(c, lam)
    return near + noise, far + noise


def _della_noise(c: Change) -> float:
    """Variance that DELLA's dropping adds, in ‖δ‖²: the sum of (1/p − 1)·δ², p the chance of being kept."""
    return math.fsum((1 / chance - 1) * share for chance, share in keep_chances(c.histogram, DENSITY, EPSILON))


def _combined(c: Change, excess: float, weight: float) -> tuple[float, float]:
    """(1 + excess)·base + weight·δ, from the Gram matrix of base and δ."""

    def square(w: float) -> float:
        return max(0.0, excess**2 * c.base_square + 2 * excess * w * c.along + w**2 * c.change_square)

    return square(weight), square(weight - 1)


def arc(angle: float | None, lam: float) -> tuple[float, float]:
    """SLERP as (1 + e)·base + w·δ: (e, w), e without cancellation at small angles; Linear's where there is no angle.

    sin((1−λ)ω) + sin(λω) − sin ω = 4·sin(λω/2)·sin((1−λ)ω/2)·sin(ω/2), hence e = 2·sin(λω/2)·sin((1−λ)ω/2)/cos(ω/2).
    """
    if angle is None or angle < 1e-150 or angle > math.pi - 1e-6:
        return 0.0, lam
    excess = 2 * math.sin(lam * angle / 2) * math.sin((1 - lam) * angle / 2) / math.cos(angle / 2)
    return excess, math.sin(lam * angle) / math.sin(angle)


def _slerp(c: Change, lam: float) -> tuple[float, float]:
    return _combined(c, *arc(c.angle, lam))


def _karcher(c: Change, lam: float) -> tuple[float, float]:
    """SLERP of base/‖base‖ and tuned/‖tuned‖, times (1−λ)·‖base‖ + λ·‖tuned‖."""
    if c.angle is None or c.angle > math.pi - 1e-6:
        return _scaled(c, lam)
    base, tuned = math.sqrt(c.base_square), math.sqrt(c.tuned_square)
    norm = (1 - lam) * base + lam * tuned
    excess, second = arc(c.angle, lam)
    first = 1 + excess - second
    return _combined(c, norm * (first / base + second / tuned) - 1, norm * second / tuned)


def _slerp_remark(changes: Sequence[Change], total: float, lam: float) -> str:
    """The largest angle, and how far SLERP lies from Linear."""
    angles: Mapping[str, float] = {c.name: c.angle for c in changes if c.angle is not None}
    if not angles:
        return "no tensor has an angle: the same as linear"
    widest = max(angles, key=lambda name: angles[name])

    def apart(c: Change) -> float:
        excess, weight = arc(c.angle, lam)
        return _combined(c, excess, weight - lam)[0]

    departs = math.sqrt(math.fsum(apart(c) for c in changes) / total)
    return f"{departs:.2g} ‖δ‖ away from linear; largest angle {math.degrees(angles[widest]):.3g}° ({widest})"


MERGE_MEMORY = 300 * 2**20
"""About what a merge holds, in bytes, Python and torch included: it works in slices, whatever the model."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a merge takes.

    Attributes:
        read_bytes: Bytes of weights that it reads, in one pass.
        write_bytes: Bytes of weights that it writes.
        memory_bytes: About what it holds in memory.
        free_bytes: What is free on the disk of the folder that one works in.
        seconds: About how long one pass takes, at the speed at which this inspection read; None where it read nothing.
    """

    read_bytes: int
    write_bytes: int
    memory_bytes: int
    free_bytes: int
    seconds: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        base: The base's folder.
        tuned: The tuned model's folder.
        kind: `checkpoint`, or `lora` for an adapter.
        problems: Why they cannot be merged, a sentence each.
        warnings: What to know before merging.
        equal: Whether the tuned model equals the base, so that a merge would change nothing.
        changes: Every tensor, in the base's order; empty where the two do not match.
        decisions: Tensor to what a merge will decide about it, where that is not plain.
        methods: What each method would do.
        lam: λ that `methods` is about.
        cost: What a merge takes; None where the two do not match.
    """

    base: str
    tuned: str
    kind: str
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    equal: bool = False
    changes: tuple[Change, ...] = ()
    decisions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    methods: tuple[Outlook, ...] = ()
    lam: float = 0.5
    cost: Cost | None = None

    def by_module(self) -> dict[str, Group]:
        """Changes by kind of module (`self_attn.q_proj.weight`, over all layers); else by name."""
        several = len(stacks(self.changes)) > 1

        def key(name: str) -> str:
            place = module(name)
            return name if place is None else f"{place[0]}.*.{place[2]}" if several else place[2]

        return grouped(self.changes, key)

    def by_layer(self) -> dict[str, Group]:
        """Changes by layer, in order; what is outside the layers goes by its name."""
        several = len(stacks(self.changes)) > 1

        def key(name: str) -> str:
            place = module(name)
            return name if place is None else f"{place[0]}.{place[1]}" if several else f"layer {place[1]}"

        ordered = sorted(self.changes, key=lambda c: place[:2] if (place := module(c.name)) else ("", -1))
        return grouped(ordered, key)

    def whole(self) -> Group:
        """The whole model's change."""
        return Group.of(self.changes)


def inspect(
    base: str | Path,
    tuned: str | Path,
    *,
    lam: float = 0.5,
    quick: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Compare a base and a tuned model; reads both once, a slice at a time, and writes nothing.

    What forbids a merge is not raised but listed in `problems`. Memory stays bounded, whatever the models.

    Args:
        base: Folder of the base.
        tuned: Folder of the tuned model or LoRA adapter.
        lam: λ for which to say what each method would do.
        quick: Leave out the effective ranks, which are about half of the arithmetic.
        threads: How many work at once; as many as cores, up to 4, where it is not given.
        progress: Told (bytes of the base done, bytes of the base).

    Raises:
        UserError: λ lies outside [0, 1].
    """
    if not 0 <= lam <= 1:
        raise UserError(f"λ is {lam}", "give a number from 0 (the base) to 1 (the tuned model)")
    base, tuned = Path(base), Path(tuned)
    found = Inspection(
        base=str(base), tuned=str(tuned), kind="lora" if is_adapter(tuned) else "checkpoint", lam=float(lam)
    )
    try:
        with open_inputs(base, [tuned]) as inputs:
            measured = measure(
                {name: _extent(target) for name, target in inputs.targets.items()},
                lambda piece, buffers: _read(inputs, piece, buffers),
                ranks=not quick,
                threads=threads,
                progress=progress,
            )
            equal = measured.equal and not any(target.rest for target in inputs.targets.values())
            return dataclasses.replace(
                found,
                problems=tuple(_problems(measured, equal, base, tuned)),
                warnings=(*warnings(base, tuned, inputs.tokenizer), *another_base(measured.changes)),
                equal=equal,
                changes=measured.changes,
                decisions=dict(inputs.decisions),
                methods=outlook(measured.changes, lam),
                cost=_cost(inputs, measured, threads),
            )
    except UserError as error:
        return dataclasses.replace(found, problems=(str(error),))


def _extent(target: Target) -> Extent:
    row = max(1, math.prod(target.shape[1:]))
    shape = target.shape if target.shared == target.numel else (target.shared // row, *target.shape[1:])
    return Extent(target.name, target.dtype, shape)


def _read(inputs: Inputs, piece: Slice, buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    base, (tuned,) = inputs.read(inputs.targets[piece.name], piece.start, piece.stop, buffers)
    return base, tuned


def _problems(measured: Measured, equal: bool, base: Path, tuned: Path) -> Iterator[str]:
    if equal:
        yield "the tuned model equals the base: a merge would change nothing"
    for name, side in measured.broken.items():
        yield f"{base if side == 'base' else tuned}: {name} holds NaN or Inf"
    for change in measured.changes:
        if not change.floating and change.change_square:
            yield f"{tuned}: {change.name} differs, and holds whole numbers, which cannot be merged"


def _cost(inputs: Inputs, measured: Measured, threads: int | None) -> Cost:
    read = sum(info.nbytes for model in inputs.models for info in model.tensors.values())
    write = sum(target.numel * target.dtype.itemsize for target in inputs.targets.values())
    wall = measured.read_seconds / (threads or min(4, os.cpu_count() or 1))
    return Cost(
        read_bytes=read,
        write_bytes=write,
        memory_bytes=MERGE_MEMORY,
        free_bytes=shutil.disk_usage(Path.cwd()).free,
        seconds=wall * (read + write) / read if read and wall else None,
    )


def as_table(found: Inspection) -> dict[str, Any]:
    """An inspection as plain values for printing or JSON: a verdict, what changed, what methods do, what it costs.

    What is infinite or not measured is None; `directions` is ">64" where a change needs more than were probed.
    """
    table: dict[str, Any] = {
        "base": found.base,
        "tuned": found.tuned,
        "kind": found.kind,
        "verdict": "cannot be merged" if found.problems else "can be merged",
        "problems": list(found.problems),
        "warnings": list(found.warnings),
        "equal": found.equal,
        "tensors": len(found.changes),
        "changed": sum(c.change_square > 0 for c in found.changes),
        "whole": plain(found.whole()),
        "by_module": {name: plain(group) for name, group in found.by_module().items()},
        "by_layer": {name: plain(group) for name, group in found.by_layer().items()},
        "by_tensor": {c.name: {"shape": list(c.shape), **plain(Group.of([c])), **_rank(c)} for c in found.changes},
        "decisions": dict(found.decisions),
        "lambda": found.lam,
        "methods": [dataclasses.asdict(m) | {"methods": list(m.methods)} for m in found.methods],
    }
    if found.cost:
        sizes = dataclasses.asdict(found.cost)
        words = {name.removesuffix("_bytes"): gibibytes(sizes[name]) for name in sizes if name.endswith("_bytes")}
        table["cost"] = sizes | words
    return table


def plain(group: Group) -> dict[str, Any]:
    """A group's numbers as plain values."""
    directions: Any = group.directions
    if directions is not None:
        directions = ">64" if math.isinf(directions) else int(directions)
    return {
        "relative_change": group.relative if math.isfinite(group.relative) else None,
        "largest_angle_degrees": group.angle,
        "entries_changed": group.changed,
        "directions": directions,
    }


def _rank(change: Change) -> dict[str, Any]:
    return {"stable_rank": change.rank.stable if change.rank else None}
