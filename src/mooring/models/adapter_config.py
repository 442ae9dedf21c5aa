"""PEFT's `adapter_config.json`: which options of LoRA can be merged, and the rank and scale of every module."""

import dataclasses
import math
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import regex

from mooring.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"

_MERGE_WITH_PEFT = "merge it into its base with PEFT's merge_and_unload, and name the result"
_SAVE_AGAIN = "save the adapter again with PEFT"
_LARGEST_RANK = 2**24
_LONGEST_PATTERN = 10_000
"""Characters."""
_MOST_REPEATS = 10**5
"""The product of all counts in a pattern, such as `{1,3}`: `regex` expands nested ones in memory."""
_COUNT = re.compile(r"\{\d*(?:,\d*)?\}")
_NUMBER = re.compile(r"[1-9]\d*")
_SECONDS_TO_MATCH = 10.0
"""For all patterns of an adapter; ordinary ones take milliseconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """What an option of PEFT's `LoraConfig` means for a merge.

    Attributes:
        kind: `merged`: it decides what the weights are, and the merge follows it. `refused`: an adapter with it is not
            merged. `no effect`: the weights of the tuned model do not depend on it.
        what: How it is merged, why it is refused, or why it has no effect.
        way_out: What to do instead, if it is refused.
    """

    kind: Literal["merged", "refused", "no effect"]
    what: str
    way_out: str = ""


_INITIALIZES = "how the factors were initialized, for training"
_SELECTS = "which modules have factors; the file says it too"

OPTIONS: Mapping[str, Option] = {
    "r": Option("merged", "the rank of A and B"),
    "lora_alpha": Option("merged", "the change is α / r · B·A"),
    "use_rslora": Option("merged", "the change is α / √r · B·A"),
    "rank_pattern": Option("merged", "the rank of the modules that a pattern matches"),
    "alpha_pattern": Option("merged", "α of the modules that a pattern matches"),
    "use_dora": Option("merged", "m · (W + s·B·A) / ‖W + s·B·A‖, with one norm per output"),
    "lora_bias": Option("merged", "the bias of B, times the scale, is added to the module's bias"),
    "bias": Option("merged", "biases are taken from the adapter"),
    "fan_in_fan_out": Option("merged", "the orientation of square weights, where nothing else shows it"),
    "modules_to_save": Option("merged", "whole modules are taken from the adapter"),
    "trainable_token_indices": Option(
        "merged", "rows of the embedding, and of a tied head, are taken from the adapter"
    ),
    "ensure_weight_tying": Option("merged", "the head gets the change of the embedding, and stays tied to it"),
    "target_parameters": Option("merged", "s·Bₑ·Aₑ for every expert e of a fused parameter"),
    "use_bdlora": Option("merged", "A or B is multiplied out as a block-diagonal matrix (BD-LoRA)"),
    "use_qalora": Option("merged", "A is repeated over each group of inputs (QALoRA)"),
    "qalora_group_size": Option("merged", "the inputs in a group of QALoRA"),
    "alora_invocation_tokens": Option(
        "refused",
        "aLoRA changes the model only after its invocation tokens, which no weights express",
        "serve the adapter itself (vLLM applies aLoRA), or remove alora_invocation_tokens from adapter_config.json to "
        "apply it to every token",
    ),
    "arrow_config": Option(
        "refused",
        "Arrow chooses among other adapters for every token, which no weights express",
        "merge the adapters that it chooses among instead: mooring merge BASE ADAPTER ADAPTER",
    ),
    "kasa_config": Option("refused", "KaSA leaves out singular values of its base's weights too", _MERGE_WITH_PEFT),
    "layer_replication": Option(
        "refused",
        "layer_replication gives the model more layers than its base has",
        "repeat the layers of the base with PEFT's replicate_layers, save it with copies "
        "(state_dict={k: v.clone() for k, v in model.state_dict().items()}) as the base, and remove layer_replication "
        "from adapter_config.json",
    ),
    "init_lora_weights": Option(
        "refused",
        "PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change the base's weights too; other initializations are merged",
        f"save it with PEFT's path_initial_model_for_weight_conversion, or {_MERGE_WITH_PEFT}",
    ),
    "velora_config": Option("no effect", "VeLoRA compresses activations during training only"),
    "monteclora_config": Option("no effect", "MonteCLoRA draws samples during training only; PEFT merges B·A"),
    "eva_config": Option("no effect", _INITIALIZES),
    "corda_config": Option("no effect", _INITIALIZES),
    "lora_ga_config": Option("no effect", _INITIALIZES),
    "loftq_config": Option("no effect", _INITIALIZES),
    "target_modules": Option("no effect", _SELECTS),
    "exclude_modules": Option("no effect", _SELECTS),
    "layers_to_transform": Option("no effect", _SELECTS),
    "layers_pattern": Option("no effect", _SELECTS),
    "lora_dropout": Option("no effect", "for training"),
    "megatron_config": Option("no effect", "for training in Megatron"),
    "megatron_core": Option("no effect", "for training in Megatron"),
    "runtime_config": Option("no effect", "for training; PEFT does not save it"),
    "inference_mode": Option("no effect", "whether PEFT freezes the adapter when it loads it"),
    "base_model_name_or_path": Option("no effect", "compared with the base, for a warning"),
    "revision": Option("no effect", "of the base on the hub"),
    "peft_type": Option("merged", "LORA"),
    "task_type": Option("no effect", "how PEFT wraps the model"),
    "auto_mapping": Option("no effect", "how PEFT finds the class of the base"),
    "peft_version": Option("no effect", "for information"),
}
"""Every option of `LoraConfig` in PEFT 0.21, by name."""

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that change the base's weights too; PEFT changes them again when it loads the adapter."""

