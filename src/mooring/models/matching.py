"""Match the tensors of a tuned model with those of its base, however the two are named and laid out."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch

from mooring.errors import MismatchError
from mooring.models import tied
from mooring.models.checkpoint import Checkpoint
from mooring.models.classes import text_fields
from mooring.models.layout import COMPUTED, Layout, NoLayoutError, layout_of
from mooring.models.relaid import RelaidCheckpoint
from mooring.models.safetensors_file import TensorInfo
from mooring.models.strided import Place, Segment, common, is_whole

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer)\.")
"""What `torch.compile`, FSDP, activation checkpointing and PEFT put into names."""
_IN_FRONT = ("module.", "_forward_module.", "base_model.model.")
"""What `DistributedDataParallel` and DeepSpeed, Lightning, and PEFT put before every name."""
_PREDICTS_FURTHER = re.compile(r"(?:^|\.)(?:mtp|nextn)(?:\.|_|$)")
"""Layers that predict several tokens, which transformers does not load."""
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True, slots=True)
class Matched:
    """A tuned model in the names and the layout of its base.

    Attributes:
        checkpoint: The tuned model; reads give the base's names and layout, and its remarks say what was matched how.
            Tensors for which there is no match are absent, or there under their own name.
        reason: Why the layouts could not be compared, if they could not; else empty.
    """

    checkpoint: Checkpoint
    reason: str = ""


def match(base: Checkpoint, tuned: Checkpoint) -> Matched:
    """Match a tuned model with its base.

    Tensors of the same name are matched first. What wrappers put into names is passed over then, as are buffers that
    are computed from the configuration and layers that predict further tokens. Only if that does not suffice, the
    layouts of both are compared, by the rules of transformers.
    """
    same_class = other_architecture(base, tuned) is None
    if same_class and _agree(base, tuned.tensors):
        return Matched(tuned)
    plain = _Plain(base, tuned)
    if same_class and plain.complete:
        return plain.matched()
    try:
        return _ByLayout(base, plain).matched()
    except NoLayoutError as error:
        return dataclasses.replace(plain.matched() if same_class else Matched(tuned), reason=str(error))


def other_architecture(base: Checkpoint, tuned: Checkpoint) -> str | None:
    """The first field of a configuration that names different architectures in two models; None if they agree."""
    ours, theirs = base.config, tuned.config
    fields = ("model_type", "architectures")
    differ = (key for key in fields if ours.get(key) and theirs.get(key) and ours[key] != theirs[key])
    return next(differ, None)


def _agree(base: Checkpoint, theirs: Mapping[str, TensorInfo]) -> bool:
    """Whether two models have tensors of the same names and shapes, but for tied heads and rows of a vocabulary."""
    for name in base.tensors.keys() ^ theirs.keys():
        if not tied.is_head(name):
            return False
    shared = base.tensors.keys() & theirs.keys()
    return all(_same_shape(name, base.tensors[name].shape, theirs[name].shape) for name in shared)


def _same_shape(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    return ours == theirs or (tied.has_vocabulary_rows(name) and ours[1:] == theirs[1:])


def bare(names: Iterable[str]) -> dict[str, str]:
    """Names without what wrappers have put into them, by name."""
    found = {name: _WRAPPERS.sub("", name) for name in names}
    while found and (front := next((p for p in _IN_FRONT if all(n.startswith(p) for n in found.values())), None)):
        found = {name: plain.removeprefix(front) for name, plain in found.items()}
    return found if len({*found.values()}) == len(found) else {name: name for name in found}


class _Plain:
    """A match by names alone."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint) -> None:
        self._base, self._tuned = base, tuned
        ours = {plain: name for name, plain in bare(base.tensors).items()}
        theirs = bare(tuned.tensors)
        self._names = {ours.get(plain, plain): name for name, plain in theirs.items()}  # the base's name to theirs
        only_theirs = (name for name in self._names if name not in base.tensors)
        self._dropped = {name: why for name in only_theirs if (why := unneeded(name, tuned.config))}
        only_ours = (name for name in base.tensors if name not in self._names)
        self._kept = {name: why for name in only_ours if (why := unneeded(name, base.config))}

    @property
    def complete(self) -> bool:
        """Whether every tensor has found its match."""
        theirs = {n: self._tuned.tensors[source] for n, source in self._names.items() if n not in self._dropped}
        return _agree(self._base, theirs | {name: self._base.tensors[name] for name in self._kept})

    @property
    def notes(self) -> list[str]:
        """What was done to names."""
        changed = [source for name, source in self._names.items() if source != name]
        if not changed:
            return []
        return [f"{_tensors(changed)} of {_name(self._tuned)} have names that a wrapper changed, such as {changed[0]}"]

    def renamed(self) -> Checkpoint:
        """The tuned model, all of it, with the names that were found."""
        return self._only(self._names)

    def matched(self) -> Matched:
        """The match, as far as it goes."""
        found = self._only([name for name in self._names if name not in self._dropped])
        if self._kept:
            found = _with_base(self._base, found, frozenset(self._kept))
        notes = [*self.notes, *_left_out(self._tuned, self._dropped), *_kept_notes(self._tuned, self._kept)]
        found.remarks.extend(notes)
        return Matched(found)

    def _only(self, names: Iterable[str]) -> Checkpoint:
        sources = {name: self._names[name] for name in names}
        if all(name == source for name, source in sources.items()) and len(sources) == len(self._tuned.tensors):
            return self._tuned
        infos = [dataclasses.replace(self._tuned.tensors[source], name=name) for name, source in sources.items()]
        return RelaidCheckpoint(self._tuned, infos, {info.name: [_copy(sources[info.name], info)] for info in infos})


