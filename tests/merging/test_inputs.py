"""Odd pairs: tied heads, vocabularies of different size, mixed types and files, NaN, and several tuned models."""

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import PLAIN
from safetensors.torch import save_file

import mooring
from mooring.errors import MismatchError, ModelError, UserError
from mooring.merge_methods import METHODS
from mooring.merging import pair as pair_module
from mooring.merging.compatibility import check_pair
from mooring.merging.in_memory import OpenMerge
from mooring.merging.inspect import inspect
from mooring.merging.job import Output, bytes_of
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.merging.verify import verify
from mooring.models import NAMES, Checkpoint, open_checkpoint

Write = Callable[..., Path]
Read = Callable[[Path], dict[str, torch.Tensor]]

EMBED, HEAD, MLP, NORM = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.mlp.up.weight",
    "model.norm.weight",
)
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def tensors(seed: int, rows: int = 10, head: bool = False, dtype: torch.dtype = F32) -> dict[str, torch.Tensor]:
    """A small language model; with a head of its own, or with none (tied)."""
    random = torch.Generator().manual_seed(seed)
    shapes = {EMBED: (rows, 4), MLP: (6, 4), NORM: (4,)} | ({HEAD: (rows, 4)} if head else {})
    return {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}


def record(out: Path) -> dict[str, Any]:
    """The manifest."""
    return json.loads((out / "mooring.json").read_text())  # type: ignore[no-any-return]


def raw(tensor: torch.Tensor) -> bytes:
    """Its bytes."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def files(folder: Path) -> dict[str, bytes]:
    """Every file by name."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def refused(kind: type[UserError], base: Path, tuned: Path | list[Path], out: Path, **options: Any) -> UserError:
    """The error of a merge, which leaves nothing of the output."""
    with pytest.raises(kind) as caught:
        merge(base, tuned, out, **{"lam": 0.5} | options)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not out.exists()
    assert not list(out.parent.glob(".partial*"))
    return caught.value


def lora(folder: Path, parts: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """A LoRA adapter as PEFT lays it out, of these tensors."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    save_file({f"base_model.model.{k}": v for k, v in parts.items()}, folder / "adapter_model.safetensors")
    return folder


def factors(module: str, outputs: int, inputs: int, seed: int = 5) -> dict[str, torch.Tensor]:
    """A and B of a linear module."""
    random = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(2, inputs, generator=random),
        f"{module}.lora_B.weight": torch.randn(outputs, 2, generator=random),
    }


# Tied heads


def test_a_head_that_the_tuned_model_unties_is_not_tied_again(tmp_path: Path, write: Write, read: Read) -> None:
    """The base stores its tied head, the tuned model has trained the two apart: the merged head must be loaded."""
    base = tensors(1, head=True)
    base[HEAD] = base[EMBED].clone()
    one = write(tmp_path / "base", base, tie_word_embeddings=True)
    other = write(tmp_path / "tuned", tensors(2, head=True), tie_word_embeddings=False)
    out = merge(one, other, tmp_path / "out", lam=0.5)
    assert not torch.equal(read(out)[HEAD], read(out)[EMBED])
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert "untied" in record(out)["decisions"][HEAD]


def test_a_head_that_both_tie_stays_tied(tmp_path: Path, write: Write, read: Read) -> None:
    pair = []
    for seed in (1, 2):
        model = tensors(seed, head=True)
        model[HEAD] = model[EMBED].clone()
        pair.append(write(tmp_path / str(seed), model, tie_word_embeddings=True))
    out = merge(*pair, tmp_path / "out", lam=0.3)
    assert torch.equal(read(out)[HEAD], read(out)[EMBED])
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("tie", ["base", "tuned"])
def test_a_head_of_one_side_that_is_not_its_embedding(tmp_path: Path, write: Write, tie: str) -> None:
    with_head, without = write(tmp_path / "a", tensors(1, head=True)), write(tmp_path / "b", tensors(2))
    pair = (without, with_head) if tie == "base" else (with_head, without)
    error = refused(MismatchError, *pair, tmp_path / "out")
    assert error.code == ("model.extra_tensor" if tie == "base" else "model.missing_tensor")
    assert HEAD in error.message


def test_tied_heads_and_more_rows_at_once(tmp_path: Path, write: Write, read: Read) -> None:
    base = tensors(1, rows=10, head=True)
    base[HEAD] = base[EMBED].clone()
    more = tensors(2, rows=12)
    out = merge(
        write(tmp_path / "b", base, vocab_size=10, tie_word_embeddings=True),
        write(tmp_path / "t", more, vocab_size=12, tie_word_embeddings=True),
        tmp_path / "out",
        lam=0.25,
    )
    merged = read(out)
    assert torch.equal(merged[HEAD], merged[EMBED])
    assert torch.equal(merged[EMBED][:10], torch.lerp(base[EMBED], more[EMBED][:10], 0.25))
    assert raw(merged[EMBED][10:]) == raw(more[EMBED][10:])


def test_an_adapter_that_unties_beside_a_tied_checkpoint(tmp_path: Path, write: Write, read: Read) -> None:
    """The adapter gives the output a head that neither the base nor the other tuned model stores."""
    base = tensors(1)
    one = write(tmp_path / "base", base, tie_word_embeddings=True)
    whole = write(tmp_path / "whole", tensors(2), tie_word_embeddings=True)
    parts = factors("lm_head", 10, 4)
    adapter = lora(tmp_path / "lora", parts, target_modules=["lm_head"])
    out = merge(one, [adapter, whole], tmp_path / "out", lam=1.0, weights=[1.0, 1.0])
    merged = read(out)
    head = base[EMBED] + 2 * parts["lm_head.lora_B.weight"] @ parts["lm_head.lora_A.weight"]
    other = tensors(2)[EMBED]
    assert torch.allclose(merged[HEAD], (head + other) / 2, atol=1e-6)
    assert torch.allclose(merged[EMBED], (base[EMBED] + other) / 2, atol=1e-6)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_an_adapter_that_unties_beside_one_that_does_not(tmp_path: Path, write: Write, read: Read) -> None:
    """What the second changes in the embedding counts for its head as well, since its head is the embedding."""
    base = tensors(1)
    one = write(tmp_path / "base", base, tie_word_embeddings=True, architectures=["LlamaForCausalLM"])
    parts, saved = factors("lm_head", 10, 4), tensors(2)[EMBED]
    first = lora(tmp_path / "first", parts, target_modules=["lm_head"])
    second = lora(tmp_path / "second", {"model.embed_tokens.weight": saved} | factors("model.layers.0.mlp.up", 6, 4))
    out = merge(one, [first, second], tmp_path / "out", lam=1.0)
    head = base[EMBED] + 2 * parts["lm_head.lora_B.weight"] @ parts["lm_head.lora_A.weight"]
    merged = read(out)
    assert torch.allclose(merged[EMBED], (base[EMBED] + saved) / 2, atol=1e-6)
    assert torch.allclose(merged[HEAD], (head + saved) / 2, atol=1e-6)


# Vocabularies


def tokenizer_of(folder: Path, text: str) -> None:
    """Files of a tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"of": text}))


