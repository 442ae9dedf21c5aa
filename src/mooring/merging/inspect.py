"""Inspect two models before merging: whether they can be merged, what tuning changed, what each method would do."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mooring.errors import UserError
from mooring.events import OnEvent
from mooring.export import Record
from mooring.files import gibibytes
from mooring.merge_methods import METHODS
from mooring.merging.change import Change, Group, another_base, grouped, keep_chances, kept_share
from mooring.merging.compatibility import pair_warnings
from mooring.merging.job import check_lam
from mooring.merging.layers import depths, layer_labels, module
from mooring.merging.measure import Extent, Measured, measure
from mooring.merging.pair import ModelPair, OutputTensor, open_pair
from mooring.merging.slices import Slice, default_threads
from mooring.models import Adapter, is_adapter

Kind = Literal["checkpoint", "lora"]

DENSITY = 0.5
GAMMA: float = METHODS["breadcrumbs"].options["gamma"]
EPSILON: float = METHODS["della"].options["epsilon"]
"""The options that sparse methods are estimated with: half of the entries kept, the default γ and ε."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """An estimate of where a method would put the merged model.

    Attributes:
        methods: Its name; several if, with one tuned model, they give the same.
        from_base: ‖merged − base‖ / ‖δ‖ over the whole model; None if the method needs further models, or is not
            estimated.
        from_tuned: ‖merged − tuned‖ / ‖δ‖; None likewise.
        remark: A note in one line.
    """

    methods: tuple[str, ...]
    from_base: float | None
    from_tuned: float | None
    remark: str


Squares = Callable[[Change], tuple[float, float]]
"""A tensor to ‖merged − base‖² and ‖merged − tuned‖²."""


def outlook(changes: Iterable[Change], lam: float) -> tuple[Outlook, ...]:
    """What each method would do at a λ from 0 to 1: the expectation for DARE and DELLA, approximate for ranking."""
    merged = [c for c in changes if c.floating and c.change_square > 0]
    total = math.fsum(c.change_square for c in merged)
    if not total:
        return ()
    depth = depths(c.name for c in merged)

    def kept(density: float, gamma: float = 0.0) -> float:
        return _share(merged, total, lambda c: kept_share(c.histogram, density, gamma))

    variance = (1 - DENSITY) / DENSITY
    noise, della = lam * math.sqrt(variance), lam * math.sqrt(_share(merged, total, _della_noise))
    sparse = f"at density {DENSITY:g}"
    estimates: list[tuple[tuple[str, ...], Squares, str]] = [
        (
            ("linear", "task_arithmetic", "multislerp"),
            lambda c: _scaled(c, lam),
            f"keeps {lam:.0%} of the change everywhere",
        ),
        (("slerp", "nuslerp"), lambda c: _combined(c, *arc(c.angle, lam)), _slerp_remark(merged, total, lam)),
        (("karcher",), lambda c: _karcher(c, lam), "with one tuned model: SLERP of directions, the mean of norms"),
        (
            ("lines",),
            lambda c: _scaled(c, lam * depth[c.name]),
            f"λ rises from 0 in the first layer to {lam:g} in the last",
        ),
        (
            ("ties",),
            lambda c: _sparsified(c, lam, kept_share(c.histogram, DENSITY)),
            f"{sparse} keeps about {kept(DENSITY):.0%} of ‖δ‖², at 0.2 about {kept(0.2):.0%}; nothing to elect",
        ),
        (
            ("breadcrumbs", "breadcrumbs_ties"),
            lambda c: _sparsified(c, lam, kept_share(c.histogram, DENSITY, GAMMA)),
            f"{sparse}, the largest {GAMMA:.0%} dropped, keeps about {kept(DENSITY, GAMMA):.0%} of ‖δ‖²",
        ),
        (
            ("dare_linear", "dare_ties"),
            lambda c: _noisy(c, lam, variance),
            f"{sparse} adds noise of {noise:.2f} ‖δ‖ to linear",
        ),
        (
            ("della", "della_linear"),
            lambda c: _noisy(c, lam, _della_noise(c)),
            f"{sparse} ± {EPSILON:g} adds noise of about {della:.2f} ‖δ‖ to linear",
        ),
    ]
    outlooks = []
    for methods, squares, remark in estimates:
        both = zip(*map(squares, merged), strict=True)
        near, far = (math.sqrt(max(0.0, math.fsum(values)) / total) for values in both)
        outlooks.append(Outlook(methods=methods, from_base=near, from_tuned=far, remark=remark))
    unknown = (
        (("model_stock",), "needs two tuned models or more"),
        (tuple(name for name, method in METHODS.items() if method.requires), "needs a further model"),
        (tuple(name for name, each in METHODS.items() if each.matrices and not each.requires), "not estimated"),
        (("nearswap",), "moves each entry by its threshold at most"),
    )
    return (
        *outlooks,
        *(Outlook(methods=methods, from_base=None, from_tuned=None, remark=remark) for methods, remark in unknown),
    )


def _share(changes: Sequence[Change], total: float, share: Callable[[Change], float]) -> float:
    """The mean of a number over tensors, weighted by ‖δ‖²."""
    return math.fsum(share(c) * c.change_square for c in changes) / total


def _scaled(c: Change, lam: float) -> tuple[float, float]:
    """base + λδ."""
    return lam**2 * c.change_square, (1 - lam) ** 2 * c.change_square


def _sparsified(c: Change, lam: float, share: float) -> tuple[float, float]:
    """base + λ·(the entries of δ that hold this share of ‖δ‖²); the others stay the base's."""
    return lam**2 * share * c.change_square, ((1 - lam) ** 2 * share + 1 - share) * c.change_square


