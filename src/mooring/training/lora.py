"""LoRA supervised fine-tuning with TRL: exact resume from checkpoints, and a loss curve."""

import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed

from mooring.chat import encode_example
from mooring.config import Tune
from mooring.errors import DataError
from mooring.events import OnEvent, ignore
from mooring.files import atomic_folder, atomic_text, free_for_output
from mooring.models import model_digest
from mooring.models.classes import load_model, load_tokenizer
from mooring.quiet import quiet
from mooring.records import Prompt
from mooring.training.adapter import check_tunable, lora_config
from mooring.training.batches import batches
from mooring.training.kept import KeepCallback, KeptAdapter
from mooring.training.precision import compute_dtype
from mooring.training.processes import Job, in_processes
from mooring.training.trainer import COMPLETE, IGNORED, NOTHING, ResponseTrainer, StepCallback, sft_config

CURVE = "loss.json"
"""The loss curve, in the adapter's folder: a list of {step, loss} and {step, eval_loss}, in nats per token."""


def tune(
    config: Tune,
    base: Path,
    examples: Sequence[Prompt],
    out: Path,
    *,
    system: str | None,
    seed: int,
    base_name: str | None = None,
    ordinary: Sequence[Prompt] = (),
    also: Mapping[Path, Tune] = MappingProxyType({}),
    on_event: OnEvent | None = None,
) -> Path:
    """Tune a LoRA adapter on the responses of `examples`, and write it to `out`.

    The loss is −log p(y|x), on the response only, plus `config.kl` times KL(base ‖ tuned) on the responses of
    `ordinary`. A run that was killed resumes from its last complete checkpoint if it is started again with the same
    arguments, and ends with the same weights.

    Args:
        config: The hyperparameters; `data`, `system` and `seed` in it are ignored.
        base: Folder of the model to tune.
        examples: Prompts with references.
        out: Folder for the adapter: PEFT's files and `loss.json`.
        system: System prompt of examples that have none.
        seed: Seed of data order, split, initialization and dropout.
        base_name: What the adapter names as its base, such as a hub id (`lasting_name`); defaults to the folder.
        ordinary: Ordinary requests with references; needed if `config.kl` is above 0.
        also: Further adapters of the same training, by their folders: settings that differ from `config` in
            `early_stop` and `ema` alone. Each is the same, to the bit, as if it had been tuned by itself.
        on_event: Receives a progress event (`tune`, in steps, with `loss` in its metrics) after every step.

    Raises:
        ModelError: `base` is not a complete model, or there are fewer GPUs than processes.
        DataError: No example has a response within `max_length`, or one has no reference.
        OutputError: `out`, or a folder of `also`, is not empty.
        RecipeError: The steps cannot be divided among `nproc` processes (`recipe.bad_nproc`).
    """
    for folder in (out, *also):
        free_for_output(folder)
    check_tunable(config, base)
    work = out.parent / f".work-{out.name}"
    rows = [[example.to_dict() for example in each] for each in (examples, ordinary if config.kl else ())]
    # With FSDP, checkpoints have another form.
    plain = [each.model_dump(exclude={"nproc"}) for each in (config, *also.values())]
    inputs = [plain, model_digest(base), rows, system, seed, compute_dtype()]
    _discard_unless_same(work, json.dumps(inputs, sort_keys=True))
    job = Job(
        config=config,
        base=base,
        examples=tuple(examples),
        ordinary=tuple(ordinary) if config.kl else (),
        out=out,
        also=also,
        work=work,
        checkpoint=last_complete_checkpoint(work),
        system=system,
        seed=seed,
        base_name=base_name or str(base.absolute()),
    )
    if config.nproc == 1 and not config.fsdp:
        train(job, on_event or ignore)
    else:
        in_processes(job, on_event or ignore)
    shutil.rmtree(work, ignore_errors=True)
    return out