@pytest.mark.parametrize("larger", ["base", "tuned"])
@pytest.mark.parametrize("tokenizer", ["larger", "base"])
@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_vocabularies_differ(tmp_path: Path, write: Write, read: Read, larger: str, tokenizer: str, lam: float) -> None:
    rows = {"base": 13, "tuned": 10} if larger == "base" else {"base": 10, "tuned": 13}
    models = {name: tensors(seed, rows[name], head=True) for seed, name in enumerate(rows)}
    folders = {n: write(tmp_path / n, models[n], vocab_size=rows[n]) for n in rows}
    for name, folder in folders.items():
        tokenizer_of(folder, name)
    (folders["base"] / "chat_template.jinja").write_text("base")
    out = merge(*folders.values(), tmp_path / "out", lam=lam, slice_bytes=16, output=Output(tokenizer=tokenizer))
    merged = read(out)
    for name in (EMBED, HEAD):
        assert torch.equal(merged[name][:10], torch.lerp(models["base"][name][:10], models["tuned"][name][:10], lam))
        assert raw(merged[name][10:]) == raw(models[larger][name][10:])
        assert f"the others taken from {larger}" in record(out)["decisions"][name]
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 13
    whose = "tuned" if (larger, tokenizer) == ("tuned", "larger") else "base"
    assert json.loads((out / "tokenizer.json").read_text())["of"] == whose
    assert (out / "chat_template.jinja").is_file() == (whose == "base")  # a template belongs to its tokenizer
    assert ("the tokenizer is that of tuned" in record(out)["notes"]) == (whose == "tuned")


def test_a_larger_model_without_tokenizer_files(tmp_path: Path, write: Write) -> None:
    """The manifest does not say that a tokenizer was taken where there was none to take."""
    base, tuned = write(tmp_path / "b", tensors(1), vocab_size=10), write(tmp_path / "t", tensors(2, 12), vocab_size=12)
    tokenizer_of(base, "base")
    out = merge(base, tuned, tmp_path / "out", lam=0.5)
    assert json.loads((out / "tokenizer.json").read_text())["of"] == "base"
    assert record(out)["notes"] == ["t has more vocabulary rows, but no tokenizer: the tokenizer is that of b"]


@pytest.mark.parametrize("rows", [(10, 12, 14), (10, 14, 12), (14, 10, 12), (12, 10, 14), (10, 10, 12)])
def test_two_tuned_models_of_other_sizes(tmp_path: Path, write: Write, read: Read, rows: tuple[int, ...]) -> None:
    models = [tensors(seed, count) for seed, count in enumerate(rows)]
    folders = [write(tmp_path / f"m{k}", m, vocab_size=m[EMBED].shape[0]) for k, m in enumerate(models)]
    out = merge(folders[0], folders[1:], tmp_path / "out", lam=0.5)
    merged = read(out)[EMBED]
    least, most = min(rows), rows.index(max(rows))
    assert merged.shape[0] == max(rows)
    assert raw(merged[least:]) == raw(models[most][EMBED][least:])
    mean = 0.5 * models[0][EMBED][:least] + 0.25 * (models[1][EMBED][:least] + models[2][EMBED][:least])
    assert torch.allclose(merged[:least], mean, atol=1e-6)
    said = record(out)["decisions"][EMBED]
    assert ", ".join(map(str, rows)) in said
    assert f"taken from m{most}" in said


