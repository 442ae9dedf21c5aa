"""What the tensors of a LoRA adapter say: which change each of them belongs to, by PEFT's names."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from mooring.models.adapter_config import LoraSettings, malformed, unsupported
from mooring.models.safetensors_file import TensorInfo

_PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names."""
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?:"
    r"(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<kind>weight|bias)"
    r"|(?P<other>embedding_[AB]|magnitude_vector)(?:\.(?P<named>[^.]+))?(?:\.weight)?)"
)
_TRAINING_ONLY = re.compile(r".+\.lora_(?:velora_embed|monteclora_sampler)\..+|.+\.lora_velora_embed")
"""Statistics of VeLoRA and MonteCLoRA, which the forward pass does not use after training."""
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_(?P<kind>delta|original)(?:\.[^.]+)?")
_SAVED = re.compile(r"\.modules_to_save(?:\.default)?\.")
_INNER = ".base_layer"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an adapter says about one tensor: magnitude · (stored + scale·(B·A + shift)) / norm, as far as set.

    Attributes:
        stored: Key of the whole tensor in the adapter; None if the base's own values are used.
        own_copy: Whether `stored` belongs to this module only (`modules_to_save`), even if the base ties it to another.
        a: Key of A: (rank, inputs); of an embedding (rank, rows). Of a fused parameter (experts · rank, inputs), of
            QALoRA (rank, inputs / group), of BD-LoRA perhaps (rank, inputs / a_blocks), of a convolution (rank, …).
        b: Key of B: (outputs, rank); of an embedding (columns, rank). Of a fused parameter (outputs, rank · experts),
            with the experts running fastest, of BD-LoRA perhaps (outputs, rank / b_blocks).
        rank: The rank of each product.
        scale: α / rank, or α / √rank under rsLoRA.
        embedding: Whether it is an embedding, whose weight is transposed, so that its change is (B·A)ᵀ.
        magnitude: Key of DoRA's m.
        shift: Key of the bias of B (`lora_bias`).
        rows: Key of rows that replace those of the tensor (`trainable_token_indices`).
        indices: The numbers of these rows.
        depth: How many more parameters of the same module have factors, and are wrapped by this one's.
        position: Which of its module's parameters it changes, if it has another name than `weight`; set by the base.
        experts: How many products A and B hold; 0 if only the base can tell.
        a_blocks: Blocks on the diagonal of A; 1 if it is dense.
        b_blocks: Blocks on the diagonal of B.
        group: Inputs that share a column of A.
    """

    stored: str | None = None
    own_copy: bool = False
    a: str | None = None
    b: str | None = None
    rank: int = 0
    scale: float = 1.0
    embedding: bool = False
    magnitude: str | None = None
    shift: str | None = None
    rows: str | None = None
    indices: tuple[int, ...] = ()
    depth: int = 0
    position: int | None = None
    experts: int = 1
    a_blocks: int = 1
    b_blocks: int = 1
    group: int = 1


def parse(folder: Path, settings: LoraSettings, tensors: Mapping[str, TensorInfo]) -> dict[str, Change]:
    """What an adapter changes, by name of the tensor in the model that it tuned.

    Parameters of one module that have factors are named as PEFT saves them: `experts.weight` for the last one,
    `experts.base_layer.weight` for the one before it, and so on.

    Raises:
        ModelError: It holds no LoRA weights, or some that contradict each other or the configuration.
    """
    modules: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    rows: dict[str, str] = {}
    for key, info in tensors.items():
        bare = bare_name(key)
        if match := _LORA.fullmatch(bare):
            taken = modules.setdefault(_module(match["module"]), {})
            slot = match["other"] or f"{match['side']}.{match['kind']}"
        elif match := _TOKENS.fullmatch(bare):
            if match["kind"] == "original":
                continue  # the base's own rows
            taken, slot = rows, f"{match['module']}.weight"
        elif _TRAINING_ONLY.fullmatch(bare) or ".original_module." in bare:
            continue  # not used after training, or the base's own copy
        elif ".lora_" in bare:
            raise unsupported(f"{info.file}: {key} is not a LoRA weight of a known kind")
        else:
            taken, slot = whole, _SAVED.sub(".", bare).replace(".base_layer.", ".").replace(".token_adapter.", ".")
            if _SAVED.search(bare) and slot in whole:
                continue  # PEFT writes a module of a resized vocabulary twice, and loads the one with the plain name
            if slot in whole and _SAVED.search(bare_name(whole[slot])):
                del whole[slot]
        if taken.setdefault(slot, key) != key:
            raise malformed(f"{info.file}: holds more than one adapter, or {slot} twice", "save one alone with PEFT")
    if not modules and not whole and not rows:
        raise malformed(f"{folder}: holds no LoRA weights")
    changes = {name: Change(stored=key, own_copy=_is_own_copy(settings, name, key)) for name, key in whole.items()}
    for module, slots in modules.items():
        for name, change in _parse_module(folder, settings, tensors, module, slots).items():
            before = changes.get(name, Change())
            changes[name] = dataclasses.replace(change, stored=before.stored, own_copy=before.own_copy)
    for name, key in rows.items():
        indices = _indices(settings, name.removesuffix(".weight"))
        if len(tensors[key].shape) != 2 or tensors[key].shape[0] != len(indices):
            what = f"{folder}: {key} has shape {list(tensors[key].shape)} for {len(indices)} trainable_token_indices"
            raise malformed(what)
        changes[name] = dataclasses.replace(changes.get(name, Change()), rows=key, indices=indices)
    return changes


def bare_name(key: str) -> str:
    """A key of an adapter without what PEFT, torch.compile, FSDP and DDP put in front of, or into, a model's names."""
    name = _WRAPPERS.sub("", key)
    while (shorter := name.removeprefix(_PREFIX).removeprefix("module.")) != name:
        name = shorter
    return name