_ADDS_INPUTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
)
"""Types of adapters that add inputs instead of changing weights."""


@dataclasses.dataclass(frozen=True, slots=True)
class BlockDiagonal:
    """BD-LoRA: names that contain an entry of `a` have a block-diagonal A, those of `b` a block-diagonal B."""

    a: tuple[str, ...]
    b: tuple[str, ...]
    blocks: int


@dataclasses.dataclass(frozen=True, slots=True)
class LoraSettings:
    """What an adapter's configuration says about its weights, checked.

    Attributes:
        file: The configuration.
        use_dora: Whether every module has a magnitude.
        modules_to_save: Endings of the names of modules that were saved whole.
        target_parameters: Endings of the names of parameters that have factors.
        token_indices: Rows that were trained, by the ending of the embedding's name; `""` is the input embedding.
        block_diagonal: BD-LoRA's blocks, if it is used.
        group: Inputs that share a column of A: 1, or QALoRA's group size.
    """

    file: Path
    use_dora: bool
    modules_to_save: tuple[str, ...]
    target_parameters: tuple[str, ...]
    token_indices: Mapping[str, tuple[int, ...]]
    block_diagonal: BlockDiagonal | None
    group: int
    _rank: "_Pattern"
    _alpha: "_Pattern"
    _rslora: bool

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """Rank and scale of a module, or of a parameter in `target_parameters`: α / r, or α / √r under rsLoRA.

        Raises:
            ModelError: There is no usable `r` or `lora_alpha`, or a pattern takes too long to match.
        """
        rank, alpha = self._rank.value(module), self._alpha.value(module)
        if not _is_rank(rank) or not _is_number(alpha):
            raise malformed(f"{self.file}: has no usable r and lora_alpha")
        return rank, float(alpha) / (math.sqrt(rank) if self._rslora else rank)

    def is_target_parameter(self, name: str) -> bool:
        """Whether a parameter's name is, or ends in, one of `target_parameters`."""
        return any(name == ending or name.endswith(f".{ending}") for ending in self.target_parameters)


def unsupported(what: str, hint: str = _MERGE_WITH_PEFT) -> ModelError:
    """The error for an adapter that cannot be merged."""
    return ModelError(what, hint, code="model.unsupported_adapter")


def malformed(what: str, hint: str = _SAVE_AGAIN) -> ModelError:
    """The error for an adapter that contradicts itself."""
    return ModelError(what, hint, code="model.bad_adapter")


def beyond_plain(config: Mapping[str, Any]) -> list[str]:
    """The options of an adapter that are merged, but that servers of plain LoRA adapters do not apply, by name."""
    named = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters")
    return [name for name in (*named, "use_bdlora", "use_qalora") if config.get(name)]


def unknown_options(config: Mapping[str, Any]) -> list[str]:
    """Options that are set and that `LoraConfig` did not have when this was written, by name."""
    return sorted(key for key, value in config.items() if key not in OPTIONS and value not in (None, False, "", [], {}))


