"""What is kept of a training: the adapter at a step, or the moving average of its weights up to there."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback


class KeptAdapter:
    """The adapter of one step of a training.

    Args:
        step: The step, from 1.
        decay: That of an exponential moving average of the weights, which begins with those of the first step; None for
            the weights of the step itself. LoRA's two factors are averaged each by itself.
    """

    def __init__(self, step: int, decay: float | None = None) -> None:
        self.step, self.decay = step, decay
        self._weights: dict[str, Tensor] = {}

    def ends_before(self, last: int) -> bool:
        """Whether it is another adapter than that of the training's last step."""
        return self.step < last or self.decay is not None

    @torch.no_grad()
    def update(self, step: int, model: Any) -> None:
        """Take in the weights after a step."""
        if step > self.step or (self.decay is None and step < self.step):
            return
        weights = {name: value.detach().float() for name, value in _trained(model)}
        if self.decay is None or not self._weights:
            self._weights = {name: value.clone() for name, value in weights.items()}
        else:
            names = list(weights)
            mean: Any = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
            mean([self._weights[name] for name in names], [weights[name] for name in names], step)

    def save(self, file: Path) -> None:
        """Write what it has so far."""
        save_file({name: value.contiguous() for name, value in self._weights.items()}, file)

    def load(self, file: Path) -> None:
        """Read what `save` wrote."""
        self._weights = load_file(file)

    @contextlib.contextmanager
    def weights_of(self, model: Any) -> Iterator[None]:
        """Give a model the weights that were kept, if any were, for as long as the context lasts."""
        if not self._weights:
            yield
            return
        parameters = dict(_trained(model))
        before = {name: value.detach().clone() for name, value in parameters.items()}
        _fill(parameters, self._weights)
        try:
            yield
        finally:
            _fill(parameters, before)


class KeepCallback(TrainerCallback):
    """Keeps adapters of a training; what it has so far is part of each checkpoint."""

    def __init__(self, adapters: Sequence[KeptAdapter]) -> None:
        self.adapters = adapters

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Continue from a checkpoint."""
        if state.global_step:
            for adapter, file in self._files(args, state):
                adapter.load(file)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take in the weights after a step."""
        for adapter in self.adapters:
            adapter.update(state.global_step, model)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add to the checkpoint that was just written."""
        if not state.is_world_process_zero:
            return
        for adapter, file in self._files(args, state):
            adapter.save(file)

    def _files(self, args: Any, state: Any) -> Iterator[tuple[KeptAdapter, Path]]:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for number, adapter in enumerate(self.adapters):
            yield adapter, folder / f"kept-{number}.safetensors"


def _trained(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)


@torch.no_grad()
def _fill(parameters: dict[str, Any], weights: dict[str, Tensor]) -> None:
    for name, value in parameters.items():
        value.copy_(weights[name])
