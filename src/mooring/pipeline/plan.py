"""The graph of a run's steps, built once from its recipe: what is executed, shown, resumed and reported."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.attacks import Attack, attack_of, kind_of
from mooring.baselines import Baseline
from mooring.config import BUILT_IN, OF_A_GRADIENT, PROCESSES, Metric, Recipe
from mooring.config import Tune as TuneConfig
from mooring.data import load_examples, parse_references, prompts_digest
from mooring.engines import ENGINES
from mooring.errors import RecipeError
from mooring.ledger import sha256
from mooring.merge_methods import METHODS, Role, check_references
from mooring.merge_point import BASE, TUNED, MergePoint, Series, SeriesPoint, grid
from mooring.metrics import needs_completions, needs_likelihoods, pass_ks
from mooring.models.resolve import local_model, resolve_model
from mooring.pipeline import lengths
from mooring.pipeline import steps as types
from mooring.pipeline.attacked import requests, sampled
from mooring.pipeline.further_sets import SearchSets, forgetting_prompts, kl_examples, search_sets
from mooring.pipeline.judging import Judging, installed_versions
from mooring.pipeline.paths import RunPaths
from mooring.pipeline.sets import (
    DataSets,
    Sets,
    attacks_of,
    bounded_rates,
    evaluation_sets,
    note_missing,
    task_metrics,
)
from mooring.pipeline.steps import JudgeKey, MergeInputs, ModelKey, Point, Slot, SourceKey, Stage, Step, StepKey
from mooring.plugins import versioned
from mooring.records import Completion, Half, Prompt, SetName
from mooring.sampling import SamplingParams
from mooring.selection.limits import rules
from mooring.training.precision import compute_dtype

CHECKED_MODELS = 6
"""How many models the check of a merge runs: base, tuned, their sum, the written one, and the merge at both ends."""
HALVES: tuple[Half, ...] = ("validation", "test")
FOUND = Slot("λ = found", after="bisect")
"""The λ that a bisection found."""
SINGLE = Slot("λ = chosen", after="select")
"""The chosen single λ."""
TAKEN = Slot("λ by module", after="search_modules")
"""What a search for λ by module decided on: a merge by module, or the single λ."""


def chosen_of(series: Series) -> Slot:
    """The chosen λ of one series of a comparison."""
    return Slot(f"λ = chosen ({series.label})", after=f"select/{series.key}")


def attempt(number: int) -> Slot:
    """The merge that a search for λ by module tries as its `number`-th, from 1."""
    return Slot(f"try {number}", after="select")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Attributes:
        recipe: The recipe.
        paths: Where each file of the run is.
        sets: The prompts by set and split.
        examples: The examples to tune on, by stage (`align`, `tune`).
        judging: The judges.
        missing: Data sets that cannot be fetched, and why. Only a plan for `--dry-run` has any.
        skipped: How many prompts of each set and split were left out since they do not fit the model's context.
        notes: What a reader must know of the data, a line each.
        bound: The models that a run has learned of, by the slots that stood for them; None for an unused slot.
        search_sets: The prompts of a search by gradient.
        forgetting: The requests on which forgetting is measured.
        ordinary: The ordinary requests with answers of a tuning's `kl`, by stage.
    """

    recipe: Recipe
    paths: RunPaths
    sets: Sets
    examples: Mapping[str, Sequence[Prompt]]
    judging: Judging
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skipped: Mapping[tuple[SetName, Half], int] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    bound: Mapping[Slot, MergePoint | None] = dataclasses.field(default_factory=dict)
    search_sets: SearchSets = dataclasses.field(default_factory=dict)
    forgetting: Sequence[Prompt] = ()
    ordinary: Mapping[str, Sequence[Prompt]] = dataclasses.field(default_factory=dict)

    def bind(self, points: Mapping[Slot, MergePoint | None]) -> "Plan":
        """The plan with slots replaced by the models that they turned out to be."""
        plan = dataclasses.replace(self, bound={**self.bound, **points})
        plan.__dict__.update({name: self.__dict__[name] for name in ("_digests", "metrics") if name in self.__dict__})
        return plan

    @functools.cached_property
    def steps(self) -> Mapping[str, Step]:
        """The steps by id, in the order in which they are done."""
        return {step.id: step for step in _steps(self)}

    @functools.cached_property
    def metrics(self) -> Mapping[Half, tuple[Metric, ...]]:
        """The task metrics of each split; the first of validation chooses λ."""
        return {half: task_metrics(self.recipe, self.sets, half) for half in HALVES}

    @property
    def all_metrics(self) -> set[Metric]:
        """The task metrics of both splits; of a task that cannot be fetched, those that the recipe names."""
        score = self.recipe.score
        named = {*score.metrics, *score.validation_metrics} if self.missing else set()
        return named.union(*self.metrics.values())

    def prompts(self, split: Half) -> dict[SetName, list[Prompt]]:
        """The prompts of a split that every model answers, by set."""
        return {kind: halves[split] for kind, halves in self.sets.items() if halves[split]}

    def requests(self, split: Half, name: SetName) -> list[Prompt]:
        """The prompts of a set as they are judged: under an attack, the requests that it was made from."""
        asked = self.prompts(split)[name]
        return asked if self.attack(name) is None else requests(self.prompts(split)[kind_of(name)], asked)

    def attack(self, name: SetName) -> Attack | None:
        """The attack under which a set is asked; None if it is asked directly."""
        return self.attacks.get(attack_of(name))

    @functools.cached_property
    def attacks(self) -> Mapping[str, Attack]:
        """The attacks of the recipe, by name."""
        return attacks_of(self.recipe)

    def sampling(self, name: SetName) -> SamplingParams:
        """How the responses to a set are sampled."""
        return sampled(self.recipe.generate.sampling(kind_of(name), self.recipe.seed), self.attack(name))

    def points(self, split: Half) -> list[Point]:
        """The models that answer a split. Merges that a search for λ by module tries are not among them.

        In a comparison, those of one tuned model follow each other, so that each is opened once.
        """
        if self.series:
            ends = {point.series.tuned if isinstance(point, SeriesPoint) else "": point for point in self.tuned_points}
            by_tuned = {name: [each for each in self.series if each.tuned == name] for name in (*ends, "")}
            found: list[Point] = [BASE]
            for name, series in by_tuned.items():
                found += [point for each in series for point in self.points_of(each, split)]
                found += [ends[name]] if name in ends else []
            return found
        if split == "validation":
            between: Sequence[Point] = grid(self.recipe.merge.lambdas)
            if self.recipe.select.search == "bisect":
                between = [self.at(FOUND)]
            return [BASE, *between, TUNED]
        single = self.at(SINGLE)
        taken = [self.at(TAKEN)] if self.recipe.select.by_module else []
        return [BASE, single, TUNED, *(point for point in taken if point != single)]

    @property
    def series(self) -> Sequence[Series]:
        """What is compared; empty for a run of one method, one tuned model and one seed."""
        return self.recipe.series

    @property
    def tuned_points(self) -> list[MergePoint]:
        """The tuned models."""
        names = self.recipe.tuned_models
        return [Series(tuned=name).at(TUNED) for name in names] if len(names) > 1 else [TUNED]

    @property
    def attacker(self) -> MergePoint:
        """The tuned model whose answers an attack begins every model's with: the first, so that all are asked alike."""
        return self.tuned_points[0]

    def points_of(self, series: Series, split: Half) -> list[Point]:
        """The merges of one series that answer a split."""
        if not series.has_lam:
            return [series.at(TUNED)]
        if split == "validation":
            return [series.at(point) for point in grid(self.recipe.merge.lambdas)]
        return [self.at(chosen_of(series))]

    def ends_of(self, series: Series) -> list[MergePoint]:
        """The tuned models of a series."""
        several = len(self.tuned_points) > 1
        return [Series(tuned=series.tuned).at(TUNED)] if series.tuned and several else self.tuned_points

    @property
    def baselines(self) -> Mapping[Baseline, SeriesPoint]:
        """The gentler tunings that the merge is compared with, and their models."""
        found = {}
        for each in self.recipe.baselines:
            point = Series(tuned=each.key).at(TUNED)
            assert isinstance(point, SeriesPoint)
            found[each] = point
        return found

    @property
    def chosen(self) -> Point:
        """The model that the run ends with."""
        return self.at(TAKEN if self.recipe.select.by_module else SINGLE)

    @property
    def forgetting_points(self) -> list[Point]:
        """The models on which forgetting is measured: the grid, the tuned model and the chosen one."""
        found = [point for point in self.points("validation") if point != BASE]
        return found if self.chosen in found else [*found, self.chosen]

    @property
    def bisected(self) -> Mapping[SetName, str]:
        """The sets on which a bisection bounds a rate, and the rates, in the order of the rules."""
        rates = bounded_rates(self.recipe, self.prompts("validation"))
        names = {rate: name for name, rate in rates.items()}
        return {names[rate]: rate for rate in rules(self.recipe.select) if rate in names}

    def attempts(self) -> list[Point]:
        """The merges that a search for λ by module tries: known ones, and slots for those that may come."""
        slots = [attempt(number) for number in range(1, self.recipe.select.tries + 1)]
        return [self.at(slot) for slot in slots if self.bound.get(slot, slot) is not None]

    def at(self, slot: Slot) -> Point:
        """The model that a slot stands for, or the slot itself if that is not known yet."""
        return self.bound.get(slot) or slot

    def trial_steps(self, split: Half, points: Sequence[Point]) -> list[Step]:
        """The steps that score models on a split: generate for all, then judge all judge by judge, then score all."""
        return list(_trials(self, split, points))

    def digest(self, split: Half, name: SetName) -> str:
        """The digest of the prompts of a set."""
        if (split, name) not in self._digests:
            self._digests[split, name] = prompts_digest(self.prompts(split)[name])
        return self._digests[split, name]

    @functools.cached_property
    def _digests(self) -> dict[tuple[Half, SetName], str]:
        return {}

    def merge_options(self, series: Series | None = None) -> Mapping[str, Any]:
        """The settings of the merging method besides λ."""
        return merge_options(self.recipe, series)

    def references(self, series: Series | None = None) -> Mapping[Role, str]:
        """The further models of the merging method, by role."""
        return references_of(self.recipe, series)

    def model_inputs(self, point: Point) -> MergeInputs:
        """What the model at a point depends on."""
        if isinstance(point, SeriesPoint):
            return self._inputs_in_series(point)
        base, tuned = _model_keys(self.recipe)
        if isinstance(point, Slot):
            models = _tuned_keys(self.recipe) if self.series else tuned
            return MergeInputs(base=base, tuned=models, decided_by=StepKey(point.after))
        if point.is_base:
            return MergeInputs(base=base)
        if point.is_tuned:
            return MergeInputs(base=base, tuned=tuned)
        method, options = self.recipe.merge.method, self.merge_options()
        references = [SourceKey(role) for role in self.references()]
        return MergeInputs(
            base=base,
            tuned=tuned,
            method=versioned("merge_methods", method),
            options=options,
            references=references,
            point=point,
        )

    def _inputs_in_series(self, point: SeriesPoint) -> MergeInputs:
        base, series = _model_keys(self.recipe)[0], point.series
        tuned = _tuned_keys(self.recipe, series)
        if point.is_tuned:
            return MergeInputs(base=base, tuned=tuned)
        return MergeInputs(
            base=base,
            tuned=tuned,
            method=versioned("merge_methods", series.method),
            options=self.merge_options(series),
            references=[SourceKey(role) for role in self.references(series)],
            point=point,
        )


