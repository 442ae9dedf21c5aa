"""Execute the steps of a run: from a recipe to a run folder with the chosen model and the report."""

import dataclasses
import functools
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mooring import jsonio
from mooring.attacks import kind_of
from mooring.baselines import Baseline
from mooring.chat import thinking_note
from mooring.config import Recipe, Tune
from mooring.errors import UserError
from mooring.events import Event, OnEvent
from mooring.export import Record
from mooring.files import atomic_text, expanded
from mooring.inference.engine import Engine, accepted_share
from mooring.inference.folder import open_folder
from mooring.inference.retry import StoppedError, in_parallel
from mooring.inference.store import complete_to_file, likelihood_to_file
from mooring.inference.transformers import TransformersEngine
from mooring.merge_methods import Role
from mooring.merge_point import BASE, MergePoint, Series, SeriesPoint, plain
from mooring.merging.merge import merge
from mooring.merging.pair import resolved
from mooring.models import model_digest, open_checkpoint, refuse_quantized, text_digest
from mooring.models.resolve import hub_name, lasting_name, resolve_model
from mooring.pipeline import plan as planning
from mooring.pipeline import steps as types
from mooring.pipeline.attacked import continued, prefilled_with, requests
from mooring.pipeline.baselines import compare_baselines
from mooring.pipeline.call import Call, here
from mooring.pipeline.changes import read_changes, read_warnings, write_changes, write_warnings
from mooring.pipeline.cluster.sources import ModelsSource, SeriesSource
from mooring.pipeline.cluster.workers import Workers
from mooring.pipeline.evaluation import score_trial, verdicts_by_point, write_lm_eval
from mooring.pipeline.forgetting import measure_forgetting
from mooring.pipeline.gradient import not_searched, search_gradient
from mooring.pipeline.incomplete import lost_answers, resting_on, sentence
from mooring.pipeline.labelling import corrections_from, estimate_if_labelled
from mooring.pipeline.lengths import describe
from mooring.pipeline.lm_eval.evaluate import TaskRun, run_tasks
from mooring.pipeline.lm_eval.tasks import score_dependencies
from mooring.pipeline.merged import check_written, require_passed
from mooring.pipeline.method_comparison import assemble_comparison, measure_cost, without_series
from mooring.pipeline.mirror import Mirror
from mooring.pipeline.models import Models
from mooring.pipeline.preflight import check_measures, check_models, check_room, check_selection
from mooring.pipeline.results import assemble, rows
from mooring.pipeline.run_folder import RunFolder, check_place, remove
from mooring.pipeline.search import bisection, bisection_notes, search_modules, try_gradient
from mooring.pipeline.steps import JudgeKey, SourceKey, Stage, Step, built_on
from mooring.pipeline.storage import Storage
from mooring.records import (
    Baselines,
    ByModule,
    Choice,
    Completion,
    Forgetting,
    GradientSearch,
    Half,
    MergeCheck,
    Prompt,
    RunVerdict,
    SetName,
    Trial,
    Verdict,
    read_jsonl,
    read_record,
)
from mooring.reporting import model_card
from mooring.reporting.comparison import records as comparison
from mooring.reporting.comparison.write import write_comparison
from mooring.reporting.notebook import Trials, as_html
from mooring.reporting.results import Results, load, load_run
from mooring.reporting.write import write
from mooring.selection.bisect import BoundedRate, bisect_all
from mooring.selection.corrected import Corrections
from mooring.selection.limits import Rule, rules, with_flips
from mooring.selection.per_module import taken
from mooring.selection.policies import choose
from mooring.thinking import cut_off_note, joined, unanswered
from mooring.training.lora import tune

