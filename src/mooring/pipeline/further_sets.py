"""The prompts of a run besides those that are measured: of a search by gradient, of forgetting, of a tuning's `kl`."""

from collections.abc import Mapping, Sequence

from mooring.config import Recipe, Tune
from mooring.data import load_examples, load_prompts, parse_references
from mooring.data.rows import alike
from mooring.data.splits import draw
from mooring.errors import DataError
from mooring.pipeline.sets import Sets
from mooring.records import Prompt

FORGETTING_PROMPTS = 32
"""Maximum number of requests on which forgetting is measured."""

SearchSets = Mapping[str, Sequence[Prompt]]
"""The prompts of a search by gradient: `harmful`, `ordinary` and `task`, in this order; `ordinary` may be missing."""


def search_sets(recipe: Recipe, sets: Sets) -> SearchSets:
    """The prompts of a recipe's search by gradient, at most `select.search_prompts` of each kind; empty without one.

    Those of the task are of the validation half. Requests are of sets of their own, so that those on which the result
    is tested had no part in it.

    Raises:
        DataError: One of the requests is among those that are measured (`data.shared_prompts`), or a prompt of the task
            has no reference (`data.no_reference`).
    """
    section, seed = recipe.select, recipe.seed
    if section.search != "gradient" or "task" not in sets:
        return {}
    found: dict[str, Sequence[Prompt]] = {}
    for kind, field in (("harmful", "search_safety"), ("ordinary", "search_ordinary")):
        if refs := getattr(section, field):
            prompts = load_prompts(parse_references(refs), split="tune", seed=seed)
            _refuse_measured(f"select.{field}", prompts, sets, "λ must not be searched on what it is tested on")
            found[kind] = draw(prompts, section.search_prompts, seed)
    found["task"] = draw(sets["task"]["validation"], section.search_prompts, seed)
    for prompt in found["task"]:
        if prompt.reference is None:
            what = f"{prompt.origin or prompt.id}: has no reference"
            raise DataError(what, "`search: gradient` needs one for each prompt", code="data.no_reference")
    return found


def _refuse_measured(field: str, prompts: Sequence[Prompt], sets: Sets, why: str) -> None:
    measured = {alike(p) for name in sets if name != "task" for half in sets[name].values() for p in half}
    if shared := sum(alike(prompt) in measured for prompt in prompts):
        what = f"{field}: {shared} of its prompts are among those that are measured"
        raise DataError(what, f"name requests of another set: {why}", code="data.shared_prompts")


def kl_examples(recipe: Recipe, stage: str, section: Tune, sets: Sets) -> list[Prompt]:
    """The ordinary requests with answers of a tuning's `kl`; none if neither it nor a baseline of it has any.

    Raises:
        DataError: One of the requests is among those that are measured (`data.shared_prompts`), or has no answer.
    """
    sections = [section, *(recipe.baselines.values() if stage == "tune" else ())]
    if not any(each.kl for each in sections):
        return []
    found = load_examples(parse_references(section.kl_data), split="tune", seed=recipe.seed, fields=recipe.data)
    _refuse_measured(f"{stage}.kl_data", found, sets, "a model must not be tuned on what it is tested on")
    return found


def forgetting_prompts(recipe: Recipe) -> list[Prompt]:
    """The requests on which a recipe measures forgetting, at most `FORGETTING_PROMPTS`, drawn by seed; none without
    `score.forgetting`."""
    refs = recipe.score.forgetting
    if not refs:
        return []
    return draw(
        load_prompts(parse_references(refs), split="validation", seed=recipe.seed), FORGETTING_PROMPTS, recipe.seed
    )