def build(recipe: Recipe, *, skip_missing: bool = False) -> Plan:
    """Plan a run: reads the data sets, opens no model and writes nothing. With `score.too_long: skip` it reads the
    models' tokenizers.

    With `skip_missing`, data sets that cannot be fetched are left out and listed in the plan.
    """
    _check_options(recipe)
    data = DataSets.of(recipe)
    missing: dict[str, str] | None = {} if skip_missing else None
    notes: dict[str, None] = {}
    sets = evaluation_sets(recipe, data, missing, notes.setdefault)
    skipped: Mapping[tuple[SetName, Half], int] = {}
    if recipe.score.too_long == "skip":
        sets, skipped = _fitting(recipe, sets, download=not skip_missing)
    examples, ordinary = {}, {}
    for stage, section in (("align", recipe.align), ("tune", recipe.tune)):
        if section:
            with note_missing(parse_references(section.kl_data), missing):
                ordinary[stage] = kl_examples(recipe, stage, section, sets)
            with note_missing(data.examples[stage], missing):
                examples[stage] = load_examples(
                    data.examples[stage],
                    split="tune",
                    seed=_seed(recipe, section),
                    on_note=notes.setdefault,
                    fields=recipe.data,
                )
    paths = RunPaths(recipe.folder)
    judging = Judging(recipe.score.judges, paths.logs, thoughts=recipe.score.judge_thoughts)
    searched: SearchSets = {}
    asked: Sequence[Prompt] = ()
    with note_missing(parse_references(recipe.select.search_safety), missing):
        searched = search_sets(recipe, sets)
    with note_missing(parse_references(recipe.score.forgetting or ()), missing):
        asked = forgetting_prompts(recipe)
    return Plan(
        recipe=recipe,
        paths=paths,
        sets=sets,
        examples=examples,
        judging=judging,
        missing=missing or {},
        skipped=skipped,
        notes=list(notes),
        search_sets=searched,
        forgetting=asked,
        ordinary=ordinary,
    )


