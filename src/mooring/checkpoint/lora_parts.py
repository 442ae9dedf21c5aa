"""What an adapter's files say: the kind that its configuration names, and the parts of every tensor's change."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring.checkpoint.header import TensorInfo
from mooring.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"

_UNSUPPORTED = {
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "layer_replication",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
}
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialize that change the base's weights too; PEFT changes them again when it loads the adapter."""

_MERGE = "merge it into its base with PEFT's merge_and_unload, and name the result"
_AGAIN = "save the adapter again with PEFT"

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?:"
    r"(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<kind>weight|bias)"
    r"|(?P<other>embedding_[AB]|magnitude_vector)(?:\.(?P<named>[^.]+))?(?:\.weight)?)"
)
_SAVED = re.compile(r"\.modules_to_save(\.default)?\.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an adapter says about one tensor: magnitude · (stored + scale · B·A + scale · shift) / norm, where given.

    Attributes:
        stored: Key of the whole tensor in the adapter; None: the base's own values.
        alone: Whether `stored` is this module's alone (`modules_to_save`), even where the base ties it to another.
        a: Key of A: (rank, inputs); of an embedding (rank, rows).
        b: Key of B: (outputs, rank); of an embedding (columns, rank).
        scale: α / rank, or α / √rank under rsLoRA.
        embedding: Whether it is an embedding's: its weight lies the other way round, so that its change is (B·A)ᵀ.
        magnitude: Key of DoRA's m.
        shift: Key of the bias of B (`lora_bias`).
    """

    stored: str | None = None
    alone: bool = False
    a: str | None = None
    b: str | None = None
    scale: float = 1.0
    embedding: bool = False
    magnitude: str | None = None
    shift: str | None = None


def check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse, by name, what is not LoRA or changes more than a weight.

    Raises:
        ModelError: It is such a one.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder}: is an adapter of type {kind}, not LoRA", _MERGE)
    for key, name in _UNSUPPORTED.items():
        if config.get(key):
            raise ModelError(f"{folder}: the adapter uses {name}, which is not supported", _MERGE)
    if config.get("use_dora") and config.get("lora_bias"):
        raise ModelError(f"{folder}: the adapter uses DoRA with lora_bias, which has no weight of its own", _AGAIN)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
        raise ModelError(f"{folder}: the adapter was initialized by {start}, which changed its base too", _MERGE)


def parse(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Change]:
    """What an adapter changes: name of a tensor of the model that it tuned to its change.

    Raises:
        ModelError: A tensor is not LoRA's, has no partner, or does not have the rank that the configuration says.
    """
    modules: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key, info in tensors.items():
        bare = key.removeprefix(_PREFIX)
        match = _LORA.fullmatch(bare)
        if match and ".base_layer" not in match["module"]:
            slot = match["other"] or f"{match['side']}.{match['kind']}"
            taken = modules.setdefault(match["module"], {})
        elif ".lora_" in bare:
            raise ModelError(f"{info.file}: {key} is not a LoRA weight of a known kind", _MERGE)
        elif ".original_module." in bare:
            continue  # the base's own copy
        else:
            slot = _SAVED.sub(".", bare).replace(".base_layer.", ".")
            taken = whole
        if taken.setdefault(slot, key) != key:
            raise ModelError(f"{info.file}: holds more than one adapter, or {slot} twice", "save one alone with PEFT")
    if not modules and not whole:
        raise ModelError(f"{folder}: holds no LoRA weights", _AGAIN)
    changes = {name: Change(stored=key, alone=_alone(config, name, key)) for name, key in whole.items()}
    for module, slots in modules.items():
        for name, change in _module(folder, config, tensors, module, slots).items():
            before = changes.get(name, Change())
            changes[name] = dataclasses.replace(change, stored=before.stored, alone=before.alone)
    return changes


def _alone(config: Mapping[str, Any], name: str, key: str) -> bool:
    """Whether a whole tensor was saved as PEFT saves `modules_to_save`: as that module's own copy."""
    saved = config.get("modules_to_save") or []
    module = name.rpartition(".")[0]
    return ".base_layer." not in key and any(module.endswith(str(ending)) for ending in saved)


def _module(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], module: str, slots: dict[str, str]
) -> dict[str, Change]:
    """The changes of one module's weight and bias."""
    embedding = any(slot.startswith("embedding_") for slot in slots)
    sides = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
    known = {*sides, "magnitude_vector"} | (set() if embedding else {"B.bias"})
    for slot, key in slots.items():
        if slot not in known:
            raise ModelError(f"{folder}: {key} is not a LoRA weight of a known kind", _MERGE)
    if not slots.keys() >= set(sides):
        raise ModelError(f"{folder}: {module} has A or B alone", _AGAIN)
    if ("magnitude_vector" in slots) != bool(config.get("use_dora")):
        what = "has a DoRA magnitude" if "magnitude_vector" in slots else "has no DoRA magnitude"
        raise ModelError(f"{folder}: {module} {what}, where {ADAPTER_CONFIG} says otherwise", _AGAIN)
    a, b = (tensors[slots[side]] for side in sides)
    rank, scale = scale_of(folder, config, module)
    if len(a.shape) > 2 or len(b.shape) > 2:
        raise ModelError(f"{folder}: {module} is LoRA of a convolution, which is not supported", _MERGE)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        what = f"{folder}: {module} has A {list(a.shape)} and B {list(b.shape)}"
        raise ModelError(f"{what} where {ADAPTER_CONFIG} says rank {rank}", _AGAIN)
    magnitude = slots.get("magnitude_vector")
    changes = {
        f"{module}.weight": Change(a=a.name, b=b.name, scale=scale, embedding=embedding, magnitude=magnitude),
    }
    if "B.bias" in slots:
        changes[f"{module}.bias"] = Change(shift=slots["B.bias"], scale=scale)
    return changes


def scale_of(folder: Path, config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and scale of a module: `r` and `lora_alpha`, or the first pattern that its name ends in, as in PEFT.

    Raises:
        ModelError: They are not numbers, or the rank is 0.
    """

    def pattern(field: str, default: Any) -> Any:
        patterns = config.get(field) or {}
        return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)

    try:
        rank = int(pattern("rank_pattern", config.get("r")))
        alpha = float(pattern("alpha_pattern", config.get("lora_alpha")))
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError, re.error):
        raise ModelError(f"{folder / ADAPTER_CONFIG}: has no usable r and lora_alpha", "save it again") from None