@pytest.mark.parametrize("method", sorted(PLAIN))
def test_every_method_takes_extra_rows_as_they_are(tmp_path: Path, write: Write, read: Read, method: str) -> None:
    more = tensors(2, 12)
    base = write(tmp_path / "b", tensors(1), vocab_size=10)
    tuned = [write(tmp_path / "t", more, vocab_size=12)]
    if METHODS[method].least > 1:
        tuned.append(write(tmp_path / "u", tensors(3), vocab_size=10))
    out = merge(base, tuned, tmp_path / "out", lam=0.5, method=method, slice_bytes=16)
    assert raw(read(out)[EMBED][10:]) == raw(more[EMBED][10:])


def test_a_shape_that_differs_elsewhere(tmp_path: Path, write: Write) -> None:
    base = write(tmp_path / "base", tensors(1), vocab_size=10)
    for k, change in enumerate(({MLP: torch.ones(7, 4)}, {EMBED: torch.ones(10, 5)}, {NORM: torch.ones(1, 4)})):
        tuned = write(tmp_path / f"t{k}", tensors(2) | change, vocab_size=10)
        (name,) = change
        error = refused(MismatchError, base, tuned, tmp_path / "out")
        assert error.code == "model.shape_mismatch"
        assert name in error.message
    # as many rows as the configuration does not speak of are no vocabulary
    tuned = write(tmp_path / "odd", tensors(2, 12), vocab_size=10)
    assert refused(MismatchError, base, tuned, tmp_path / "out").code == "model.shape_mismatch"


def test_a_layer_with_as_many_rows_as_tokens(tmp_path: Path, write: Write) -> None:
    """A tensor that has the base's vocabulary size by chance, and another size in the tuned model, is refused."""
    base = write(tmp_path / "base", tensors(1) | {MLP: torch.ones(10, 4)}, vocab_size=10)
    tuned = write(tmp_path / "tuned", tensors(2, 12) | {MLP: torch.ones(11, 4)}, vocab_size=12)
    error = refused(MismatchError, base, tuned, tmp_path / "out")
    assert error.code == "model.shape_mismatch"
    assert MLP in error.message


def loads(folder: Path) -> Any:
    """The model as transformers loads it, with every weight found."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return model.eval()


def grown(base: Path, out: Path) -> Path:
    """The tiny model with three more tokens and other weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.mark.parametrize("swap", [False, True])