def _fitting(recipe: Recipe, sets: Sets, *, download: bool) -> tuple[Sets, dict[tuple[SetName, Half], int]]:
    """The prompts that fit the models' context, and how many do not; all of them if the base is not here."""
    find = resolve_model if download else local_model
    base, tuned = find(recipe.base), [find(ref) for ref in recipe.tuned_models.values()]
    if base is None or recipe.generate.engine == "openai":
        return sets, {}
    metrics = {half: task_metrics(recipe, sets, half) for half in HALVES}
    found = lengths.too_long(
        recipe, sets, metrics, lengths.readers(recipe, base, [folder for folder in tuned if folder])
    )
    return lengths.without(sets, found), {place: len(errors) for place, errors in found.items()}


def merge_options(recipe: Recipe, series: Series | None = None) -> dict[str, Any]:
    """The settings of a recipe's merging method besides λ, checked; a random method is seeded by the run's seed.

    Args:
        recipe: The recipe.
        series: Which of those that it compares; None for its only one. An option of other methods is left out.
    """
    from mooring.merging.job import options_of

    method = METHODS[series.method if series else recipe.merge.method]
    settings = recipe.merge.options
    if series and len(recipe.merge.compared) > 1:
        settings = {name: value for name, value in settings.items() if name in method.options}
    if method.random:
        seeds = (series.seed if series else None, *recipe.merge.seeds, recipe.seed)
        settings["seed"] = next(seed for seed in seeds if seed is not None)
    options_of(method.name, recipe.merge.lambdas[0], **settings)
    check_references(method.name, references_of(recipe, series))
    return settings