def _noisy(c: Change, lam: float, variance: float) -> tuple[float, float]:
    """base + λ·(δ + noise of mean 0 and this variance in units of ‖δ‖²), in expectation."""
    noise = lam**2 * variance * c.change_square
    near, far = _scaled(c, lam)
    return near + noise, far + noise


def _della_noise(c: Change) -> float:
    """Variance that DELLA's dropping adds, in ‖δ‖²: the sum of (1/p − 1)·δ², p the keep probability."""
    return math.fsum((1 / chance - 1) * share for chance, share in keep_chances(c.histogram, DENSITY, EPSILON))


def _combined(c: Change, excess: float, weight: float) -> tuple[float, float]:
    """(1 + excess)·base + weight·δ, from the Gram matrix of base and δ."""

    def square(w: float) -> float:
        return max(0.0, excess**2 * c.base_square + 2 * excess * w * c.along + w**2 * c.change_square)

    return square(weight), square(weight - 1)


def arc(angle: float | None, lam: float) -> tuple[float, float]:
    """SLERP as (1 + e)·base + w·δ: (e, w), e without cancellation at small angles; Linear's if there is no angle.

    sin((1−λ)ω) + sin(λω) − sin ω = 4·sin(λω/2)·sin((1−λ)ω/2)·sin(ω/2), hence e = 2·sin(λω/2)·sin((1−λ)ω/2)/cos(ω/2).
    """
    if angle is None or angle < 1e-150 or angle > math.pi - 1e-6:
        return 0.0, lam
    excess = 2 * math.sin(lam * angle / 2) * math.sin((1 - lam) * angle / 2) / math.cos(angle / 2)
    return excess, math.sin(lam * angle) / math.sin(angle)


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
    """The largest angle, and how far SLERP is from Linear."""
    angles = [(c.angle, c.name) for c in changes if c.angle is not None]
    if not angles:
        return "no tensor has an angle: the same as linear"
    angle, name = max(angles, key=lambda pair: pair[0])

    def apart(c: Change) -> float:
        excess, weight = arc(c.angle, lam)
        return _combined(c, excess, weight - lam)[0]

    distance = math.sqrt(math.fsum(apart(c) for c in changes) / total)
    return f"{distance:.2g} ‖δ‖ away from linear; largest angle {math.degrees(angle):.3g}° ({name})"