def test_transformers_loads_a_grown_vocabulary(tiny_model_folder: Path, tmp_path: Path, swap: bool) -> None:
    from transformers import AutoTokenizer

    pair = [tiny_model_folder, grown(tiny_model_folder, tmp_path / "grown")]
    out = merge(*(pair[::-1] if swap else pair), tmp_path / "out", lam=0.5)
    model, tokenizer = loads(out), AutoTokenizer.from_pretrained(out)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == len(AutoTokenizer.from_pretrained(pair[1]))
    assert tokenizer("<two>").input_ids == [len(tokenizer) - 2]
    both = [loads(folder).get_input_embeddings().weight for folder in pair]
    rows = both[0].shape[0]
    half = torch.lerp(both[0], both[1][:rows], 0.5)
    assert torch.allclose(model.get_input_embeddings().weight[:rows], half, atol=1e-6)
    assert torch.equal(model.get_input_embeddings().weight[rows:], both[1][rows:])


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_with_more_tokens(tmp_path: Path, save_tiny_model: Any, tied: bool) -> None:
    """PEFT saves the embeddings that were resized; at λ = 1 the merged model is what PEFT runs."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = save_tiny_model(tmp_path / "base", tie_word_embeddings=tied)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    tuned.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "lora")
    out = merge(base, tmp_path / "lora", tmp_path / "out", lam=1)
    tokens = torch.tensor([[3, 5, len(tokenizer) - 2, 7]])
    with torch.no_grad():
        assert torch.allclose(loads(out)(tokens).logits, tuned(tokens).logits, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(out)) == len(tokenizer)
    assert record(out)["decisions"]


# Types and files


@pytest.mark.parametrize(("ours", "theirs"), itertools.permutations([BF16, F16, F32], 2))
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_types_differ(
    tmp_path: Path, write: Write, read: Read, ours: torch.dtype, theirs: torch.dtype, lam: float
) -> None:
    base, tuned = tensors(1, dtype=ours), tensors(2, dtype=theirs)
    out = merge(write(tmp_path / "b", base), write(tmp_path / "t", tuned), tmp_path / "out", lam=lam)
    for name, merged in read(out).items():
        exact = torch.lerp(base[name].double(), tuned[name].double(), lam)
        if lam in (0, 1):
            assert raw(merged) == raw(exact.to(ours))
        torch.testing.assert_close(merged.double(), exact, rtol=torch.finfo(ours).eps, atol=1e-6)
        assert str(theirs) in record(out)["decisions"][name]


@pytest.mark.parametrize("dtype", [BF16, F16, F32, torch.float64])
def test_another_type_for_the_output(tmp_path: Path, write: Write, read: Read, dtype: torch.dtype) -> None:
    base, tuned = tensors(1) | {"steps": torch.arange(3)}, tensors(2) | {"steps": torch.arange(3)}
    pair = write(tmp_path / "b", base, torch_dtype="float32"), write(tmp_path / "t", tuned)
    out = merge(*pair, tmp_path / "out", lam=0.5, output=Output(dtype=dtype))
    merged = read(out)
    assert merged["steps"].dtype == torch.int64
    for name in (EMBED, MLP, NORM):
        exact = torch.lerp(base[name].double(), tuned[name].double(), 0.5)
        torch.testing.assert_close(merged[name].double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert record(out)["digests"][name][0] == NAMES[dtype]
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("sharded", ["none", "base", "tuned"])
def test_pickled_inputs_give_the_same_bytes(tmp_path: Path, write: Write, sharded: str) -> None:
    whole = merge(write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2)), tmp_path / "whole", lam=0.3)
    pair = []
    for seed, name in ((1, "base"), (2, "tuned")):
        folder = tmp_path / "pickled" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text((tmp_path / "b" / "config.json").read_text())
        parts = [tensors(seed)]
        if sharded == name:
            parts = [{k: v for k, v in tensors(seed).items() if (k == EMBED) == first} for first in (True, False)]
        places = {}
        for k, part in enumerate(parts, 1):
            file = f"pytorch_model-{k:05}-of-00002.bin" if len(parts) > 1 else "pytorch_model.bin"
            torch.save(part, folder / file)
            places |= dict.fromkeys(part, file)
        if len(parts) > 1:
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        pair.append(folder)
    out = merge(*pair, tmp_path / "out", lam=0.3)
    assert record(out)["digests"] == record(whole)["digests"]
    assert not list(out.glob("*.bin*"))
    if sharded == "base":
        assert json.loads((out / "model.safetensors.index.json").read_text())["weight_map"][EMBED].startswith("model-")


@pytest.mark.parametrize(("base_shards", "tuned_shards"), [(1, 3), (3, 1), (2, 3)])
def test_shards_differ(tmp_path: Path, write: Write, read: Read, base_shards: int, tuned_shards: int) -> None:
    pair = write(tmp_path / "b", tensors(1), base_shards), write(tmp_path / "t", tensors(2), tuned_shards)
    out = merge(*pair, tmp_path / "out", lam=0.3)
    names = [sorted(p.name for p in folder.glob("model*")) for folder in (pair[0], out)]
    assert names[0] == names[1]  # the base's layout
    assert all(torch.equal(v, torch.lerp(tensors(1)[k], tensors(2)[k], 0.3)) for k, v in read(out).items())


def test_largest_file(tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any, read: Read) -> None:
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    most = 40_000
    out = merge(tiny_model_folder, tuned, tmp_path / "out", lam=0.5, output=Output(max_shard_size=most))
    places = json.loads((out / "model.safetensors.index.json").read_text())
    held = {file.name: read_one(file) for file in out.glob("*.safetensors")}
    assert places["weight_map"] == {name: file for file, tensors_ in held.items() for name in tensors_}
    sizes = {file: sum(t.nbytes for t in tensors_.values()) for file, tensors_ in held.items()}
    assert places["metadata"]["total_size"] == sum(sizes.values())
    assert len(sizes) > 3
    assert all(len(held[file]) == 1 for file, size in sizes.items() if size > most)
    assert max(sizes.values()) > most  # the embedding is larger, and has a file of its own
    whole = merge(tiny_model_folder, tuned, tmp_path / "whole", lam=0.5)
    assert record(whole)["digest"] == record(out)["digest"]
    tokens = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        assert torch.equal(loads(out)(tokens).logits, loads(whole)(tokens).logits)


def read_one(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file."""
    from safetensors.torch import load_file

    return load_file(file)