def references_of(recipe: Recipe, series: Series | None = None) -> dict[Role, str]:
    """The further models of a recipe's merging method, by role; of several methods, those that this series' takes."""
    given = recipe.merge.references
    if series is None or len(recipe.merge.compared) == 1:
        return given
    taken = METHODS[series.method].accepts if series.method else ()
    return {role: ref for role, ref in given.items() if role in taken}


def _check_options(recipe: Recipe) -> None:
    """Check the options of every method, and that each option and each further model is of one of them."""
    for series in recipe.series or (None,):
        merge_options(recipe, series)
    methods = recipe.merge.compared
    known = {name for each in methods for name in (*METHODS[each].options, *METHODS[each].accepts)}
    if unused := [name for name in (*recipe.merge.options, *recipe.merge.references) if name not in known]:
        what = f"merge.{unused[0]}: none of {', '.join(methods)} takes it"
        raise RecipeError(what, "leave it out", code="recipe.unused_option")


def _seed(recipe: Recipe, section: TuneConfig) -> int:
    return recipe.seed if section.seed is None else section.seed


def _model_keys(recipe: Recipe) -> tuple[ModelKey, ModelKey]:
    base: ModelKey = StepKey("align/merge") if recipe.align else SourceKey("base")
    return base, StepKey("tune") if recipe.tune else SourceKey("tuned")


def _tuned_keys(recipe: Recipe, series: Series | None = None) -> ModelKey | Sequence[ModelKey]:
    """The tuned models of a series, or of all."""
    if recipe.tune and series and series.tuned:
        return StepKey(f"tune/{series.tuned}")
    if recipe.tune or len(recipe.tuned_models) == 1:
        return _model_keys(recipe)[1]
    if series and series.tuned:
        return SourceKey("tuned", series.tuned)
    return [SourceKey("tuned", name) for name in recipe.tuned_models]