MERGE_MEMORY = 300 * 2**20
"""About how many bytes a merge holds in memory, Python and torch included: it works in slices."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a merge costs.

    Attributes:
        read_bytes: Bytes of weights that it reads, in one pass.
        write_bytes: Bytes of weights that it writes.
        memory_bytes: Approximate bytes held in memory.
        free_bytes: Free bytes on the disk of the working directory.
        seconds: Approximate time of one pass at the reading speed of this inspection; None if it read nothing.
    """

    read_bytes: int
    write_bytes: int
    memory_bytes: int
    free_bytes: int
    seconds: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inspection(Record):
    """The result of `inspect`.

    Attributes:
        base: The base's folder.
        tuned: The tuned model's folder.
        kind: `checkpoint`, or `lora` for an adapter.
        problems: Why they cannot be merged, one sentence each.
        warnings: What to know before merging, one sentence each.
        equal: Whether the tuned model equals the base, so that a merge would change nothing.
        changes: Every tensor, in the base's order; empty if the two do not match.
        decisions: What a merge would decide about a tensor in a special case, by name.
        methods: What each method would do.
        lam: λ of the estimates in `methods`.
        cost: What a merge costs; None if the two do not match.
    """

    base: str
    tuned: str
    kind: Kind
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    equal: bool = False
    changes: tuple[Change, ...] = ()
    decisions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    methods: tuple[Outlook, ...] = ()
    lam: float = 0.5
    cost: Cost | None = None

    @property
    def mergeable(self) -> bool:
        """Whether the two can be merged."""
        return not self.problems

    def by_module(self) -> dict[str, Group]:
        """Changes by kind of module (`self_attn.q_proj.weight`, over all layers), or by name outside the layers."""
        several = len({place[0] for c in self.changes if (place := module(c.name))}) > 1

        def key(name: str) -> str:
            place = module(name)
            return name if place is None else f"{place[0]}.*.{place[2]}" if several else place[2]

        return grouped(self.changes, key)

    def by_layer(self) -> dict[str, Group]:
        """Changes by layer, in order, or by name outside the layers."""
        labels = layer_labels(c.name for c in self.changes)
        ordered = sorted(self.changes, key=lambda c: place[:2] if (place := module(c.name)) else ("", -1))

        def key(name: str) -> str:
            label = labels.get(name, name)
            return f"layer {label}" if label.isdigit() else label

        return grouped(ordered, key)

    def whole(self) -> Group:
        """The whole model's change."""
        return Group.of(self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON: a verdict, what changed, what the methods would do, what a merge costs.

        What is infinite or was not measured is None; `directions` is ">64" if a change needs more than were probed.
        """
        table: dict[str, Any] = {
            "base": self.base,
            "tuned": self.tuned,
            "kind": self.kind,
            "verdict": "can be merged" if self.mergeable else "cannot be merged",
            "mergeable": self.mergeable,
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "equal": self.equal,
            "tensors": len(self.changes),
            "changed": sum(c.change_square > 0 for c in self.changes),
            "whole": _group_to_json(self.whole()),
            "by_module": {name: _group_to_json(group) for name, group in self.by_module().items()},
            "by_layer": {name: _group_to_json(group) for name, group in self.by_layer().items()},
            "by_tensor": {c.name: _change_to_json(c) for c in self.changes},
            "decisions": dict(self.decisions),
            "lambda": self.lam,
            "methods": [dataclasses.asdict(m) | {"methods": list(m.methods)} for m in self.methods],
        }
        if self.cost:
            sizes = dataclasses.asdict(self.cost)
            words = {name.removesuffix("_bytes"): gibibytes(sizes[name]) for name in sizes if name.endswith("_bytes")}
            table["cost"] = sizes | words
        return table

    def to_rows(self) -> list[dict[str, Any]]:
        """A row per tensor."""
        return [{"tensor": c.name} | _change_to_json(c) for c in self.changes]


def inspect(
    base: str | Path,
    tuned: str | Path,
    *,
    lam: float = 0.5,
    quick: bool = False,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> Inspection:
    """Compare a base and a tuned model; reads both once, a slice at a time, and writes nothing.

    What prevents a merge is not raised but listed in `problems`. Memory stays bounded for models of any size.

    Args:
        base: Folder of the base.
        tuned: Folder of the tuned model or LoRA adapter.
        lam: λ for which to estimate what each method would do.
        quick: Leave out the effective ranks, which are about half of the work.
        threads: Number of worker threads; defaults to the number of cores, up to 4.
        on_event: Receives progress in bytes of the base.

    Raises:
        UserError: λ is outside [0, 1].
    """
    check_lam(lam)
    try:
        with open_pair(base, tuned) as pair:
            return inspect_pair(pair, lam=lam, quick=quick, threads=threads, on_event=on_event)
    except UserError as error:
        kind: Kind = "lora" if is_adapter(tuned) else "checkpoint"
        return Inspection(base=str(base), tuned=str(tuned), kind=kind, lam=float(lam), problems=(str(error),))


def inspect_pair(
    pair: ModelPair,
    *,
    lam: float = 0.5,
    quick: bool = False,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> Inspection:
    """Compare a base and its first tuned model, which are open already; arguments as in `inspect`.

    Raises:
        UserError: λ is outside [0, 1].
        ModelError: A file cannot be read.
    """
    check_lam(lam)

    def read(piece: Slice, buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        base, (tuned,) = pair.read(pair.tensors[piece.name], piece.start, piece.stop, buffers)
        return base, tuned

    extents = {name: _extent(tensor) for name, tensor in pair.tensors.items()}
    measured = measure(extents, read, ranks=not quick, threads=threads, on_event=on_event)
    equal = measured.equal and not any(tensor.rest for tensor in pair.tensors.values())
    base, tuned = pair.base.folder, pair.tuned[0].folder
    return Inspection(
        base=str(base),
        tuned=str(tuned),
        kind="lora" if isinstance(pair.tuned[0], Adapter) else "checkpoint",
        lam=float(lam),
        problems=tuple(_problems(measured, equal, base, tuned)),
        warnings=(*pair_warnings(pair), *another_base(measured.changes)),
        equal=equal,
        changes=measured.changes,
        decisions=dict(pair.decisions),
        methods=outlook(measured.changes, lam),
        cost=_cost(pair, measured, threads),
    )


def _extent(tensor: OutputTensor) -> Extent:
    row = max(1, math.prod(tensor.shape[1:]))
    shape = tensor.shape if tensor.shared == tensor.numel else (tensor.shared // row, *tensor.shape[1:])
    return Extent(tensor.name, tensor.dtype, shape)


def _problems(measured: Measured, equal: bool, base: Path, tuned: Path) -> Iterator[str]:
    if equal:
        yield "the tuned model equals the base: a merge would change nothing"
    for name, side in measured.broken.items():
        yield f"{base if side == 'base' else tuned}: {name} holds NaN or Inf"
    for change in measured.changes:
        if not change.floating and change.change_square:
            yield f"{tuned}: {change.name} differs, and holds integers, which cannot be merged"


def _cost(pair: ModelPair, measured: Measured, threads: int | None) -> Cost:
    read = sum(info.nbytes for model in pair.models for info in model.tensors.values())
    write = sum(tensor.numel * tensor.dtype.itemsize for tensor in pair.tensors.values())
    wall = measured.read_seconds / (threads or default_threads())
    return Cost(
        read_bytes=read,
        write_bytes=write,
        memory_bytes=MERGE_MEMORY,
        free_bytes=shutil.disk_usage(Path.cwd()).free,
        seconds=wall * (read + write) / read if read and wall else None,
    )


def _group_to_json(group: Group) -> dict[str, Any]:
    directions: Any = group.directions
    if directions is not None:
        directions = ">64" if math.isinf(directions) else int(directions)
    return {
        "relative_change": group.relative if math.isfinite(group.relative) else None,
        "largest_angle_degrees": group.angle,
        "entries_changed": group.changed,
        "directions": directions,
    }


def _change_to_json(change: Change) -> dict[str, Any]:
    stable = change.rank.stable if change.rank else None
    return {"shape": list(change.shape), **_group_to_json(Group.of([change])), "stable_rank": stable}
