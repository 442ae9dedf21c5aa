"""Measure what `scale_model.py` draws from: the start of a worker, a change of λ, and units of 32 prompts.

    python benchmarks/scale_durations.py [--units 4] [--write]

The worker is a process of its own, with one thread: its start is Python, all imports, and the bundled base and aligned
model, loaded by the engine `transformers`. It answers bundled harmful requests greedily with a repetition penalty of
1.2, as in the paper, with at most 128 tokens (the paper: 512, so that a start weighs more here), in batches as a run
makes them, at several λ; then it is asked WildGuard's question about each answer, and answers with at most 32 tokens,
more than the three lines of a verdict. Times are processor time, so that other work on the machine does not count.
`--write` replaces `scale_durations.json`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("scale_durations.json")
SIZE = 32
GRID = (0.2, 0.4, 0.6, 0.8)


def work(units: int) -> dict[str, Any]:
    """Start, answer and judge; returns seconds of each."""
    from mooring.config import Runner
    from mooring.data import load_splits
    from mooring.merging.pair import open_pair
    from mooring.models.resolve import resolve_model
    from mooring.pipeline.sweeps.sweep import SweepSpec
    from mooring.pipeline.sweeps.transformers import MergedModel
    from mooring.sampling import SamplingParams
    from mooring.scoring import judges

    base, tuned = resolve_model("bundled:smollm2-135m-instruct"), resolve_model("bundled:smollm2-135m-aligned")
    spec = SweepSpec(pair=open_pair(base, tuned), runner=Runner(batch_size=SIZE, dtype="float32"))
    answering, judging, changes = [], [], []
    with MergedModel(spec) as model:
        model.at(GRID[0])
        start = time.process_time()
        model.at(GRID[1])  # the second λ reads the models from the files, the later ones find them in memory
        prompts = load_splits("bundled:harmful", 0.5, 42, None)["validation"][: SIZE * units]
        asked, answers = {prompt.id: prompt for prompt in prompts}, []
        for number in range(units):
            started = time.process_time()
            engine = model.at(GRID[number % len(GRID)])
            changes.append(time.process_time() - started)
            params = SamplingParams(max_tokens=128, repetition_penalty=1.2)
            of_unit = list(asked.values())[number * SIZE : (number + 1) * SIZE]
            started = time.process_time()
            (made,) = engine.complete(of_unit, params)
            answering.append(time.process_time() - started)
            answers.append(made)
            print(f"unit {number + 1} of {units}: {answering[-1]:.1f} s", file=sys.stderr)
        judge = judges.find("wildguard")
        for made in answers:
            questions = judges.questions(judge, [asked[completion.prompt_id] for completion in made], made)
            started = time.process_time()
            (_,) = engine.complete(questions, SamplingParams(max_tokens=32))
            judging.append(time.process_time() - started)
    rounded = {
        "answering": [round(each, 2) for each in answering],
        "judging": [round(each, 2) for each in judging],
        "changes": [round(each, 3) for each in changes],
    }
    return {"unit": SIZE, "start": round(start, 2), **rounded}


def main() -> None:
    """Measure in a new process, and print or write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=4)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(work(given.units)))
        return
    command = [sys.executable, __file__, "--units", str(given.units), "--worker"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if given.write:
        OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