def lora_settings(folder: Path, config: Mapping[str, Any]) -> LoraSettings:
    """Check an adapter's configuration.

    Raises:
        ModelError: It is not LoRA, uses an option that cannot be merged (named, with the way out), or holds a value of
            the wrong type.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        named = kind if isinstance(kind, str) else repr(type(kind).__name__)
        what = f"{folder}: is an adapter of type {_short(named)}, not LoRA"
        if kind in _ADDS_INPUTS:
            raise unsupported(f"{what}; it adds inputs and changes no weights", "name a LoRA adapter or a whole model")
        raise unsupported(what, f"convert it with PEFT's save_as_lora, or {_MERGE_WITH_PEFT}")
    _check_refused(folder, config)
    file = folder / ADAPTER_CONFIG
    deadline = _Deadline(file)
    return LoraSettings(
        file=file,
        use_dora=bool(config.get("use_dora")),
        modules_to_save=_names(file, config, "modules_to_save"),
        target_parameters=_names(file, config, "target_parameters"),
        token_indices=_token_indices(file, config.get("trainable_token_indices")),
        block_diagonal=_block_diagonal(file, config.get("use_bdlora")),
        group=_group(file, config),
        _rank=_Pattern(file, config, "r", "rank_pattern", deadline),
        _alpha=_Pattern(file, config, "lora_alpha", "alpha_pattern", deadline),
        _rslora=bool(config.get("use_rslora")),
    )


def _check_refused(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise for options whose effect is not a set of weights on the same base."""
    for key, option in OPTIONS.items():
        if option.kind == "refused" and key != "init_lora_weights" and config.get(key):
            raise unsupported(f"{folder}: {option.what}", option.way_out)
    if config.get("use_dora") and config.get("lora_bias"):
        raise unsupported(
            f"{folder}: the adapter uses DoRA with lora_bias, which has no weight of its own", _SAVE_AGAIN
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        what = f"{folder}: the adapter was initialized by {_short(start)}, which changed its base too"
        raise unsupported(what, OPTIONS["init_lora_weights"].way_out)


def _short(text: str) -> str:
    """Text from a file, fit to be printed in a line."""
    return ascii(text[:80])[1:-1]


def _names(file: Path, config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise malformed(f"{file}: {key} is not a list of names")
    return tuple(value)


def _token_indices(file: Path, value: Any) -> dict[str, tuple[int, ...]]:
    if not value:
        return {}
    by_layer = value if isinstance(value, dict) else {"": value}
    for rows in by_layer.values():
        if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
            raise malformed(f"{file}: trainable_token_indices is not a list of token ids")
        if len(set(rows)) < len(rows):
            raise malformed(f"{file}: trainable_token_indices holds a token id twice")
    return {str(layer): tuple(rows) for layer, rows in by_layer.items()}


def _block_diagonal(file: Path, value: Any) -> BlockDiagonal | None:
    if not value:
        return None
    if not isinstance(value, dict) or not _is_rank(value.get("nblocks", 1)):
        raise malformed(f"{file}: has no usable use_bdlora")
    a, b = (_names(file, value, f"target_modules_bd_{side}") for side in "ab")
    return BlockDiagonal(a, b, value.get("nblocks", 1))


def _group(file: Path, config: Mapping[str, Any]) -> int:
    size = config.get("qalora_group_size", 16) if config.get("use_qalora") else 1
    if not _is_rank(size):
        raise malformed(f"{file}: has no usable qalora_group_size")
    return int(size)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_RANK


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    if type(value) is int:
        return abs(value) < 2**1000
    return type(value) is float and math.isfinite(value)


class _Deadline:
    """The time until which all patterns of an adapter must have been matched, from the first of them on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._end: float | None = None

    def left(self) -> float:
        """Seconds left; raises ModelError if there are none."""
        if self._end is None:
            self._end = time.monotonic() + _SECONDS_TO_MATCH
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.error()
        return left

    def error(self) -> ModelError:
        return malformed(f"{self.file}: the patterns in rank_pattern and alpha_pattern take too long to match")


class _Pattern:
    """A number for every module: that of the first pattern that its name ends in, as in PEFT's `get_pattern_key`.

    PEFT matches `(.*\\.)?(pattern)$`. Python's `re` can take forever on a hostile pattern, so that it only decides
    whether a pattern is valid, and `regex`, which has the same syntax and a time limit, matches it.
    """

    def __init__(self, file: Path, config: Mapping[str, Any], default: str, patterns: str, deadline: _Deadline) -> None:
        self._default, self._deadline = config.get(default), deadline
        found = config.get(patterns) or {}
        if not isinstance(found, dict):
            raise malformed(f"{file}: has no usable r and lora_alpha ({patterns} is not a mapping)")
        usable = _is_rank if default == "r" else _is_number
        for key, value in found.items():
            if len(key) > _LONGEST_PATTERN or not usable(value):
                raise malformed(f"{file}: has no usable r and lora_alpha ({_short(key)} in {patterns})")
        self._values: Sequence[tuple[str, Any]] = list(found.items())
        self._compiled: list[Any] = []
        self._file, self._patterns = file, patterns

    def value(self, module: str) -> Any:
        """The number of a module, not checked if it is the default."""
        for pattern, (_, value) in zip(self._all(), self._values, strict=True):
            try:
                if pattern.match(module, timeout=self._deadline.left()):
                    return value
            except TimeoutError:
                raise self._deadline.error() from None
        return self._default

    def _all(self) -> list[Any]:
        if len(self._compiled) < len(self._values):
            self._compiled = list(self._compile())
        return self._compiled

    def _compile(self) -> Iterator[Any]:
        for key, _ in self._values:
            self._deadline.left()
            text = rf"(.*\.)?({key})$"
            try:
                if (
                    math.prod(int(n) for count in _COUNT.findall(key) for n in re.findall(r"\d+", count) if int(n))
                    > _MOST_REPEATS
                ):
                    raise OverflowError
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    re.compile(text)
                    yield regex.compile(text)
            except (re.error, regex.error, RecursionError, OverflowError, MemoryError):
                what = f"{self._file}: has no usable r and lora_alpha ({_short(key)} in {self._patterns} is no pattern)"
                raise malformed(what) from None
