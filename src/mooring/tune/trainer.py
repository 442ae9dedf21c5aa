"""TRL's trainer, as Mooring sets it up. Imported only when tuning begins: it loads TRL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from mooring.sections import Tune


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
        if self.steps <= step < state.max_steps:  # `take_step`: earlier than the schedule ends
            control.should_training_stop = True
            control.should_save = False  # resumed from here, the loop would take one step more

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Report a training step."""
        if self.on_step and logs and "loss" in logs:
            self.on_step(state.global_step, self.steps, float(logs["loss"]))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint just written."""
        from mooring.tune.lora import mark_whole

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
        per_device_train_batch_size=section.batch_size,
        per_device_eval_batch_size=section.batch_size,
        max_steps=steps,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.schedule,
        warmup_steps=round(section.warmup_ratio * steps),
        optim="adamw_torch",
        weight_decay=0.0,
        seed=seed,
        data_seed=seed,
        bf16=True,
        use_cpu=on_cpu,
        gradient_checkpointing=not on_cpu,
        max_length=section.cutoff,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        save_steps=section.save_every,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
