"""From a base model and examples to a LoRA adapter, with checkpoints to resume from and a loss curve."""

import hashlib
import json
import math
import os
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from mooring.chat import encode_example
from mooring.config import Tune
from mooring.errors import DataError
from mooring.files import atomic_folder, atomic_text, free_for_output
from mooring.models import model_digest, open_checkpoint
from mooring.records import Prompt, to_dict

# --- TRL's trainer, as Mooring sets it up ---


class ResponseTrainer(SFTTrainer):
    """SFTTrainer whose loss on a CPU is a plain cross-entropy at the response's positions.

    TRL's fused head saves a GPU's memory by working through the vocabulary in tiles, twice; on two CPU cores that took
    60 % of a step (`benchmarks/tune_step.py`).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A contiguous input lets the head run as one matrix product, three times as fast here as a batched one.
        self.model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean negative log-likelihood of the response tokens, in nats."""
        if inputs["input_ids"].device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        first = int((labels != -100).any(0).nonzero()[0])
        keep = labels.shape[1] - first + 1
        others = {k: v for k, v in inputs.items() if k != "labels"}
        outputs = model(**others, use_cache=False, logits_to_keep=keep)
        loss = torch.nn.functional.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1).float(), labels[:, first:].flatten(), reduction="sum"
        )
        loss = loss / (num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum())
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate without drawing from the random state: a run resumed past an evaluation must not differ."""
        with torch.random.fork_rng():
            return super().evaluate(*args, **kwargs)


class Watch(TrainerCallback):
    """Passes each step on, asks for evaluations, and marks a checkpoint as whole once it is.

    Args:
        steps: Steps to be done.
        evaluate_every: Steps between two evaluations; there is one at the end too. 0 for none.
        on_step: Told of every step.
    """

    def __init__(self, steps: int, evaluate_every: int, on_step: Callable[[int, int, float], None] | None) -> None:
        self.steps = steps
        self.evaluate_every = evaluate_every
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate before the checkpoint of the same step is saved, so that a resumed run has it in its history."""
        step = state.global_step
        if self.evaluate_every and (step % self.evaluate_every == 0 or step == self.steps):
            control.should_evaluate = True
        if self.steps <= step < state.max_steps:  # `checkpoint_step`: earlier than the schedule ends
            control.should_training_stop = True
            control.should_save = False  # resumed from here, the loop would take one step more

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Report a training step."""
        if self.on_step and logs and "loss" in logs:
            self.on_step(state.global_step, self.steps, float(logs["loss"]))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint just written."""

        mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def hush() -> None:
    """Keep the libraries' own bars and notices off the terminal: progress goes through `Watch`."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def arguments(section: Tune, work: Path, steps: int, seed: int, on_cpu: bool) -> SFTConfig:
    """The recipe's section in TRL's words."""
    return SFTConfig(
        output_dir=str(work),
        per_device_train_batch_size=section.per_device_train_batch_size,
        per_device_eval_batch_size=section.per_device_train_batch_size,
        max_steps=steps,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.lr_scheduler_type,
        warmup_steps=round(section.warmup_ratio * steps),
        optim="adamw_torch",
        weight_decay=0.0,
        seed=seed,
        data_seed=seed,
        bf16=True,
        use_cpu=on_cpu,
        gradient_checkpointing=not on_cpu,
        max_length=section.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        save_steps=section.save_steps,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


OnStep = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, training loss)."""

CURVE = "loss.json"
"""The loss curve, in the adapter's folder: a list of {step, loss} and {step, eval_loss}, in nats a token."""
_WHOLE = "whole"
_IGNORED = -100


