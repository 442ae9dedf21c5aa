"""Which files hold a model's weights, what is said about the others, and folders as trainers leave them."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mooring.errors import ModelError
from mooring.models import open_adapter, open_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FIRST = {EMBEDDING: torch.arange(12.0).view(4, 3), "a": torch.ones(2)}
SECOND = {"b": torch.zeros(3), HEAD: FIRST[EMBEDDING].clone()}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def model(folder: Path, **config: object) -> Path:
    """Two shards and their index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file(FIRST, folder / ONE)
    save_file(SECOND, folder / TWO)
    index(folder, dict.fromkeys(FIRST, ONE) | dict.fromkeys(SECOND, TWO))
    return folder


def index(folder: Path, places: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def opened(folder: Path) -> tuple[set[str], list[str]]:
    with open_checkpoint(folder) as checkpoint:
        for name in checkpoint.tensors:
            assert torch.equal(checkpoint.tensor(name), (FIRST | SECOND)[name])
        return set(checkpoint.tensors), checkpoint.remarks


def refused(folder: Path, open_it: Callable[[Path], object] = open_checkpoint) -> ModelError:
    with pytest.raises(ModelError) as caught:
        open_it(folder)
    assert str(folder) in caught.value.message
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_model_with_nothing_odd_needs_no_remark(tmp_path: Path) -> None:
    assert opened(model(tmp_path)) == (set(FIRST | SECOND), [])


def test_an_index_may_leave_out_a_tied_head(tmp_path: Path) -> None:
    folder = model(tmp_path, tie_word_embeddings=True)
    index(folder, dict.fromkeys(FIRST, ONE) | {"b": TWO})
    names, remarks = opened(folder)
    assert names == set(FIRST | SECOND)
    assert "leaves out lm_head.weight" in remarks[0]


def test_an_index_may_list_a_tied_head_that_is_not_stored(tmp_path: Path) -> None:
    folder = model(tmp_path, tie_word_embeddings=True)
    save_file({"b": SECOND["b"]}, folder / TWO)
    names, remarks = opened(folder)
    assert names == {*FIRST, "b"}
    assert "tied to the embedding" in remarks[0]
    (folder / "config.json").write_text('{"tie_word_embeddings": false}')
    assert refused(folder).code == "model.index_mismatch"


@pytest.mark.parametrize("wrong", [{"a": TWO, "b": ONE}, {"b": ONE}])
def test_an_index_that_names_the_wrong_shard(tmp_path: Path, wrong: dict[str, str]) -> None:
    """As transformers does, a tensor is read from the shard that holds it; a whole set of shards is one model."""
    folder = model(tmp_path)
    index(folder, dict.fromkeys([*FIRST, HEAD], ONE) | wrong)
    names, remarks = opened(folder)
    assert names == set(FIRST | SECOND)
    assert "names another shard for" in remarks[-1]


@pytest.mark.parametrize("wrong", [None, {"a": "model-00001-of-00003.safetensors", "b": ONE}])
def test_a_complete_set_of_shards_needs_no_index(tmp_path: Path, wrong: dict[str, str] | None) -> None:
    folder = model(tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    if wrong:
        index(folder, wrong)
    names, remarks = opened(folder)
    assert names == set(FIRST | SECOND)
    assert "all 2 shards" in remarks[0]


def test_what_is_missing_without_an_index_is_named(tmp_path: Path) -> None:
    folder = model(tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    (folder / ONE).unlink()
    error = refused(folder)
    assert error.code == "model.missing_shard"
    assert ONE in error.message
    for number in (1, 2, 3):
        save_file(
            FIRST if number == 1 else {f"x{number}": torch.ones(1)}, folder / f"model-0000{number}-of-00003.safetensors"
        )
    save_file(FIRST, folder / ONE)
    assert refused(folder).code == "model.two_sets_of_shards"


def test_other_copies_of_the_weights_are_ignored_and_named(tmp_path: Path) -> None:
    folder = model(tmp_path)
    torch.save({"other": torch.ones(1)}, folder / "pytorch_model.bin")
    save_file({"other": torch.ones(1)}, folder / "consolidated.safetensors")
    names, remarks = opened(folder)
    assert names == set(FIRST | SECOND)
    assert "consolidated.safetensors and 1 more was not read" in remarks[0]
    save_file(FIRST, folder / "model.safetensors")  # beside an index, as in transformers
    names, remarks = opened(folder)
    assert names == set(FIRST)
    assert "those of model.safetensors" in remarks[0]


def test_the_whole_state_that_fsdp_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save(FIRST, tmp_path / "pytorch_model_fsdp.bin")
    names, remarks = opened(tmp_path)
    assert names == set(FIRST)
    assert "pytorch_model_fsdp.bin" in remarks[0]


FOLDERS = {
    "fsdp": (
        ["pytorch_model_fsdp_0/__0_0.distcp"],
        "accelerate merge-weights {folder}/pytorch_model_fsdp_0 {folder}-model",
    ),
    "distributed": (["__0_0.distcp", ".metadata"], "accelerate merge-weights {folder} {folder}-model"),
    "deepspeed": (["zero_to_fp32.py", "global_step5/x_model_states.pt"], "python {folder}/zero_to_fp32.py {folder}"),
    "zero": (["global_step5/x_model_states.pt"], "python -m deepspeed.utils.zero_to_fp32 {folder} {folder}-model"),
    "verl": (
        ["model_world_size_2_rank_0.pt"],
        "python -m verl.model_merger merge --backend fsdp --local_dir {folder} ",
    ),
    "step": (["actor/model_world_size_2_rank_0.pt"], "--backend fsdp --local_dir {folder}/actor "),
    "litgpt": (["lit_model.pth", "model_config.yaml"], "litgpt convert_from_litgpt {folder} {folder}-model"),
    "litgpt-lora": (["lit_model.pth.lora", "model_config.yaml"], "litgpt merge_lora {folder}"),
    "mlx": (["adapters.safetensors"], "mlx_lm.fuse --model BASE --adapter-path {folder} --save-path {folder}-model"),
    "mistral": (["consolidated.safetensors"], "model-*.safetensors"),
    "meta": (["consolidated.00.pth", "params.json"], "convert_llama_weights_to_hf"),
    "megatron": (["iter_0000010/mp_rank_00/x.pt", "latest_checkpointed_iteration.txt"], "Megatron Bridge"),
    "nemo": (["model.nemo"], "NeMo"),
    "gguf": (["m-Q4_K_M.gguf"], "{folder}/m-Q4_K_M.gguf"),
    "flax": (["flax_model.msgpack"], "safetensors"),
    "onnx": (["model.onnx"], "safetensors"),
    "xtuner": (["iter_500.pth"], "xtuner convert pth_to_hf CONFIG {folder}/iter_500.pth {folder}-model"),
    "lightning": (["optimizer.pt", "z=1-step=100.ckpt"], "save_pretrained"),
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("config", ["config.json", "adapter_config.json", None])
def test_folders_of_trainers_name_the_command(tmp_path: Path, name: str, config: str | None) -> None:
    folder = tmp_path / "my run"  # a space is quoted
    files, hint = FOLDERS[name]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")
    if config:
        (folder / config).write_text('{"peft_type": "LORA", "r": 4}')
    error = refused(folder, open_adapter if config == "adapter_config.json" else open_checkpoint)
    assert error.code == "model.trainer_folder"
    said = error.hint.replace("'", "")
    assert hint.format(folder=folder) in said, said
    assert (
        name in ("litgpt-lora", "mistral", "meta", "megatron", "nemo", "gguf", "flax", "onnx", "lightning")
        or shlex.quote(f"{folder}-model") in error.hint
    )


def test_an_adapter_of_mlx_names_the_command(tmp_path: Path) -> None:
    """Its `adapter_config.json` is not PEFT's."""
    config = {"fine_tune_type": "lora", "model": "m", "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(FIRST, tmp_path / "adapters.safetensors")
    error = refused(tmp_path, open_adapter)
    assert (error.code, "mlx_lm.fuse" in error.hint) == ("model.trainer_folder", True)


def test_models_below_a_folder_are_named_the_latest_first(tmp_path: Path) -> None:
    for place in ("checkpoint-90", "checkpoint-500", "sft/final", "logs"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "checkpoint-90" / "config.json").write_text("{}")
    (tmp_path / "checkpoint-500" / "adapter_config.json").write_text("{}")
    error = refused(tmp_path)
    assert error.code == "model.in_subfolder"
    assert "checkpoint-500, checkpoint-90" in error.message
    assert error.hint == f"name one of them: {tmp_path / 'checkpoint-500'}"
    (tmp_path / "sft" / "final" / "config.json").write_text("{}")
    assert refused(tmp_path).hint == f"name one of them: {tmp_path / 'sft/final'}"