def _steps(plan: Plan) -> Iterator[Step]:
    recipe, paths, search = plan.recipe, plan.paths, plan.recipe.select.search
    base, tuned = _model_keys(recipe)[0], _tuned_keys(recipe)
    if recipe.align:
        yield _tune(plan, "align", recipe.align, SourceKey("base"))
        inputs = MergeInputs(base=SourceKey("base"), tuned=StepKey("align"), method="linear", point=TUNED)
        yield _stage(Stage.MERGE_ALIGNED, "align: merge", inputs, paths.base)
    if recipe.tune:
        yield _tune(plan, "tune", recipe.tune, base)
    for baseline, section in recipe.baselines.items():
        yield _tune(plan, "tune", section, base, baseline)
    pair = types.PairInputs(base=base, tuned=tuned)
    yield _stage(Stage.CHECK_PAIR, "check the pair", pair, paths.pair)
    if plan.series:
        yield from _compare_series(plan)
        return
    yield _stage(Stage.MEASURE_CHANGE, "measure the change", pair, paths.changes)
    if search == "bisect":
        yield _bisect(plan, pair)
    validation, test = plan.points("validation"), plan.points("test")
    yield from _trials(plan, "validation", validation)
    yield _stage(Stage.SELECT, "select", _select_inputs(plan, validation), paths.choice)
    if search == "gradient":
        yield _search_gradient(plan, pair)
    if recipe.select.by_module:
        yield from _trials(plan, "validation", plan.attempts())
        yield search_modules(plan, [point for point in plan.attempts() if isinstance(point, MergePoint)])
    yield Step(
        id="write_model",
        label="write the model",
        work=types.WriteModel(plan.chosen),
        inputs=plan.model_inputs(plan.chosen),
        outputs=[paths.model],
    )
    if recipe.merge.check:
        versions = installed_versions("torch", "transformers", "peft")
        checked = types.CheckInputs(models=pair, written=StepKey("write_model"), versions=versions)
        step = _stage(Stage.CHECK_MODEL, "check the model", checked, paths.check)
        yield dataclasses.replace(step, units=CHECKED_MODELS, unit="models", pace="check")
    if plan.forgetting:
        yield _forgetting(plan)
    yield from _trials(plan, "test", test)
    baselines = [*plan.baselines.values()]
    for half in HALVES:
        yield from _trials(plan, half, baselines)
    last = ["select", *(["search_modules"] if recipe.select.by_module else []), "check_pair", "measure_change"]
    report = types.ReportInputs(
        steps=[
            *(StepKey(id) for id in (*last, "write_model", *(["check_model"] if recipe.merge.check else []))),
            *([StepKey("forgetting")] if plan.forgetting else []),
            *_scores(validation, "validation"),
            *_scores(test, "test"),
            *(key for half in HALVES for key in _scores(baselines, half)),
        ],
        recipe=recipe.without_places(),
        versions=installed_versions("mooring", "torch", "transformers", "peft", "trl"),
        labels=sha256(paths.labels),
    )
    yield _stage(Stage.REPORT, "report", report, paths.results, paths.model_card)


def _compare_series(plan: Plan) -> Iterator[Step]:
    """The steps of a comparison: every point of every series once, base and tuned models shared, λ chosen for each."""
    paths = plan.paths
    yield from _trials(plan, "validation", plan.points("validation"))
    for series in plan.series:
        models = [BASE, *plan.points_of(series, "validation"), *plan.ends_of(series)]
        yield Step(
            id=f"select/{series.key}",
            label=f"select ({series.label})",
            work=types.SelectSeries(series),
            inputs=_select_inputs(plan, models),
            outputs=[paths.choice_of(series)],
        )
    yield from _trials(plan, "test", plan.points("test"))
    report = types.ReportInputs(
        steps=[
            *(StepKey(f"select/{series.key}") for series in plan.series),
            StepKey("check_pair"),
            *(key for half in HALVES for key in _scores(plan.points(half), half)),
        ],
        recipe=plan.recipe.without_places(),
        versions=installed_versions("mooring", "torch", "transformers", "peft", "trl"),
    )
    yield _stage(Stage.REPORT, "report", report, paths.results)


