"""The loop that tunes: TRL's trainer, with the same steps whatever the number of processes that share them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from mooring.config import Tune
from mooring.events import Event, OnEvent
from mooring.training.batches import batches
from mooring.training.precision import compute_dtype

IGNORED = -100
"""The label of a token that is not learned."""
COMPLETE = "complete"
"""The file that a checkpoint has once it is complete."""


class ShuffledSampler(Sampler[int]):
    """The order of the examples in each epoch: that of transformers' own sampler, filled up to whole steps.

    Args:
        count: How many examples there are; the index of the example that fills up, in which nothing is learned.
        multiple: What the number of indices has to be a multiple of, so that the last step of an epoch can be divided
            like the others. Without it, accelerate would repeat examples there.
        seed: Seed of the order; None for no shuffling.
    """

    def __init__(self, count: int, multiple: int, seed: int | None) -> None:
        self.count, self.multiple, self.seed, self.epoch = count, multiple, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which the order depends."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count + -self.count % self.multiple

    def __iter__(self) -> Iterator[int]:
        order: Sequence[int] = range(self.count)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.count, generator=generator).tolist()
        yield from order
        yield from [self.count] * (len(self) - self.count)


NOTHING = {"input_ids": [0, 0], "labels": [IGNORED, IGNORED]}
"""An example in which nothing is learned."""


def sft_config(config: Tune, work: Path, steps: int, seed: int, on_cpu: bool) -> SFTConfig:
    """Build TRL's configuration; `steps` is the length of the learning rate schedule.

    Raises:
        RecipeError: See `batches`.
    """
    shape = batches(config)
    sharded: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}} if config.fsdp else {}
    made = SFTConfig(
        output_dir=str(work),
        per_device_train_batch_size=shape.each,
        per_device_eval_batch_size=shape.each,
        gradient_accumulation_steps=shape.accumulated,
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
        ddp_find_unused_parameters=False,
        **sharded,
    )
    made._n_gpu = min(made.n_gpu, 1)  # one process drives one GPU: not DataParallel, which would enlarge the steps
    return made


class ResponseTrainer(SFTTrainer):
    """SFTTrainer whose loss on a CPU is a plain cross-entropy at the response's positions.

    TRL's fused head saves GPU memory by processing the vocabulary in tiles, twice; on two CPU cores that took 60 % of
    a step (`benchmarks/tune_step.py`).

    With `kl` above 0, that many times KL(base ‖ tuned) on encoded `ordinary` responses is added to the loss of a step.
    """

    def __init__(self, *, ordinary: Sequence[Mapping[str, list[int]]] = (), kl: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._ordinary, self._kl = ordinary, kl
        self._passes = 0
        # A contiguous input lets the head run as one matrix product, three times as fast here as a batched one.
        self.model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the mean negative log-likelihood of the response tokens, in nats, and what `kl` adds to it."""
        found = self._response_loss(model, inputs, return_outputs, num_items_in_batch)
        if not (self._kl and model.training):
            return found
        # The response loss of a step is a sum over its passes if the step's tokens are known, else a mean.
        share = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
        loss = (found[0] if return_outputs else found) + self._kl / share * self._divergence()
        return (loss, found[1]) if return_outputs else loss

    def _divergence(self) -> torch.Tensor:
        """The mean over some ordinary responses of KL(base ‖ tuned) per token, in nats.

        Step, pass and process decide which: those of a step are the same for any number of processes.
        """
        size, passes = self.args.train_batch_size, self.args.gradient_accumulation_steps
        part = self._passes % passes * self.accelerator.num_processes + self.accelerator.process_index
        part += self.state.global_step * passes * self.accelerator.num_processes
        self._passes += 1
        rows = [dict(self._ordinary[(part * size + place) % len(self._ordinary)]) for place in range(size)]
        batch = {key: value.to(self.args.device) for key, value in self.data_collator(rows).items()}
        answers = batch.pop("labels")[:, 1:] != IGNORED
        model = self.accelerator.unwrap_model(self.model)
        tuned = model(**batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        with torch.no_grad(), model.disable_adapter():
            base = model(**batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        each = torch.nn.functional.kl_div(tuned, base, log_target=True, reduction="none").sum(-1)
        mean: torch.Tensor = ((each * answers).sum(1) / answers.sum(1)).mean()
        return mean

    def _response_loss(self, model: Any, inputs: Any, return_outputs: bool, num_items_in_batch: Any) -> Any:
        if inputs["input_ids"].device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        learned = (labels != IGNORED).any(0).nonzero()
        first = int(learned[0]) if len(learned) else labels.shape[1] - 1
        keep = labels.shape[1] - first + 1
        others = {k: v for k, v in inputs.items() if k != "labels"}
        outputs = model(**others, use_cache=False, logits_to_keep=keep)
        loss = torch.nn.functional.cross_entropy(
            outputs.logits[:, -keep:-1].flatten(0, 1).float(), labels[:, first:].flatten(), reduction="sum"
        )
        if num_items_in_batch is None:
            loss = loss / (labels != IGNORED).sum()
        else:  # of all processes, whose gradients are averaged
            loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> ShuffledSampler:
        return self._sampler(self.train_dataset, self.args.gradient_accumulation_steps, self.args.data_seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> ShuffledSampler:
        return self._sampler(eval_dataset, 1, None)

    def _sampler(self, dataset: Any, passes: int, seed: int | None) -> ShuffledSampler:
        """The order of a data set whose last example is `NOTHING`."""
        shared = passes * self.args.world_size
        return ShuffledSampler(len(dataset) - 1, self.args.train_batch_size * shared if shared > 1 else 1, seed)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The mean loss over the response tokens of all validation examples, in nats, however they are batched.

        It does not advance the random state: a run resumed after an evaluation must not differ.
        """
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)  # of the losses, and of the tokens
        with torch.random.fork_rng(), torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader():
                inputs = self._prepare_inputs(batch)
                tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
                loss = self.compute_loss(self.model, inputs, num_items_in_batch=tokens.clamp(min=1))
                sums += torch.stack([loss * tokens / self.accelerator.num_processes, tokens])
        total, tokens = self.accelerator.reduce(sums).tolist()
        metrics = {"eval_loss": total / tokens}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


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
        """Mark the checkpoint that was just written, by all processes."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
