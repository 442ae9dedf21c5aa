"""LoRA supervised fine-tuning with TRL: exact resume from checkpoints, and a loss curve."""

import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from mooring.chat import encode_example
from mooring.config import Tune
from mooring.errors import DataError
from mooring.events import Event, OnEvent, ignore
from mooring.files import atomic_folder, atomic_text, free_for_output
from mooring.models import model_digest
from mooring.models.classes import load_model, load_tokenizer
from mooring.quiet import quiet
from mooring.records import Prompt
from mooring.training.adapter import check_tunable, lora_config
from mooring.training.precision import compute_dtype

CURVE = "loss.json"
"""The loss curve, in the adapter's folder: a list of {step, loss} and {step, eval_loss}, in nats per token."""
_COMPLETE = "complete"
_IGNORED = -100


def tune(
    config: Tune,
    base: Path,
    examples: Sequence[Prompt],
    out: Path,
    *,
    system: str | None,
    seed: int,
    base_name: str | None = None,
    on_event: OnEvent | None = None,
) -> Path:
    """Tune a LoRA adapter on the responses of `examples`, and write it to `out`.

    The loss is −log p(y|x), on the response only. A run that was killed resumes from its last complete checkpoint if
    it is started again with the same arguments, and ends with the same weights.

    Args:
        config: The hyperparameters; `data`, `system` and `seed` in it are ignored.
        base: Folder of the model to tune.
        examples: Prompts with references.
        out: Folder for the adapter: PEFT's files and `loss.json`.
        system: System prompt of examples that have none.
        seed: Seed of data order, split, initialization and dropout.
        base_name: What the adapter names as its base, such as a hub id (`lasting_name`); defaults to the folder.
        on_event: Receives a progress event (`tune`, in steps, with `loss` in its metrics) after every step.

    Raises:
        ModelError: `base` is not a complete model.
        DataError: No example has a response within `max_length`, or one has no reference.
        OutputError: `out` is not empty.
    """
    free_for_output(out)
    check_tunable(config, base)
    work = out.parent / f".work-{out.name}"
    rows = [example.to_dict() for example in examples]
    inputs = [config.model_dump(), model_digest(base), rows, system, seed, compute_dtype()]
    _discard_unless_same(work, json.dumps(inputs, sort_keys=True))
    with quiet("transformers", "datasets"):
        trainer = _trainer(config, base, examples, work, system, seed, on_event or ignore)
        checkpoint = last_complete_checkpoint(work)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    curve = [
        {k: entry[k] for k in ("step", "loss", "eval_loss") if math.isfinite(entry.get(k, math.nan))}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    trainer.model.peft_config["default"].base_model_name_or_path = base_name or str(base.absolute())
    with atomic_folder(out) as folder:
        trainer.model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card template
        (folder / CURVE).write_text(json.dumps(curve, indent=1) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return out


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
            rows.append({"input_ids": ids[:end], "labels": [_IGNORED] * prompt + ids[prompt:end]})
    if not rows:
        message = f"no example has a response within {config.max_length} tokens"
        raise DataError(message, "increase `max_length`", code="data.no_response_within_length")
    return rows


def last_complete_checkpoint(work: Path) -> Path | None:
    """Return the newest checkpoint that was written completely; partial ones are removed."""
    checkpoints = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    complete = []
    for folder in checkpoints:
        if (folder / _COMPLETE).exists():
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


def _trainer(
    config: Tune, base: Path, examples: Sequence[Prompt], work: Path, system: str | None, seed: int, emit: OnEvent
) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    set_seed(seed)
    on_cpu = not torch.cuda.is_available()
    tokenizer = load_tokenizer(base)
    rows = encode(tokenizer, examples, config, system)
    train, validation = split_examples(len(rows), config.val_set_size, seed)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # On a CPU and short rows, the fused kernel's backward pass takes twice as long as plain attention's.
    attention = {"attn_implementation": "eager"} if on_cpu else {}
    model = load_model(base, dtype=compute_dtype(), **attention)
    epoch = math.ceil(len(train) / config.per_device_train_batch_size)
    steps = config.max_steps or math.ceil(epoch * config.num_train_epochs)
    trainer = ResponseTrainer(
        model=model,
        args=sft_config(config, work, steps, seed, on_cpu),
        train_dataset=Dataset.from_list([rows[i] for i in train]),
        eval_dataset=Dataset.from_list([rows[i] for i in validation]) if validation else None,
        processing_class=tokenizer,
        peft_config=lora_config(config, model),
        callbacks=[StepCallback(min(steps, config.checkpoint_step or steps), epoch if validation else 0, emit)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def sft_config(config: Tune, work: Path, steps: int, seed: int, on_cpu: bool) -> SFTConfig:
    """Build TRL's configuration; `steps` is the length of the learning rate schedule."""
    return SFTConfig(
        output_dir=str(work),
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=round(config.warmup_ratio * steps),
        optim="adamw_torch",
        weight_decay=0.0,
        seed=seed,
        data_seed=seed,
        bf16=compute_dtype() == "bfloat16",
        use_cpu=on_cpu,
        gradient_checkpointing=not on_cpu,
        max_length=config.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        save_steps=config.save_steps,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


class ResponseTrainer(SFTTrainer):
    """SFTTrainer whose loss on a CPU is a plain cross-entropy at the response's positions.

    TRL's fused head saves GPU memory by processing the vocabulary in tiles, twice; on two CPU cores that took 60 % of
    a step (`benchmarks/tune_step.py`).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A contiguous input lets the head run as one matrix product, three times as fast here as a batched one.
        self.model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the mean negative log-likelihood of the response tokens, in nats."""
        if inputs["input_ids"].device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        first = int((labels != _IGNORED).any(0).nonzero()[0])
        keep = labels.shape[1] - first + 1
        others = {k: v for k, v in inputs.items() if k != "labels"}
        outputs = model(**others, use_cache=False, logits_to_keep=keep)
        loss = torch.nn.functional.cross_entropy(
            outputs.logits[:, -keep:-1].flatten(0, 1).float(), labels[:, first:].flatten(), reduction="sum"
        )
        loss = loss / (num_items_in_batch if num_items_in_batch is not None else (labels != _IGNORED).sum())
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate without advancing the random state: a run resumed after an evaluation must not differ."""
        with torch.random.fork_rng():
            return super().evaluate(*args, **kwargs)


class StepCallback(TrainerCallback):
    """Reports each step, requests evaluations, and marks a checkpoint once it is complete.

    Training stops after `steps`. There is an evaluation every `evaluate_every` steps and at the end; 0 disables them.
    """

    def __init__(self, steps: int, evaluate_every: int, emit: OnEvent) -> None:
        self.steps = steps
        self.evaluate_every = evaluate_every
        self.emit = emit

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate before the checkpoint of the same step is saved, so that its history includes the evaluation."""
        step = state.global_step
        if self.evaluate_every and (step % self.evaluate_every == 0 or step == self.steps):
            control.should_evaluate = True
        if self.steps <= step < state.max_steps:  # `checkpoint_step`: before the schedule ends
            control.should_training_stop = True
            control.should_save = False  # resumed from here, the loop would take one step more

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Report a training step."""
        if logs and "loss" in logs:
            done, metrics = state.global_step, {"loss": float(logs["loss"])}
            self.emit(Event(step="tune", kind="progress", done=done, total=self.steps, unit="steps", metrics=metrics))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that was just written."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