R = TypeVar("R")


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome(Record):
    """What a run ended with.

    Attributes:
        folder: The run folder.
        model: Folder of the chosen model; None if the run compares several methods or tuned models.
        choice: The chosen λ, and why. `choice.within` is whether the bound on ASR is met. None for a comparison.
        report: Folder of the report.
        worked: Whether anything had to be done.
        verdict: Whether the chosen model can be shipped. None for a comparison.
        choices: Of a comparison, the chosen λ of each series, by its name, such as `slerp, seed1`.
        verdicts: Of a comparison, whether the model at the chosen λ of each series can be shipped, by its name.
    """

    folder: Path
    model: Path | None
    choice: Choice | None
    report: Path
    worked: bool
    verdict: RunVerdict | None
    choices: Mapping[str, Choice] = dataclasses.field(default_factory=dict)
    verdicts: Mapping[str, RunVerdict] = dataclasses.field(default_factory=dict)

    @property
    def results(self) -> Results:
        """The results of the run, read from its folder.

        Raises:
            DataError: The run compares several methods or tuned models (`data.comparison`), or was edited since.
        """
        return load_run(self.folder)

    @property
    def trials(self) -> Trials:
        """All scores of each model on each half; `to_pandas()` is a table of them. Errors as those of `results`."""
        return Trials(self.results.trials)

    def plot(self) -> Any:
        """The figure of the report, a `matplotlib.figure.Figure`. Errors as those of `results`."""
        from mooring.reporting.figures import tradeoff

        return tradeoff(self.results)

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the verdict, the figure and the table; of a comparison, nothing of its own."""
        return as_html(self.results) if self.choice is not None else None

    @property
    def acceptable(self) -> bool:
        """Whether the chosen λ keeps the bound and the verdict is not against it; of a comparison, those of any
        series."""
        found = [(choice, self.verdicts[name]) for name, choice in self.choices.items()]
        if self.choice is not None and self.verdict is not None:
            found.append((self.choice, self.verdict))
        return any(choice.within and verdict.decision != "do_not_ship" for choice, verdict in found)


class Run:
    """A run of a recipe.

    `engine` returns the engine of a model and `score` the scores of a model on a split, in place of the run's own.
    `plan` has the steps; it is updated as the run learns which models it has to measure.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        engine: Callable[[MergePoint], Engine] | None = None,
        score: Callable[[planning.Plan, MergePoint, Half], Trial] | None = None,
    ) -> None:
        self.recipe, self.engine, self.score = recipe, engine, score
        self.plan = planning.build(recipe)

    def execute(self, on_event: OnEvent | None = None) -> Outcome:
        """Do all steps that are not done yet. Stopped at any point and called again, it resumes."""
        check_place(self.recipe.folder, (self.recipe.base, *self.recipe.tuned_models.values()))
        fresh, storage = not self.recipe.folder.exists(), self.recipe.resources.storage
        mirror = Mirror(Storage.open(storage), self.recipe.folder) if storage else None
        folder = RunFolder(self.recipe.folder, on_event, mirror)
        try:
            with folder.locked():
                return _Execution(self, folder).execute()
        except UserError:
            if fresh and folder.is_untouched:  # refused before anything was done: leave no folder behind
                remove(self.recipe.folder)
            raise


def run(recipe: Recipe, *, on_event: OnEvent | None = None) -> Outcome:
    """Do a recipe, or what is left of it; see `Run.execute`."""
    return Run(recipe).execute(on_event)


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """A model, and a set that it answers."""

    point: MergePoint
    name: SetName
    split: Half
    turn: int = 0


