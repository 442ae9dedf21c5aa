"""How a model's weights are named and laid out in its files, as transformers itself converts them when it loads them.

The same model is stored in several ways: with one tensor per expert or with all experts of a layer in one, with
`model.layers` or `language_model.model.layers`, with separate or concatenated projections. transformers has rules that
turn each of them into the parameters of its class. Here they are followed on tensors without values, so that two files
can be matched by the parameters that they hold, in no time and without memory.
"""

import copy
import functools
import importlib.util
import json
import re
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mooring.models.checkpoint import Checkpoint
from mooring.models.classes import load_config, saved_class
from mooring.models.further_rules import further_rules
from mooring.models.safetensors_file import TensorInfo
from mooring.models.strided import NotStridedError, Place, Traced, is_whole, whole
from mooring.quiet import quiet

_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "quantization_config")
"""Fields of a configuration that do not change a model's parameters."""
_COUNTS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks)|depth")
"""Fields of a configuration that say how many layers there are: no more than tensors."""
_EXPERTS = re.compile(r"(num|n)_(\w+_)?experts")
_MOST_EXPERTS = 4096
"""Per layer; each may be a module of its own."""
COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|position_ids$")
"""Buffers that old versions of transformers stored, and that are computed from the configuration."""

_MOST_SKELETONS = 4
_skeletons: dict[str, Any] = {}
"""Models on the meta device by their configuration: a base and its tuned model have the same one."""


class NoLayoutError(Exception):
    """transformers has no class for a model, or cannot build it."""