def train(job: Job, on_event: OnEvent) -> None:
    """Train, in this process or as one of several that were started together, and write the adapter.

    Raises:
        DataError: See `encode`.
    """
    with quiet("transformers", "datasets"):
        trainer, kept = _trainer(job, on_event)
        trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    if not trainer.is_world_process_zero():
        return
    curve = [
        {k: entry[k] for k in ("step", "loss", "eval_loss") if math.isfinite(entry.get(k, math.nan))}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    trainer.model.peft_config["default"].base_model_name_or_path = job.base_name
    for path, adapter in reversed([*kept.items()]):  # `out` last: a run that has it has them all
        with atomic_folder(path) as folder, adapter.weights_of(trainer.model):
            trainer.model.save_pretrained(folder, state_dict=weights)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card template
            own = [entry for entry in curve if entry["step"] <= adapter.step]
            (folder / CURVE).write_text(json.dumps(own, indent=1) + "\n")


def split_examples(count: int, val_set_size: float, seed: int) -> tuple[list[int], list[int]]:
    """Shuffled indices of the training and of the validation examples; there is always one to train on."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held_out = min(round(count * val_set_size), count - 1)
    return order[held_out:], order[:held_out]


def encode(tokenizer: Any, examples: Sequence[Prompt], config: Tune, system: str | None) -> list[dict[str, list[int]]]:
    """Encode the examples that have a response within `max_length`: token ids, and labels (−100 on the prompt).

    Raises DataError if there is none, or an example has no reference.
    """
    rows = []
    for example in examples:
        if not example.reference:
            place = example.origin or example.id
            raise DataError(f"{place}: has no response to learn", "add one, or drop the row", code="data.no_reference")
        ids, prompt = encode_example(tokenizer, example, system)
        end = min(len(ids), config.max_length, prompt + (config.max_response_length or len(ids)))
        if prompt < end:
            rows.append({"input_ids": ids[:end], "labels": [IGNORED] * prompt + ids[prompt:end]})
    if not rows:
        message = f"no example has a response within {config.max_length} tokens"
        raise DataError(message, "increase `max_length`", code="data.no_response_within_length")
    return rows


def last_complete_checkpoint(work: Path) -> Path | None:
    """Return the newest checkpoint that was written completely; partial ones are removed."""
    checkpoints = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    complete = []
    for folder in checkpoints:
        if (folder / COMPLETE).exists():
            complete.append(folder)
        else:
            shutil.rmtree(folder)
    return complete[-1] if complete else None


def _discard_unless_same(work: Path, inputs: str) -> None:
    """Remove the checkpoints of an interrupted run that had other inputs."""
    key = hashlib.sha256(inputs.encode()).hexdigest()
    path = work / "inputs"
    if not path.is_file() or path.read_text() != key:
        shutil.rmtree(work, ignore_errors=True)
        atomic_text(path, key)


def _trainer(job: Job, emit: OnEvent) -> tuple[ResponseTrainer, dict[Path, KeptAdapter]]:
    """The trainer, and what is kept of its training, by folder."""
    config = job.config
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    set_seed(job.seed)
    on_cpu = not torch.cuda.is_available()
    tokenizer = load_tokenizer(job.base)
    rows = encode(tokenizer, job.examples, config, job.system)
    train, validation = split_examples(len(rows), config.val_set_size, job.seed)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # On a CPU and short rows, the fused kernel's backward pass takes twice as long as plain attention's.
    attention = {"attn_implementation": "eager"} if on_cpu else {}
    model = load_model(job.base, dtype=compute_dtype(), **attention)
    epoch = math.ceil(len(train) / batches(config).examples)
    steps = config.max_steps or math.ceil(epoch * config.num_train_epochs)
    kept = {path: KeptAdapter(_last_step(each, steps), each.ema) for path, each in job.adapters.items()}
    last = max(adapter.step for adapter in kept.values())
    trainer = ResponseTrainer(
        model=model,
        args=sft_config(config, job.work, steps, job.seed, on_cpu),
        train_dataset=Dataset.from_list([*(rows[i] for i in train), NOTHING]),
        eval_dataset=Dataset.from_list([*(rows[i] for i in validation), NOTHING]) if validation else None,
        processing_class=tokenizer,
        peft_config=lora_config(config, model),
        callbacks=[
            KeepCallback([each for each in kept.values() if each.ends_before(last)]),
            StepCallback(last, epoch if validation else 0, emit),
        ],
        ordinary=encode(tokenizer, job.ordinary, config, job.system) if config.kl else [],
        kl=config.kl,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, kept


def _last_step(config: Tune, steps: int) -> int:
    """The step whose adapter is kept, of a schedule of so many steps."""
    last = min(steps, config.checkpoint_step or steps)
    return last if config.early_stop is None else max(1, round(config.early_stop * last))
