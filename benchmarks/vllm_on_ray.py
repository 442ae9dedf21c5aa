"""How many answers and verdicts of a run differ between one process and workers on Ray? For vLLM, whose batches decide
the last bits of a number, and which answers first; the engine `transformers` has none.

    python benchmarks/vllm_on_ray.py recipe.yaml --engine vllm --workers 1,2
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from timing import table

from mooring import Recipe, run
from mooring.records import Completion, Verdict, read_jsonl

Answers = Mapping[tuple[str, str], str]
"""What each model answered, by file and prompt."""
Found = Mapping[tuple[str, str], tuple[bool | None, bool | None]]
"""What each judge found, harmful and refused, by file and prompt."""


@dataclasses.dataclass(frozen=True)
class Made:
    """The answers of a run, and the verdicts on them."""

    answers: Answers
    verdicts: Found

    @classmethod
    def read(cls, folder: Path) -> "Made":
        """Those of a run folder."""
        answers: dict[tuple[str, str], str] = {}
        verdicts: dict[tuple[str, str], tuple[bool | None, bool | None]] = {}
        for path in sorted((folder / "completions").rglob("*.jsonl")):
            name = path.relative_to(folder).as_posix()
            if path.name.startswith("verdicts-"):
                verdicts |= {(name, v.prompt_id): (v.harmful, v.refused) for v in read_jsonl(path, Verdict)}
            elif not path.name.startswith(("likelihood-", "answers-")):
                answers |= {(name, c.key): c.text for c in read_jsonl(path, Completion)}
        return cls(answers, verdicts)


def differences(one: Mapping[tuple[str, str], object], other: Mapping[tuple[str, str], object]) -> str:
    """How many values of the same keys differ, in words."""
    keys = one.keys() & other.keys()
    differ = sum(one[key] != other[key] for key in keys)
    missing = len(one.keys() ^ other.keys())
    return f"{differ} of {len(keys)}" + (f", {missing} only in one" if missing else "")


def made(recipe: Recipe, folder: Path, workers: int) -> Made:
    """Run a recipe, on as many workers of a cluster on this machine; 0 is this process."""
    changes = {"out": str(folder), "resources.on": "ray" if workers else "local"}
    if workers:
        import ray

        ray.init(address="local", num_cpus=workers, log_to_driver=False, include_dashboard=False)
    try:
        run(recipe, overrides=changes)
    finally:
        if workers:
            ray.shutdown()
    return Made.read(folder)


def main() -> None:
    """Print how many differ from those of one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a recipe with `tuned` and without `tune`")
    parser.add_argument("--engine", default="vllm", help="the engine that answers (default: %(default)s)")
    parser.add_argument("--workers", default="1,2", help="numbers of workers (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="run it in one process twice, too")
    args = parser.parse_args()
    recipe = Recipe.load(args.recipe).override({"generate.engine": args.engine, "generate.drafts": False})
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        alone = made(recipe, Path(scratch) / "local", 0)
        rows = [["beside one process", "answers that differ", "verdicts that differ"]]
        places = {"one process, again": made(recipe, Path(scratch) / "again", 0)} if args.again else {}
        for workers in map(int, args.workers.split(",")):
            places[f"{workers} on Ray"] = made(recipe, Path(scratch) / f"ray-{workers}", workers)
        for place, found in places.items():
            counts = (differences(alone.answers, found.answers), differences(alone.verdicts, found.verdicts))
            rows.append([place, *counts])
    print(table(rows))


if __name__ == "__main__":
    main()
