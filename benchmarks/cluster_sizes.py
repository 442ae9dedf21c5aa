"""Estimates for docs/clusters.md: memory and time of the paper's protocol on many GPUs. Arithmetic, not measurements.

    python benchmarks/cluster_sizes.py

Assumptions are those of `engine_sizes.py`. The protocol is 850 safety prompts and 1,000 of the task at 6 points, with
WildGuard (7.25 billion parameters) reading each safety answer with its request as 400 tokens. Engines start at the
same time, answer their share, and change λ as often as their share needs; the judge's share comes after a start of its
own. A mixture's step reads all of its weights, as a batch of 256 makes likely; a token takes the operations of those
that are active.
"""

import math

from engine_sizes import ANSWER, GIB, LLAMA_8B, LLAMA_70B, OTHER, SHARE, Machine, Model, speed, times
from timing import table

RESPONSES, SAFETY, POINTS = 6 * (850 + 1000), 6 * 850, 6
JUDGE, READ = 7.25e9, 400
MIXTURE = Model("400B mixture (17B active)", 402e9, 48, 5120, 8192)
ACTIVE = {MIXTURE.name: 17e9}
CASES = [(LLAMA_8B, 1, (8, 64)), (LLAMA_70B, 4, (8, 64)), (MIXTURE, 16, (16, 64))]


def row(model: Model, per_engine: int, gpus: int) -> list[str]:
    """One line of the table."""
    machine = Machine("80 GB (H100)", 80 * GIB, 3.35e12, 989e12, per_engine)
    engines = gpus // per_engine
    left = SHARE * machine.memory - model.weights / per_engine - OTHER
    start, change, *_ = times(model, machine)
    rate = speed(model, machine)[1]
    active = ACTIVE.get(model.name, model.parameters)
    prefill = 100 * 2 * active / (per_engine * machine.operations * 0.5)
    answering = RESPONSES * (prefill + ANSWER / rate) / engines
    changes = math.ceil(POINTS / engines) * change
    judging = 60 + 2 * JUDGE / 2e9 + SAFETY * READ * 2 * JUDGE / (gpus * machine.operations * 0.5)
    whole = start + changes + answering + judging
    cells = [f"{model.weights / per_engine / GIB:.0f} GiB", f"{left / GIB:.0f} GiB", f"{start / 60:.1f} min"]
    cells += [f"{answering / 60:.1f} min", f"{changes / 60:.1f} min", f"{judging / 60:.1f} min"]
    return [model.name, f"{per_engine}", f"{gpus}", *cells, f"{whole / 3600:.2f} h", f"{whole * gpus / 3600:.1f}"]


def main() -> None:
    """Print the table."""
    head = ["model", "GPUs of an engine", "GPUs", "weights on each", "left on each", "a start", "answers"]
    rows = [row(model, per, gpus) for model, per, several in CASES for gpus in several]
    print(table([[*head, "changes of λ", "judging", "in all", "GPU hours"], *rows]))


if __name__ == "__main__":
    main()