def unneeded(name: str, config: Mapping[str, Any]) -> str | None:
    """Why transformers passes over a tensor with such a name, if it does whatever the class; else None."""
    if COMPUTED.search(name):
        return "a buffer that is computed from the configuration"
    if _PREDICTS_FURTHER.search(name):
        return "it predicts further tokens, and transformers does not load it"
    layer, count = _LAYER.search(name), layer_count(config)
    if layer and count is not None and int(layer[1]) >= count:
        return "it is beyond the last layer, and transformers does not load it"
    return None


def layer_count(config: Mapping[str, Any]) -> int | None:
    """The number of layers of a language model, from the fields of its `config.json`; None if they do not say."""
    count = text_fields(dict(config)).get("num_hidden_layers")
    return count if isinstance(count, int) else None


class _ByLayout:
    """A match by the parameters that both models hold, by the rules of transformers."""

    def __init__(self, base: Checkpoint, plain: _Plain) -> None:
        self._base, self._tuned = base, plain.renamed()
        self._ours = layout_of(base)
        if missing := self._ours.missing():
            raise NoLayoutError(f"{base.folder} lacks {missing[0]} of {self._ours.class_name}")
        self._theirs, self._names = _related(self._ours, self._tuned)
        self._notes = plain.notes
        self._holders = _Holders(self._theirs, self._names)
        self._infos: dict[str, TensorInfo] = {}
        self._segments: dict[str, list[Segment]] = {}
        self._kept: dict[str, str] = {}
        self._renamed: list[tuple[str, str]] = []
        self._converted: dict[str, list[tuple[str, str]]] = {}
        self._dropped: dict[str, str] = {}

    def matched(self) -> Matched:
        """The match, as far as it goes."""
        for info in self._base.tensors.values():
            self._find(info)
        used = {segment.source for segments in self._segments.values() for segment in segments}
        for info in self._tuned.tensors.values():
            if info.name not in used:
                self._pass_over(info)
        relaid = RelaidCheckpoint(self._tuned, list(self._infos.values()), self._segments)
        if self._kept:
            relaid = _with_base(self._base, relaid, frozenset(self._kept))
        relaid.remarks.extend((*self._notes, *self._how(), *_kept_notes(self._tuned, self._kept)))
        return Matched(relaid)

    def _find(self, info: TensorInfo) -> None:
        """Find what a tensor of the base is made of in the tuned model."""
        name, theirs = info.name, self._tuned.tensors
        if name in self._ours.unused:
            if name in theirs and theirs[name].shape == info.shape:
                self._add(info, info.shape, [_copy(name, info)])
            else:
                self._kept[name] = self._ours.unused[name]
            return
        places = self._ours.places[name]
        if source := self._holders.whole(places, info.shape):
            self._add(info, theirs[source].shape, [_copy(source, theirs[source])])
            if source != name:
                self._renamed.append((name, source))
        elif segments := self._holders.segments(places, info.numel):
            self._add(info, info.shape, segments)
            source = segments[0].source
            rule = self._ours.converted.get(name) or self._theirs.converted.get(source) or "as they are"
            self._converted.setdefault(rule, []).append((name, source))
        elif not any(place.parameter in self._names.reached for place in places):
            self._kept[name] = f"{self._theirs.class_name} has no such parameter"
        elif failed := [self._theirs.failed[p.parameter] for p in places if p.parameter in self._theirs.failed]:
            what = f"{self._tuned.folder}: {name} of {self._base.folder} cannot be made of its tensors: {failed[0]}"
            raise MismatchError(what, "is the model complete?", code="model.layout_mismatch")

    def _add(self, info: TensorInfo, shape: tuple[int, ...], segments: list[Segment]) -> None:
        sources = [self._tuned.tensors[segment.source] for segment in segments]
        dtype = functools.reduce(torch.promote_types, {source.dtype for source in sources})
        size = math.prod(shape) * dtype.itemsize
        self._infos[info.name] = TensorInfo(info.name, dtype, shape, sources[0].file, sources[0].offset, size)
        self._segments[info.name] = segments

    def _pass_over(self, info: TensorInfo) -> None:
        """Decide about a tensor of the tuned model that the base has no tensor for."""
        name = info.name
        extra = name
        if name in self._theirs.unused:
            if why := unneeded(name, self._tuned.config) or self._theirs.ignores(name):
                self._dropped[name] = why
                return
        else:
            parameters = [self._names.to_base.get(place.parameter) for place in self._theirs.places[name]]
            if self._names.wider and not any(parameters):
                self._dropped[name] = f"{self._ours.class_name} has no such parameter"
                return
            if len(parameters) == 1 and parameters[0]:
                extra = parameters[0]
        self._infos[extra] = dataclasses.replace(info, name=extra)
        self._segments[extra] = [_copy(name, info)]

    def _how(self) -> Iterable[str]:
        """What was matched how."""
        who = _name(self._tuned)
        if self._ours.class_name != self._theirs.class_name:
            yield f"{who} is a {self._theirs.class_name}, matched with the {self._ours.class_name} of the base"
        if self._renamed:
            ours, source = self._renamed[0]
            yield f"{_tensors(self._renamed)} have another name in {who}: {ours} is its {source}, for example"
        for rule, pairs in self._converted.items():
            ours, source = pairs[0]
            yield (
                f"{_tensors(pairs)} have another layout in {who} and were converted ({rule}): "
                f"{ours} is made of its {source}, for example"
            )
        yield from _left_out(self._tuned, self._dropped)


