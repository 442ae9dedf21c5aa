"""Look at two models before merging them: do they belong together, what did the tuning change, what will it cost."""

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mooring.checkpoint import is_adapter
from mooring.errors import UserError
from mooring.files import gibibytes
from mooring.merge.inputs import Inputs, Target, open_inputs
from mooring.merge.inspect.change import Change, Group, another_base, grouped, module, stacks
from mooring.merge.inspect.measure import Extent, Measured, measure
from mooring.merge.inspect.outlook import Outlook, outlook
from mooring.merge.sweep import Slice
from mooring.merge.together import warnings

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
