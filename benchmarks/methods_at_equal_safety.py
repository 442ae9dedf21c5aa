"""Every merge method at its own strength under the same bound, in pairs against Linear on the same prompts.

    python benchmarks/methods_at_equal_safety.py BASE TUNED... [--methods linear,ties] [--out FOLDER]

BASE is a bundled model or a folder, TUNED one or several. One comparison (docs/comparing.md) with the prompts and
settings of the quickstart's recipe: λ of each method is chosen on the validation half, the best task score within the
bound, and the models at these λ are held against each other on the test half. Without --methods: all that need one
tuned model and no further one, at the options that they come with. Stopped, it continues. Prints the table of series,
then the pairs.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mooring
from mooring.config import Recipe, bundled_recipe
from mooring.merge_methods import METHODS
from mooring.pipeline.run import Run
from mooring.reporting.comparison.records import MethodComparison
from mooring.reporting.comparison.tables import groups_of, series_table
from mooring.reporting.paper import paired
from mooring.reporting.render import as_markdown
from mooring.reporting.tables import Table


def own_strength() -> list[str]:
    """The methods with a λ that merge one tuned model without a further one; Linear first."""
    found = [each.name for each in METHODS.values() if each.least == 1 and each.has_lam and not each.requires]
    return sorted(found, key=lambda name: name != "linear")


def compare(
    base: str,
    tuned: Sequence[str],
    out: Path,
    *,
    methods: Sequence[str],
    lambdas: Sequence[float],
    score: Mapping[str, Any],
) -> MethodComparison:
    """Compare methods with the quickstart's settings; `score` has other values of its section."""
    values = Recipe.load(bundled_recipe("quickstart")).model_dump(mode="json", exclude_unset=True)
    del values["tune"], values["report"]
    values |= {"name": "methods at equal safety", "base": base, "tuned": list(tuned), "out": str(out)}
    values["merge"] = {"methods": list(methods), "lambdas": list(lambdas)}
    values["score"] |= score
    done = Run(Recipe.parse(values)).execute(lambda event: print(event.step, event.message, flush=True))
    return mooring.load_comparison(done.folder)


def tables(found: MethodComparison) -> list[Table]:
    """The table of series, then the pairs."""
    return [series_table(found), paired.to_table(paired.pairs(groups_of(found)), "tuned model")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base")
    parser.add_argument("tuned", nargs="+")
    parser.add_argument("--methods", default=",".join(own_strength()))
    parser.add_argument("--lambdas", default="0.2,0.3,0.4,0.5,0.6,0.7,0.8")
    parser.add_argument("--limit", type=int, help="prompts of each kind and half")
    parser.add_argument("--out", default="runs/methods-at-equal-safety")
    given = parser.parse_args()
    found = compare(
        given.base,
        given.tuned,
        Path(given.out),
        methods=given.methods.split(","),
        lambdas=[float(lam) for lam in given.lambdas.split(",")],
        score={"limit": given.limit},
    )
    for table in tables(found):
        print(as_markdown(table))


if __name__ == "__main__":
    main()
