"""Convert a GGUF file to an ordinary model folder."""

import json
from pathlib import Path
from typing import Any

from mooring.errors import ModelError
from mooring.files import atomic_folder, free_for_output, need_room
from mooring.models.checkpoint import Writer
from mooring.models.classes import context_length
from mooring.models.gguf_header import check_header
from mooring.quiet import quiet

_PARAMETERS_PER_BYTE = 4
"""The most in a quantized file (2 bits per weight)."""


def convert(file: str | Path, out: str | Path, dtype: str = "bfloat16") -> Path:
    """Dequantize a GGUF file and write an ordinary model folder: config, tokenizer, chat template, safetensors.

    transformers reads the file, in float32; each weight is rounded once.

    Args:
        file: The GGUF file.
        out: A folder that does not exist yet, or is empty.
        dtype: Type of the weights: `bfloat16`, `float16` or `float32`.

    Returns:
        The folder.

    Raises:
        ModelError: The file is missing, not a GGUF, damaged, or of a model that transformers cannot read from one.
        OutputError: The folder is not empty, or the disk has no room.
    """
    import torch

    file, out = Path(file), Path(out)
    if not file.exists():
        raise ModelError(f"{file}: there is no such file", "name a .gguf file", code="model.not_gguf")
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype]
    free_for_output(out)
    check_header(file)
    need_room(out, file.stat().st_size * _PARAMETERS_PER_BYTE)
    with quiet("transformers", stderr=True):
        model, tokenizer = _load(file)
        with atomic_folder(out) as scratch:
            _write_weights(model, scratch, kind)
            _write_config(model, tokenizer, scratch, dtype)
            tokenizer.model_max_length = min(
                tokenizer.model_max_length, context_length(model.config) or tokenizer.model_max_length
            )
            tokenizer.save_pretrained(scratch)
            _clean_tokenizer_config(scratch)
    return out


def _load(file: Path) -> tuple[Any, Any]:
    """Model (float32) and tokenizer."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(file.absolute().parent), file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        options: dict[str, Any] = {"gguf_file": name, "dtype": torch.float32}
        if hasattr(transformers, "GgufConfig"):
            # Otherwise a machine with the right kernels keeps the blocks; transformers 5.16 always dequantizes.
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(where, **options)
    except Exception as error:  # a damaged file makes it raise nearly anything
        reason = (str(error).splitlines() or ["unknown reason"])[0][:200]
        what = f"{file}: transformers cannot read it ({reason})"
        raise ModelError(what, "name another model", code="model.unsupported_gguf") from None
    return model, tokenizer


def _write_weights(model: Any, folder: Path, dtype: Any) -> None:
    """Write one safetensors file; a tied head is left out, as in transformers."""
    import torch

    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    state = {k: v for k, v in model.state_dict().items() if k not in tied}
    kinds = {k: dtype if v.is_floating_point() else v.dtype for k, v in state.items()}
    layout = [(name, kinds[name], tuple(value.shape)) for name, value in state.items()]
    with Writer(folder, {"model.safetensors": layout}) as writer, torch.no_grad():
        for name, value in state.items():
            writer.write(name, 0, value.to(kinds[name]).contiguous())


def _write_config(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Write `config.json` and `generation_config.json`, without what describes the file only."""
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    plain = type(model.config)(**config)
    plain.architectures = [type(model).__name__]
    plain.dtype = dtype
    plain.save_pretrained(folder)
    generation = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if generation["eos_token_id"] is None:
        generation["eos_token_id"] = tokenizer.eos_token_id
    known = {key: value for key, value in generation.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _clean_tokenizer_config(folder: Path) -> None:
    """Drop what only describes how the tokenizer was loaded here."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
