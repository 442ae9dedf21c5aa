"""Where an adapter's changes are in a base that names or lays out its weights in another way than the adapter does.

PEFT names weights as transformers has them in memory, where the experts of a layer may be one parameter, and the files
hold one tensor for each; adapters of older versions have one module for each, and the files may hold one parameter. The
two are matched through the parameters of the model's class.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mooring.errors import MismatchError
from mooring.models.adapter_config import LoraSettings, malformed
from mooring.models.checkpoint import Checkpoint, TensorFiles
from mooring.models.layout import Layout, NoLayoutError, layout_of
from mooring.models.lora_changes import Change, outermost
from mooring.models.strided import Place, Segment, common, is_whole, whole

_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """The part of a tensor of the base that a product of factors changes, as a matrix.

    Entry (i, j) of the matrix is entry `offset + i·row_stride + j·column_stride` of the flattened tensor, and the
    change of output `rows[i]` and input `columns[j]`; the other way round if `transposed`.

    Attributes:
        change: The change.
        expert: Which of its products.
        offset: First entry.
        row_stride: Distance of neighbours in a column, larger than a row is wide.
        column_stride: Distance of neighbours in a row.
        rows: Outputs, or inputs.
        columns: Inputs, or outputs.
        transposed: Whether the rows are inputs.
    """

    change: Change
    expert: int = 0
    offset: int = 0
    row_stride: int
    column_stride: int = 1
    rows: range
    columns: range
    transposed: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Entries of a tensor of the base that are taken from the adapter, or to which the adapter's are added.

    Attributes:
        segment: Which entries of the tensor, and which ones of the adapter's tensor that it names.
        scale: What the adapter's are multiplied by before they are added; None if they take the place of the base's.
    """

    segment: Segment
    scale: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a change is in a base.

    Attributes:
        name: The name of the changed tensor in the model's class, with the adapter's prefix.
        change: The change, with what only the class could tell.
        renamed: The base's tensor that it changes as a whole, in the same layout.
        parts: Otherwise, for each tensor of the base that holds a part of it, what happens there.
    """

    name: str
    change: Change
    renamed: str | None = None
    parts: Mapping[str, tuple[Patch | Piece, ...]] = dataclasses.field(default_factory=dict)


class Places:
    """Finds changes in a base. The model's class is built when the first of them is looked for.

    Args:
        folder: The adapter's folder.
        settings: Its configuration.
        files: Its tensors.
        changes: Its changes.
        base: The base.
    """

    def __init__(
        self, folder: Path, settings: LoraSettings, files: TensorFiles, changes: Mapping[str, Change], base: Checkpoint
    ) -> None:
        self._folder, self._settings, self._files, self._base = folder, settings, files, base
        self._depths: dict[str, int] = {}
        for name, change in changes.items():
            module = outermost(name.rpartition(".")[0])
            self._depths[module] = max(change.depth, self._depths.get(module, 0))

    @functools.cached_property
    def _layout(self) -> Layout:
        return layout_of(self._base)

    def find(self, name: str, change: Change) -> Located:
        """Find a change whose name is not that of a tensor of the base, or whose number of products is not known.

        Raises:
            MismatchError: The base has no such tensor, its class is not known, or the two have other shapes.
            ModelError: The configuration contradicts the weights.
        """
        try:
            layout = self._layout
        except NoLayoutError as error:
            raise self._missing(name, f"the names cannot be compared: {error}") from None
        module = outermost(name.rpartition(".")[0])
        if not change.depth and change.experts:
            if parameter := layout.canonical(name):
                return self._in_parameter(name, change, parameter)
            if places := self._saved(name):
                return self._in_parts(name, change, self._matrix(change), places)
        if self._settings.target_parameters and name.endswith(".weight") and not change.embedding:
            return self._of_parameter(name, module, change)
        why = f"{layout.class_name} has no such parameter"
        if change.shift is not None:
            what = f"{self._folder}: changes {name}, which {self._base.folder} does not have ({why})"
            hint = "lora_bias trained a bias of modules that have none, which PEFT cannot merge either: tune without it"
            raise MismatchError(what, hint, code="model.missing_tensor")
        raise self._missing(name, why)

    def _missing(self, name: str, why: str) -> MismatchError:
        what = f"{self._folder}: changes {name}, which {self._base.folder} does not have ({why})"
        return MismatchError(what, "name the model that the adapter was tuned from", code="model.missing_tensor")

    def _saved(self, name: str) -> Sequence[Place] | None:
        """The places of a tensor as transformers would write it, such as that of one expert."""
        layout = self._layout
        if name in layout.saved:
            return layout.saved[name]
        for prefix in _PREFIXES:
            if name.startswith(prefix) and (found := layout.saved.get(self._text_prefix + name.removeprefix(prefix))):
                return found
        return None

    @functools.cached_property
    def _text_prefix(self) -> str:
        """What the names of the language model's tensors begin with as transformers would write them."""
        layout = self._layout
        for name, places in layout.saved.items():
            parameter = places[0].parameter if places else ""
            if parameter.startswith(f"{layout.text}.") and name.endswith(parameter.removeprefix(f"{layout.text}.")):
                return name.removesuffix(parameter.removeprefix(f"{layout.text}."))
        return ""

    def _matrix(self, change: Change) -> tuple[int, ...]:
        """The shape of a whole tensor that is changed, by the adapter: (outputs, inputs) of a weight."""
        if change.a is not None and change.b is not None:
            a, b = self._files.tensors[change.a].shape, self._files.tensors[change.b].shape
            return b[0], math.prod(a[1:]) * change.a_blocks
        return self._files.tensors[str(change.stored or change.shift)].shape

    def _in_parameter(self, name: str, change: Change, parameter: str) -> Located:
        """A change of a parameter of the class, which the base may store under another name, or in parts."""
        holders = self._layout.holders.get(parameter, [])
        if len(holders) == 1:
            holder, place = holders[0]
            if len(self._layout.places[holder]) == 1 and is_whole(place, self._base.tensors[holder].shape):
                return Located(name=name, change=change, renamed=holder)
        shape = self._layout.parameters[parameter]
        return self._in_parts(name, change, shape, [whole(parameter, shape)])

    def _of_parameter(self, name: str, module: str, change: Change) -> Located:
        """A change of a parameter that is not the `weight` of a linear layer (`target_parameters`)."""
        layout = self._layout
        leaves = dict.fromkeys(ending.rpartition(".")[2] for ending in self._settings.target_parameters)
        named = {f"{module}.{leaf}": layout.canonical(f"{module}.{leaf}") for leaf in leaves}
        targets = {own: found for own, found in named.items() if found and self._settings.is_target_parameter(own)}
        order = list(layout.parameters)  # of registration, in which PEFT nests its wrappers: the last one is outside
        ordered = sorted(targets, key=lambda own: order.index(targets[own]))
        if not ordered:
            raise self._missing(name, f"{layout.class_name} has none of target_parameters there")
        if len(ordered) != self._depths[module] + 1:
            what = f"{self._folder}: {module} has factors of {self._depths[module] + 1} parameters"
            raise malformed(f"{what}, and target_parameters names {len(ordered)}: {', '.join(ordered)}")
        own = ordered[-1 - change.depth]
        parameter = targets[own]
        shape = layout.parameters[parameter]
        if len(shape) not in (2, 3):
            raise self._missing(own, f"it has shape {list(shape)}, and PEFT has factors of matrices")
        rank, scale = self._settings.rank_and_scale(own)
        experts = shape[0] if len(shape) == 3 else 1
        a, b = (self._files.tensors[str(key)].shape for key in (change.a, change.b))
        if a[0] != rank * experts or b[1] != rank * experts:
            what = f"{self._folder}: {own} has A {list(a)} and B {list(b)}"
            raise malformed(f"{what} where {self._settings.file.name} says rank {rank}, for {experts} experts")
        position = order.index(parameter) - next(
            k for k, each in enumerate(order) if each.rpartition(".")[0] == parameter.rpartition(".")[0]
        )
        found = dataclasses.replace(change, rank=rank, scale=scale, experts=experts, position=position)
        return self._in_parts(own, found, shape, [whole(parameter, shape)])

    def _in_parts(self, name: str, change: Change, shape: Sequence[int], places: Sequence[Place]) -> Located:
        """The tensors of the base that hold a part of a change, given where the changed tensor is in the parameters."""
        key = str(change.stored or change.shift or change.a)
        parts: dict[str, list[Patch | Piece]] = {}
        covered = 0
        for place in places:
            for holder, other in self._layout.holders.get(place.parameter, []):
                if segment := common(other, place, key):
                    covered += segment.numel
                    parts.setdefault(holder, []).extend(self._apply(name, change, shape, segment))
        if covered != math.prod(shape):
            what = f"{self._folder}: changes {name} of shape {list(shape)}, of which {self._base.folder} has {covered}"
            hint = "name the model that the adapter was tuned from"
            raise MismatchError(f"{what} of {math.prod(shape)} entries", hint, code="model.shape_mismatch")
        for holder in parts:
            if not self._base.tensors[holder].dtype.is_floating_point:
                what = f"{self._folder}: changes {holder}, which is {self._base.tensors[holder].dtype}"
                hint = "name the model that the adapter was tuned from"
                raise MismatchError(f"{what} in {self._base.folder}", hint, code="model.dtype_mismatch")
        return Located(name=name, change=change, parts={holder: tuple(found) for holder, found in parts.items()})

    def _apply(self, name: str, change: Change, shape: Sequence[int], segment: Segment) -> Iterator[Patch | Piece]:
        """What a change does to entries that a tensor of the base has in common with the changed tensor."""

        def mismatch(found: Sequence[int]) -> MismatchError:
            what = f"{self._folder}: changes {name} of shape {list(found)}, which is {list(shape)} in its class"
            return MismatchError(what, "name the model that the adapter was tuned from", code="model.shape_mismatch")

        if change.stored is not None:
            if self._files.tensors[change.stored].shape != tuple(shape):
                raise mismatch(self._files.tensors[change.stored].shape)
            yield Piece(segment=segment, scale=None)
        if change.shift is not None:
            if self._files.tensors[change.shift].shape != tuple(shape):
                raise mismatch(self._files.tensors[change.shift].shape)
            yield Piece(segment=dataclasses.replace(segment, source=change.shift), scale=change.scale)
        if change.rows is not None or change.embedding:
            raise mismatch(self._matrix(change))
        if change.a is None:
            return
        outputs, inputs = self._matrix(change)
        if change.magnitude is not None and self._files.tensors[change.magnitude].numel != outputs:
            raise mismatch(self._files.tensors[change.magnitude].shape)
        matrix = tuple(shape[-2:])
        if matrix not in ((outputs, inputs), (inputs, outputs)):
            raise mismatch((outputs, inputs))
        transposed = matrix != (outputs, inputs)
        if outputs == inputs and len(shape) == 3:
            transposed = self._stores_inputs_first(name)
        patches = list(_patches(change, shape, segment, transposed))
        if change.magnitude is not None:
            for patch in patches:
                if len(patch.columns if not patch.transposed else patch.rows) != inputs:
                    what = f"{self._folder}: {name} has a DoRA norm, and {self._base.folder} stores its inputs apart"
                    raise MismatchError(what, "merge it with PEFT's merge_and_unload", code="model.shape_mismatch")
        yield from patches

    def _stores_inputs_first(self, name: str) -> bool:
        """Whether a fused parameter with as many inputs as outputs is (experts, inputs, outputs), by its class."""
        parameter = self._layout.canonical(name)
        module = self._layout.model.get_submodule(str(parameter).rpartition(".")[0])
        return bool(getattr(module, "is_transposed", False))


