"""The only file that knows every stage: from a recipe to a run folder with the chosen model and the report."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from mooring import sources
from mooring.checkpoint import digest, open_checkpoint, text_digest
from mooring.errors import UserError
from mooring.files import atomic_text, need_room
from mooring.merge.card import license_of
from mooring.merge.stream import merge
from mooring.merge.together import belong_together
from mooring.recipe import Metric, Recipe, Tune
from mooring.records import Choice, Trial, from_dict, to_dict
from mooring.report import card
from mooring.report.results import dumps
from mooring.report.write import write
from mooring.run.assemble import assemble
from mooring.run.changes import measure_changes
from mooring.run.checks import check_measures
from mooring.run.plan import disk, merge_settings
from mooring.run.search import find
from mooring.run.sets import asked, evaluation_sets
from mooring.run.store import Event, OnEvent, Store, key_of, remove
from mooring.run.sweep.models import Models
from mooring.run.trials import Subject, Trials
from mooring.select.choose import choose
from mooring.select.flips import with_flips
from mooring.select.limits import check_support
from mooring.tune.lora import tune


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
            atomic_text(store.folder / "recipe.yaml", recipe.dump())
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
        check_measures(self.recipe, metrics, trials.judging, sets)
        rates = {"safety": "asr", "over_refusal": "over_refusal"}
        counts = {rates[name]: len(prompts) for name, prompts in asked(sets, "validation").items() if name in rates}
        check_support(self.recipe.select, counts)
        self.base = self._base()
        self.tuned = self._tuned()
        rule, scratch = merge_settings(self.recipe), self.folder / "scratch"
        self.models = Models(self.recipe, self.base.folder, self.tuned.folder, rule, scratch)
        warnings = self._check()
        grid = (0.0, *self._lambdas(trials), 1.0)
        scored = with_flips(self._trials(trials, grid, "validation"), trials.hits(grid, "validation"))
        choice = self._choose(scored, trials.metrics("validation"))
        self._write_model(choice.lam)
        scored += self._trials(trials, (0.0, choice.lam, 1.0), "test")
        report = self._report(scored, choice, trials, warnings)
        return Outcome(self.folder, self.model, choice, report, self.store.worked)

    # --- models ---------------------------------------------------------------------------------------------------

    def _base(self) -> Model:
        recipe = self.recipe
        folder = sources.resolve_model(recipe.base)
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
        folder = sources.resolve_model(self.recipe.tuned)
        return Model(self.recipe.tuned, folder, self._key(folder))

    def _key(self, folder: Path) -> str:
        """What answers of a model depend on: its weights, and the files that turn text into tokens and back."""
        return key_of([self.store.digest(folder, digest), text_digest(folder)])

    def _lora(self, step: str, section: Tune, base: Model, out: Path) -> Model:
        seed = self.recipe.seed if section.seed is None else section.seed
        examples = sources.load_examples(section.data, split="tune", seed=seed)
        system = self.recipe.system if section.system is None else section.system
        inputs = [section.model_dump(), base.key, sources.digest(examples), seed, system]

        def make() -> None:
            tune(
                section,
                base.folder,
                examples,
                out,
                system=system,
                seed=seed,
                base_name=sources.hub_name(base.source),
                on_step=lambda done, total, loss: self._tell(step, done, total, f"loss {loss:.3f}"),
            )

        key = self.store.once(step, inputs, [out], make)
        return Model(f"LoRA on {', '.join(section.data)}", out, key)

    def _check(self) -> list[str]:
        """Hold that the two belong together; what is odd about them, a sentence each."""
        path = self.folder / "pair.json"

        def look() -> None:
            found = belong_together(self.base.folder, self.tuned.folder)
            atomic_text(path, json.dumps({"warnings": found}, ensure_ascii=False, indent=1) + "\n")

        self.store.once("check the pair", [self.base.key, self.tuned.key], [path], look)
        changes = self.folder / "changes.json"
        self.store.once(
            "measure the change",
            [self.base.key, self.tuned.key],
            [changes],
            lambda: measure_changes(self.base.folder, self.tuned.folder, changes),
        )
        warnings: list[str] = json.loads(path.read_text())["warnings"]
        for warning in warnings:
            self.store.emit(Event("check the pair", "say", note=warning))
        return warnings

    def _merge_key(self, lam: float) -> str:
        """What the model at λ depends on, known before it is made."""
        if lam == 0:
            return self.base.key
        rule = [self.recipe.merge.method, *merge_settings(self.recipe).items()] if lam < 1 else [""]
        return key_of([self.base.key, self.tuned.key, *rule, lam])

    def _write_model(self, lam: float) -> None:
        key = self._merge_key(lam)
        self.store.once("write the model", key, [self.model], lambda: self.models.merge(lam, self.model))
        self.models.written = lam, self.model

    def _subject(self, lam: float) -> Subject:
        label = {0.0: "base", 1.0: "tuned"}.get(lam, f"λ = {lam:g}")
        return Subject(lam, self._merge_key(lam), label, functools.partial(self.models.at, lam))

    def _lambdas(self, trials: Trials) -> tuple[float, ...]:
        """The λ to score: the recipe's grid, or the one that a search found (the smallest tried, if none is within)."""
        if self.recipe.select.search == "grid":
            return self.recipe.merge.lambdas
        try:
            found = find(trials, self._subject, self.recipe.select, self.recipe.seed)
        finally:
            self.models.release()
            trials.judging.close()
        atomic_text(self.folder / "search.json", json.dumps(to_dict(found), indent=1) + "\n")
        for small, large in found.odd:
            said = f"λ = {small:g} is harmful significantly oftener than {large:g}: a larger λ may be within the bound"
            self.store.emit(Event("search", "say", note=said))
        self.store.emit(Event("search", "say", note=f"{found.asked} responses, λ = {found.lam}"))
        return (min(look.lam for look in found.looks) if found.lam is None else found.lam,)

    def _trials(self, trials: Trials, lams: Sequence[float], split: sources.Half) -> list[Trial]:
        """Ask every model first, then judge, so that a judge's model is loaded once, and no other is in memory then."""
        subjects = [self._subject(lam) for lam in lams]
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

    def _choose(self, scored: list[Trial], metrics: Sequence[Metric]) -> Choice:
        path = self.folder / "choice.json"
        metric = metrics[0] if metrics else None

        def make() -> None:
            choice = choose(scored, metric=metric, settings=self.recipe.select)
            atomic_text(path, json.dumps(to_dict(choice), ensure_ascii=False, indent=1) + "\n")

        inputs = [[to_dict(t) for t in scored], self.recipe.select.model_dump(mode="json"), metric]
        self.store.once("select", inputs, [path], make)
        return from_dict(Choice, json.loads(path.read_text()))

    def _report(self, scored: list[Trial], choice: Choice, trials: Trials, warnings: list[str]) -> Path:
        out = self.folder / "report"
        merged = f"{self.recipe.merge.method}, λ = {choice.lam:g}"
        models = {
            role: {"source": source, "digest": self.store.digest(folder, digest)}
            for role, source, folder in (
                ("base", self.base.source, self.base.folder),
                ("tuned", self.tuned.source, self.tuned.folder),
                ("merged", merged, self.model),
            )
        }
        results = assemble(self.recipe, self.folder, models, scored, choice, trials)
        results = dataclasses.replace(results, notes=[*results.notes, *warnings])
        readme = self.model / "README.md"

        def make() -> None:
            terms = license_of(self.base.folder)
            write(results, out)
            atomic_text(out / card.NAME, card.card(results, terms=terms))
            atomic_text(readme, card.card(results, terms=terms))

        self.store.once("report", dumps(results), [out / "results.json", readme], make)
        return out

    def _tell(self, step: str, done: int, total: int, note: str, tokens: int = 0) -> None:
        self.store.emit(Event(step, "progress", done, total, note, tokens))
