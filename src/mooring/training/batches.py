"""How the examples of a step are divided among processes and forward passes."""

import dataclasses

from mooring.config import Tune
from mooring.errors import RecipeError


@dataclasses.dataclass(frozen=True, slots=True)
class Batches:
    """How the examples of an optimizer step are divided.

    Attributes:
        examples: Examples of a step, of all processes together.
        processes: Processes.
        each: Examples of a forward pass in one process.
    """

    examples: int
    processes: int
    each: int

    @property
    def accumulated(self) -> int:
        """Forward passes of a step in one process."""
        return self.examples // (self.processes * self.each)


def batches(config: Tune) -> Batches:
    """Divide the examples of a step among processes and forward passes: the same step for any number of processes.

    Raises:
        RecipeError: They cannot be divided among so many processes (`recipe.bad_nproc`).
    """
    examples = config.batch_size or config.per_device_train_batch_size
    if examples % config.nproc:
        what = f"tune.nproc: {config.nproc} processes cannot share steps of {examples} examples evenly"
        hint = f"give an `nproc` that divides {examples}, or another `batch_size`"
        raise RecipeError(what, hint, code="recipe.bad_nproc")
    share = examples // config.nproc
    each = max(k for k in range(1, min(config.per_device_train_batch_size, share) + 1) if share % k == 0)
    return Batches(examples, config.nproc, each)
