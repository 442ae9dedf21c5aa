"""The only file that knows every stage: from a recipe to a run folder with the chosen model and the report."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring.config import Metric, Recipe, Tune
from mooring.data import load_examples, prompts_digest
from mooring.errors import UserError
from mooring.files import atomic_text, need_room
from mooring.jsonio import read_as
from mooring.merge_point import BASE, TUNED, MergePoint, grid
from mooring.merging.card import license_of
from mooring.merging.merge import merge
from mooring.models import model_digest, open_checkpoint, text_digest
from mooring.models.resolve import hub_name, resolve_model
from mooring.pipeline import module_search
from mooring.pipeline.evaluation import Subject, Trials
from mooring.pipeline.models import Models
from mooring.pipeline.module_groups import check_pair, measure_changes, tensor_names
from mooring.pipeline.plan import disk, merge_settings
from mooring.pipeline.preflight import check_measures, check_selection
from mooring.pipeline.results import assemble
from mooring.pipeline.run_folder import Event, OnEvent, Store, key_of, remove
from mooring.pipeline.search import find, keep
from mooring.pipeline.sets import evaluation_sets
from mooring.records import ByModule, Choice, Half, Trial, read_record, to_dict
from mooring.reporting import model_card
from mooring.reporting.results import dumps
from mooring.reporting.write import write
from mooring.selection.limits import with_flips
from mooring.selection.per_module import taken
from mooring.selection.policies import choose
from mooring.training.lora import tune


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with.

    Attributes:
        folder: The run folder.
        model: Folder of the chosen model.
        choice: The chosen λ, and why.
        report: Folder of the report.
        worked: Whether anything had to be done.
    """

    folder: Path
    model: Path
    choice: Choice
    report: Path
    worked: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A model of the run: where its weights are or come from, and what they depend on."""

    source: str
    folder: Path
    key: str


def run(recipe: Recipe, *, on_event: OnEvent | None = None) -> Outcome:
    """Do a recipe, or what is left of it.

    Stopped at any point and called again, it goes on from what is done. Finished, it does nothing.

    Args:
        recipe: What to do.
        on_event: Told of every step and its progress.

    Returns:
        Where the chosen model and the report are. `choice.within` says whether the bound on ASR was kept.

    Raises:
        UserError: Bad input; nothing is left half-written, and what was done before stays.
    """
    fresh = not recipe.folder.exists()
    store = Store(recipe.folder, on_event)
    try:
        with store.locked():
            return _Run(recipe, store).go()
    except UserError:
        if fresh and not store.seconds():  # refused before anything was done: leave no folder behind
            remove(recipe.folder)
        raise


class _Run:
    """One pass over the stages. Each step has plain inputs, and outputs that the store knows."""

    base: Model
    tuned: Model
    models: Models

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe = recipe
        self.store = store
        self.folder = store.folder
        self.model = store.folder / "model"

    def go(self) -> Outcome:
        """All stages, in order."""
        merge_settings(self.recipe)
        sets = evaluation_sets(self.recipe)
        trials = Trials(self.recipe, self.store, sets)
        metrics = (*trials.metrics("validation"), *trials.metrics("test"))
        check_selection(self.recipe, sets)
        check_measures(self.recipe, metrics, trials.judging, sets)
        atomic_text(self.folder / "recipe.yaml", self.recipe.dump())  # not before: a refused one changes nothing
        self.base = self._base()
        self.tuned = self._tuned()
        rule, scratch = merge_settings(self.recipe), self.folder / "scratch"
        self.models = Models(self.recipe, self.base.folder, self.tuned.folder, rule, scratch)
        warnings = self._check()
        points = (BASE, *self._points(trials), TUNED)
        asked_of = [self._subject(point) for point in points]
        scored = with_flips(self._trials(trials, asked_of, "validation"), trials.hits(points, "validation"))
        choice, found = self._choose(scored, trials.metrics("validation"), trials)
        self._write_model(choice)
        by_module = [choice.point] if choice.point.by_module else []
        asked_of = [self._subject(point) for point in (BASE, choice.point.single, TUNED, *by_module)]
        tested = self._trials(trials, asked_of, "test")
        if found and by_module:
            found = dataclasses.replace(found, test=tested.pop())
        report = self._report(scored + tested, found, choice, trials, warnings)
        return Outcome(self.folder, self.model, choice, report, self.store.worked)

    # --- models ---------------------------------------------------------------------------------------------------

    def _base(self) -> Model:
        recipe = self.recipe
        folder = resolve_model(recipe.base)
        with open_checkpoint(folder) as checkpoint:
            if not self.model.exists():
                need_room(self.folder, disk(recipe, checkpoint.nbytes))
        found = Model(recipe.base, folder, self._key(folder))
        if recipe.align is None:
            return found
        adapter = self._lora("align", recipe.align, found, self.folder / "align")
        out = self.folder / "base"
        key = self.store.once(
            "align: merge", adapter.key, [out], lambda: merge(found.folder, adapter.folder, out, lam=1.0)
        )
        return Model(f"{recipe.base}, aligned by this run", out, key)

    def _tuned(self) -> Model:
        if self.recipe.tune is not None:
            return self._lora("tune", self.recipe.tune, self.base, self.folder / "tuned")
        assert self.recipe.tuned is not None
        folder = resolve_model(self.recipe.tuned)
        return Model(self.recipe.tuned, folder, self._key(folder))

    def _key(self, folder: Path) -> str:
        """What answers of a model depend on: its weights, and the files that turn text into tokens and back."""
        return key_of([self.store.digest(folder, model_digest), text_digest(folder)])

    def _lora(self, step: str, section: Tune, base: Model, out: Path) -> Model:
        seed = self.recipe.seed if section.seed is None else section.seed
        examples = load_examples(section.data, split="tune", seed=seed)
        system = self.recipe.system if section.system is None else section.system
        inputs = [section.model_dump(), base.key, prompts_digest(examples), seed, system]

        def make() -> None:
            tune(
                section,
                base.folder,
                examples,
                out,
                system=system,
                seed=seed,
                base_name=hub_name(base.source),
                on_event=lambda at: self.store.emit(
                    Event(step, "progress", at.done, at.total, f"loss {at.metrics['loss']:.3f}")
                ),
            )

        key = self.store.once(step, inputs, [out], make)
        return Model(f"LoRA on {', '.join(section.data)}", out, key)

    def _check(self) -> list[str]:
        """Hold that the two belong together; what is odd about them, a sentence each."""
        path, changes = self.folder / "pair.json", self.folder / "changes.json"
        keys, pair = [self.base.key, self.tuned.key], (self.base.folder, self.tuned.folder)
        self.store.once("check the pair", keys, [path], lambda: check_pair(*pair, path))
        self.store.once("measure the change", keys, [changes], lambda: measure_changes(*pair, changes))
        warnings: list[str] = read_as(path, Mapping[str, Sequence[str]], "warnings").get("warnings", [])
        for warning in warnings:
            self.store.emit(Event("check the pair", "say", note=warning))
        return warnings

    def _merge_key(self, point: MergePoint) -> str:
        """What a model depends on, known before it is made."""
        if point.is_base:
            return self.base.key
        rule = [""] if point.is_tuned else [self.recipe.merge.method, *merge_settings(self.recipe).items()]
        return key_of([self.base.key, self.tuned.key, *rule, self.models.lam_of(point)])

    def _write_model(self, choice: Choice) -> None:
        point = choice.point
        self.store.once(
            "write the model", self._merge_key(point), [self.model], lambda: self.models.merge(point, self.model)
        )
        self.models.written = point, self.model

    def _subject(self, point: MergePoint) -> Subject:
        return Subject(point, self._merge_key(point), functools.partial(self.models.at, point))

    def _points(self, trials: Trials) -> tuple[MergePoint, ...]:
        """The merges to score: the recipe's grid, or what a search found (the smallest λ tried, if none is within)."""
        if self.recipe.select.search != "bisect":
            return grid(self.recipe.merge.lambdas)
        try:
            found = find(trials, self._subject, self.recipe.select, self.recipe.seed)
        finally:
            self.models.release()
            trials.judging.close()
        keep(self.store, found)
        return grid([min(look.lam for look in found.looks) if found.lam is None else found.lam])

    def _trials(self, trials: Trials, subjects: Sequence[Subject], split: Half) -> list[Trial]:
        """Ask every model first, then judge, so that a judge's model is loaded once, and no other is in memory then."""
        try:
            for subject in subjects:
                trials.ask(subject, split)
        finally:
            self.models.release()
        if (saved := trials.saved()) is not None:
            said = f"{saved:.0%} of the tokens were the nearest λ's too, and were only checked ({split})"
            self.store.emit(Event("drafts", "say", note=said))
        scored = [trials.score(subject, split) for subject in subjects]
        trials.judging.close()
        return scored

    # --- the end --------------------------------------------------------------------------------------------------

    def _choose(self, scored: list[Trial], metrics: Sequence[Metric], trials: Trials) -> tuple[Choice, ByModule | None]:
        """The choice; with `search: modules` after λ by module was searched around it, and what that found."""
        metric, path = metrics[0] if metrics else None, self.folder / "choice.json"

        def make() -> None:
            choice = choose(scored, metric=metric, settings=self.recipe.select)
            atomic_text(path, json.dumps(to_dict(choice), ensure_ascii=False, indent=1) + "\n")

        inputs = [[to_dict(t) for t in scored], self.recipe.select.model_dump(mode="json"), metric]
        self.store.once("select", inputs, [path], make)
        choice = read_record(path, Choice)
        if self.recipe.select.search != "modules":
            return choice, None
        ask = functools.partial(self._trials, trials, split="validation")
        found = module_search.search(trials, scored, choice, tensor_names(self.base.folder), self._subject, ask)
        module_search.keep(self.store, found)
        return taken(choice, found), found

    def _report(
        self, scored: list[Trial], found: ByModule | None, choice: Choice, trials: Trials, warnings: list[str]
    ) -> Path:
        out = self.folder / "report"
        merged = f"{self.recipe.merge.method}, {choice.point.label}"
        models = {
            role: {"source": source, "digest": self.store.digest(folder, model_digest)}
            for role, source, folder in (
                ("base", self.base.source, self.base.folder),
                ("tuned", self.tuned.source, self.tuned.folder),
                ("merged", merged, self.model),
            )
        }
        results = assemble(self.recipe, self.folder, models, scored, choice, trials, found)
        results = dataclasses.replace(results, notes=[*results.notes, *warnings])
        readme = self.model / "README.md"

        def make() -> None:
            terms = license_of(self.base.folder)
            write(results, out)
            atomic_text(out / model_card.NAME, model_card.card(results, terms=terms))
            atomic_text(readme, model_card.card(results, terms=terms))

        self.store.once("report", dumps(results), [out / "results.json", readme], make)
        return out
