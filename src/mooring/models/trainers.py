"""Folders that trainers and other tools leave: what is in them, and the command that makes a model folder of it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from mooring.errors import ModelError

_MOST_NAMED = 4
_MOST_LOOKED_AT = 2000
"""Entries of a folder, so that a folder such as a home directory takes no time."""
_STATE = r"optim|scheduler|scaler|rng_state|training_args|trainer_state"
"""What the names of files begin with that hold the state of a training, and no weights."""
_MODELS = ("config.json", "adapter_config.json")


def explained(folder: Path, lacks: str) -> ModelError | None:
    """The error for a folder that lacks something, if it shows what it is instead; None if it shows nothing.

    Args:
        folder: An existing folder.
        lacks: What it does not have, such as `no config.json`.
    """
    for what, hint in _formats(folder):
        return ModelError(f"{folder}: has {lacks}, but {what}", hint, code="model.trainer_folder")
    if found := candidates(folder):
        names = ", ".join(path.relative_to(folder).as_posix() for path in found[:_MOST_NAMED])
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        what = f"{folder}: has {lacks}, but models below it: {names}{more}"
        return ModelError(what, f"name one of them: {found[0]}", code="model.in_subfolder")
    loose = [path.name for path in _entries(folder) if path.suffix in (".ckpt", ".pt", ".pth")]
    if others := [name for name in loose if not re.match(_STATE, name)]:
        what = f"{folder}: has {lacks}, but a file that transformers does not look for ({others[0]})"
        hint = (
            "save the model with its own save_pretrained, or convert it with the trainer's command, and name the result"
        )
        return ModelError(what, hint, code="model.trainer_folder")
    return None


def candidates(folder: Path) -> list[Path]:
    """The model folders and adapters one or two levels below a folder, the latest checkpoint first."""
    below = list(_folders(folder))
    found = [path for path in below if _is_model(path)]
    found += [path for parent in below if parent not in found for path in _folders(parent) if _is_model(path)]
    return sorted(found, key=lambda path: (-_step(path), len(path.parts), path))


def _step(path: Path) -> int:
    """The number at the end of a checkpoint's name; a folder with another name comes first."""
    number = re.search(r"(?:checkpoint|step|epoch|iter)\w*?[-_](\d{1,12})$", path.name)
    return int(number[1]) if number else 10**12


def _is_model(path: Path) -> bool:
    return any((path / name).is_file() for name in _MODELS)


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in _entries(folder) if path.is_dir() and not path.name.startswith("."))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path, _ in zip(folder.iterdir(), range(_MOST_LOOKED_AT), strict=False))
    except OSError:
        return []


def _formats(folder: Path) -> Iterator[tuple[str, str]]:
    """What a folder holds in a format that has to be converted, and how."""
    entries = _entries(folder)
    names = [path.name for path in entries]
    here, out = shlex.quote(str(folder)), shlex.quote(f"{folder}-model")

    def of(pattern: str) -> list[Path]:
        return [path for path in entries if re.fullmatch(pattern, path.name)]

    then = f"then copy config.json and the tokenizer's files to {out} and name that"
    if shards := of(r"model_world_size_\d+_rank_\d+\.pt") or of(r"actor"):
        inner = folder / "actor" if shards[0].name == "actor" else folder
        if shards[0].name != "actor" or any(p.name.startswith("model_world_size_") for p in _entries(inner)):
            command = f"python -m verl.model_merger merge --backend fsdp --local_dir {shlex.quote(str(inner))}"
            yield "verl's shards of a model", f"run `{command} --target_dir {out}` and name {out}"
    if "zero_to_fp32.py" in names or any(list(path.glob("*model_states.pt")) for path in of(r"global_step\d+")):
        script = f"{here}/zero_to_fp32.py" if "zero_to_fp32.py" in names else "-m deepspeed.utils.zero_to_fp32"
        yield "DeepSpeed's ZeRO shards", f"run `python {script} {here} {out} --safe_serialization`, {then}"
    distributed = [path for path in (*of(r"pytorch_model_fsdp_\d+"), *of("dist_ckpt"), folder) if _is_distributed(path)]
    if distributed:
        command = f"accelerate merge-weights {shlex.quote(str(distributed[0]))} {out}"
        yield "FSDP's shards (PyTorch distributed checkpoint)", f"run `{command}`, {then}"
    if "lit_model.pth" in names:
        command = f"litgpt convert_from_litgpt {here} {out}"
        yield "a checkpoint of LitGPT", f"run `{command}`, rename {out}/model.pth to pytorch_model.bin, {then}"
    elif "lit_model.pth.lora" in names:
        merged = f"litgpt merge_lora {here}"
        yield "a LoRA checkpoint of LitGPT", f"run `{merged}`, which writes lit_model.pth, and name the folder again"
    if of(r"consolidated\.\d+\.pth") and "params.json" in names:
        script = "transformers/models/llama/convert_llama_weights_to_hf.py"
        yield "weights in Meta's own format", f"fetch the model in transformers' format, or convert it with {script}"
    if "consolidated.safetensors" in names:
        yield "weights in Mistral's own format", "fetch the repository's model-*.safetensors and their index too"
    if "adapters.safetensors" in names:
        command = f"mlx_lm.fuse --model BASE --adapter-path {here} --save-path {out}"
        yield "an adapter of MLX", f"run `{command}`, with --dequantize if BASE is quantized, and name {out}"
    if of(r"iter_\d+") or "latest_checkpointed_iteration.txt" in names:
        yield "a checkpoint of Megatron", "export it to Hugging Face's format with Megatron Bridge, and name the result"
    if found := of(r".+\.nemo"):
        yield f"a NeMo archive ({found[0].name})", "export it to Hugging Face's format with NeMo, and name the result"
    if found := of(r".+\.gguf"):
        yield f"a GGUF file ({found[0].name})", f"name the file itself: {found[0]}"
    if found := of(r"(?:tf_model|flax_model|rust_model)\.\w+|.+\.onnx"):
        yield f"weights for another framework ({found[0].name})", "fetch the model as safetensors"
    if found := of(r"(?:iter|epoch)_\d+\.pth"):
        command = f"xtuner convert pth_to_hf CONFIG {shlex.quote(str(found[0]))} {out}"
        yield "a checkpoint of XTuner", f"run `{command}` with the CONFIG that it was tuned with, and name {out}"


def _is_distributed(path: Path) -> bool:
    return any(entry.suffix == ".distcp" for entry in _entries(path))
