"""Conversions between layouts for which transformers has no rule, as rules of transformers.

They hold for a tensor that no rule of the model's class applies to. `qkv_proj` and `gate_up_proj` are concatenated in
the order of their names, as in Phi-3 and vLLM; experts are stacked as the class's own experts are.
"""

from collections.abc import Iterator
from typing import Any

_GATE_UP = "gate_up_proj"


def further_rules(model: Any) -> list[Any]:
    """Converters for a model, which is on the meta device."""
    from transformers.core_model_loading import Chunk, Concatenate, WeightConverter

    names = [name for name, _ in model.named_parameters()]
    rules = list(_experts(model))
    for kind in ("weight", "bias"):
        qkv = [f".{part}_proj.{kind}" for part in ("q", "k", "v")]
        gate_up = [f".{part}_proj.{kind}" for part in ("gate", "up")]
        if any(name.endswith(f".qkv_proj.{kind}") for name in names):
            rules.append(WeightConverter(qkv, f".qkv_proj.{kind}", [Concatenate(dim=0)]))
        elif all(any(name.endswith(part) for name in names) for part in qkv):
            rules.append(WeightConverter(f".qkv_proj.{kind}", qkv, [_split()]))
        if any(name.endswith(f".{_GATE_UP}.{kind}") for name in names):
            rules.append(WeightConverter(gate_up, f".{_GATE_UP}.{kind}", [Concatenate(dim=0)]))
        elif all(any(name.endswith(part) for name in names) for part in gate_up):
            rules.append(WeightConverter(f".{_GATE_UP}.{kind}", gate_up, [Chunk(dim=0)]))
    return rules


def _split() -> Any:
    """The operation that cuts a tensor into parameters along its first axis; transformers 5.19 has none."""
    import torch
    from transformers.core_model_loading import ConversionOps

    class Split(ConversionOps):  # type: ignore[misc]
        def convert(
            self,
            input_dict: dict[str, Any],
            source_patterns: list[str],
            target_patterns: list[str],
            *,
            full_layer_name: str,
            model: Any,
            **_: Any,
        ) -> dict[str, Any]:
            """The parameters that a tensor is made of, by the patterns of their names."""
            (value,) = input_dict.values()
            first, *_rest = target_patterns
            names = [full_layer_name.replace(first, pattern) for pattern in target_patterns]
            sizes = [model.get_parameter(name).shape[0] for name in names]
            parts = torch.split(value[0] if isinstance(value, list) else value, sizes)
            return dict(zip(target_patterns, parts, strict=True))

    return Split()


def _experts(model: Any) -> Iterator[Any]:
    """Converters of tensors per expert (outputs, inputs) to the stacked ones of the class."""
    from transformers.core_model_loading import Concatenate, Interleave, MergeModulelist, Transpose, WeightConverter

    weights = (name.rpartition(f".{_GATE_UP}") for name, weight in model.named_parameters() if weight.dim() == 3)
    path = next((path for path, found, rest in weights if found and not rest), None)
    if path is None:
        return
    experts = model.get_submodule(path)
    module = path.rpartition(".")[2]
    transposed = getattr(experts, "is_transposed", None)
    if transposed is None:  # Llama 4 has experts of its own kind
        transposed = getattr(experts, _GATE_UP).shape[1] == getattr(experts, "hidden_size", None)
    interleaved = not getattr(experts, "is_concatenated", True)
    for kind, target in (("weight", ""), ("bias", "_bias")):
        if not hasattr(experts, _GATE_UP + target):
            continue
        turn = [Transpose(1, 2)] if transposed and kind == "weight" else []
        pair = [f".{module}.*.{part}_proj.{kind}" for part in ("gate", "up")]
        mix = [Interleave(dim=1, inverse=True)] if interleaved else []
        stack = [MergeModulelist(dim=0), Concatenate(dim=1), *mix, *turn]
        yield WeightConverter(pair, f".{module}.{_GATE_UP}{target}", stack)
        down = f".{module}.*.down_proj.{kind}"
        yield WeightConverter(down, f".{module}.down_proj{target}", [MergeModulelist(dim=0), *turn])
