"""The adapter that tuning makes: its configuration, and a check beforehand that it can be merged into the base."""

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from mooring.config import Tune
from mooring.errors import RecipeError, UserError
from mooring.models import open_adapter, open_checkpoint, refuse_quantized
from mooring.models.classes import empty_model, text_config
from mooring.models.safetensors_file import lay_out
from mooring.quiet import quiet
from mooring.training.batches import batches
from mooring.training.processes import check_devices


def lora_config(config: Tune, model: Any) -> LoraConfig:
    """PEFT's configuration for a model: only modules of its language model are changed, on which text has an effect."""
    targets = config.target_modules
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=_excluded(model),
        task_type="CAUSAL_LM",
    )


def _excluded(model: Any) -> str | None:
    """A regular expression for the modules that cannot be tuned on text; None if there are none.

    These are the modules beside a language model (a vision tower), and linear ones that return more than a product
    (Llama 4's router), which PEFT cannot wrap.
    """
    names = {id(module): name for name, module in model.named_modules()}
    special = [
        re.escape(names[id(module)])
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and type(module).forward is not torch.nn.Linear.forward
    ]
    kept = [names.get(id(part), "") for part in (model.get_decoder(), model.get_output_embeddings())]
    if text_config(model.config) is not model.config and kept[0]:
        special.append(rf"(?!({'|'.join(re.escape(name) for name in kept if name)})(\.|$)).*")
    return "|".join(special) or None


def check_tunable(config: Tune, base: Path) -> None:
    """Check that a model can be tuned, and that the adapter can be merged into it, before anything is trained.

    Takes seconds and little memory whatever the size of the model.

    Args:
        config: The hyperparameters.
        base: Folder of the model to tune.

    Raises:
        UserError: The processes cannot share the steps, there are fewer GPUs than processes, transformers has no class
            for the model, PEFT finds no module to change, or merging does not take the adapter.
    """
    batches(config)
    check_devices(config)
    with tempfile.TemporaryDirectory() as scratch, open_checkpoint(base) as checkpoint:
        refuse_quantized(checkpoint)
        with quiet("transformers"):
            _write_empty_adapter(config, base, Path(scratch))
        try:
            with open_adapter(scratch) as adapter:
                adapter.bind(checkpoint)
        except UserError as error:
            what = f"{base}: an adapter of {_targets(config)} could not be merged back"
            reason = error.message.replace(f"{scratch}: ", "")
            hint = "name other `target_modules`, such as q_proj, k_proj, v_proj and o_proj"
            raise type(error)(f"{what} ({reason})", hint, code=error.code) from None


def _write_empty_adapter(config: Tune, base: Path, folder: Path) -> None:
    """Write an adapter of the right names and shapes that is all zeros, as a sparse file."""
    model = empty_model(base)
    lora = lora_config(config, model)
    try:
        tuned = get_peft_model(model, lora, low_cpu_mem_usage=True)
    except Exception as error:  # of any type: no such module, a bad expression, a layer that PEFT does not know
        reason = str(error).strip().partition(". ")[0].partition("\n")[0] or type(error).__name__
        what = f"tune.target_modules: PEFT cannot adapt {_targets(config)} of {base} ({reason})"
        raise RecipeError(what, f"it has {', '.join(_linear_names(model))}", code="recipe.bad_target") from None
    state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    tuned.peft_config["default"].save_pretrained(str(folder))
    file = folder / "adapter_model.safetensors"
    head, infos = lay_out(file, [(name, torch.float32, tuple(value.shape)) for name, value in state.items()])
    file.write_bytes(head)
    with file.open("r+b") as stream:
        stream.truncate(len(head) + sum(info.nbytes for info in infos))


def _linear_names(model: Any) -> list[str]:
    """The last parts of the names of a language model's linear modules."""
    named = model.get_decoder().named_modules()
    return sorted({name.rpartition(".")[2] for name, module in named if isinstance(module, torch.nn.Linear)})


def _targets(config: Tune) -> str:
    return config.target_modules if isinstance(config.target_modules, str) else ", ".join(config.target_modules)
