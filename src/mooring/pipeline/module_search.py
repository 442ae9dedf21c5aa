"""λ by module over a run's models: what is tried is asked and judged, a round at a time."""

import json
from collections.abc import Callable, Sequence

from mooring.files import atomic_text
from mooring.pipeline.evaluation import Subject, Trials
from mooring.pipeline.module_groups import changed, read_changes
from mooring.pipeline.run_folder import Store
from mooring.records import ByModule, Choice, Trial, to_dict
from mooring.selection.limits import with_flips
from mooring.selection.per_module import Modules, by_module

FILE = "by_module.json"
NONE: Modules = {}
"""λ that is the same for all modules."""


def search(
    trials: Trials,
    scored: Sequence[Trial],
    choice: Choice,
    names: Sequence[str],
    subject_at: Callable[[Modules], Subject],
    ask: Callable[[Sequence[Subject]], Sequence[Trial]],
) -> ByModule:
    """Search λ by module around the chosen single λ.

    Args:
        trials: The run's trials.
        scored: The grid's validation trials, with flips against the base.
        choice: The single λ.
        names: The base's tensors.
        subject_at: The merge at λ by module.
        ask: Asks and judges merges on validation.
    """
    recipe, folder = trials.recipe, trials.store.folder
    base = next(trial for trial in scored if trial.model == "base")
    single = next(trial for trial in scored if trial.model == "merged" and trial.lam == choice.lam)
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
            subjects = [subject_at(modules) for modules in wanted]
            made = zip(ask(subjects), subjects, strict=True)
            wanted = steps.send([_beside_base(trial, subject, trials) for trial, subject in made])
    except StopIteration as end:
        found: ByModule = end.value
        return found


def _beside_base(trial: Trial, subject: Subject, trials: Trials) -> Trial:
    """A validation trial with its flips against the base."""
    hits = trials.hits((0.0, trial.lam), "validation", {trial.lam: subject.name})
    return with_flips([trial], hits)[0]


def keep(store: Store, found: ByModule) -> None:
    """Keep what was found in the run folder."""
    path, record = store.folder / FILE, to_dict(found)
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    store.once("select by module", record, [path], lambda: atomic_text(path, text))
