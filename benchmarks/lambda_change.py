"""What a change of λ costs with the engine `transformers`, beside the answers of one λ.

    python benchmarks/lambda_change.py [RUN]

RUN is a finished run of recipes/quickstart.yaml: its base and tuned adapter are taken. Without one, an adapter of the
quickstart's shape is tuned for 12 steps first; the time of a change does not depend on its values. At each λ of its
grid, the model answers the quickstart's validation prompts with its settings, batches and drafts, as in a run: the
answers to the task's and the safety prompts, and the likelihoods of the task's references. With `--prompts` it answers
only so many of each set, and the time of all is estimated in proportion to their number, which is said. Loading the
model for the first λ is no change; the second λ reads the models from the files, and the later ones find them in
memory. The shares of a λ's time come last: the largest change beside the shortest answers, so that a slow minute makes
the share look larger and not smaller.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from sweep_cost import GRID, pair
from timing import table

from mooring.config import Runner
from mooring.data import load_splits
from mooring.inference.engine import Engine
from mooring.merging.pair import open_pair
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.records import Prompt
from mooring.sampling import SamplingParams

SETS = {
    "bundled:harmful": SamplingParams(max_tokens=20, repetition_penalty=1.2),
    "bundled:tools-simple": SamplingParams(max_tokens=40),
}
"""The prompts of the quickstart's validation half, and how they are answered."""
TASK = "bundled:tools-simple"
LIMIT = 0.05


def answer(engine: Engine, asked: dict[str, list[Prompt]], drafts: dict[str, str]) -> dict[str, str]:
    """Answer all prompts and score the task's references; returns the answers, the next λ's drafts."""
    made = {}
    for name, prompts in asked.items():
        for batch in engine.complete(prompts, SETS[name], drafts=drafts):
            made |= {completion.key: completion.text for completion in batch}
    for _ in engine.likelihood(asked[TASK]):
        pass
    return made


def main() -> None:
    """Change λ and answer, over the grid, and say what share the changes take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--prompts", type=int, help="of each set, at most; defaults to all")
    parser.add_argument("--lambdas", type=int, default=len(GRID), help="how many λ of the grid, from its beginning")
    given = parser.parse_args()
    halves = {name: load_splits(name, 0.5, 42, None)["validation"] for name in SETS}
    asked = {name: prompts[: given.prompts] for name, prompts in halves.items()}
    share = sum(map(len, asked.values())) / sum(map(len, halves.values()))
    rows = [["λ", "change", "answers", "change beside answers"]]
    changes, times, drafts, before = [], [], dict[str, str](), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        spec = SweepSpec(pair=open_pair(*pair(given.run, Path(scratch))), runner=Runner(batch_size=64, dtype="float32"))
        with MergedModel(spec) as model:
            for number, lam in enumerate(GRID[: given.lambdas]):
                started = time.perf_counter()
                engine = model.at(lam)
                changed = time.perf_counter()
                drafts = answer(engine, asked, drafts)
                change, answers = changed - started, (time.perf_counter() - changed) / share
                if number:
                    changes.append(change)
                    times.append(answers)
                kind = f"{change / answers:.1%}" if number else "— (the model is loaded)"
                rows.append([f"{lam}", f"{change:.2f} s", f"{answers:.1f} s", kind])
                print(" ".join(rows[-1]), file=sys.stderr)
            if not model.in_place:
                raise SystemExit("the weights were not changed in place")
    counts = " and ".join(f"{len(asked[name])} of {len(prompts)}" for name, prompts in halves.items())
    print(f"{counts} prompts", end=", " if share == 1 else f" (the times of answers are divided by {share:.2f}), ")
    print(f"{torch.get_num_threads()} threads, load {before:.1f} before and {os.getloadavg()[0]:.1f} after")
    print(f"\n{table(rows)}\n")
    least = min(times)
    if changes[1:]:
        largest = max(changes[1:])
        print(
            f"from memory, largest of {len(changes) - 1}: {largest:.2f} s beside {least:.1f} s: {largest / least:.1%}"
        )
    print(f"largest change, beside the answers of one λ: {max(changes) / least:.1%} (limit: {LIMIT:.0%})")


if __name__ == "__main__":
    main()
