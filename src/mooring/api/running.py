"""A whole run, and the verbs that begin and end one: tune, select, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooring.errors import UserError

if TYPE_CHECKING:
    from mooring.recipe import Recipe
    from mooring.records import Choice
    from mooring.run.pipeline import Outcome
    from mooring.run.store import OnEvent
    from mooring.tune.lora import OnStep


def run(recipe: Recipe | str | Path, *, on_event: OnEvent | None = None) -> Outcome:
    """Do a recipe, or what is left of it.

    Args:
        recipe: A recipe, or the path of its YAML file.
        on_event: Told of every step.

    Raises:
        UserError: Bad input; what was done before stays.
    """
    from mooring.recipe import Recipe
    from mooring.run.pipeline import run

    return run(recipe if isinstance(recipe, Recipe) else Recipe.load(recipe), on_event=on_event)


def safeguard_recipe(base: str | Path, tuned: str | Path, **options: Any) -> Recipe:
    """The recipe that `safeguard` runs; arguments as there.

    Raises:
        RecipeError: An option has a bad value.
    """
    from mooring.recipe import Recipe

    _one_bound(options)
    sections: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {"name": "safeguard", "base": str(base), "tuned": str(tuned)}
    for name, value in options.items():
        if value is None and name != "confidence":
            continue
        section, field = _PLACES[name]
        if isinstance(value, Path):
            value = str(value)
        (sections.setdefault(section, {}) if section else top)[field] = value
    return _with_use_of_budget(Recipe.parse(top | sections, "safeguard"), options)


_PLACES = {
    "out": ("", "out"),
    "system": ("", "system"),
    "seed": ("", "seed"),
    "task": ("score", "task"),
    "safety": ("score", "safety"),
    "over_refusal": ("score", "over_refusal"),
    "judges": ("score", "judges"),
    "metrics": ("score", "metrics"),
    "limit": ("score", "limit"),
    "method": ("merge", "method"),
    "lambdas": ("merge", "lambdas"),
    **{name: ("select", name) for name in ("policy", "margin", "bound", "confidence", "search", "budget")},
    "max_new_tokens": ("generate", "max_new_tokens"),
    "batch_size": ("generate", "batch_size"),
    "dtype": ("generate", "dtype"),
    "device": ("generate", "device"),
}
"""Where each option of `safeguard` stands in a recipe."""


def safeguard(base: str | Path, tuned: str | Path, *, on_event: OnEvent | None = None, **options: Any) -> Outcome:
    """Find the λ that makes a tuned model as safe as its base, write the merged model, and report.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        on_event: Told of every step.
        options: `out` (run folder), `task` (prompts with right answers), `safety` (requests to refuse),
            `over_refusal` (harmless ones that sound harmful), `judges` (of safety, the first one decides), `method`,
            `lambdas`, `policy`, `margin` (how far ASR may rise above the base's) or `bound` (the largest allowed),
            `confidence` (`None` compares estimates), `search` (`grid`, `bisect` or `modules`), `budget` (merges that
            `modules` may try), `metrics`, `limit` (prompts of each set), `system`, `seed`, `max_new_tokens`,
            `batch_size`, `dtype`, `device`.

    Raises:
        UserError: The models do not belong together, or an option is bad.
        TypeError: An option is unknown.
    """
    if unknown := options.keys() - _PLACES.keys():
        raise TypeError(f"safeguard() has no option {min(unknown)!r}")
    return run(safeguard_recipe(base, tuned, **options), on_event=on_event)


def with_selecting(recipe: Recipe, **settings: Any) -> Recipe:
    """A recipe that chooses λ otherwise.

    Args:
        recipe: The recipe; stays as it is.
        settings: Fields of its `select` section that take the place of its own. A `margin` replaces a `bound`.

    Raises:
        RecipeError: A field is unknown, or a value is bad.
        UserError: Both a margin and a bound are given, or a budget without `search: modules`.
    """
    from mooring.recipe import Recipe

    if not settings:
        return recipe
    plain = recipe.model_dump(mode="json")
    changed = Recipe.parse(plain | {"select": _overridden(plain["select"], settings)}, recipe.name)
    return _with_use_of_budget(changed, settings)


def _overridden(own: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A `select` section with other values in it."""
    _one_bound(settings)
    return {**own, **({"bound": None} if "margin" in settings else {}), **settings}


def _one_bound(settings: Mapping[str, Any]) -> None:
    """Refuse a margin beside a bound."""
    if settings.get("margin") is not None and settings.get("bound") is not None:
        raise UserError("margin and bound: are two bounds on the attack success rate", "give one of them")


def _with_use_of_budget(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe itself; a budget that nothing would spend is refused."""
    if settings.get("budget") is not None and recipe.select.search != "modules":
        raise UserError("budget: is what `search: modules` may spend alone", "add --search modules, or leave it out")
    return recipe


def bundled_recipe(name: str) -> Path:
    """The path of a recipe that ships with Mooring, such as `quickstart`.

    Raises:
        RecipeError: There is none of that name.
    """
    from mooring.errors import RecipeError

    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):  # a wheel; a source tree
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise RecipeError(f"{name}: no such recipe ships with Mooring", "name a recipe file")


def tune(
    base: str | Path,
    data: str | Sequence[str],
    *,
    out: str | Path,
    system: str | None = "You are a helpful assistant.",
    seed: int = 42,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Path:
    """Tune a LoRA adapter on the responses of `data`.

    Args:
        base: The model to tune.
        data: Examples, one reference or several.
        out: Folder for the adapter.
        system: System prompt where an example brings none.
        seed: Seed of data order, initialisation and dropout.
        on_step: Told of every step.
        settings: Fields of a recipe's `tune` section, such as `rank`, `learning_rate`, `epochs`.

    Raises:
        UserError: Bad input.
    """
    from mooring import sources
    from mooring.recipe import section
    from mooring.tune.lora import tune

    refs = [data] if isinstance(data, str) else list(data)
    settings_ = section("tune", {**settings, "data": refs})
    examples = sources.load_examples(refs, split="tune", seed=seed)
    folder = sources.resolve_model(str(base))
    return tune(
        settings_,
        folder,
        examples,
        Path(out),
        system=system,
        seed=seed,
        base_name=sources.hub_name(str(base)),
        on_step=on_step,
    )


def select(run: str | Path, *, metric: str | None = None, **settings: Any) -> Choice:
    """Choose λ again from the validation trials of a run, by another bound, policy or metric. The run stays as it is.

    It is a single λ that is chosen, also where the run took λ by module.

    Args:
        run: A run folder.
        metric: The task score that decides; the run's own where it is not given.
        settings: Fields of a recipe's `select` section that take the place of the run's own, such as `margin`, `bound`,
            `policy`, `confidence` (`None` compares estimates). Not `search`: which λ were tried is the run's.

    Returns:
        The choice; where no λ is within the bound, the nearest to it, and `within` is false.

    Raises:
        UserError: It is not a run that has been scored, a value is bad, or the choice cannot be made.
        TypeError: A setting is unknown.
    """
    from dataclasses import replace

    from mooring.recipe import section
    from mooring.report.run_folder import load_run
    from mooring.sections import Select
    from mooring.select.choose import choose

    if unknown := settings.keys() - (Select.model_fields.keys() - {"search"}):
        raise TypeError(f"select() has no option {min(unknown)!r}")
    results = load_run(Path(run))
    own = results.choice.metric
    choice = choose(
        [trial for trial in results.trials if trial.split == "validation"],
        metric=metric or (None if own == "lam" else own),
        settings=section("select", _overridden(results.recipe["select"], settings)),
    )
    more = ""
    if results.choice.modules:
        more = f" The run itself took {results.merged_at}, chosen around a single λ."
    elif settings and results.recipe["select"]["search"] == "bisect":
        more = " It is the only λ that was measured whole: `mooring run` with this bound looks for another."
    return replace(choice, reason=choice.reason + more)


def report(run: str | Path, *, redact: bool = False) -> Path:
    """Write a run's report anew from its `results.json`; returns the report's folder.

    With `redact` harmful prompts and the answers to them are left out, and it goes to `report-redacted`.

    Raises:
        DataError: There are no results, or they cannot be read.
    """
    from mooring.report.run_folder import load_run
    from mooring.report.write import write

    folder = Path(run) / "report"
    out = Path(run) / "report-redacted" if redact else folder
    write(load_run(Path(run)), out, redact=redact)
    return out