def _patches(change: Change, shape: Sequence[int], segment: Segment, transposed: bool) -> Iterator[Patch]:
    """The entries of a segment as matrices; `shape` is that of the changed tensor, ([experts,] rows, columns)."""
    sizes = (1,) * (3 - len(shape)) + tuple(shape)
    strides = (sizes[1] * sizes[2], sizes[2], 1)
    first = [segment.offset // stride % size for stride, size in zip(strides, sizes, strict=True)]
    axes: list[list[tuple[int, int, int]]] = [[], [], []]  # (count, step on the axis, distance in the base's tensor)
    todo = list(segment.loops)
    while todo:
        count, far, step = todo.pop()
        axis = next(k for k, stride in enumerate(strides) if step >= stride)
        inside = step // strides[axis]
        fits = (sizes[axis] - first[axis] + inside - 1) // inside
        if count > fits:  # runs on along the axis before
            todo.append((count // fits, far * fits, step * fits))
            count = fits
        axes[axis].append((count, inside, far))
    if any(len(loops) > 1 for loops in axes):
        raise AssertionError("a segment has one loop per axis")
    (experts, by, apart), *matrix = [loops[0] if loops else (1, 1, 1) for loops in axes]
    ranges = [range(start, start + n * step, step) for start, (n, step, _) in zip(first[1:], matrix, strict=True)]
    down, across = (distance for _, _, distance in matrix)
    down = len(ranges[1]) * across if len(ranges[0]) == 1 else down  # there is no next row
    across = 1 if len(ranges[1]) == 1 else across
    swap = across > down
    for number in range(experts):
        yield Patch(
            change=change,
            expert=first[0] + number * by,
            offset=segment.start + number * apart,
            row_stride=max(down, across),
            column_stride=min(down, across),
            rows=ranges[swap],
            columns=ranges[not swap],
            transposed=transposed != swap,
        )
