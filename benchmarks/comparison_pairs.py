"""Merge methods, and λ by gradient, on three real pairs: the numbers of docs/comparison.md.

    python benchmarks/comparison_pairs.py quickstart
    python benchmarks/comparison_pairs.py seed
    python benchmarks/comparison_pairs.py task
    python docs/build.py

`quickstart` is the pair of the quickstart's recipe; `seed` has another seed of tuning, `task` another task (calls of
all functions of `bundled:tools`). Each tunes its adapter below `--out`, unless it is there; compares the methods,
each at the λ that its own choice under the bound gives it; searches λ by gradient around Linear's; and adds all of it
to benchmarks/comparison_results.json, from which the page is made. Stopped, it continues. `--methods`, `--lambdas`
and `--limit` make it shorter or longer.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradient_lambda
import methods_at_equal_safety

import mooring
from mooring.config import Recipe, bundled_recipe
from mooring.files import atomic_text
from mooring.models import model_digest
from mooring.reporting.tables import Table

RESULTS = Path(__file__).parent / "comparison_results.json"
PAIRS: Mapping[str, tuple[str, str, int]] = {
    "quickstart": ("bundled:tools-simple#800", "bundled:tools-simple", 42),
    "seed": ("bundled:tools-simple#800", "bundled:tools-simple", 7),
    "task": ("bundled:tools#800", "bundled:tools", 42),
}
"""Of each pair the tuning data, the task, and the seed of tuning."""


def adapter(name: str, out: Path, base: str, **settings: Any) -> Path:
    """The adapter of a pair, tuned as the quickstart's recipe says unless it is there."""
    data, _, seed = PAIRS[name]
    if not out.exists():
        tune = Recipe.load(bundled_recipe("quickstart")).model_dump(mode="json", exclude_unset=True)["tune"]
        del tune["data"]
        mooring.tune(
            base, data, out=out, seed=seed, **{**tune, **settings}, on_event=lambda e: print(e.done, e.metrics)
        )
    return out


def plain(table: Table) -> dict[str, Any]:
    """A table as people read it."""
    return {
        "caption": table.caption,
        "columns": [[column.heading, column.numeric] for column in table.columns],
        "rows": table.text_rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pair", choices=PAIRS)
    parser.add_argument("--base", default="bundled:smollm2-135m-aligned")
    parser.add_argument("--tuned", type=Path, help="an adapter that was tuned already as this pair's")
    parser.add_argument("--methods", default="linear,slerp,ties,dare_linear,breadcrumbs,arcee_fusion")
    parser.add_argument("--lambdas", default="0.3,0.4,0.5,0.6")
    parser.add_argument("--limit", type=int, default=60, help="prompts of each kind and half")
    parser.add_argument("--groups", choices=("modules", "layers", "tensors"), default="layers")
    parser.add_argument("--prompts", type=int, default=24, help="prompts of each kind for the search by gradient")
    parser.add_argument("--max-steps", type=int, help="steps of tuning, to try this script")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    data, task, seed = PAIRS[given.pair]
    steps = {} if given.max_steps is None else {"max_steps": given.max_steps}
    tuned = given.tuned or adapter(given.pair, given.out / f"{given.pair}-tuned", given.base, **steps)
    score = {"task": task, "limit": given.limit}
    found = methods_at_equal_safety.compare(
        given.base,
        [str(tuned)],
        given.out / f"{given.pair}-methods",
        methods=given.methods.split(","),
        lambdas=[float(lam) for lam in given.lambdas.split(",")],
        score=score,
    )
    linear = next(each for each in found.series if each.method == "linear")
    gradient = gradient_lambda.measure(
        given.base, tuned, linear.choice.point.lam, given.groups, prompts=given.prompts, limit=1000, score=score
    )
    series, pairs = methods_at_equal_safety.tables(found)
    measured = {
        "base": given.base,
        "data": data,
        "task": task,
        "seed": seed,
        "adapter": model_digest(tuned),
        "limit": given.limit,
        "lambdas": given.lambdas,
        "linear": {"lam": linear.choice.point.lam, "within": linear.choice.within, "reason": linear.choice.reason},
        "series": plain(series),
        "pairs": plain(pairs),
        "gradient": gradient,
        "versions": found.versions,
    }
    known = json.loads(given.results.read_text()) if given.results.is_file() else {}
    known[given.pair] = measured
    ordered = {name: known[name] for name in PAIRS if name in known}
    atomic_text(given.results, json.dumps(ordered, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