@dataclasses.dataclass(frozen=True, slots=True)
class _Counterparts:
    """Which parameter of the base's class each parameter of the tuned model's class is.

    Attributes:
        to_base: The base's name by the tuned model's; without those that the base's class does not have.
        reached: The base's names in it.
        wider: Whether the tuned model's class has everything that the base's class has, and more.
    """

    to_base: Mapping[str, str]
    reached: frozenset[str]
    wider: bool


def _related(ours: Layout, tuned: Checkpoint) -> tuple[Layout, _Counterparts]:
    """The layout of a tuned model by its own class, or by the base's if its tensors become all of its parameters.

    Raises:
        NoLayoutError: The classes have nothing to do with each other.
    """
    try:
        theirs = layout_of(tuned)
        return theirs, _counterparts(ours, theirs)
    except NoLayoutError:
        theirs = Layout(ours.model, tuned.tensors)
        if theirs.unused or theirs.missing() or not theirs.converted:
            raise
        return theirs, _counterparts(ours, theirs)


def _counterparts(ours: Layout, theirs: Layout) -> _Counterparts:
    """Match the parameters of two classes: the same class, a model and its language model, or with and without a head.

    Raises:
        NoLayoutError: The classes have nothing to do with each other.
    """
    if ours.class_name == theirs.class_name:
        names = {name: name for name in theirs.parameters if name in ours.parameters}
        return _Counterparts(names, frozenset(names.values()), wider=False)
    if ours.text == theirs.text:
        raise NoLayoutError(f"{theirs.class_name} is another class than {ours.class_name}")
    found: dict[str, str] = {}
    for name in theirs.parameters:
        inner = _inside(name, theirs.text)
        if inner is not None:
            found[name] = _join(ours.text, inner)
        elif (inner := _inside(name, theirs.head)) is not None and ours.head:
            found[name] = _join(ours.head, inner)
    inside = [name for name in ours.parameters if _inside(name, ours.text) is not None]
    same = {name: other for name, other in found.items() if other in ours.parameters}
    language = {name for name in theirs.parameters if _inside(name, theirs.text) is not None}
    if language - same.keys() or {*inside} - {*same.values()}:
        raise NoLayoutError(f"{theirs.class_name} has other layers than {ours.class_name}")
    for name, other in same.items():
        a, b = theirs.parameters[name], ours.parameters[other]
        if a != b and (a[1:] != b[1:] or not tied.has_vocabulary_rows(name)):
            raise NoLayoutError(f"{theirs.class_name} has other layers than {ours.class_name}")
    return _Counterparts(same, frozenset(same.values()), wider=len(theirs.parameters) > len(same))