def _select_inputs(plan: Plan, models: Sequence[Point]) -> types.SelectInputs:
    metrics = plan.metrics["validation"]
    return types.SelectInputs(
        scores=_scores(models, "validation"),
        config=plan.recipe.select.model_dump(mode="json", exclude={"budget", "task_margin", *OF_A_GRADIENT}),
        metric=metrics[0] if metrics else None,
        labels=sha256(plan.paths.labels) if plan.recipe.select.corrected else "",
    )


def _stage(stage: Stage, label: str, inputs: types.Inputs, *outputs: Path) -> Step:
    return Step(id=stage.value, label=label, work=stage, inputs=inputs, outputs=outputs)


def _scores(points: Sequence[Point], split: Half) -> list[StepKey]:
    return [StepKey(f"score/{point.key}/{split}") for point in points]


def _tune(
    plan: Plan, stage: types.TuneStage, section: TuneConfig, base: ModelKey, baseline: Baseline | None = None
) -> Step:
    inputs = types.TuneInputs(
        base=base,
        examples=prompts_digest(plan.examples[stage]) if stage in plan.examples else "",
        ordinary=prompts_digest(plan.ordinary[stage]) if section.kl and stage in plan.ordinary else "",
        config=section.model_dump(mode="json", exclude={"system", "seed", "kl_data", *PROCESSES}),
        system=plan.recipe.system if section.system is None else section.system,
        seed=_seed(plan.recipe, section),
        dtype=compute_dtype(),
        versions=installed_versions("torch", "transformers", "peft", "trl", "accelerate"),
    )
    out = plan.paths.align if stage == "align" else plan.paths.tuned
    if baseline:
        out = plan.paths.baseline(baseline.key)
    return Step(
        id=f"{stage}/{baseline.key}" if baseline else stage,
        label=f"{stage} ({baseline.text})" if baseline else stage,
        work=types.Tune(stage, baseline),
        inputs=inputs,
        outputs=[out],
        units=None,
        pace="tune",
    )


def _bisect(plan: Plan, pair: types.PairInputs) -> Step:
    names = plan.bisected
    inputs = types.BisectInputs(
        models=pair,
        config=plan.recipe.select.model_dump(mode="json", exclude={"budget", "policy", "task_margin", *OF_A_GRADIENT}),
        prompts={name: plan.digest("validation", name) for name in names},
        judges=[JudgeKey(plan.judging.of(name)[0]) for name in names],
        seed=plan.recipe.seed,
    )
    step = _stage(Stage.BISECT, "search by bisection", inputs, plan.paths.search)
    return dataclasses.replace(step, units=None, pace="bisect")


def _forgetting(plan: Plan) -> Step:
    points = plan.forgetting_points
    inputs = types.ForgettingInputs(
        models=[plan.model_inputs(point) for point in points],
        prompts=prompts_digest(plan.forgetting),
        engine=engine_inputs(plan.recipe),
        seed=plan.recipe.seed,
    )
    step = _stage(Stage.FORGETTING, "measure forgetting", inputs, plan.paths.forgetting)
    return dataclasses.replace(step, units=len(points), unit="models", pace="forgetting")


def _search_gradient(plan: Plan, pair: types.PairInputs) -> Step:
    inputs = types.SearchGradientInputs(
        choice=StepKey("select"),
        models=pair,
        prompts={kind: prompts_digest(prompts) for kind, prompts in plan.search_sets.items()},
        groups=plan.recipe.select.groups,
        engine=engine_inputs(plan.recipe),
    )
    step = _stage(Stage.SEARCH_GRADIENT, "search λ by gradient", inputs, plan.paths.gradient)
    return dataclasses.replace(step, units=None, pace="gradient")


def search_modules(plan: Plan, tried: Sequence[MergePoint]) -> Step:
    """The step that ends a search for λ by module, given the merges that were tried."""
    inputs = types.SearchModulesInputs(
        choice=StepKey("select"),
        changes=StepKey("measure_change"),
        lambdas=plan.recipe.merge.lambdas,
        config=plan.recipe.select.model_dump(mode="json", exclude={"task_margin", *OF_A_GRADIENT}),
        tried=_scores(tried, "validation"),
        gradient=StepKey("search_gradient") if plan.recipe.select.search == "gradient" else None,
    )
    return _stage(Stage.SEARCH_MODULES, "search λ by module", inputs, plan.paths.by_module)