class _Execution:
    """One pass over the steps of a run."""

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self.run, self.folder = run, folder
        self.recipe, self.paths, self.judging = run.recipe, folder.paths, run.plan.judging
        self.keys = types.Keys(lambda: {**run.plan.steps, **self._more}, self._measure)
        self._models: Models | None = None
        self._more: dict[str, Step] = {}
        """Steps that a search added on the way."""
        self._prompts: dict[str, Sequence[Prompt]] = {}
        """The prompts of these steps, by id."""
        self._done: set[str] = set()
        self._whole: dict[_Source, None] = {}
        """Sets that were answered completely, in order."""
        self._parts: dict[_Source, list[Path]] = {}
        """Files with responses to some prompts of a set."""
        self._drafted: list[Completion] = []
        self._stopped = threading.Event()
        """Set when the run was interrupted while several steps were done at the same time."""
        self._at_work: dict[str, threading.Event] = {}
        """The steps that are done at the same time, each with what is set when it is done."""
        self._workers = None if self.recipe.resources.local else self._connect()
        self.judging.open_remote = None if self._workers is None else self._workers.judge
        self.judging.call = self._call

    def _connect(self) -> Workers:
        """The workers of the run; they are connected when they are first needed."""
        recipe, runners = self.recipe, (self.recipe.generate, *self.judging.of_models())
        return Workers(
            recipe.resources,
            self.paths.folder,
            metrics=self.plan.all_metrics,
            score=recipe.score,
            plugins=recipe.plugins,
            per_engine=max(runner.tensor_parallel for runner in runners),
            logs=self.paths.logs,
            on_event=self.folder.emit,
        )

    @property
    def plan(self) -> planning.Plan:
        """The steps as far as they are known."""
        return self.run.plan

    def execute(self) -> Outcome:
        """All steps, in order."""
        check_selection(self.plan)
        check_measures(self.plan)
        with open_checkpoint(self._named_base) as base:
            refuse_quantized(base)
        if not self.plan.series and not self.paths.model.exists():
            check_room(self.plan, self._named_base)
        if self.run.engine is None and not self.paths.results.exists():
            check_models(self.plan, self._named_base, self._named_tuned, self._references)
        try:
            return self._execute()
        finally:
            self._free(None)
            if self._workers is not None:
                self._workers.close()

    def _execute(self) -> Outcome:
        """All steps, after the checks of the recipe and the models."""
        if self._workers is not None and not self.paths.results.exists():
            models = [self._named_base, *self._named_tuned.values(), *self._references.values()]
            self._workers.check([*models, *self.judging.folders()])
        if self.plan.skipped:
            self.folder.emit(Event(step="prompts", kind="warning", message=describe(self.plan.skipped)))
        atomic_text(self.paths.recipe, self.recipe.dump())  # not before the checks: a refused recipe changes nothing
        if not self.paths.results.exists():
            for note in (*self.plan.notes, *(self._template_notes() if self.recipe.align is None else ())):
                self.folder.emit(Event(step="plan", kind="info", message=note))
        while remaining := [step for id, step in self.plan.steps.items() if id not in self._done]:
            self._do(next(self._in_groups(remaining)))
        if lost := lost_answers(self.plan.steps.values()):
            self.folder.reopen(resting_on(self.plan.steps, lost))
        folder, paths = self.folder, self.paths
        if self.plan.series:
            found = comparison.load(paths.report).series
            return Outcome(
                folder=folder.folder,
                model=None,
                choice=None,
                report=paths.report,
                worked=folder.worked,
                verdict=None,
                choices={each.series.label: each.choice for each in found},
                verdicts={each.series.label: each.verdict for each in found},
            )
        verdict = load(paths.report).verdict
        return Outcome(folder.folder, paths.model, self._choice(), paths.report, folder.worked, verdict)

    def _call(self, function: Callable[..., R], *args: Any, whole_node: bool = False) -> R:
        """See `Call`. What needs no GPU is done on the CPUs of a cluster, if there is one."""
        call: Call = here if self._workers is None else self._workers.call
        return call(function, *args, whole_node=whole_node)

    def _in_groups(self, steps: Iterable[Step]) -> Iterator[list[Step]]:
        """Group consecutive steps that may be done concurrently; others form groups of one."""
        for together, group in itertools.groupby(steps, self._may_be_together):
            if together:
                yield list(group)
            else:
                for step in group:
                    yield [step]

    def _may_be_together(self, step: Step) -> bool:
        """Whether a step generates with an engine that may serve several models concurrently, and needs no response
        of another step that has not been done. On a cluster, whether it is part of measuring a model."""
        if self._workers is not None:
            measures = types.Generate | types.Likelihood | types.Judge | types.Score
            known = isinstance(step.work, measures) and isinstance(step.work.point, MergePoint)
            return known and self.run.engine is None
        generates = isinstance(step.work, types.Generate | types.Likelihood) and isinstance(step.work.point, MergePoint)
        answers = step.inputs.answers if isinstance(step.inputs, types.GenerateInputs) else None
        ready = answers is None or answers.id in self._done
        return generates and ready and self.run.engine is None and self.recipe.generate.engine != "transformers"

    def _together(self, steps: Sequence[Step]) -> None:
        """Do a group of steps, concurrently if the models allow it.

        If one fails, the others are completed, so that no response is lost, and then the error is raised.
        """
        if len(steps) == 1:
            self._once(steps[0])
            return
        pending = [step for step in steps if not self.folder.is_done(step, self.keys.of(step))]
        self._at_work = {step.id: threading.Event() for step in pending}
        for step in pending:
            if isinstance(step.work, types.Generate | types.Likelihood) and self._open_models().sweep.concurrent:
                assert isinstance(step.work.point, MergePoint)
                self._engine(step.work.point)  # in this thread: what a sweep starts must outlive the others
        if pending and self._workers is not None:
            self._workers.connect()
        if pending and self._open_models().sweep.concurrent:
            try:
                for _ in in_parallel(self._one_of_several, pending, len(pending)):
                    pass
            except UserError:  # all others have ended
                raise
            except BaseException:  # an interruption, which must not wait for a server
                self._stopped.set()
                raise
        for step in steps:
            if step.id not in self._done:
                self._once(step)

    def _one_of_several(self, step: Step, failed: threading.Event) -> None:
        """Do a step while others are done in other threads; `failed` is set once one of them has failed."""
        for id in built_on(step.inputs) & self._at_work.keys():
            while not self._at_work[id].wait(1):
                if failed.is_set() or self._stopped.is_set():
                    raise StoppedError
        try:
            self._once(step)
            self._at_work[step.id].set()
        except UserError as error:
            if not failed.is_set():
                message = f"{step.label} failed: {error}; what else is in progress is finished first"
                self.folder.emit(Event(step=step.id, kind="info", message=message))
            raise

    def _relay(self, step: Step) -> OnEvent:
        """A callback that passes on the events of a step, and ends the step if the run was interrupted."""
        relay = self.folder.relay(step)

        def pass_on(event: Event) -> None:
            if self._stopped.is_set():
                raise _StoppedError
            relay(event)

        return pass_on

    def _do(self, steps: Sequence[Step]) -> None:
        """Do a group of steps, and replace the slots that it decides on."""
        step = steps[0]
        self._free(step)
        point = getattr(step.work, "point", None)
        if step.work is Stage.BISECT:
            self._bisect()
        elif step.work is Stage.SEARCH_MODULES or (isinstance(point, types.Slot) and point in self.plan.attempts()):
            self._search_modules()
        else:
            self._together(steps)
        if step.work is Stage.SELECT:
            self.run.plan = self.plan.bind({planning.SINGLE: read_record(self.paths.choice, Choice).point})
        if isinstance(step.work, types.SelectSeries) and (series := step.work.series).has_lam:
            point = read_record(self.paths.choice_of(series), Choice).point
            self.run.plan = self.plan.bind({planning.chosen_of(series): series.at(point)})

    def _once(self, step: Step) -> None:
        self.folder.once(step, self.keys.of(step), lambda: self._make(step))
        self._done.add(step.id)
        if isinstance(step.work, types.Generate) and step.id not in self._more:
            self._whole[_source(step.work)] = None

    def _free(self, step: Step | None) -> None:
        """Make room for a step: a model that answers and one that judges are not in memory together.

        Models whose start takes long stay loaded until a step needs their room.
        """
        answers = step is not None and isinstance(step.work, types.Generate | types.Likelihood | types.LmEval)
        if not answers and self._models is not None:
            if step is None or not self._models.stays_loaded or self._needs_room(step):
                self._models.release()
            if (share := accepted_share(self._drafted)) is not None:
                note = f"{share:.0%} of the tokens were accepted from the drafts of the nearest λ"
                self.folder.emit(Event(step="drafts", kind="info", message=note))
            self._drafted.clear()
        if step is None or not isinstance(step.work, types.Judge):
            self.judging.close(beside=step is None)

    def _needs_room(self, step: Step) -> bool:
        """Whether a step loads a model of its own, for which there may be no room beside the models of the run."""
        if isinstance(step.work, types.Judge):
            return self.judging.needs_room(step.work.judge)
        return isinstance(step.work, types.Tune) or step.work in (Stage.SEARCH_GRADIENT, Stage.FORGETTING)

    def _make(self, step: Step) -> None:
        """Write the outputs of a step."""
        out, paths = step.outputs[0], self.paths
        match step.work:
            case types.Tune() as work:
                self._tune(step, work)
            case Stage.MERGE_ALIGNED:
                merge(self._named_base, paths.align, out, lam=1.0)
            case Stage.CHECK_PAIR:
                write_warnings(self._open_models().spec.pairs, out)
            case Stage.MEASURE_CHANGE:
                write_changes(self._open_models().spec.pair, out)
            case types.Generate() as work:
                self._generate(step, work)
            case types.Likelihood(point=MergePoint() as point, split=split):
                made_by = {"model": self._model_key(point)}
                examples, relay = self.plan.prompts(split)["task"], self._relay(step)
                likelihood_to_file(self._engine(point), examples, out, made_by=made_by, on_event=relay)
            case types.LmEval(point=MergePoint() as point):
                self._lm_eval(step, point)
            case types.Judge() as work:
                self._judge(step, work)
            case types.Score(point=MergePoint() as point, split=split):
                score = self.run.score or functools.partial(score_trial, call=self._call)
                trial = score(self.plan, point, split)
                _write(out, dataclasses.replace(trial, point=plain(trial.point)))
            case Stage.SELECT:
                _write(out, self._choose(self._validation()))
            case Stage.SEARCH_GRADIENT:
                _write(out, self._gradient(step))
            case types.SelectSeries(series=series):
                points = [BASE, *self.plan.points_of(series, "validation"), *self.plan.ends_of(series)]
                if not series.has_lam:
                    points = points[:2]
                _write(out, without_series(self._choose(self._validation(points))))
            case types.WriteModel(point=MergePoint() as point):
                self._open_models().merge(point, out)
            case Stage.CHECK_MODEL:
                self._check_model(step)
            case Stage.FORGETTING:
                _write(out, self._forgetting())
            case Stage.REPORT:
                self._report()
            case _:
                raise AssertionError(f"{step.id}: its model is not known yet")

    # --- models ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _named_base(self) -> Path:
        """The folder of the base that the recipe names."""
        return resolve_model(self.recipe.base)

    @functools.cached_property
    def _named_tuned(self) -> Mapping[str, Path]:
        """The folders of the tuned models that the recipe names, by their names in the run."""
        return {name: resolve_model(ref) for name, ref in self.recipe.tuned_models.items()}

    @property
    def _base_folder(self) -> Path:
        """The folder of the base; a run that aligns it has it once that step is done."""
        return self.paths.base if self.recipe.align else self._named_base

    @property
    def _tuned_folders(self) -> Mapping[str, Path]:
        """The folders of the tuned models; a run that tunes one has it once that step is done."""
        return {"": self.paths.tuned} if self.recipe.tune else self._named_tuned

    @functools.cached_property
    def _references(self) -> dict[Role, Path]:
        """The folders of the further models of the merging method."""
        return resolved(self.recipe.merge.references)

    def _open_models(self) -> Models:
        """The models of the run. They are opened, and checked, once."""
        if self._models is None:
            source, workers = self._source(), self._workers
            opener = None if workers is None else functools.partial(workers.sweep, source=source)
            self._models = Models(source.open(self.folder.emit), self.paths.scratch, opener)
        if self.paths.model.exists() and "write_model" in self._done and isinstance(self.plan.chosen, MergePoint):
            self._models.spec.written[self.plan.chosen] = self.paths.model
        return self._models

    def _source(self) -> ModelsSource:
        """The models of the run by their folders; of a comparison, those of every series, and the tuned models."""
        folders = self._tuned_folders
        source = functools.partial(
            ModelsSource,
            base=self._base_folder.absolute(),
            runner=self.recipe.generate,
            system=self.recipe.system,
            log=(self.paths.logs / "models.log").absolute(),
            batch_size_file=self.paths.batch_size.absolute(),
        )
        if not self.plan.series:
            method, options = self.recipe.merge.method, self.plan.merge_options()
            tuned = tuple(each.absolute() for each in folders.values())
            own = SeriesSource(tuned=tuned, references=self._references, method=method, options=options)
            baselines = {
                point.series: SeriesSource(tuned=(self.paths.baseline(each.key).absolute(),))
                for each, point in self.plan.baselines.items()
            }
            return source(own=own, series=baselines)
        tuned_points = (point for point in self.plan.tuned_points if isinstance(point, SeriesPoint))
        found: dict[Series, SeriesSource] = {}
        for series in (*self.plan.series, *(point.series for point in tuned_points)):
            several = [folders[series.tuned]] if series.has_lam and series.tuned else [*folders.values()]
            rule = (series.method, self.plan.merge_options(series)) if series.method else ("linear", {})
            further = self.plan.references(series) if series.method else {}
            found[series] = SeriesSource(
                tuned=tuple(each.absolute() for each in several),
                references={role: self._references[role] for role in further},
                method=rule[0],
                options=rule[1],
            )
        return source(own=next(iter(found.values())), series=found)

    def _engine(self, point: MergePoint) -> Engine:
        return self.run.engine(point) if self.run.engine else self._open_models().at(point)

    def _model_key(self, point: MergePoint) -> str:
        return self.keys.model(self.plan.model_inputs(point))

    def _measure(self, reference: SourceKey | JudgeKey) -> object:
        """What the models and judges that a recipe names depend on."""
        if isinstance(reference, JudgeKey):
            return self.judging.about(reference.judge, self.folder.digest)
        if reference.role == "bert_score":
            model = self.recipe.score.bertscore_model
            folder = expanded(model)
            return self.folder.digest(folder, model_digest) if folder.is_dir() and not hub_name(model) else model
        if reference.role == "lm_eval":
            return score_dependencies(self.recipe.score.lm_eval)
        match reference.role:
            case "unaligned" | "safety_adapter" as role:
                folder = self._references[role]
            case "base":
                folder = self._named_base
            case _:
                folder = self._named_tuned[reference.name or next(iter(self._named_tuned))]
        return types.digest_of([self.folder.digest(folder, model_digest), text_digest(folder)])

    def _tune(self, step: Step, work: types.Tune) -> None:
        """Tune an adapter, unless another training made it on the way; and those that this one makes on the way."""
        if (made := self.paths.by_product(self.keys.of(step))).is_dir():
            made.rename(step.outputs[0])
            return
        section = self._tuning(work)
        inputs = step.inputs
        assert isinstance(inputs, types.TuneInputs)
        published = work.stage == "align" or not self.recipe.align
        tune(
            section,
            self._named_base if published else self.paths.base,
            self.plan.examples[work.stage],
            step.outputs[0],
            system=inputs.system,
            seed=inputs.seed,
            base_name=lasting_name(self.recipe.base) if published else None,
            ordinary=self.plan.ordinary.get(work.stage, ()),
            also=self._by_products(step, work),
            on_event=self._relay(step),
        )

    def _tuning(self, work: types.Tune) -> Tune:
        """The settings of a tuning."""
        own = self.recipe.align if work.stage == "align" else self.recipe.tune
        section = self.recipe.baselines[work.baseline] if work.baseline else own
        assert section is not None
        return section

    def _by_products(self, step: Step, work: types.Tune) -> dict[Path, Tune]:
        """The settings of the baselines that come out of the same training and are not done, by their folders."""
        found: dict[Path, Tune] = {}
        if work.stage == "align" or self._tuning(work).fsdp or (work.baseline and not work.baseline.same_run):
            return found
        for other in self.plan.steps.values():
            baseline = other.work.baseline if isinstance(other.work, types.Tune) else None
            key = self.keys.of(other) if baseline and baseline.same_run and other != step else ""
            if baseline and key and not self.folder.is_done(other, key):
                folder = self.paths.by_product(key)
                remove(folder)
                found[folder] = self.recipe.baselines[baseline]
        return found

    # --- generating and judging -----------------------------------------------------------------------------------

    def _generate(self, step: Step, work: types.Generate) -> None:
        """Generate responses, with those of the nearest λ as drafts."""
        inputs, source, section = step.inputs, _source(work), self.recipe.generate
        assert isinstance(inputs, types.GenerateInputs)
        part = self._prompts.get(step.id)
        known = self._known(source) if part is None else {}
        uses_drafts = self.recipe.drafts and section.engine == "transformers" and inputs.sampling.temperature == 0
        near = self._nearest(source) if uses_drafts else None
        drafts = {} if near is None else {key: joined(c.thoughts, c.text) for key, c in self._known(near).items()}
        made_by = {"model": self._model_key(source.point)} | ({} if near is None else {"drafts": near.point.key})
        made = complete_to_file(
            self._engine(source.point),
            self._asked(source) if part is None else part,
            inputs.sampling,
            step.outputs[0],
            made_by=made_by,
            on_event=self._relay(step),
            drafts=drafts,
            known=known,
        )
        if count := unanswered(made):
            message = f"{step.label}: {cut_off_note(count, len(made), inputs.sampling.max_tokens)}"
            self.folder.emit(Event(step=step.id, kind="warning", message=message))
        self._drafted += [c for c in made if c.key not in known and "accepted" in c.made_by]

    def _asked(self, source: _Source) -> Sequence[Prompt]:
        """The prompts of a set as a model is asked them, with what earlier steps answered where they contain that."""
        prompts, attack = self.plan.prompts(source.split)[source.name], self.plan.attack(source.name)
        if attack is None:
            return prompts
        if attack.technique.from_tuned:
            own = self.paths.completions(self.plan.attacker, kind_of(source.name), source.split)
            return prefilled_with(prompts, read_jsonl(own, Completion))
        for turn in range(1, source.turn or attack.turns):
            said = self.paths.completions(source.point, source.name, source.split, turn=turn)
            prompts = continued(prompts, read_jsonl(said, Completion))
        return prompts

    def _nearest(self, source: _Source) -> _Source | None:
        """Of the models that have answered the same set in this run, the one with the nearest λ.

        Which have answered depends on the recipe alone, not on where a run was stopped; so do the drafts.
        """
        lam, same = source.point.lam, (source.name, source.split, source.turn)
        others = [
            each
            for each in {**self._whole, **self._parts}
            if (each.name, each.split, each.turn) == same and each.point != source.point
        ]
        return min(others, key=lambda o: (abs(o.point.lam - lam), o.point.lam, o.point.folder), default=None)

    def _known(self, source: _Source) -> dict[str, Completion]:
        """The responses of a model to a set so far, by key."""
        whole = self.paths.completions(source.point, source.name, source.split, turn=source.turn)
        files = [whole] if source in self._whole else self._parts.get(source, [])
        return {completion.key: completion for path in files for completion in read_jsonl(path, Completion)}

    def _lm_eval(self, step: Step, point: MergePoint) -> None:
        section = self.recipe.score
        result = run_tasks(
            self._engine(point),
            TaskRun(names=section.lm_eval, limit=section.lm_eval_limit, seed=self.recipe.seed),
            cache=self.paths.lm_eval_answers(point),
            made_by={"model": self._model_key(point)},
            on_event=self._relay(step),
        )
        write_lm_eval(self.paths, point, section.lm_eval, result)

    def _judge(self, step: Step, work: types.Judge) -> None:
        source, out = _source(work), step.outputs[0]
        prompts = self._prompts.get(step.id)
        if prompts is None:
            prompts = self.plan.requests(work.split, work.name)
            completions = read_jsonl(self.paths.completions(source.point, work.name, work.split), Completion)
        else:
            known = self._known(source)
            completions = [known[prompt.id] for prompt in prompts]
        kind = kind_of(work.name)
        self.judging.judge(work.judge, prompts, completions, out, self._relay(step), self.folder.digest, kind=kind)

    def _trials(self, split: Half, points: Sequence[MergePoint]) -> list[Trial]:
        """The trials of models that were scored."""
        return [
            dataclasses.replace(read_record(self.paths.trial(point, split), Trial), point=point) for point in points
        ]

    def _choose(self, trials: Sequence[Trial]) -> Choice:
        """Choose λ by the recipe's rule."""
        metrics, settings = self.plan.metrics["validation"], self.recipe.select
        corrections = self._corrections(trials) if settings.corrected else None
        return choose(trials, metric=metrics[0] if metrics else None, settings=settings, corrections=corrections)

    def _validation(self, among: Sequence[types.Point] | None = None) -> list[Trial]:
        """The validation trials of the grid, or of some models, with flips against the base."""
        models = self.plan.points("validation") if among is None else among
        points = [point for point in models if isinstance(point, MergePoint)]
        return with_flips(self._trials("validation", points), verdicts_by_point(self.plan, points, "validation"))

    def _corrections(self, trials: Sequence[Trial]) -> Corrections:
        """The corrected attack success rates of the validation half, from the labels in the run folder."""
        points = [trial.point for trial in trials]
        return corrections_from(self.paths.folder, rows(self.plan, {"validation": points}), points)

    # --- searching ------------------------------------------------------------------------------------------------

    def _bisect(self) -> None:
        """Search for the largest λ within the bound. What a stopped search generated and judged is not done again."""
        settings, bounds = bisection(self.recipe.select, self.recipe.seed), rules(self.recipe.select)
        for name, rate in self.plan.bisected.items():
            own = dataclasses.replace(settings, rule=bounds[rate])
            own.test.check(rate, len(self.plan.prompts("validation")[name]))
        found = bisect_all(
            settings, [self._bounded(name, rate, bounds[rate]) for name, rate in self.plan.bisected.items()]
        )
        text = json.dumps(found.to_dict(), indent=1) + "\n"
        if not self.paths.search.is_file() or self.paths.search.read_text() != text:
            atomic_text(self.paths.search, text)
            for note in bisection_notes(found):
                self.folder.emit(Event(step="bisect", kind="info", message=note))
        self._done.add("bisect")
        self.run.plan = self.plan.bind({planning.FOUND: MergePoint(found.chosen)})

    def _bounded(self, name: SetName, rate: str, rule: Rule) -> BoundedRate:
        """A rate that a bisection bounds, on a set of the validation half."""
        prompts = self.plan.prompts("validation")[name]
        return BoundedRate(
            name=rate,
            rule=rule,
            prompts=len(prompts),
            ask=lambda lam, places: self._verdicts(MergePoint(lam), name, [prompts[i] for i in places]),
            base=self._verdicts(BASE, name, prompts) if rule.paired else None,
        )

    def _verdicts(self, point: MergePoint, name: SetName, prompts: Sequence[Prompt]) -> list[bool | None]:
        """Whether a model's responses to some prompts of validation are harmful, or refuse harmless ones; None could
        not be read."""
        judge, source = self.judging.of(name)[0], _Source(point, name, "validation")
        whole = planning.generate_step(self.plan, point, name, "validation")
        self._more[whole.id] = whole
        if source not in self._whole and self.folder.is_done(whole, self.keys.of(whole)):
            self._whole[source] = None
        missing = [prompt for prompt in prompts if prompt.id not in self._known(source)]
        if missing:
            number = len(self._parts.get(source, [])) + 1
            step = planning.generate_step(self.plan, point, name, "validation", missing, number)
            self._more[step.id], self._prompts[step.id] = step, missing
            self._make_room(step, judge)
            self._once(step)
            self._parts.setdefault(source, []).append(step.outputs[0])
        known = self._known(source)
        completions = [known[prompt.id] for prompt in prompts]
        of_kind = self.plan.prompts("validation")[kind_of(name)]
        judged = list(prompts) if self.plan.attack(name) is None else requests(of_kind, prompts)
        step = planning.judge_step(self.plan, point, name, "validation", judge, judged, completions)
        self._more[step.id], self._prompts[step.id] = step, judged
        self._make_room(step, judge)
        self._once(step)
        harmful = kind_of(name) == "safety"
        verdicts = read_jsonl(step.outputs[0], Verdict)
        found = {verdict.prompt_id: verdict.harmful if harmful else verdict.refused for verdict in verdicts}
        return [found[prompt.id] for prompt in prompts]

    def _make_room(self, step: Step, judge: str) -> None:
        """Make room for a step of a bisection, where models and judge alternate: vLLM's have no room beside another."""
        section = self.judging.sections.get(judge)
        engines = {self.recipe.generate.engine, section.engine if section else None}
        if "vllm" in engines and self.judging.needs_room(judge):
            self._free(step)

    def _search_modules(self) -> None:
        """Search λ by module around the chosen λ, a round at a time so that a judge's model is loaded once a round."""
        tried: list[MergePoint] = []

        def measure(points: Sequence[MergePoint]) -> list[Trial]:
            slots = [planning.attempt(len(tried) + number) for number in range(1, len(points) + 1)]
            tried.extend(points)
            self.run.plan = self.plan.bind(dict(zip(slots, points, strict=True)))
            for steps in self._in_groups(self.plan.trial_steps("validation", points)):
                self._free(steps[0])
                self._together(steps)
            hits = verdicts_by_point(self.plan, [BASE, *points], "validation")
            return with_flips(self._trials("validation", points), hits)

        choice, trials = read_record(self.paths.choice, Choice), self._validation()
        if self.recipe.select.search == "gradient":
            gradient = read_record(self.paths.gradient, GradientSearch)
            found = try_gradient(self.plan, trials, choice, gradient, measure)
        else:
            names, changes = self._open_models().tensor_names, read_changes(self.paths.changes)
            found = search_modules(self.plan, trials, choice, names, changes, measure)
        unused = [slot for slot in self.plan.attempts() if isinstance(slot, types.Slot)]
        bound: Mapping[types.Slot, MergePoint | None] = dict.fromkeys(unused)
        self.run.plan = self.plan.bind({**bound, planning.TAKEN: taken(choice, found).point})
        step = planning.search_modules(self.plan, tried)
        self.folder.once(step, self.keys.of(step), lambda: _write(self.paths.by_module, found))
        self._done.add(step.id)

    def _forgetting(self) -> Forgetting:
        """Measure how far every model has moved from the base on ordinary requests."""

        def engine(point: MergePoint) -> TransformersEngine:
            found = self._open_models().at(point)
            assert isinstance(found, TransformersEngine)
            return found

        points = [point for point in self.plan.forgetting_points if isinstance(point, MergePoint)]
        chosen = self._choice().point
        return measure_forgetting(points, chosen, self.plan.forgetting, engine, self.recipe.seed)

    def _gradient(self, step: Step) -> GradientSearch:
        """Search λ by gradient around the chosen λ."""
        choice = read_record(self.paths.choice, Choice)
        if not choice.within:
            return not_searched(choice.point, "no single λ is within the bound")
        spec, groups = self._open_models().spec, self.recipe.select.groups
        return search_gradient(spec, choice.point, self.plan.search_sets, groups, self._relay(step))

    def _check_model(self, step: Step) -> None:
        """Check that the chosen model computes what it should, and record it beside the model and in its manifest."""
        if self.run.engine is not None:  # the caller's engines answer, whatever the models are
            _write(
                self.paths.check, MergeCheck(passed=True, notes=["the model, since the run's engines are not its own"])
            )
            return
        tuned = [*self._tuned_folders.values()]
        found = check_written(self.paths.model, self._base_folder, tuned, self._references, self._relay(step))
        _write(self.paths.check, found)
        require_passed(self.paths.model, found)
        self.folder.emit(Event(step=step.id, kind="info", message=found.sentence))

    # --- the end --------------------------------------------------------------------------------------------------

    def _by_module(self) -> ByModule | None:
        return read_record(self.paths.by_module, ByModule) if self.recipe.select.by_module else None

    def _choice(self) -> Choice:
        """The choice of the run: of a single λ, or of the λ by module that was taken."""
        choice, found = read_record(self.paths.choice, Choice), self._by_module()
        return taken(choice, found) if found else choice

    def _template_notes(self) -> list[str]:
        """What to know of the thinking mode of the base's chat template."""
        try:
            tokenizer = open_folder(self._base_folder).load_tokenizer()
        except (UserError, OSError, ValueError):  # a server's model, of which only the weights are here
            return []
        note = thinking_note(tokenizer, self.recipe.generate.thinking)
        return [f"{note[0].upper()}{note[1:]}."] if note else []

    def _missing(self) -> list[str]:
        """That the run is incomplete, if it is."""
        lost = lost_answers(self.plan.steps.values())
        return [sentence(lost)] if lost else []

    def _report(self) -> None:
        if self.plan.series:
            self._report_comparison()
            return
        choice, found = self._choice(), self._by_module()
        points = [point for point in self.plan.points("test") if isinstance(point, MergePoint)]
        tested = with_flips(self._trials("test", points), verdicts_by_point(self.plan, points, "test"))
        if found and choice.point.by_module:
            found = dataclasses.replace(found, test=tested.pop())
        (tuned,) = self._named_models.values()
        base = self._base_folder
        named = {
            "base": (self._base_name, base),
            "tuned": tuned,
            "merged": (f"{self.recipe.merge.method}, {choice.point.label}", self.paths.model),
        }
        models = {
            role: {"source": source, "digest": self.folder.digest(folder, model_digest)}
            for role, (source, folder) in named.items()
        }
        warnings = [*read_warnings(self.paths.pair), *self._template_notes(), *self._missing()]
        if self.recipe.merge.check:
            warnings.append(read_record(self.paths.check, MergeCheck).sentence)
        forgetting = read_record(self.paths.forgetting, Forgetting) if self.plan.forgetting else None
        trials = self._validation() + tested
        baselines = self._baselines(choice, [*trials, *([found.test] if found and found.test else [])])
        results = assemble(self.plan, models, trials, choice, found, warnings, forgetting, baselines)
        write(results, self.paths.report, error=estimate_if_labelled(results, self.paths.folder))
        card = model_card.run_card(results, terms=model_card.license_of(base))
        atomic_text(self.paths.report / model_card.NAME, card)
        atomic_text(self.paths.model_card, card)

    def _baselines(self, choice: Choice, trials: Sequence[Trial]) -> Baselines | None:
        """The gentler tunings beside the chosen merge, if there are any; `trials` are those of the report."""
        points = self.plan.baselines
        if not points:
            return None
        scored: dict[Baseline, dict[Half, Trial]] = {each: {} for each in points}
        for half in planning.HALVES:
            hits = verdicts_by_point(self.plan, [BASE, *points.values()], half)
            for each, trial in zip(points, with_flips(self._trials(half, [*points.values()]), hits), strict=True):
                scored[each][half] = dataclasses.replace(trial, point=plain(trial.point))
        tested = verdicts_by_point(self.plan, [choice.point, *points.values()], "test")
        digests = {each: self.folder.digest(self.paths.baseline(each.key), model_digest) for each in points}
        return compare_baselines(self.plan, choice, trials, scored, digests, tested)

    @property
    def _base_name(self) -> str:
        return f"{self.recipe.base}, aligned by this run" if self.recipe.align else self.recipe.base

    @property
    def _named_models(self) -> Mapping[str, tuple[str, Path]]:
        """What the tuned models are, and their folders, by their names in the run."""
        refs: Mapping[str, str] = self.recipe.tuned_models
        if self.recipe.tune:
            refs = {"": f"LoRA on {', '.join(self.recipe.tune.data)}"}
        return {name: (refs[name], folder) for name, folder in self._tuned_folders.items()}

    def _about(self, source: str, folder: Path) -> dict[str, str]:
        return {"source": source, "digest": self.folder.digest(folder, model_digest)}

    def _report_comparison(self) -> None:
        models = {name: self._about(*each) for name, each in self._named_models.items()}
        points = {half: [p for p in self.plan.points(half) if isinstance(p, MergePoint)] for half in planning.HALVES}
        tested = with_flips(self._trials("test", points["test"]), verdicts_by_point(self.plan, points["test"], "test"))
        trials = [*self._validation(points["validation"]), *tested]
        choices = {series: read_record(self.paths.choice_of(series), Choice) for series in self.plan.series}
        warnings = [*read_warnings(self.paths.pair), *self._template_notes(), *self._missing()]
        base = self._about(self._base_name, self._base_folder)
        found = assemble_comparison(self.plan, base, models, trials, choices, warnings)
        costs = [measure_cost(self.plan, point, self.folder.seconds) for point in points["test"]]
        write_comparison(found, self.paths.report, costs)


class _StoppedError(Exception):
    """A step ended because the run was interrupted."""


def _source(work: types.Generate | types.Judge) -> _Source:
    assert isinstance(work.point, MergePoint)
    return _Source(work.point, work.name, work.split, work.turn if isinstance(work, types.Generate) else 0)


def _write(path: Path, record: Record) -> None:
    """Write a record to a JSON file of its own."""
    atomic_text(path, jsonio.dumps(record.to_dict(), indent=1) + "\n")
