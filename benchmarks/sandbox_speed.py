"""How long do 164 × 10 programs take, each in a fresh sandbox? HumanEval's own solutions, run with its tests.

Usage: MOORING_DATA=… python benchmarks/sandbox_speed.py [--samples 10] [--workers 2]
"""

import argparse
import gzip
import json
import os
import time
from pathlib import Path

from mooring.records import Message, Prompt
from mooring.scoring.code import to_program
from mooring.scoring.sandbox import run_programs

LIMIT = 180.0
"""Seconds that 164 × 10 programs may take on two cores."""


def main() -> None:
    """Run, and print the ratio to the limit last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    if "MOORING_DATA" not in os.environ:
        parser.error("MOORING_DATA names the folder that holds humaneval/HumanEval.jsonl.gz; it is not set")
    path = Path(os.environ["MOORING_DATA"]) / "humaneval" / "HumanEval.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    programs = []
    for row in rows:
        prompt = Prompt(id=row["task_id"], messages=(Message("user", row["prompt"]),), extra=row)
        programs.append(to_program(prompt, row["canonical_solution"]))
    programs *= given.samples
    started = time.perf_counter()
    outcomes = run_programs(programs, workers=given.workers)
    seconds = time.perf_counter() - started
    passed = sum(outcome.status == "passed" for outcome in outcomes)
    print(f"{len(programs)} programs, {passed} passed, {given.workers} at once")
    print(f"{seconds:.1f} s, {1000 * seconds / len(programs):.0f} ms each")
    print(f"{seconds / LIMIT:.2f} of the limit of {LIMIT:.0f} s")


if __name__ == "__main__":
    main()