# --- Generating, judging and scoring ---------------------------------------------------------------------------


def _trials(plan: Plan, split: Half, points: Sequence[Point]) -> Iterator[Step]:
    metrics, prompts, recipe = plan.metrics[split], plan.prompts(split), plan.recipe
    answered = [name for name in prompts if name != "task" or needs_completions(metrics)]
    after_tuned = [name for name in answered if (attack := plan.attack(name)) and attack.technique.from_tuned]
    for point in points:
        for name in answered:
            if name not in after_tuned:
                yield from _generate(plan, point, name, split)
        if needs_likelihoods(metrics):
            yield _likelihood(plan, point, split)
        if split == "test" and recipe.score.lm_eval:
            yield _lm_eval(plan, point)
    for point in points:
        for name in after_tuned:
            answers = f"generate/{plan.attacker.key}/{kind_of(name)}/{split}"
            yield generate_step(plan, point, name, split, answers=answers)
    judged = [(judge, name) for name in prompts if name != "task" for judge in plan.judging.of(name)]
    order = [*plan.judging.sections, BUILT_IN[0]]
    for judge, name in sorted(judged, key=lambda pair: order.index(pair[0])):  # each judge's model is loaded once
        for point in points:
            yield judge_step(plan, point, name, split, judge)
    for point in points:
        yield _score(plan, point, split, judged)


def _outputs(point: Point, path: Callable[[MergePoint], Path]) -> list[Path]:
    """The output of a step, once its model is known."""
    return [path(point)] if isinstance(point, MergePoint) else []


def engine_inputs(recipe: Recipe) -> types.EngineInputs:
    """What the numbers of a run's engine depend on."""
    section = recipe.generate
    return types.EngineInputs(
        engine=versioned("engines", section.engine),
        dtype=section.dtype,
        device=section.device,
        batch_size=section.batch_size,
        tensor_parallel=section.tensor_parallel,
        max_model_len=section.max_model_len,
        enforce_eager=section.enforce_eager,
        served_model=section.served_model,
        system=recipe.system,
        thinking=section.thinking,
        versions=installed_versions(*ENGINES[section.engine].packages),
    )


def _generate(plan: Plan, point: Point, name: SetName, split: Half) -> Iterator[Step]:
    """The steps that generate a model's responses to a set: one, or one for each turn of a conversation."""
    attack, before = plan.attack(name), None
    for turn in range(1, attack.turns if attack else 1):
        step = generate_step(plan, point, name, split, answers=before, turn=turn)
        yield step
        before = step.id
    yield generate_step(plan, point, name, split, answers=before)


def generate_step(
    plan: Plan,
    point: Point,
    name: SetName,
    split: Half,
    prompts: Sequence[Prompt] | None = None,
    part: int = 0,
    answers: str | None = None,
    turn: int = 0,
) -> Step:
    """The step that generates a model's responses to a set; or to `prompts` of it, as the `part`-th such batch; or the
    responses of the `turn`-th turn on the way. `answers` is the step whose responses its prompts contain."""
    sampling, count = plan.sampling(name), len(plan.prompts(split)[name] if prompts is None else prompts)
    id_, label = f"generate/{point.key}/{name}/{split}", f"{point.label}: generate {name} ({split})"
    return Step(
        id=f"{id_}/part-{part}" if part else f"{id_}/turn-{turn}" if turn else id_,
        label=f"{label}, part {part}" if part else f"{label}, turn {turn}" if turn else label,
        work=types.Generate(point, name, split, turn),
        inputs=types.GenerateInputs(
            model=plan.model_inputs(point),
            prompts=plan.digest(split, name) if prompts is None else prompts_digest(prompts),
            sampling=sampling,
            drafts=plan.recipe.drafts,
            engine=engine_inputs(plan.recipe),
            answers=StepKey(answers) if answers else None,
        ),
        outputs=_outputs(point, lambda known: plan.paths.completions(known, name, split, part, turn)),
        units=count * sampling.n,
        unit="responses",
        pace="generate task" if name == "task" else "generate",
    )