def test_a_hub_cache(tmp_path: Path, write: Write) -> None:
    """A snapshot of the hub's cache is a folder of links to blobs without suffixes."""
    pair = write(tmp_path / "b", tensors(1), 2), write(tmp_path / "t", tensors(2))
    whole = merge(*pair, tmp_path / "whole", lam=0.5)
    snapshots = []
    for folder in pair:
        cache = tmp_path / "cache" / f"models--me--{folder.name}"
        (cache / "blobs").mkdir(parents=True)
        snapshot = cache / "snapshots" / folder.name
        snapshot.mkdir(parents=True)
        for k, file in enumerate(sorted(folder.iterdir())):
            file.rename(cache / "blobs" / f"{k:064}")
            (snapshot / file.name).symlink_to(Path("../../blobs") / f"{k:064}")
        snapshots.append(snapshot)
    out = merge(*snapshots, tmp_path / "out", lam=0.5)
    assert files(out) == files(whole)
    assert not any(path.is_symlink() for path in out.iterdir())


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"max_shard_size": 0}, "usage.bad_size"),
        ({"max_shard_size": "5 apples"}, "usage.bad_size"),
        ({"max_shard_size": -1.5}, "usage.bad_size"),
        ({"dtype": "int8"}, "usage.bad_dtype"),
        ({"dtype": torch.int8}, "usage.bad_dtype"),
        ({"tokenizer": "mine"}, "usage.bad_option"),
    ],
)
def test_invalid_outputs_are_usage_errors(options: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        Output(**options)
    assert caught.value.code == code


def test_too_few_threads_are_a_usage_error(tmp_path: Path, write: Write) -> None:
    pair = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    with pytest.raises(UserError) as caught:
        merge(*pair, tmp_path / "out", lam=0.5, threads=0)
    assert caught.value.code == "usage.bad_threads"


SIZES = [
    *((1, 1), ("1", 1), (10**12, 10**12), ("7B", 7), ("7 b", 7), ("1.5 KB", 1500), ("1.5MB", 1_500_000)),
    *(("5GB", 5 * 10**9), ("1KiB", 1 << 10), ("2MiB", 2 << 20), ("3GiB", 3 << 30)),
]


@pytest.mark.parametrize(("size", "count"), SIZES)
def test_the_smallest_and_largest_sizes(size: int | str, count: int) -> None:
    assert bytes_of(size) == count


@pytest.mark.parametrize("size", [200, "200", "0.2KB", "200B"])
def test_a_size_is_a_number_or_text(tmp_path: Path, write: Write, size: int | str) -> None:
    pair = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    by_number = merge(*pair, tmp_path / "1", lam=0.5, output=Output(max_shard_size=200, dtype=torch.float32))
    by_text = merge(*pair, tmp_path / "2", lam=0.5, output=Output(max_shard_size=size, dtype="float32"))
    assert [p.read_bytes() for p in sorted(by_number.iterdir())] == [p.read_bytes() for p in sorted(by_text.iterdir())]


def test_mooring_merge_takes_sizes_and_types_as_transformers_does(tmp_path: Path, write: Write) -> None:
    pair = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    out = mooring.merge(*pair, out=tmp_path / "out", lam=0.5, max_shard_size="1GB", dtype=torch.float32)
    assert (out / "model.safetensors").is_file()
    with pytest.raises(UserError) as caught:
        mooring.merge(*pair, out=tmp_path / "other", lam=0.5, max_shard_size="big")
    assert caught.value.code == "usage.bad_size"


@pytest.mark.parametrize("operation", ["merge", "inspect", "in_memory"])
def test_a_pair_is_opened_once(tmp_path: Path, write: Write, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    opened: list[str] = []

    def spy(folder: Path) -> Checkpoint:
        opened.append(Path(folder).name)
        return open_checkpoint(folder)

    monkeypatch.setattr(pair_module, "open_checkpoint", spy)
    if operation == "merge":
        merge(*pair, tmp_path / "out", lambdas=[0.2, 0.4])
    elif operation == "inspect":
        inspect(*pair)
    else:
        with OpenMerge(open_pair(*pair)) as merged:
            check_pair(merged.pair)
            merged.tensors(0.2)
            merged.tensors(0.4)
    assert opened == ["b", "t"]


def test_an_embedding_is_the_same_for_adapters_and_checkpoints(tmp_path: Path, write: Write) -> None:
    embedding = torch.arange(12.0).view(4, 3)
    names = ("gpt_neox.embed_in.weight", "embed_out.weight")
    base = write(tmp_path / "b", {name: embedding.clone() for name in names}, tie_word_embeddings=True)
    tuned = write(tmp_path / "t", {names[0]: embedding + 1}, tie_word_embeddings=True)
    with open_pair(base, tuned) as opened:
        assert opened.tensors[names[1]].sources == (names[1], names[0])


def test_whether_nan_is_allowed_is_a_field_of_the_manifest(tmp_path: Path, write: Write) -> None:
    broken = {"w": torch.tensor([math.nan, 1.0])}
    pair = write(tmp_path / "b", broken), write(tmp_path / "t", {"w": torch.tensor([math.nan, 2.0])})
    out = merge(*pair, tmp_path / "out", lam=0.5, output=Output(allow_nonfinite=True))
    manifest = record(out)
    assert manifest["allow_nonfinite"] is True
    (out / "mooring.json").write_text(json.dumps(manifest | {"notes": ["another sentence"]}))
    verify(out)
    (out / "mooring.json").write_text(json.dumps(manifest | {"allow_nonfinite": False}))
    with pytest.raises(ModelError) as caught:
        verify(out)
    assert caught.value.code == "model.nonfinite"


# NaN and Inf


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("where", ["base", "tuned", "both", "rest"])
@pytest.mark.parametrize("method", sorted(PLAIN))
def test_nonfinite_is_refused(tmp_path: Path, write: Write, method: str, where: str, value: float) -> None:
    ours, theirs = tensors(1), tensors(2, 12)
    for broken, model in (("base", ours), ("tuned", theirs)):
        if where in (broken, "both"):
            model[MLP][2, 1] = value
    name = MLP
    if where == "rest":
        theirs[EMBED][11, 3] = value
        name = EMBED
    base = write(tmp_path / "base", ours, vocab_size=10)
    tuned = [write(tmp_path / "tuned", theirs, vocab_size=12)]
    if METHODS[method].least > 1:
        tuned.append(write(tmp_path / "other", tensors(3), vocab_size=10))
    side = "base" if where in ("base", "both") else "tuned"
    error = refused(ModelError, base, tuned, tmp_path / "out", method=method)
    assert error.code == "model.nonfinite"
    assert f"{side}: {name}" in error.message


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("settings", [{"lam": 0.0}, {"lam": 1.0}, {"weights": [1.0, 0.0]}])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_nonfinite_with_a_weight_of_zero(
    tmp_path: Path, write: Write, method: str, settings: dict[str, Any], where: int
) -> None:
    """A weight of 0 would hide it."""
    models = [tensors(seed) for seed in range(3)]
    models[where][NORM][3] = torch.inf
    folders = [write(tmp_path / f"m{k}", model) for k, model in enumerate(models)]
    error = refused(ModelError, folders[0], folders[1:], tmp_path / "out", method=method, **settings)
    assert error.code == "model.nonfinite"
    assert f"m{where}: {NORM}" in error.message


@pytest.mark.parametrize("method", sorted(PLAIN))
def test_allow_nonfinite(tmp_path: Path, write: Write, read: Read, method: str) -> None:
    ours, theirs = tensors(1), tensors(2)
    ours[MLP][2, 1] = torch.nan
    base, tuned = write(tmp_path / "base", ours), [write(tmp_path / "tuned", theirs)]
    if METHODS[method].least > 1:
        tuned.append(write(tmp_path / "other", tensors(3)))
    out = merge(base, tuned, tmp_path / "out", method=method, lam=0.5, output=Output(allow_nonfinite=True))
    assert "NaN and Inf were let through" in record(out)["notes"]
    assert not bool(torch.isfinite(read(out)[MLP]).all())
    assert bool(torch.isfinite(read(out)[EMBED]).all())


def test_float16_ends_at_65504(tmp_path: Path, write: Write, read: Read) -> None:
    ours, theirs = tensors(1), tensors(2, 12)
    ours[MLP][0, 0] = theirs[MLP][0, 0] = 1e6
    pair = write(tmp_path / "base", ours, vocab_size=10), write(tmp_path / "tuned", theirs, vocab_size=12)
    error = refused(ModelError, *pair, tmp_path / "out", output=Output(dtype=F16))
    assert error.code == "model.overflow"
    assert MLP in error.message
    out = merge(*pair, tmp_path / "out", lam=0.5, output=Output(dtype=F16, allow_nonfinite=True))
    assert read(out)[MLP][0, 0] == torch.inf


def test_float16_ends_at_65504_in_extra_rows_too(tmp_path: Path, write: Write) -> None:
    theirs = tensors(2, 12)
    theirs[EMBED][11, 0] = 1e6
    pair = write(tmp_path / "base", tensors(1), vocab_size=10), write(tmp_path / "tuned", theirs, vocab_size=12)
    assert refused(ModelError, *pair, tmp_path / "out", output=Output(dtype=F16)).code == "model.overflow"


# Odd tensors


@pytest.mark.parametrize("method", sorted(PLAIN))
def test_empty_tensors_scalars_and_buffers(tmp_path: Path, write: Write, read: Read, method: str) -> None:
    models = []
    for seed in range(3):
        scalar = torch.tensor(float(seed + 1))
        odd = {"scalar": scalar, "one": scalar.clone().view(1), "empty": torch.empty(0, 4), "nothing": torch.empty(0)}
        kept = {"steps": torch.arange(5), "mask": torch.tensor([True, False]), "zero": torch.zeros(3)}
        models.append(write(tmp_path / str(seed), tensors(seed) | odd | kept))
    out = merge(models[0], models[1:][: METHODS[method].most or 2], tmp_path / "out", method=method, lam=0.5)
    merged, base = read(out), read(models[0])
    assert {k: v.shape for k, v in merged.items()} == {k: v.shape for k, v in base.items()}
    assert all(raw(merged[k]) == raw(base[k]) for k in ("steps", "mask", "empty", "nothing", "zero"))
    assert {"steps", "mask"} <= record(out)["decisions"].keys()
    assert 0.9 < float(merged["scalar"]) <= 4  # 1 + λ·(1 + 2)/density if a mask keeps both


@pytest.mark.parametrize("which", [1, 2])
def test_a_buffer_that_differs_in_one_of_several(tmp_path: Path, write: Write, which: int) -> None:
    models = [write(tmp_path / f"m{k}", tensors(k) | {"steps": torch.arange(5) + (k == which)}) for k in range(3)]
    error = refused(MismatchError, models[0], models[1:], tmp_path / "out")
    assert error.code == "model.integers_differ"
    assert f"m{which}: steps" in error.message


# Several tuned models


def test_one_of_several_equals_the_base(tmp_path: Path, write: Write, read: Read) -> None:
    base, same, other = (write(tmp_path / name, tensors(seed)) for name, seed in (("b", 1), ("same", 1), ("other", 2)))
    out = merge(base, [same, other], tmp_path / "out", lam=1.0)
    assert "same equals the base" in record(out)["notes"]
    assert all(torch.allclose(v, (tensors(1)[k] + tensors(2)[k]) / 2, atol=1e-6) for k, v in read(out).items())
    assert refused(MismatchError, base, [same, base], tmp_path / "again").code == "model.equal"


def test_an_adapter_and_a_checkpoint(tmp_path: Path, write: Write, read: Read) -> None:
    base = write(tmp_path / "base", tensors(1))
    parts = factors("model.layers.0.mlp.up", 6, 4)
    adapter, whole = lora(tmp_path / "lora", parts), write(tmp_path / "whole", tensors(2))
    change = 2 * parts["model.layers.0.mlp.up.lora_B.weight"] @ parts["model.layers.0.mlp.up.lora_A.weight"]
    for order in ([adapter, whole], [whole, adapter]):
        out = merge(base, order, tmp_path / f"out-{order[0].name}", lam=1.0, weights=[0.5, 0.5])
        merged = read(out)
        assert torch.allclose(merged[MLP], (tensors(1)[MLP] + change + tensors(2)[MLP]) / 2, atol=1e-6)
        assert torch.allclose(merged[NORM], (tensors(1)[NORM] + tensors(2)[NORM]) / 2, atol=1e-6)
        kinds = {"lora": "lora", "whole": "checkpoint"}
        assert [t["kind"] for t in record(out)["tuned"]] == [kinds[folder.name] for folder in order]


def test_the_base_that_an_adapter_names(tmp_path: Path, write: Write) -> None:
    base, other = write(tmp_path / "base", tensors(1)), write(tmp_path / "other", tensors(3))
    parts = factors("model.layers.0.mlp.up", 6, 4)
    adapter = lora(tmp_path / "lora", parts, base_model_name_or_path=str(base))
    copy = write(tmp_path / "copy", tensors(1), 2)
    merge(copy, adapter, tmp_path / "same", lam=0.5)  # another folder, the same weights
    assert refused(MismatchError, other, adapter, tmp_path / "out").code == "model.base_mismatch"
    whole = write(tmp_path / "whole", tensors(2))
    refused(MismatchError, other, [whole, adapter], tmp_path / "out")
    gone = lora(tmp_path / "gone", parts, base_model_name_or_path=str(tmp_path / "not-here"))
    merge(other, gone, tmp_path / "out", lam=0.5)  # nothing to compare with


def test_an_input_is_never_written(tmp_path: Path, write: Write) -> None:
    """Files that may only be read are enough, and keep their bytes and times."""
    pair = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    for path in (p for folder in pair for p in folder.iterdir()):
        path.chmod(0o444)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for folder in pair for p in folder.iterdir()}
    out = merge(*pair, tmp_path / "out", lam=0.5)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for folder in pair for p in folder.iterdir()} == before
    assert all(os.access(p, os.W_OK) and p.stat().st_mode & 0o200 for p in out.iterdir())