def _module(name: str) -> str:
    """A module's name, with the wrappers of PEFT only at its end, where they tell parameters of one module apart."""
    inner = outermost(name)
    return inner.replace(f"{_INNER}.", ".") + name[len(inner) :]


def _is_own_copy(settings: LoraSettings, name: str, key: str) -> bool:
    """Whether a whole tensor was saved through `modules_to_save`: as that module's own copy."""
    module = name.rpartition(".")[0]
    return ".base_layer." not in key and any(module.endswith(ending) for ending in settings.modules_to_save)


def _indices(settings: LoraSettings, module: str) -> tuple[int, ...]:
    """The trained rows of an embedding."""
    found = [rows for layer, rows in settings.token_indices.items() if module.endswith(layer)]
    if len(found) != 1:
        raise malformed(f"{settings.file}: has no trainable_token_indices for {module}")
    return found[0]


def _parse_module(
    folder: Path, settings: LoraSettings, tensors: Mapping[str, TensorInfo], module: str, slots: dict[str, str]
) -> dict[str, Change]:
    """The changes of one module's weight and bias."""
    embedding = any(slot.startswith("embedding_") for slot in slots)
    sides = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
    known = {*sides, "magnitude_vector"} | (set() if embedding else {"B.bias"})
    for slot, key in slots.items():
        if slot not in known:
            raise unsupported(f"{folder}: {key} is not a LoRA weight of a known kind")
    if not slots.keys() >= set(sides):
        raise malformed(f"{folder}: {module} has A or B alone")
    a, b = (tensors[slots[side]] for side in sides)
    name = f"{module}.weight"
    inner = outermost(module)
    depth = (len(module) - len(inner)) // len(_INNER)
    if depth or _is_fused(settings, module, a, b):
        if embedding or slots.keys() != set(sides) or len(a.shape) != 2 or len(b.shape) != 2:
            raise unsupported(f"{folder}: {inner} has LoRA weights of a parameter, of an unknown kind")
        return {name: Change(a=a.name, b=b.name, depth=depth, experts=0)}
    if ("magnitude_vector" in slots) != settings.use_dora:
        what = "has a DoRA magnitude" if "magnitude_vector" in slots else "has no DoRA magnitude"
        raise malformed(f"{folder}: {module} {what}, where {settings.file.name} says otherwise")
    rank, scale = settings.rank_and_scale(name if settings.is_target_parameter(name) else module)
    a_blocks, b_blocks = _blocks(settings, module)
    if len(b.shape) > 2 and b.shape[1] != rank:
        raise unsupported(f"{folder}: {module} is LoRA of a convolution with groups, which is not supported")
    fits = len(a.shape) == len(b.shape) >= 2 and a.shape[0] == rank and b.shape[1] * b_blocks == rank
    if not fits or any(size != 1 for size in b.shape[2:]) or rank % a_blocks or b.shape[0] % b_blocks:
        what = f"{folder}: {module} has A {list(a.shape)} and B {list(b.shape)}"
        raise malformed(f"{what} where {settings.file.name} says rank {rank}")
    weight = Change(
        a=a.name,
        b=b.name,
        rank=rank,
        scale=scale,
        embedding=embedding,
        magnitude=slots.get("magnitude_vector"),
        a_blocks=a_blocks,
        b_blocks=b_blocks,
        group=settings.group,
    )
    changes = {name: weight}
    if "B.bias" in slots:
        changes[f"{module}.bias"] = Change(shift=slots["B.bias"], scale=scale)
    return changes


def outermost(module: str) -> str:
    """A module's name without PEFT's wrappers."""
    while module.endswith(_INNER):
        module = module.removesuffix(_INNER)
    return module


def _is_fused(settings: LoraSettings, module: str, a: TensorInfo, b: TensorInfo) -> bool:
    """Whether the factors of a module belong to a parameter of it that is not called `weight`, or is no matrix."""
    if not settings.target_parameters:
        return False
    if settings.is_target_parameter(weight := f"{module}.weight"):  # JetMoe's experts are called so
        return a.shape[0] != settings.rank_and_scale(weight)[0]
    holders = {ending.rpartition(".")[0] for ending in settings.target_parameters}
    named = any(module == holder or module.endswith(f".{holder}") for holder in holders - {""})
    return named or ("" in holders and a.shape[0] != settings.rank_and_scale(module)[0])


def _blocks(settings: LoraSettings, module: str) -> tuple[int, int]:
    """The blocks on the diagonals of A and B, by BD-LoRA's rule: an entry is a part of the module's name."""
    given = settings.block_diagonal
    if given is None:
        return 1, 1
    return (
        given.blocks if any(part in module for part in given.a) else 1,
        given.blocks if any(part in module for part in given.b) else 1,
    )
