"""Every merge method at its own strength under the same bound, in pairs against Linear on the same prompts.

    python benchmarks/methods_at_equal_safety.py BASE TUNED... [--methods linear,ties] [--out FOLDER]

BASE is a bundled model or a folder, TUNED one or several. One comparison (docs/comparing.md) with the prompts and
settings of the quickstart's recipe: λ of each method is chosen on the validation half, the best task score within the
bound, and the models at these λ are held against each other on the test half. Without --methods: all that need one
tuned model and no further one, at the options that they come with. Stopped, it continues. Prints the table of series,
then the pairs.
"""

import argparse

import mooring
from mooring.config import Recipe, bundled_recipe
from mooring.merge_methods import METHODS
from mooring.pipeline.run import Run
from mooring.reporting.comparison.tables import groups_of, series_table
from mooring.reporting.paper import paired
from mooring.reporting.render import as_markdown


def own_strength() -> list[str]:
    """The methods with a λ that merge one tuned model without a further one; Linear first."""
    found = [each.name for each in METHODS.values() if each.least == 1 and each.has_lam and not each.requires]
    return sorted(found, key=lambda name: name != "linear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base")
    parser.add_argument("tuned", nargs="+")
    parser.add_argument("--methods", default=",".join(own_strength()))
    parser.add_argument("--lambdas", default="0.2,0.3,0.4,0.5,0.6,0.7,0.8")
    parser.add_argument("--limit", type=int, help="prompts of each kind and half")
    parser.add_argument("--out", default="runs/methods-at-equal-safety")
    given = parser.parse_args()
    values = Recipe.load(bundled_recipe("quickstart")).model_dump(mode="json", exclude_unset=True)
    del values["tune"], values["report"]
    values |= {"name": "methods at equal safety", "base": given.base, "tuned": given.tuned, "out": given.out}
    lambdas = [float(lam) for lam in given.lambdas.split(",")]
    values["merge"] = {"methods": given.methods.split(","), "lambdas": lambdas}
    values["score"] |= {"limit": given.limit}
    done = Run(Recipe.parse(values)).execute(lambda event: print(event.step, event.message, flush=True))
    found = mooring.load_comparison(done.folder)
    print(as_markdown(series_table(found)))
    print(as_markdown(paired.to_table(paired.pairs(groups_of(found)), "tuned model")))


if __name__ == "__main__":
    main()
