"""What vLLM must be told about a model folder before it opens it."""

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring.errors import ModelError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for (`MaxLoRARanks` in its configuration)."""


def find_base(folder: Path) -> tuple[Path, Mapping[str, Any] | None]:
    """The full checkpoint in a folder, or the base of the adapter in it and the adapter's configuration.

    Raises:
        ModelError: There is no such folder, it holds no model, or the adapter's base is not on this machine.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder", "name a folder with a model in it")
    path = folder / "adapter_config.json"
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            base = Path(str(config["base_model_name_or_path"]))
        except (ValueError, TypeError, KeyError):
            raise ModelError(f"{path}: is no adapter's configuration", "is the folder whole?") from None
        if not base.is_dir():
            raise ModelError(f"{folder}: its base model {base} is not a folder here", "put the base model there")
        return base, config
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: has no config.json", "is it a model's folder?")
    return folder, None


def lora_room(folder: Path, config: Mapping[str, Any]) -> int:
    """The rank to make room for.

    Raises:
        ModelError: The adapter is of a kind that vLLM does not apply.
    """
    odd = [key for key in ("modules_to_save", "use_dora", "alora_invocation_tokens") if config.get(key)]
    odd += ["bias"] if config.get("bias", "none") != "none" else []
    rank = int(config.get("r") or 0)
    odd += [f"rank {rank}"] if rank > RANKS[-1] else []
    # vLLM scales a whole adapter by one number.
    odd += [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    if odd or config.get("peft_type", "LORA") != "LORA":
        what = ", ".join(odd) or str(config.get("peft_type"))
        raise ModelError(f"{folder}: vLLM cannot apply this adapter ({what})", "merge it at λ = 1 first")
    return next(room for room in RANKS if room >= rank)


def weight_type(folder: Path) -> str:
    """The type that a checkpoint says it is stored in, `auto` where it says none."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config") or config
    found = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return found if found in ("bfloat16", "float16", "float32") else "auto"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, by transformers."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def ends(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a response, as the engine `transformers` finds them."""
    import transformers

    from mooring.generate.transformers_engine import stop_tokens

    if (folder / "generation_config.json").is_file():
        config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        model = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = transformers.GenerationConfig.from_model_config(model)
    return stop_tokens(types.SimpleNamespace(generation_config=config), tokenizer)
