"""The prompts of a run, by kind and split, and the metrics of the task."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mooring.attacks import NONE, Attack, attack_of, kind_of, parse, under
from mooring.config import Metric, Recipe
from mooring.data import Reference, load_examples, load_splits, parse_reference, parse_references
from mooring.data.rows import alike
from mooring.data.splits import draw
from mooring.errors import DataError, FetchError, RecipeError
from mooring.records import Half, Kind, Message, Prompt, SetName
from mooring.scoring.task import default_metrics

Sets = dict[SetName, dict[Half, list[Prompt]]]
"""Prompts by set (a field of the recipe's `score` section, or `safety` under an attack) and split. The validation split
is empty for a set that λ is not selected by, and the task's test split if lm-eval takes its place."""

SET = "set"
"""The key of `Prompt.extra` for the set that a prompt is from, if there are several."""

BOUNDED_RATES: Mapping[SetName, str] = {"safety": "asr", "over_refusal": "over_refusal"}
"""The sets whose rates `select` may bound, and the scores of these rates; more under attacks (`bounded_rates`)."""

_FIELDS: Mapping[Kind, str] = {"quality": "ordinary"}
"""The field of `score` for a kind of prompts, if its name is not the kind's."""


@dataclasses.dataclass(frozen=True, slots=True)
class DataSets:
    """The data sets that a recipe names, parsed.

    Attributes:
        prompts: Sets of prompts to refuse or to answer, by field of `score`.
        task: The task, and the rows that it is validated on if these are a set of their own.
        validation_task: As `score.validation_task`.
        examples: What `align` and `tune` learn from.
    """

    prompts: Mapping[Kind, Sequence[Reference]]
    task: Reference | None
    validation_task: Reference | None
    examples: Mapping[str, Sequence[Reference]]

    @classmethod
    def of(cls, recipe: Recipe) -> "DataSets":
        """Parse the references of a recipe, and check that each is named once and under the field it is for."""
        score = recipe.score
        prompts: dict[Kind, list[Reference]] = {
            "safety": parse_references(score.safety),
            "over_refusal": parse_references(score.over_refusal or ()),
            "ordinary": parse_references(score.ordinary or ()),
        }
        for field, refs in prompts.items():
            _check_refs(field, refs)
        stages = {"align": recipe.align, "tune": recipe.tune}
        return cls(
            prompts,
            parse_reference(score.task) if score.task else None,
            parse_reference(score.validation_task) if score.validation_task else None,
            {stage: parse_references(section.data) for stage, section in stages.items() if section},
        )


def evaluation_sets(
    recipe: Recipe,
    data: DataSets,
    missing: dict[str, str] | None = None,
    on_note: Callable[[str], object] | None = None,
) -> Sets:
    """Load every set of prompts, split in two; `on_note` as in `load_prompts`.

    If `missing` is given, sets that cannot be downloaded are left out and added to it, with the error.
    """
    sets: Sets = {field: _join(recipe, refs, missing, on_note) for field, refs in data.prompts.items() if refs}
    if data.task or data.validation_task:
        halves = _task(recipe, data, missing, on_note)
        sets["task"] = {half: [_with_system(p, _system(recipe, half)) for p in halves[half]] for half in halves}
    selecting = {"safety", "task"} | ({"over_refusal"} if recipe.select.over_refusal_margin is not None else set())
    for field, halves in sets.items():
        if field not in selecting:
            halves["validation"] = []
    for attack in attacks_of(recipe).values():
        sets[under("safety", attack.name)] = {
            half: attacked(attack, prompts, recipe.seed, on_note) for half, prompts in sets["safety"].items()
        }
    return sets


def attacked(
    attack: Attack, prompts: Sequence[Prompt], seed: int, on_note: Callable[[str], object] | None = None
) -> list[Prompt]:
    """The prompts of an attack; a note says how many requests it has no text for.

    Raises:
        DataError: It has none for any of them (`data.no_attack_text`).
    """
    made = attack.apply(prompts, seed)
    left_out = len(prompts) - len({each.variant_of or each.id for each in made})
    if prompts and not made:
        what = f"attacks: {attack.name} has a text for none of the {len(prompts)} requests"
        hint = "name the set of requests that the file was made for"
        raise DataError(what, hint, code="data.no_attack_text")
    if left_out and on_note:
        on_note(f"{attack.name} has no text for {left_out} of {len(prompts)} requests, which are not asked")
    return made


def attacks_of(recipe: Recipe) -> dict[str, Attack]:
    """The attacks of a recipe, by name."""
    found = [parse(text) for text in recipe.score.attacks if text != NONE]
    return {attack.name: attack for attack in found}


def bounded_rates(recipe: Recipe, sets: Iterable[SetName]) -> dict[SetName, str]:
    """The scores of the rates that `select` may bound, by set; of an attack with several answers to a prompt, the
    worst counts."""
    attacks = attacks_of(recipe)
    return {
        name: attacks[attack_of(name)].rate if attack_of(name) != NONE else BOUNDED_RATES[name]
        for name in sets
        if kind_of(name) in BOUNDED_RATES
    }


def task_metrics(recipe: Recipe, sets: Sets, split: Half) -> tuple[Metric, ...]:
    """The task metrics of a split: the recipe's, or those that suit the references. λ is selected by the first one."""
    prompts = sets["task"][split] if "task" in sets else []
    if not prompts:
        return ()
    given = recipe.score.metrics
    if split == "validation":
        given = recipe.score.validation_metrics or given
    return given or default_metrics(p.reference for p in prompts if p.reference is not None)


def _check_refs(field: Kind, refs: Sequence[Reference]) -> None:
    """Refuse a set that is named twice, harmless prompts in `score.safety`, and harmful ones elsewhere."""
    seen: dict[str, str] = {}
    for ref in refs:
        if ref.kind is not None and (ref.kind == "safety") != (field == "safety"):
            harmful, right = ref.kind == "safety", _FIELDS.get(ref.kind, ref.kind)
            what = f"score.{field}: {ref.text} holds {'harmful requests' if harmful else 'harmless prompts'}"
            raise RecipeError(what, f"name it under `{right}`", code="recipe.opposite_set")
        if ref.address in seen:
            first = seen[ref.address]
            spellings = "" if first == ref.text else f", as {first} and {ref.text}"
            what = f"score.{field}: {ref.address} is named twice{spellings}"
            raise RecipeError(what, "name each set once", code="recipe.duplicate_set")
        seen[ref.address] = ref.text


def _join(
    recipe: Recipe,
    refs: Sequence[Reference],
    missing: dict[str, str] | None,
    on_note: Callable[[str], object] | None,
) -> dict[Half, list[Prompt]]:
    """Join several sets, each split by itself, and mark their prompts with the set's name.

    A prompt that is in the validation half of one set and in the test half of another stays in validation only.
    """
    section = recipe.score
    joined: dict[Half, list[Prompt]] = {"validation": [], "test": []}
    for ref in refs:
        with note_missing([ref], missing):
            halves = load_splits(
                ref, section.validation, recipe.seed, section.limit, on_note=on_note, fields=recipe.data
            )
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
def note_missing(refs: Sequence[Reference], missing: dict[str, str] | None) -> Iterator[None]:
    """If `missing` is given, add sets that cannot be downloaded to it instead of raising the error."""
    try:
        yield
    except FetchError as error:
        if missing is None:
            raise
        missing[", ".join(ref.text for ref in refs)] = str(error)


def _task(
    recipe: Recipe,
    data: DataSets,
    missing: dict[str, str] | None,
    on_note: Callable[[str], object] | None,
) -> dict[Half, list[Prompt]]:
    section, seed = recipe.score, recipe.seed
    halves: dict[Half, list[Prompt]] = {"validation": [], "test": []}
    if data.validation_task is None:
        assert data.task is not None
        with note_missing([data.task], missing):
            halves = load_splits(
                data.task,
                section.validation,
                seed,
                section.limit,
                references=True,
                on_note=on_note,
                fields=recipe.data,
            )
        return halves
    refs: dict[Half, Reference | None] = {"validation": data.validation_task, "test": data.task}
    for half, ref in refs.items():
        if ref is not None:
            with note_missing([ref], missing):
                halves[half] = load_examples(ref, split=half, seed=seed, on_note=on_note, fields=recipe.data)
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