def test_the_ids_of_special_tokens_go_with_the_tokenizer(tmp_path: Path, write: Write) -> None:
    base = write(tmp_path / "b", {"embed_tokens.weight": torch.ones(3, 4)}, vocab_size=3, eos_token_id=2)
    tuned = write(tmp_path / "t", {"embed_tokens.weight": torch.zeros(4, 4)}, vocab_size=4, eos_token_id=3)
    for folder, end in ((base, 2), (tuned, 3)):
        tokenizer_of(folder, folder.name)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "top_k": end}))
    for whose, end in (("larger", 3), ("base", 2)):
        out = merge(base, tuned, tmp_path / whose, lam=0.5, output=Output(tokenizer=whose))
        assert json.loads((out / "config.json").read_text())["eos_token_id"] == end
        generation = json.loads((out / "generation_config.json").read_text())
        assert generation == {"eos_token_id": end, "top_k": 2}  # how to draw stays the base's


@pytest.mark.parametrize("method", ["slerp", "karcher", "linear", "ties", "dare_linear", "della"])
def test_infinities_of_both_signs_go_through_on_request(tmp_path: Path, write: Write, read: Read, method: str) -> None:
    """Exact sums over them would fail; the merge goes on, and only says so."""
    base, tuned = torch.ones(40, 4), torch.full((40, 4), 2.0)
    tuned[0, 0], tuned[39, 3] = torch.inf, -torch.inf
    folders = write(tmp_path / "b", {"w": base, "v": base.clone()}), write(tmp_path / "t", {"w": tuned, "v": base + 1})
    out = merge(*folders, tmp_path / "out", lam=0.5, method=method, slice_bytes=16, output=Output(allow_nonfinite=True))
    assert torch.isfinite(read(out)["v"]).all()
    assert "NaN and Inf were let through" in record(out)["notes"]


