"""What a run asks: prompt sets by name and split, and the metrics of the task."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from mooring.config import Metric, Recipe
from mooring.data import Reference, load_examples, load_splits, parse_references
from mooring.data.rows import alike
from mooring.data.splits import draw
from mooring.errors import DataError, FetchError, RecipeError
from mooring.records import Half, Kind, Message, Prompt
from mooring.scoring.task import default_metrics

Sets = dict[Kind, dict[Half, list[Prompt]]]
"""Prompts by kind (a field of the recipe's `score` section) and split. The validation split is empty for a set that λ
is not chosen by, and the task's test split if lm-eval takes its place."""

_HARMLESS = {"over_refusal": "over_refusal", "ordinary": "ordinary", "quality": "ordinary", "task": "task"}
"""Where a set of harmless prompts belongs, by its kind."""

SET = "set"
"""The key of `Prompt.extra` that says which of several sets a prompt is from."""


def evaluation_sets(recipe: Recipe, missing: dict[str, str] | None = None) -> Sets:
    """Load every prompt set that a recipe names, split in two.

    Args:
        recipe: The recipe.
        missing: Where it is given, sets that cannot be fetched are left out, and named here with the reason.

    Raises:
        DataError: A set is missing, empty or malformed, the task lacks references, or its halves share a prompt.
        RecipeError: A set stands under a name that says the opposite of what it holds.
    """
    section = recipe.score
    texts: dict[Kind, tuple[str, ...] | None] = {
        "safety": section.safety,
        "over_refusal": section.over_refusal,
        "ordinary": section.ordinary,
    }
    refs = {name: parse_references(several or ()) for name, several in texts.items()}
    for name, several in refs.items():
        for ref in several:
            _refuse_opposite(name, ref)
    found: Sets = {name: _joined(recipe, several, missing) for name, several in refs.items() if several}
    if section.task or section.validation_task:
        halves = _task(recipe, missing)
        found["task"] = {half: [_with_system(p, _system(recipe, half)) for p in halves[half]] for half in halves}
    choosing = {"safety", "task"} | ({"over_refusal"} if recipe.select.over_refusal_margin is not None else set())
    for name, halves in found.items():
        if name not in choosing:
            halves["validation"] = []
    return found


def _refuse_opposite(name: Kind, ref: Reference) -> None:
    """Refuse harmless prompts among those that are to be refused, and the other way round."""
    kind = ref.kind
    if kind is None or (kind == "safety") == (name == "safety"):
        return
    holds, place = ("requests to refuse", kind) if kind == "safety" else ("harmless prompts", _HARMLESS[kind])
    raise RecipeError(f"score.{name}: {ref.text} holds {holds}", f"name it under `{place}`")


def _joined(recipe: Recipe, refs: Sequence[Reference], missing: dict[str, str] | None) -> dict[Half, list[Prompt]]:
    """Several sets as one: each split by itself, its prompts marked with its name.

    What one set has for validation and another for the test stays in validation alone.
    """
    section = recipe.score
    found: dict[Half, list[Prompt]] = {"validation": [], "test": []}
    for ref in refs:
        with _fetched(ref.text, missing):
            halves = load_splits(ref, section.validation, recipe.seed, section.limit)
            for half, prompts in halves.items():
                found[half] += [_marked(prompt, ref.text) for prompt in prompts] if len(refs) > 1 else prompts
    chosen_on = {alike(prompt) for prompt in found["validation"]}
    return {**found, "test": [prompt for prompt in found["test"] if alike(prompt) not in chosen_on]}


@contextlib.contextmanager
def _fetched(ref: str | None, missing: dict[str, str] | None) -> Iterator[None]:
    """Note a set that cannot be fetched, where such are noted."""
    try:
        yield
    except FetchError as error:
        if missing is None:
            raise
        missing[str(ref)] = str(error)


def _marked(prompt: Prompt, ref: str) -> Prompt:
    return dataclasses.replace(
        prompt,
        id=f"{ref}:{prompt.id}",
        category=f"{ref}: {prompt.category}" if prompt.category else ref,
        extra={**prompt.extra, SET: ref},
    )


def _task(recipe: Recipe, missing: dict[str, str] | None) -> dict[Half, list[Prompt]]:
    section = recipe.score
    validation: list[Prompt] = []
    test: list[Prompt] = []
    if section.validation_task is None:
        assert section.task is not None
        with _fetched(section.task, missing):
            return load_splits(section.task, section.validation, recipe.seed, section.limit, references=True)
        return {"validation": [], "test": []}
    with _fetched(section.validation_task, missing):
        validation = load_examples(section.validation_task, split="validation", seed=recipe.seed)
    with _fetched(section.task, missing):
        test = load_examples(section.task, split="test", seed=recipe.seed) if section.task else []
    if shared := {alike(p) for p in validation} & {alike(p) for p in test}:
        raise DataError(
            f"score.validation_task: {len(shared)} of its prompts are in score.task too",
            "λ must not be chosen on what is reported: name rows that are not in it",
        )
    if section.limit is not None:
        validation, test = draw(validation, section.limit, recipe.seed), draw(test, section.limit, recipe.seed)
    return {"validation": validation, "test": test}


def _system(recipe: Recipe, half: Half) -> str | None:
    """The system text of the task's prompts, where it is not the recipe's. Validation rows of their own are asked as
    the model was tuned: under another task's instruction their loss says nothing of the tuning."""
    section = recipe.score
    if half == "test" or section.validation_task is None:
        return section.task_system
    given = section.validation_system
    return given if given is not None else recipe.tune.system if recipe.tune else section.task_system


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    if not system or prompt.messages[0].role == "system":
        return prompt
    return dataclasses.replace(prompt, messages=(Message("system", system), *prompt.messages))


def task_metrics(recipe: Recipe, sets: Sets, split: Half) -> tuple[Metric, ...]:
    """The task metrics of a split: the recipe's, or those that suit the references. Validation's first chooses λ."""
    prompts = sets["task"][split] if "task" in sets else []
    if not prompts:
        return ()
    given = recipe.score.metrics
    if split == "validation":
        given = recipe.score.validation_metrics or given
    return given or default_metrics(p.reference for p in prompts if p.reference is not None)


def asked(sets: Sets, split: Half) -> dict[Kind, list[Prompt]]:
    """What a model is asked in a split."""
    return {name: halves[split] for name, halves in sets.items() if halves[split]}