def tune(
    section: Tune,
    base: Path,
    examples: Sequence[Prompt],
    out: Path,
    *,
    system: str | None,
    seed: int,
    base_name: str | None = None,
    on_step: OnStep | None = None,
) -> Path:
    """Tune a LoRA adapter on the responses of `examples`, and write it to `out`.

    The loss is −log p(y|x), on the response alone. A killed run, started again with the same arguments, goes on from
    its last whole checkpoint and ends with the same weights.

    Args:
        section: The settings.
        base: Folder of the model to tune.
        examples: Prompts with references.
        out: Folder for the adapter: PEFT's files and `loss.json`.
        system: System prompt where an example brings none.
        seed: Seed of data order, split, initialisation and dropout.
        base_name: What the adapter names as its base, such as a hub id; the folder where it is not given.
        on_step: Told of every step.

    Raises:
        ModelError: `base` is not a whole model.
        DataError: No example has a response within the cut-off, or one has no reference.
        OutputError: `out` holds something already.
    """
    free_for_output(out)
    open_checkpoint(base).close()
    work = out.parent / f".work-{out.name}"
    made_from = [section.model_dump(), model_digest(base), [to_dict(example) for example in examples], system, seed]
    keep_only_if_same(work, json.dumps(made_from, sort_keys=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside TRL and PEFT, which no user can mend
        trainer, resume = _trainer(section, base, examples, work, system, seed, on_step)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    curve = [
        {k: entry[k] for k in ("step", "loss", "eval_loss") if math.isfinite(entry.get(k, math.nan))}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    trainer.model.peft_config["default"].base_model_name_or_path = base_name or str(base.absolute())
    with atomic_folder(out) as folder:
        trainer.model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's unfilled model card
        (folder / CURVE).write_text(json.dumps(curve, indent=1) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return out


def keep_only_if_same(work: Path, made_from: str) -> None:
    """Remove the checkpoints of a stopped run that was asked for something else."""
    key = hashlib.sha256(made_from.encode()).hexdigest()
    path = work / "made-from"
    if not path.is_file() or path.read_text() != key:
        shutil.rmtree(work, ignore_errors=True)
        atomic_text(path, key)


def split_examples(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the examples to tune on and of those held out, shuffled by seed; the first is never empty."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held = min(round(count * share), count - 1)
    return order[held:], order[:held]


def encode(tokenizer: Any, examples: Sequence[Prompt], section: Tune, system: str | None) -> list[dict[str, list[int]]]:
    """Token ids and labels (−100 on the prompt) of the examples that have a response within the cut-off.

    Raises:
        DataError: There is none, or an example has no reference.
    """
    rows = []
    for example in examples:
        if not example.reference:
            raise DataError(f"{example.origin or example.id}: has no response to learn", "give one, or drop the row")
        ids, prompt = encode_example(tokenizer, example, system)
        end = min(len(ids), section.max_length, prompt + (section.max_response_length or len(ids)))
        if prompt < end:
            rows.append({"input_ids": ids[:end], "labels": [_IGNORED] * prompt + ids[prompt:end]})
    if not rows:
        raise DataError(f"no example has a response within {section.max_length} tokens", "raise `max_length`")
    return rows


def _trainer(
    section: Tune,
    base: Path,
    examples: Sequence[Prompt],
    work: Path,
    system: str | None,
    seed: int,
    on_step: OnStep | None,
) -> tuple[Any, Path | None]:
    """The trainer, ready to go, and the checkpoint to go on from."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed

    hush()
    set_seed(seed)
    on_cpu = not torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = encode(tokenizer, examples, section, system)
    kept, held = split_examples(len(rows), section.val_set_size, seed)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        # On a CPU and short rows, the fused kernel's backward pass takes twice as long as plain attention's.
        attn_implementation="eager" if on_cpu else None,
    )
    epoch = math.ceil(len(kept) / section.per_device_train_batch_size)
    steps = section.max_steps or math.ceil(epoch * section.num_train_epochs)
    targets = section.target_modules
    trainer = ResponseTrainer(
        model=model,
        args=arguments(section, work, steps, seed, on_cpu),
        train_dataset=Dataset.from_list([rows[i] for i in kept]),
        eval_dataset=Dataset.from_list([rows[i] for i in held]) if held else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=section.r,
            lora_alpha=section.lora_alpha,
            lora_dropout=section.lora_dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        ),
        callbacks=[Watch(min(steps, section.checkpoint_step or steps), epoch if held else 0, on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, last_whole(work)


def last_whole(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those that were not are removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for folder in found:
        if not (folder / _WHOLE).exists():
            shutil.rmtree(folder)
    whole = [folder for folder in found if folder.exists()]
    return whole[-1] if whole else None


def mark_whole(folder: Path) -> None:
    """Say that a checkpoint is written to its end."""
    (folder / _WHOLE).touch()
