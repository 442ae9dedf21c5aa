"""λ by module over a run's models: what is tried is asked and judged, a round at a time."""

import json
from collections.abc import Callable, Sequence

from mooring.files import atomic_text
from mooring.merge_point import BASE, MergePoint
from mooring.pipeline.evaluation import Subject, Trials
from mooring.pipeline.module_groups import changed, read_changes
from mooring.pipeline.run_folder import Store
from mooring.records import ByModule, Choice, Trial, to_dict
from mooring.selection.limits import with_flips
from mooring.selection.per_module import by_module

FILE = "by_module.json"


def search(
    trials: Trials,
    scored: Sequence[Trial],
    choice: Choice,
    names: Sequence[str],
    subject_at: Callable[[MergePoint], Subject],
    ask: Callable[[Sequence[Subject]], Sequence[Trial]],
) -> ByModule:
    """Search λ by module around the chosen single λ.

    Args:
        trials: The run's trials.
        scored: The grid's validation trials, with flips against the base.
        choice: The single λ.
        names: The base's tensors.
        subject_at: The merge at a point.
        ask: Asks and judges merges on validation.
    """
    recipe, folder = trials.recipe, trials.store.folder
    base = next(trial for trial in scored if trial.point.is_base)
    single = next(trial for trial in scored if trial.point == choice.point)
    changes = read_changes(folder)
    groups = changed(names, changes) if changes else []
    why = "no single λ is within the bound" if not choice.within else ""
    if len(groups) < 2:
        why = "tuning changed fewer than two groups of modules"
    settings = recipe.select
    if why:
        sentence = f"λ by module was not searched: {why}."
        return ByModule(
            single=single,
            groups=groups,
            budget=settings.budget,
            confidence=settings.confidence,
            tried=(),
            chosen=None,
            sentence=sentence,
        )
    steps = by_module(base, single, groups, recipe.merge.lambdas, settings, choice.metric, settings.budget)
    try:
        wanted = next(steps)
        while True:
            made = ask([subject_at(point) for point in wanted])
            wanted = steps.send(with_flips(made, trials.hits([BASE, *wanted], "validation")))
    except StopIteration as end:
        found: ByModule = end.value
        return found


def keep(store: Store, found: ByModule) -> None:
    """Keep what was found in the run folder."""
    path, record = store.folder / FILE, to_dict(found)
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    store.once("select by module", record, [path], lambda: atomic_text(path, text))
