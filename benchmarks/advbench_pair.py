"""AdvBench's 520 requests, asked of a run's tuned and merged models: how many points more the merged one refuses.

    python benchmarks/advbench_pair.py runs/quickstart

Needs AdvBench: MOORING_DATA, or the hub. Prints the difference, in points, last.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import mooring


def refusals(model: Path, data: str, folder: Path, tokens: int) -> float:
    """The share of a prompt set that a model refuses, by the phrases of the judge `rules`."""
    answers = folder / f"{model.name}.jsonl"
    mooring.generate(model, data, out=answers, max_tokens=tokens, batch_size=52, dtype="float32")
    found = mooring.score(answers, data, judges=["rules"])["refusal"]
    print(f"{model.name}: refuses {found.value:.1%} [{found.low:.1%}, {found.high:.1%}] of {found.n}", flush=True)
    assert found.value is not None
    return found.value


def main() -> None:
    """Ask both, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=24, help="longest response")
    parser.add_argument("--prompts", type=int, default=None, help="so many, drawn at random; all by default")
    parser.add_argument("--at-least", type=float, default=None, help="fail below so many points")
    args = parser.parse_args()
    data = "advbench" if args.prompts is None else f"advbench#{args.prompts}"
    with tempfile.TemporaryDirectory() as folder:
        tuned = refusals(args.run / "tuned", data, Path(folder), args.tokens)
        merged = refusals(args.run / "model", data, Path(folder), args.tokens)
    points = 100 * (merged - tuned)
    print(f"merged − tuned, in points: {points:.1f}")
    if args.at_least is not None and points < args.at_least:
        sys.exit(f"less than {args.at_least}")


if __name__ == "__main__":
    main()