def test_side_files_that_link_to_elsewhere_are_not_copied(tmp_path: Path, write: Write) -> None:
    """A model's folder must not make a merge publish any file of the machine."""
    base, tuned = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    secret = tmp_path / "secret.json"
    secret.write_text('{"token": 1}')
    (base / "tokenizer_config.json").symlink_to(secret)
    (base / "vocab.json").symlink_to(base / "generation_config.json")
    (base / "generation_config.json").write_text("{}")
    out = merge(base, tuned, tmp_path / "out", lam=0.5)
    assert not (out / "tokenizer_config.json").exists()
    assert (out / "vocab.json").read_text() == "{}"
    assert any("tokenizer_config.json of b was not copied" in note for note in record(out)["notes"])
    assert str(tmp_path) not in (out / "mooring.json").read_text()
    (base / "config.json").rename(tmp_path / "config.json")
    (base / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(ModelError) as caught:
        merge(base, tuned, tmp_path / "again", lam=0.5)
    assert caught.value.code == "model.link_away"
    assert not (tmp_path / "again").exists()


def test_files_in_the_hubs_cache_are_copied(tmp_path: Path, write: Write) -> None:
    cache = tmp_path / "models--me--base"
    base, tuned = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    snapshot, blobs = cache / "snapshots" / "c0ffee", cache / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (base / "tokenizer_config.json").write_text("{}")
    for number, file in enumerate(base.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    out = merge(snapshot, tuned, tmp_path / "out", lam=0.5)
    assert (out / "tokenizer_config.json").read_text() == "{}"


@pytest.mark.parametrize("place", ["/proc/self/status", "/dev/null", "/dev/zero", "/proc/self/mem", "/sys/kernel"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_links_to_devices_are_refused(tmp_path: Path, write: Write, place: str, name: str) -> None:
    base, tuned = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(place)
    if name == "tokenizer_config.json" and not (base / name).is_file():
        out = merge(base, tuned, tmp_path / "out", lam=0.5)
        assert not (out / name).exists()
        return
    with pytest.raises(ModelError) as caught:
        merge(base, tuned, tmp_path / "out", lam=0.5)
    assert str(base) in caught.value.message
    assert not (tmp_path / "out").exists()


def vocabulary(folder: Path, *tokens: str, template: str | None = None) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {t: n for n, t in enumerate(tokens)}}}))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def rows(folder: Path, write: Write, value: float, count: int = 8) -> Path:
    return write(folder, {"embed_tokens.weight": torch.full((count, 4), float(value))}, vocab_size=count)


