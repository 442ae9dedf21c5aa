"""A search for λ over a run: ask what it wants to know, hand it the verdicts."""

import json
from collections.abc import Callable, Sequence

from mooring.config import Select
from mooring.data import prompts_digest
from mooring.files import atomic_text
from mooring.merge_point import BASE, MergePoint
from mooring.pipeline.evaluation import Subject, Trials, verdict_file
from mooring.pipeline.run_folder import Event, Store, key_of
from mooring.pipeline.sets import asked
from mooring.records import Prompt, Verdict, read_jsonl, to_dict
from mooring.selection.bisect import Bisect, Found, Rule, bisect

AskModel = Callable[[float, tuple[int, ...]], Sequence[bool | None]]
"""Asks the model at λ the prompts at some places, and judges: True is harmful, None a miss, in the same order."""


def find(trials: Trials, subject_at: Callable[[MergePoint], Subject], settings: Select, seed: int) -> Found:
    """Search for the largest λ within the bound on ASR, on the validation prompts of a run.

    Completions and verdicts are kept in the run folder: a search that is stopped goes on, and `Trials.ask` takes the
    completions over.

    Args:
        trials: The run's trials.
        subject_at: The model at a point.
        settings: The recipe's section.
        seed: Of the order in which prompts are asked.

    Raises:
        UserError: There are too few prompts, or a model cannot be asked.
    """
    prompts = asked(trials.sets, "validation")["safety"]
    plan = design(settings, seed)
    plan.test.check(len(prompts))
    base = judged(trials, subject_at(BASE), prompts) if plan.rule.paired else None

    def ask(lam: float, places: Sequence[int]) -> list[bool | None]:
        return judged(trials, subject_at(MergePoint(lam)), [prompts[place] for place in places])

    return search(plan, len(prompts), ask, base)


def keep(store: Store, found: Found) -> None:
    """Keep what a search found in the run folder, and say it."""
    atomic_text(store.folder / "search.json", json.dumps(to_dict(found), indent=1) + "\n")
    for small, large in found.odd:
        first, second = MergePoint(small).label, MergePoint(large).label
        said = f"{first} is harmful significantly more often than {second}: a larger λ may be within the bound"
        store.emit(Event("search", "say", note=said))
    end = "no λ is within the bound"
    if found.lam is not None:
        end = f"the largest λ found within the bound: {MergePoint(found.lam).label}"
    store.emit(Event("search", "say", note=f"{end}; {found.asked} responses were looked at"))


def judged(trials: Trials, subject: Subject, prompts: Sequence[Prompt]) -> list[bool | None]:
    """Ask a model some validation prompts; whether each response is harmful, by the deciding judge."""
    judge = trials.judging.of("safety")[0]
    completions = trials.ask_some(subject, "validation", "safety", prompts)
    some = key_of(prompts_digest(prompts))[:8]
    file = verdict_file("safety", "validation", judge).removesuffix(".jsonl") + f".some-{some}.jsonl"
    path = trials.store.folder / "completions" / subject.point.folder / file
    inputs = [subject.key, [c.text for c in completions], trials.judging.about(judge), trials.judging.label(judge)]
    trials.store.once(
        f"{subject.point.label}: judge {len(prompts)} safety (validation) by {judge}, {some}",
        inputs,
        [path],
        lambda: trials.judging.judge(judge, prompts, completions, path),
    )
    said = {verdict.prompt_id: verdict.harmful for verdict in read_jsonl(path, Verdict)}
    return [said[prompt.id] for prompt in prompts]


def design(settings: Select, seed: int) -> Bisect:
    """The search that keeps the bound on ASR of a recipe's `select` section, by the same test as `choose`."""
    allowed = settings.margin if settings.bound is None else settings.bound
    return Bisect(rule=Rule(allowed, settings.confidence, paired=settings.bound is None), seed=seed)


def search(plan: Bisect, prompts: int, ask: AskModel, base: Sequence[bool | None] | None = None) -> Found:
    """Run a search to its end.

    Args:
        plan: The search.
        prompts: How many prompts there are.
        ask: Asks and judges; called with one λ at a time, never twice for the same prompt.
        base: The base's verdicts on all prompts, in their order, where the bound is a rise above the base's.

    Raises:
        UserError: The search cannot be made with so few prompts, or its settings are out of range.
    """
    steps = bisect(plan, prompts, base if plan.rule.paired else None)
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(ask(wanted.lam, wanted.prompts))
    except StopIteration as end:
        found: Found = end.value
        return found
