"""Small models for the golden merges: seeded, and the same on every machine.

Their entries are sums of integers over a power of two, so that they depend neither on a library's normal generator nor
on the order in which LoRA's products are summed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INNER, ROWS, LAYERS = 16, 24, 20, 2
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZER = json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}})


class Fixture(NamedTuple):
    """A base, its tuned models, and whether all of these are adapters."""

    base: Path
    tuned: tuple[Path, ...]
    adapters: bool = False


def bell(seed: int, *shape: int, bits: int = 12) -> Tensor:
    """Approximately normal entries of a few bits each: sums of four uniform integers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-(2**bits), 2**bits + 1, (4, *shape), generator=generator)
    return drawn.sum(0).to(torch.float32) / 2 ** (bits + 1)


def tensors(
    seed: int, dtype: torch.dtype, *, head: bool = True, rows: int = ROWS, big: bool = False
) -> dict[str, Tensor]:
    """A model of two layers, with an integer buffer."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (rows, HIDDEN)}
    for layer in range(LAYERS):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"model.layers.{layer}.self_attn.q_proj.bias"] = (HIDDEN,)
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
    if big:  # two cells of the grid that determines sums and draws
        shapes["model.layers.1.mlp.down_proj.weight"] = (300, 450)
    shapes["model.norm.weight"] = (HIDDEN,)
    if head:
        shapes[HEAD] = (rows, HIDDEN)
    made = {name: bell(1000 * seed + number, *shape).to(dtype) for number, (name, shape) in enumerate(shapes.items())}
    return made | {"model.steps": torch.arange(5)}


def moved(base: Mapping[str, Tensor], seed: int, share: float = 0.125) -> dict[str, Tensor]:
    """A model tuned from another: every tensor differs slightly, except the first layer's norm and the buffer."""
    made = {}
    for number, (name, value) in enumerate(base.items()):
        still = not value.is_floating_point() or name == "model.layers.0.input_layernorm.weight"
        change = bell(1000 * seed + number, *value.shape) * share
        made[name] = value.clone() if still else (value.float() + change).to(value.dtype)
    return made


def save(folder: Path, values: Mapping[str, Tensor], shards: int = 1, **config: Any) -> Path:
    """Write a model folder, its tensors dealt to `shards` files."""
    folder.mkdir(parents=True)
    fields = {"model_type": "llama", "vocab_size": len(values[EMBEDDING])} | config
    (folder / "config.json").write_text(json.dumps(fields))
    if shards == 1:
        save_file(dict(values), folder / "model.safetensors")
        return folder
    places = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(values.items())[number::shards])
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def save_adapter(
    folder: Path,
    seed: int,
    *,
    rank: int = 4,
    alpha: float = 6,
    modules: tuple[str, ...] = ("q_proj", "up_proj"),
    **config: Any,
) -> Path:
    """Write a LoRA adapter as PEFT does. Its products are exact in float32, in whatever order they are added."""
    folder.mkdir(parents=True)
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "bias": "none"}
    fields |= {"target_modules": list(modules), "base_model_name_or_path": None, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(fields | config))
    where = {"q_proj": "self_attn.q_proj", "up_proj": "mlp.up_proj"}
    sizes = {"q_proj": HIDDEN, "up_proj": INNER}
    made = {}
    for layer in range(LAYERS):
        for number, module in enumerate(modules):
            name = f"base_model.model.model.layers.{layer}.{where[module]}"
            first = 1000 * seed + 10 * layer + 2 * number
            made[f"{name}.lora_A.weight"] = bell(first, rank, HIDDEN, bits=4)
            made[f"{name}.lora_B.weight"] = bell(first + 1, sizes[module], rank, bits=4) / 4
    save_file(made, folder / "adapter_model.safetensors")
    return folder


def float32(folder: Path) -> Fixture:
    """A whole checkpoint and one tuned from it, in one file each."""
    base = tensors(1, torch.float32)
    return Fixture(save(folder / "base", base), (save(folder / "tuned", moved(base, 2)),))


def bfloat16_sharded(folder: Path) -> Fixture:
    """The same in bfloat16, the base in three files and the tuned model in two, with a tensor of two cells."""
    base = tensors(3, torch.bfloat16, big=True)
    return Fixture(save(folder / "base", base, shards=3), (save(folder / "tuned", moved(base, 4), shards=2),))


def adapter(folder: Path) -> Fixture:
    """A checkpoint in float16 and a LoRA adapter on it."""
    base = tensors(5, torch.float16)
    return Fixture(save(folder / "base", base), (save_adapter(folder / "lora", 6),), adapters=True)


def adapters(folder: Path) -> Fixture:
    """A checkpoint and two adapters on it, of different ranks, α and modules."""
    base = save(folder / "base", tensors(7, torch.float32), shards=2)
    one = save_adapter(folder / "one", 8)
    two = save_adapter(folder / "two", 9, rank=2, alpha=2, modules=("q_proj",))
    return Fixture(base, (one, two), adapters=True)


def tied(folder: Path) -> Fixture:
    """A base that ties its head to its embedding and stores both; one tuned model with one of them, one with both."""
    base = tensors(10, torch.bfloat16, head=False)
    one, two = moved(base, 11), moved(base, 12)
    two[HEAD] = moved({HEAD: base[EMBEDDING]}, 13)[HEAD]
    return Fixture(
        save(folder / "base", base | {HEAD: base[EMBEDDING].clone()}, tie_word_embeddings=True),
        (
            save(folder / "one", one, tie_word_embeddings=True),
            save(folder / "two", two, tie_word_embeddings=False),
        ),
    )


def vocabularies(folder: Path) -> Fixture:
    """Three tuned models: one with more rows of vocabulary, one in another type and in files, one an adapter."""
    base = tensors(14, torch.float32, head=False)
    one, two = moved(base, 15), moved(base, 16)
    one[EMBEDDING] = torch.cat([one[EMBEDDING], bell(17, 3, HIDDEN)])
    two = {name: value.half() if value.is_floating_point() else value for name, value in two.items()}
    places = (
        save(folder / "one", one),
        save(folder / "two", two, shards=2),
        save_adapter(folder / "three", 18, modules=("up_proj",)),
    )
    (places[0] / "tokenizer.json").write_text(TOKENIZER)
    return Fixture(save(folder / "base", base), places)


FIXTURES = {
    "float32": float32,
    "bfloat16-sharded": bfloat16_sharded,
    "adapter": adapter,
    "adapters": adapters,
    "tied": tied,
    "vocabularies": vocabularies,
}
"""By name, what writes the models into a folder."""
