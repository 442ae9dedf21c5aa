"""Where the tensors of a checkpoint are in a model that transformers loaded, so that they can be changed in place."""

import copy
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class Group:
    """Checkpoint tensors that transformers combines as it loads them, such as the experts of one layer.

    They are collected until all are there, and then converted as transformers does.

    Args:
        model: The model.
        converter: The `WeightConverter` of transformers that combines them.
        target: The parameter that they are converted to; the first one if they become several.
        sources: The pattern of the converter that each tensor matches, by name, in the order of transformers.
        shapes: Their shapes.
        state: The model's parameters and buffers, by name.
    """

    def __init__(
        self,
        model: Any,
        converter: Any,
        target: str,
        sources: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        state: Mapping[str, Tensor],
    ) -> None:
        self._model, self._converter, self._target, self.sources = model, converter, target, sources
        self._shapes, self._state = shapes, state
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget tensors that were collected."""
        self._collected: dict[str, Tensor] = {}
        self._missing = sum(torch.Size(shape).numel() for shape in self._shapes.values())

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Collect a tensor's elements from `start` on; the last ones change the parameters."""
        with self._lock:
            if name not in self._collected:
                kind = self._state[self._target].dtype
                self._collected[name] = torch.empty(self._shapes[name], dtype=kind)
        self._collected[name].view(-1)[start : start + values.numel()].copy_(values.view(-1))
        with self._lock:
            self._missing -= values.numel()
            complete = self._missing == 0
        if complete:
            collected = self._collected
            self.reset()
            for target, value in self.convert(collected).items():
                self._state[target].detach().copy_(value)

    def convert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters that tensors become, by name."""
        kind = self._state[self._target].dtype
        converter = copy.deepcopy(self._converter)
        for name, pattern in self.sources.items():
            converter.add_tensor(self._target, name, pattern, lambda tensor=tensors[name]: tensor.to(kind))
        made = converter.convert(self._target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class Placement:
    """The places of a checkpoint's tensors in a loaded model; any number of threads may write at once.

    Args:
        direct: The parameter or buffer that each tensor was loaded into as it is: contiguous, on any device.
        groups: The tensors that transformers rearranges.
    """

    def __init__(self, direct: Mapping[str, Tensor], groups: Iterable[Group]) -> None:
        self._flat = {name: target.detach().view(-1) for name, target in direct.items()}
        self._groups = list(groups)
        self._group_of = {name: group for group in self._groups for name in group.sources}

    def reset(self) -> None:
        """Forget what an interrupted change of the weights has left behind."""
        for group in self._groups:
            group.reset()

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Copy a tensor's elements from `start` on; ignores a tensor that the model does not use."""
        if name in self._flat:
            self._flat[name][start : start + values.numel()].copy_(values.view(-1))
        elif name in self._group_of:
            self._group_of[name].write(name, start, values)

    def filled(self, changed: Collection[str]) -> set[str]:
        """The tensors of which only what changes has to be written, given the names of those that change at all."""
        groups = (group for group in self._groups if group.sources.keys().isdisjoint(changed))
        return {*self._flat, *(name for group in groups for name in group.sources)}


def locate(model: Any, tensors: Mapping[str, Tensor]) -> Placement | None:
    """Find where transformers has put the tensors of a checkpoint.

    The names are those that transformers' own rules give; all values are compared. None if some weight of the model is
    not made of these tensors, each of them once: two that the checkpoint holds apart may be tied, or weights may be
    offloaded. Then the model has to be loaded again.
    """
    state = model.state_dict(keep_vars=True)
    if any(target.is_meta for target in state.values()):
        return None
    try:
        direct, groups = _follow_rules(model, tensors, state)
        made = [(state[name], value) for group in groups for name, value in group.convert(tensors).items()]
    except Exception:  # rules of another version of transformers, or for other tensors than these
        return None
    made += [(place, tensors[name]) for name, place in direct.items()]
    places = [_address(place) for place, _ in made if place.numel()]
    covered = {*places} >= {_address(target) for target in state.values() if target.numel()}
    if not covered or len({*places}) < len(places) or not all(place.is_contiguous() for place in direct.values()):
        return None
    return Placement(direct, groups) if all(_equal(place, value) for place, value in made) else None


def _address(place: Tensor) -> tuple[torch.device, int]:
    return place.device, place.data_ptr()


def _follow_rules(
    model: Any, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[Group]]:
    """Tensors that are loaded as they are, and groups, as `core_model_loading` of transformers decides."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    direct: dict[str, Tensor] = {}
    sources: dict[str, dict[str, str]] = {}
    for name in sorted(tensors, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target in state and pattern is None:
            direct[name] = state[target]
        elif target in state:
            sources.setdefault(target, {})[name] = pattern
    groups = []
    for target, patterns in sources.items():
        converter = copy.deepcopy(by_pattern[next(iter(patterns.values()))])
        shapes = {name: tuple(tensors[name].shape) for name in patterns}
        groups.append(Group(model, converter, target, patterns, shapes, state))
    return direct, groups


def _equal(place: Tensor, value: Tensor) -> bool:
    """Whether a parameter holds a value, rounded to its type."""
    if place.shape != value.shape:
        return False
    return place.data_ptr() == value.data_ptr() or torch.equal(place, value.to(place.dtype).to(place.device))