class Layout:
    """The parameters of a model's class, and which of them its files hold where.

    Attributes:
        model: The model, on the meta device: without values. Its code is that of transformers, never of the folder.
        parameters: Name and shape of its parameters and persistent buffers.
        places: For each tensor of the files that the class uses, the parts of parameters that it holds. A vocabulary
            may have other rows than the configuration says.
        unused: For each of the other tensors, why the class does not use it.
        converted: For tensors that are not a parameter as they are, the operations that make it one.
        failed: For parameters that cannot be made of the tensors that there are for them, why not.
    """

    def __init__(self, model: Any, tensors: Mapping[str, TensorInfo]) -> None:
        self.model = model
        self._state = model.state_dict(keep_vars=True)
        self.parameters: Mapping[str, tuple[int, ...]] = {k: tuple(v.shape) for k, v in self._state.items()}
        self.places: dict[str, tuple[Place, ...]] = {}
        self.unused: dict[str, str] = {}
        self.converted: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self._locate(tensors)

    @property
    def class_name(self) -> str:
        """The name of the model's class."""
        return type(self.model).__name__

    @functools.cached_property
    def holders(self) -> Mapping[str, list[tuple[str, Place]]]:
        """For each parameter, the stored tensors that hold a part of it."""
        found: dict[str, list[tuple[str, Place]]] = {}
        for name, places in self.places.items():
            for place in places:
                found.setdefault(place.parameter, []).append((name, place))
        return found

    @functools.cached_property
    def saved(self) -> Mapping[str, tuple[Place, ...]]:
        """The tensors that transformers would write, by name, whatever the files at hand: one per expert, for example.

        Empty if its rules cannot be reversed.
        """
        from transformers.core_model_loading import revert_weight_conversion

        traced = {name: Traced.stored(name, shape, torch.float32) for name, shape in self.parameters.items()}
        try:
            made = revert_weight_conversion(self.model, dict(traced))
            return {name: tuple(values.origins(name, self.parameters)) for name, values in made.items()}
        except Exception:  # an operation of another kind, or none that reverses it
            return {}

    @functools.cached_property
    def text(self) -> str:
        """The path of the language model's layers and embedding within the model, such as `model.language_model`."""
        return self._path(self.model.get_input_embeddings()).rpartition(".")[0]

    @functools.cached_property
    def head(self) -> str:
        """The path of the output head; empty if there is none."""
        return self._path(self.model.get_output_embeddings())

    def _path(self, module: Any) -> str:
        return next((str(name) for name, each in self.model.named_modules() if each is module), "")

    def canonical(self, name: str) -> str | None:
        """The parameter that a name in another class of the same model, or another version of it, stands for.

        Knows the names of older versions, of the model without its head, and of its language model alone.
        `model.layers.0.mlp.up_proj.weight` is `model.language_model.layers.0.mlp.up_proj.weight` in a wrapper.
        None if there is no such parameter. A name of a part of a parameter, such as an expert's, is in `saved`.
        """
        if name in self.parameters:
            return name
        target, pattern, _ = self._rename(name)
        if pattern is None and target in self.parameters:
            return target
        for prefix in ("model.language_model.", "language_model.model.", "language_model.", "model.", ""):
            inner = f"{self.text}.{name.removeprefix(prefix)}" if self.text else name.removeprefix(prefix)
            if name.startswith(prefix) and inner in self.parameters:
                return inner
        return None

    def missing(self) -> list[str]:
        """The parameters that no tensor holds, but for an output head, which may be tied to the embedding."""
        head = f"{self.head}." if self.head else None
        needed = (name for name, _ in self.model.named_parameters(remove_duplicate=True))
        return [name for name in needed if name not in self.holders and not (head and name.startswith(head))]

    def ignores(self, name: str) -> str | None:
        """Why the class passes over a tensor with such a name without a word, if it does; else None."""
        patterns = getattr(self.model, "_keys_to_ignore_on_load_unexpected", None) or ()
        if any(re.search(pattern, name) for pattern in patterns):
            return f"{self.class_name} passes over it"
        return None

    def _locate(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Follow the rules of transformers for all tensors, as its `core_model_loading` does."""
        from transformers.core_model_loading import dot_natural_key

        groups: dict[str, tuple[Any, dict[str, str]]] = {}
        for name in sorted(tensors, key=dot_natural_key):
            target, pattern, converter = self._rename(name)
            if target not in self._state:
                self.unused[name] = self._why_unused(name)
            elif pattern is None:
                self.places[name] = (whole(target, tensors[name].shape),)
            else:
                groups.setdefault(target, (converter, {}))[1][name] = pattern
        for target, (converter, sources) in groups.items():
            try:
                found, operations = self._convert(target, converter, sources, tensors)
            except Exception as error:  # rules of another version, or for other shapes than these
                self.failed[target] = f"{_first_line(error)} ({len(sources)} tensors, such as {next(iter(sources))})"
                self.unused |= dict.fromkeys(sources, f"{target} cannot be made of it")
                continue
            for name, places in found.items():
                self.places[name] = tuple(places)
                if len(places) > 1 or not is_whole(places[0], self.parameters[places[0].parameter]):
                    self.converted[name] = operations

    @functools.cached_property
    def _rules(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Renamings and converters of transformers, and the further converters of ours."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        rules = get_model_conversion_mapping(self.model)
        return (
            [rule for rule in rules if isinstance(rule, WeightRenaming)],
            [rule for rule in rules if isinstance(rule, WeightConverter)],
            further_rules(self.model),
        )

    def _rename(self, name: str) -> tuple[str, str | None, Any]:
        """The parameter that a stored tensor becomes, and the converter that makes it with its pattern, if any."""
        from transformers.core_model_loading import rename_source_key

        renamings, converters, further = self._rules
        target, pattern = name, None
        for renames, converts in ((renamings, converters), ([], []), (renamings, further)):
            prefix = self.model.base_model_prefix
            target, pattern = rename_source_key(name, renames, converts, prefix, self._state)
            if target in self._state:
                converter = next((each for each in converts if pattern in each.source_patterns), None)
                return target, pattern, converter
        return target, pattern, None

    def _convert(
        self, target: str, rule: Any, sources: Mapping[str, str], tensors: Mapping[str, TensorInfo]
    ) -> tuple[dict[str, list[Place]], str]:
        """The places of tensors that are combined, and the names of the operations."""
        converter = copy.deepcopy(rule)
        for name, pattern in sources.items():
            traced = Traced.stored(name, tensors[name].shape, torch.float32)
            converter.add_tensor(target, name, pattern, lambda traced=traced: traced)
        operations = " and ".join(type(operation).__name__ for operation in converter.operations)
        found: dict[str, list[Place]] = {}
        for parameter, made in converter.convert(target, model=self.model, config=self.model.config).items():
            values = made[0] if isinstance(made, list) else made
            if not isinstance(values, Traced) or parameter not in self.parameters:
                raise NotStridedError(f"{operations} does more than move entries")
            if tuple(values.shape) != self.parameters[parameter]:
                expected, actual = list(self.parameters[parameter]), list(values.shape)
                raise NotStridedError(f"its shape would be {actual}, not {expected}")
            for name, places in values.places(parameter).items():
                found.setdefault(name, []).extend(places)
        return found, operations

    def _why_unused(self, name: str) -> str:
        if COMPUTED.search(name):
            return "a buffer that is computed from the configuration"
        return f"{self.class_name} has no such parameter"


_layouts: "weakref.WeakKeyDictionary[Checkpoint, Layout]" = weakref.WeakKeyDictionary()


def layout_of(checkpoint: Checkpoint) -> Layout:
    """The layout of a checkpoint. It is kept as long as the checkpoint.

    Raises:
        NoLayoutError: transformers is not installed, has no class for it, cannot build it, or has rules of another kind
            than those that are followed here.
    """
    if checkpoint not in _layouts:
        model = skeleton(checkpoint)
        try:
            _layouts[checkpoint] = Layout(model, checkpoint.tensors)
        except Exception as error:  # another version of transformers
            raise NoLayoutError(_first_line(error)) from None
    return _layouts[checkpoint]


def skeleton(checkpoint: Checkpoint) -> Any:
    """The model of a checkpoint on the meta device: its modules and the shapes of its parameters, without values.

    It has the class that the configuration names in `architectures`, else the one that transformers has for its type.

    Raises:
        NoLayoutError: transformers is not installed, has no class for it, or cannot build it.
    """
    most = len(checkpoint.tensors)
    for field, count in _numbers(checkpoint.config):
        if (_COUNTS.fullmatch(field) and count > most) or (_EXPERTS.fullmatch(field) and count > _MOST_EXPERTS):
            raise NoLayoutError(f"{field} is {count} in its config.json, but it has {most} tensors")
    fields = json.dumps({k: v for k, v in checkpoint.config.items() if k not in _VOLATILE}, sort_keys=True)
    if fields not in _skeletons:
        while len(_skeletons) >= _MOST_SKELETONS:
            _skeletons.pop(next(iter(_skeletons)))
        _skeletons[fields] = _build(checkpoint.folder)
    return _skeletons[fields]


def _build(folder: Path) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise NoLayoutError("transformers is not installed")
    try:
        with quiet("transformers"), torch.device("meta"):
            kind, part = saved_class(load_config(folder))
            return kind(part).eval()
    except Exception as error:  # a configuration may be wrong in any way
        raise NoLayoutError(_first_line(error)) from None


def _numbers(config: Any, name: str = "") -> Iterable[tuple[str, int]]:
    """The integers in a configuration, with the name of their field."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _numbers(value, str(key))
    elif isinstance(config, int) and not isinstance(config, bool):
        yield name, config


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