def _inside(name: str, path: str) -> str | None:
    """The rest of a name within a module; None if it is elsewhere."""
    if not path:
        return name
    return name[len(path) + 1 :] if name.startswith(f"{path}.") else None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


class _Holders:
    """The tuned model's stored tensors by the parameters of the base that they hold."""

    def __init__(self, theirs: Layout, names: _Counterparts) -> None:
        self._theirs = theirs
        self._wide: dict[str, list[tuple[str, Place]]] = {}
        self._narrow: dict[tuple[str, int], list[tuple[str, Place]]] = {}  # by the only index on the first axis
        for stored, places in theirs.places.items():
            for place in places:
                if (parameter := names.to_base.get(place.parameter)) is not None:
                    held = stored, dataclasses.replace(place, parameter=parameter)
                    if place.counts and place.counts[0] == 1:
                        self._narrow.setdefault((parameter, place.starts[0]), []).append(held)
                    else:
                        self._wide.setdefault(parameter, []).append(held)

    def whole(self, places: tuple[Place, ...], shape: tuple[int, ...]) -> str | None:
        """The stored tensor that is the same parameter as it is, if ours is one."""
        if len(places) != 1 or not is_whole(places[0], shape):
            return None
        parameter = places[0].parameter
        for stored, place in (*self._wide.get(parameter, ()), *self._narrow.get((parameter, 0), ())):
            if is_whole(place, place.counts) and stored not in self._theirs.converted:
                return str(stored)
        return None

    def segments(self, places: tuple[Place, ...], count: int) -> list[Segment]:
        """What a tensor of the base with these places is made of; empty unless everything of it is there."""
        found = []
        for place in places:
            held = list(self._wide.get(place.parameter, ()))
            for row in place.rows:
                held += self._narrow.get((place.parameter, row), ())
            found += [made for stored, other in held if (made := common(place, other, stored)) is not None]
        return found if sum(segment.numel for segment in found) == count else []


def _copy(source: str, info: TensorInfo) -> Segment:
    """A segment that is a whole tensor."""
    return Segment(source, 0, 0, ((info.numel, 1, 1),) if info.numel != 1 else ())


def _with_base(base: Checkpoint, tuned: Checkpoint, kept: frozenset[str]) -> RelaidCheckpoint:
    """A tuned model together with tensors of the base that it does not have."""
    if not isinstance(tuned, RelaidCheckpoint):
        segments = {name: [_copy(name, info)] for name, info in tuned.tensors.items()}
        tuned = RelaidCheckpoint(tuned, list(tuned.tensors.values()), segments)
    return tuned.with_base(base, kept)


def _tensors(items: Sized) -> str:
    return "1 tensor" if len(items) == 1 else f"{len(items)} tensors"


def _name(checkpoint: Checkpoint) -> str:
    return checkpoint.folder.resolve().name


def _left_out(tuned: Checkpoint, dropped: Mapping[str, str]) -> Iterable[str]:
    """Sentences about tensors of the tuned model that the base has no place for."""
    for why, names in _by_reason(dropped).items():
        yield f"{_tensors(names)} of {_name(tuned)} are left out, such as {names[0]}: {why}"


def _kept_notes(tuned: Checkpoint, kept: Mapping[str, str]) -> Iterable[str]:
    """Sentences about the tensors that stay the base's."""
    for why, names in _by_reason(kept).items():
        yield f"{_tensors(names)} that {_name(tuned)} does not have are kept from the base, such as {names[0]}: {why}"


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    return found