def judge_step(
    plan: Plan,
    point: Point,
    name: SetName,
    split: Half,
    judge: str,
    prompts: Sequence[Prompt] | None = None,
    completions: Sequence[Completion] = (),
) -> Step:
    """The step that judges a model's responses to a set; or to `prompts` of it, which `completions` answer."""
    id_ = f"judge/{point.key}/{name}/{split}/{judge}"
    label = f"{point.label}: judge {name} ({split}) by {judge}"
    if prompts is None:
        part, count, digest = "", len(plan.prompts(split)[name]), plan.digest(split, name)
        source: StepKey | str = StepKey(f"generate/{point.key}/{name}/{split}")
    else:
        count, digest = len(prompts), prompts_digest(prompts)
        part, source = (
            digest[:8],
            types.digest_of([[completion.thoughts, completion.text] for completion in completions]),
        )
        id_, label = f"{id_}/{part}", f"{label}, {count} responses"
    needs_model = judge in plan.judging.kinds and plan.judging.kinds[judge].needs_model
    return Step(
        id=id_,
        label=label,
        work=types.Judge(point, name, split, judge),
        inputs=types.JudgeInputs(
            completions=source,
            prompts=digest,
            judge=JudgeKey(judge),
            thoughts=plan.recipe.score.judge_thoughts and kind_of(name) == "safety" and needs_model,
        ),
        outputs=_outputs(point, lambda known: plan.paths.verdicts(known, name, split, judge, part)),
        units=count,
        unit="responses",
        pace=f"judge {judge}" if needs_model else "",
    )


def _likelihood(plan: Plan, point: Point, split: Half) -> Step:
    inputs = types.LikelihoodInputs(
        model=plan.model_inputs(point), examples=plan.digest(split, "task"), engine=engine_inputs(plan.recipe)
    )
    return Step(
        id=f"likelihood/{point.key}/{split}",
        label=f"{point.label}: response loss ({split})",
        work=types.Likelihood(point, split),
        inputs=inputs,
        outputs=_outputs(point, lambda known: plan.paths.likelihood(known, split)),
        units=len(plan.prompts(split)["task"]),
        unit="examples",
        pace="likelihood",
    )


def _lm_eval(plan: Plan, point: Point) -> Step:
    section = plan.recipe.score
    inputs = types.LmEvalInputs(
        model=plan.model_inputs(point),
        tasks=section.lm_eval,
        data=SourceKey("lm_eval"),
        limit=section.lm_eval_limit,
        seed=plan.recipe.seed,
        engine=engine_inputs(plan.recipe),
    )
    return Step(
        id=f"lm_eval/{point.key}",
        label=f"{point.label}: lm-eval {', '.join(section.lm_eval)}",
        work=types.LmEval(point),
        inputs=inputs,
        outputs=_outputs(point, plan.paths.lm_eval),
        unit="requests",
        pace="lm-eval",
    )


def _score(plan: Plan, point: Point, split: Half, judged: Sequence[tuple[str, SetName]]) -> Step:
    section, metrics = plan.recipe.score, plan.metrics[split]
    measurements = [f"judge/{point.key}/{name}/{split}/{judge}" for judge, name in judged]
    if "task" in plan.prompts(split) and needs_completions(metrics):
        measurements.append(f"generate/{point.key}/task/{split}")
    if needs_likelihoods(metrics):
        measurements.append(f"likelihood/{point.key}/{split}")
    if split == "test" and section.lm_eval:
        measurements.append(f"lm_eval/{point.key}")
    bert_score = "bert_score" in metrics
    method = point.series.method if isinstance(point, SeriesPoint) else plan.recipe.merge.method
    options: dict[str, Any] = {"method": method}
    if bert_score:
        options["bertscore_layer"] = section.bertscore_layer
    if pass_ks(metrics):
        options["unsafe_exec"] = section.unsafe_exec
    inputs = types.ScoreInputs(
        measurements=[StepKey(id) for id in measurements],
        metrics=[versioned("metrics", name) for name in metrics],
        options=options,
        encoder=SourceKey("bert_score") if bert_score else None,
        seed=plan.recipe.seed,
        versions=installed_versions("torch", "transformers", "bert_score") if bert_score else {},
    )
    return Step(
        id=f"score/{point.key}/{split}",
        label=f"{point.label}: score ({split})",
        work=types.Score(point, split),
        inputs=inputs,
        outputs=_outputs(point, lambda known: plan.paths.trial(known, split)),
        pace="score",
    )
