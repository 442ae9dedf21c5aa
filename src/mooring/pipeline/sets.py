"""The prompts of a run, by kind and split, and the metrics of the task."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from mooring.config import Metric, Recipe
from mooring.data import Reference, load_examples, load_splits, parse_references
from mooring.data.rows import alike
from mooring.data.splits import draw
from mooring.errors import DataError, FetchError, RecipeError
from mooring.records import Half, Kind, Message, Prompt
from mooring.scoring.task import default_metrics

Sets = dict[Kind, dict[Half, list[Prompt]]]
"""Prompts by kind (a field of the recipe's `score` section) and split. The validation split is empty for a set that λ
is not selected by, and the task's test split if lm-eval takes its place."""

SET = "set"
"""The key of `Prompt.extra` that says which of several sets a prompt is from."""

_FIELDS: Mapping[Kind, str] = {"quality": "ordinary"}
"""The field of `score` for a kind of prompts, if its name is not the kind's."""


def evaluation_sets(recipe: Recipe, missing: dict[str, str] | None = None) -> Sets:
    """Load every prompt set that a recipe names, split in two.

    Args:
        recipe: The recipe.
        missing: If given, sets that cannot be downloaded are left out and added here, with the error.

    Raises:
        DataError: A set is missing, empty or malformed, the task lacks references, or its halves share a prompt.
        RecipeError: A field contains a set of the opposite kind (`recipe.opposite_set`).
    """
    section = recipe.score
    fields: dict[Kind, list[Reference]] = {
        "safety": parse_references(section.safety),
        "over_refusal": parse_references(section.over_refusal or ()),
        "ordinary": parse_references(section.ordinary or ()),
    }
    for field, refs in fields.items():
        for ref in refs:
            _check_kind(field, ref)
    sets: Sets = {field: _join(recipe, refs, missing) for field, refs in fields.items() if refs}
    if section.task or section.validation_task:
        halves = _task(recipe, missing)
        sets["task"] = {half: [_with_system(p, _system(recipe, half)) for p in halves[half]] for half in halves}
    selecting = {"safety", "task"} | ({"over_refusal"} if recipe.select.over_refusal_margin is not None else set())
    for field, halves in sets.items():
        if field not in selecting:
            halves["validation"] = []
    return sets


def asked(sets: Sets, split: Half) -> dict[Kind, list[Prompt]]:
    """The prompts of a split, by kind; kinds without prompts are left out."""
    return {kind: halves[split] for kind, halves in sets.items() if halves[split]}


def task_metrics(recipe: Recipe, sets: Sets, split: Half) -> tuple[Metric, ...]:
    """The task metrics of a split: the recipe's, or those that suit the references. λ is selected by the first one."""
    prompts = sets["task"][split] if "task" in sets else []
    if not prompts:
        return ()
    given = recipe.score.metrics
    if split == "validation":
        given = recipe.score.validation_metrics or given
    return given or default_metrics(p.reference for p in prompts if p.reference is not None)


def _check_kind(field: Kind, ref: Reference) -> None:
    """Refuse harmless prompts in `score.safety`, and harmful ones elsewhere."""
    kind = ref.kind
    if kind is None or (kind == "safety") == (field == "safety"):
        return
    content, right = ("harmful requests", kind) if kind == "safety" else ("harmless prompts", _FIELDS.get(kind, kind))
    raise RecipeError(
        f"score.{field}: {ref.text} holds {content}", f"name it under `{right}`", code="recipe.opposite_set"
    )


def _join(recipe: Recipe, refs: Sequence[Reference], missing: dict[str, str] | None) -> dict[Half, list[Prompt]]:
    """Join several sets, each split by itself, and mark their prompts with the set's name.

    A prompt that is in the validation half of one set and in the test half of another stays in validation only.
    """
    section = recipe.score
    joined: dict[Half, list[Prompt]] = {"validation": [], "test": []}
    for ref in refs:
        with _note_missing(ref.text, missing):
            halves = load_splits(ref, section.validation, recipe.seed, section.limit)
            for half, prompts in halves.items():
                joined[half] += [_marked(prompt, ref.text) for prompt in prompts] if len(refs) > 1 else prompts
    in_validation = {alike(prompt) for prompt in joined["validation"]}
    return {**joined, "test": [prompt for prompt in joined["test"] if alike(prompt) not in in_validation]}


def _marked(prompt: Prompt, ref: str) -> Prompt:
    return dataclasses.replace(
        prompt,
        id=f"{ref}:{prompt.id}",
        category=f"{ref}: {prompt.category}" if prompt.category else ref,
        extra={**prompt.extra, SET: ref},
    )


@contextlib.contextmanager
def _note_missing(ref: str | None, missing: dict[str, str] | None) -> Iterator[None]:
    """Add a set that cannot be downloaded to `missing`, if given."""
    try:
        yield
    except FetchError as error:
        if missing is None:
            raise
        missing[str(ref)] = str(error)


def _task(recipe: Recipe, missing: dict[str, str] | None) -> dict[Half, list[Prompt]]:
    section, seed = recipe.score, recipe.seed
    halves: dict[Half, list[Prompt]] = {"validation": [], "test": []}
    if section.validation_task is None:
        assert section.task is not None
        with _note_missing(section.task, missing):
            halves = load_splits(section.task, section.validation, seed, section.limit, references=True)
        return halves
    refs: dict[Half, str | None] = {"validation": section.validation_task, "test": section.task}
    for half, ref in refs.items():
        with _note_missing(ref, missing):
            halves[half] = load_examples(ref, split=half, seed=seed) if ref else []
    if shared := {alike(p) for p in halves["validation"]} & {alike(p) for p in halves["test"]}:
        what = f"score.validation_task: {len(shared)} of its prompts are in score.task too"
        hint = "λ must not be selected on what is reported: name rows that are not in it"
        raise DataError(what, hint, code="data.shared_prompts")
    if section.limit is None:
        return halves
    return {half: draw(prompts, section.limit, seed) for half, prompts in halves.items()}


def _system(recipe: Recipe, half: Half) -> str | None:
    """The system prompt of the task's prompts, if it is not the recipe's.

    Validation rows of their own get the one of tuning: the loss under another task's instruction says nothing about it.
    """
    section = recipe.score
    if half == "test" or section.validation_task is None:
        return section.task_system
    if section.validation_system is not None:
        return section.validation_system
    return recipe.tune.system if recipe.tune else section.task_system


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    if not system or prompt.messages[0].role == "system":
        return prompt
    return dataclasses.replace(prompt, messages=(Message("system", system), *prompt.messages))