def test_tokens_added_within_padded_rows_are_kept(tmp_path: Path, write: Write) -> None:
    base = vocabulary(rows(tmp_path / "b", write, 1), "a", "b", template="base's")
    tuned = vocabulary(rows(tmp_path / "t", write, 2), "a", "b", "<tool>")
    out = merge(base, tuned, tmp_path / "out", lam=1)
    assert (out / "tokenizer.json").read_bytes() == (tuned / "tokenizer.json").read_bytes()
    assert (out / "chat_template.jinja").read_text() == "base's"  # the tuned model has none
    assert "the tokenizer is that of t" in record(out)["notes"]
    kept = merge(base, tuned, tmp_path / "kept", lam=1, output=Output(tokenizer="base"))
    assert (kept / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert any("added: '<tool>'" in note and "gets the base's" in note for note in record(kept)["notes"])


@pytest.mark.parametrize(
    "tokens",
    [("a", "<tool>", "b"), ("a",), ("a", "c", "<tool>"), tuple("ab123456")],
    ids=["moved", "fewer", "other", "too many"],
)
def test_a_tokenizer_that_is_no_extension_is_not_taken_unasked(
    tmp_path: Path, write: Write, tokens: tuple[str, ...]
) -> None:
    base = vocabulary(rows(tmp_path / "b", write, 1, 7), "a", "b", template="base's")
    tuned = vocabulary(rows(tmp_path / "t", write, 2, 7), *tokens, template="tuned's")
    out = merge(base, tuned, tmp_path / "out", lam=1)
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert sum("`--tokenizer tuned` takes" in note for note in record(out)["notes"]) == 2
    taken = merge(base, tuned, tmp_path / "taken", lam=1, output=Output(tokenizer="tuned"))
    assert (taken / "tokenizer.json").read_bytes() == (tuned / "tokenizer.json").read_bytes()
    assert (taken / "chat_template.jinja").read_text() == "tuned's"


def test_the_tuned_models_tokenizer_must_be_there(tmp_path: Path, write: Write) -> None:
    base, tuned = vocabulary(rows(tmp_path / "b", write, 1), "a"), rows(tmp_path / "t", write, 2)
    with pytest.raises(ModelError) as caught:
        merge(base, tuned, tmp_path / "out", lam=1, output=Output(tokenizer="tuned"))
    assert caught.value.code == "model.no_tokenizer"


def test_lone_surrogates_in_a_configuration_do_no_harm(tmp_path: Path, write: Write) -> None:
    base, tuned = write(tmp_path / "b", tensors(1), odd="\ud800\x1b[2J"), write(tmp_path / "t", tensors(2), odd="\x9b")
    out = merge(base, tuned, tmp_path / "out", lam=0.5, output=Output(dtype="float32"))
    assert json.loads((out / "config.json").read_text())["odd"] == "\ud800\x1b[2J"
    assert record(out)["notes"][0].isprintable()
