"""Write a Llama-shaped model, two tuned from it and a LoRA adapter, with random weights, for the benchmarks.

    python benchmarks/made_models.py FOLDER [--hidden 2048 --layers 16 --vocab 128256]

The default is 1.24 billion parameters in bfloat16, in 4 shards: FOLDER/base, FOLDER/tuned, FOLDER/other, FOLDER/adapter
(7.5 GB). Weights are normal with deviation 0.02; a tuned model adds a normal change of 1 % of that to every entry.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARDS = 4
DEVIATION, CHANGE, RANK = 0.02, 0.01, 16
BLOCK = 1 << 22
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PROJECTIONS = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def config(hidden: int, layers: int, vocab: int, wide: int) -> dict[str, object]:
    """The shape, as transformers writes it; heads of 64, a quarter as many for keys and values, tied embeddings."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 256),
        "head_dim": 64,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def shapes(hidden: int, layers: int, vocab: int, wide: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor, in the order of the model."""
    keys = max(1, hidden // 256) * 64
    rows = dict(zip(PROJECTIONS, (hidden, keys, keys, hidden, wide, wide, hidden), strict=True))
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        for name, out in rows.items():
            yield f"model.layers.{layer}.{name}.weight", (out, wide if name == "mlp.down_proj" else hidden)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def values(shape: tuple[int, ...], index: int, change: int) -> torch.Tensor:
    """A tensor of the base (change 0) or of a tuned model (1, 2), made block by block."""
    out = torch.empty(shape, dtype=torch.bfloat16)
    flat = out.view(-1)
    generator, other = torch.Generator().manual_seed(index), torch.Generator().manual_seed(1000 * change + index)
    for start in range(0, flat.numel(), BLOCK):
        part = flat[start : start + BLOCK]
        noise = torch.empty(part.shape).normal_(0, DEVIATION, generator=generator)
        if change:
            noise += torch.empty(part.shape).normal_(0, DEVIATION * CHANGE, generator=other)
        part.copy_(noise if len(shape) > 1 else 1 + noise)
    return out


def write(folder: Path, shape: dict[str, object], tensors: list[tuple[str, tuple[int, ...]]], change: int) -> None:
    """Write a model of about equal shards, with its index, configuration and a tokenizer of four words."""
    folder.mkdir(parents=True)
    total = sum(torch.Size(size).numel() for _, size in tensors)
    groups: list[list[int]] = [[] for _ in range(SHARDS)]
    seen = 0
    for index, (_, size) in enumerate(tensors):
        groups[min(SHARDS - 1, seen * SHARDS // total)].append(index)
        seen += torch.Size(size).numel()
    groups = [group for group in groups if group]
    places: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file({tensors[i][0]: values(tensors[i][1], i, change) for i in group}, folder / file, {"format": "pt"})
        places |= {tensors[i][0]: file for i in group}
    index_file = {"metadata": {"total_size": 2 * total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    (folder / "config.json").write_text(json.dumps(shape, indent=2))
    words = {"<s>": 0, "</s>": 1, "a": 2, "b": 3}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "a"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def write_adapter(folder: Path, tensors: list[tuple[str, tuple[int, ...]]]) -> None:
    """Write a LoRA adapter of rank 16 on every projection, as PEFT does."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(7)
    parts = {}
    for name, size in tensors:
        if name.endswith("_proj.weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            parts[f"{stem}.lora_A.weight"] = torch.empty(RANK, size[1]).normal_(0, 0.01, generator=generator)
            parts[f"{stem}.lora_B.weight"] = torch.empty(size[0], RANK).normal_(0, 0.01, generator=generator)
    save_file(parts, folder / "adapter_model.safetensors", {"format": "pt"})
    modules = [name.split(".")[-1] for name in PROJECTIONS]
    kind = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "init_lora_weights": True}
    settings = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": modules, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(kind | settings, indent=2))


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--wide", type=int, default=None, help="inner width of a layer; 4 × hidden without")
    args = parser.parse_args()
    size = (args.hidden, args.layers, args.vocab, args.wide or 4 * args.hidden)
    tensors = list(shapes(*size))
    for change, name in enumerate(("base", "tuned", "other")):
        write(args.folder / name, config(*size), tensors, change)
    write_adapter(args.folder / "adapter", tensors)
    print(f"{sum(torch.Size(shape).numel() for _, shape in tensors) / 1e9:.3f} billion parameters")


if __name__ == "__main__":
    main()
