"""Whether a run's verdict holds for the model that is served: the run's test prompts, judged as the run judged them."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring import jsonio
from mooring.attacks import NONE, attack_of, kind_of
from mooring.config import Runner
from mooring.errors import DataError, ModelError
from mooring.events import Event, OnEvent, ignore
from mooring.export import Record
from mooring.files import atomic_text
from mooring.inference.load import servers_of
from mooring.inference.openai import OpenAIEngine
from mooring.inference.probe import differing_settings, ignored_settings
from mooring.inference.store import complete_to_file
from mooring.jsonio import loads
from mooring.ledger import LEDGER, check_unmodified, read_ledger
from mooring.merge_point import BASE, MergePoint
from mooring.metrics import needs_completions, needs_likelihoods
from mooring.pipeline.evaluation import score_trial, verdicts_by_point
from mooring.pipeline.paths import RunPaths
from mooring.pipeline.plan import Plan
from mooring.pipeline.rejudge import open_plan
from mooring.pipeline.run_folder import RunFolder
from mooring.pipeline.sets import BOUNDED_RATES
from mooring.records import Completion, Prompt, Score, SetName, Trial, read_jsonl, read_record, sample_key
from mooring.selection.explain import percent, points
from mooring.selection.limits import Rule, rules
from mooring.stats import Difference, Hits, compare_rates, compare_scores, flips, worst_flips


@dataclasses.dataclass(frozen=True, slots=True)
class ServedMeasure(Record):
    """One score of the run's merged model and of the served one, on the same prompts.

    Attributes:
        name: The score, such as `asr`.
        merged: That of the run's merged model.
        served: That of the served model.
        difference: Served minus merged, in pairs; None if the scores do not tell it by prompt.
    """

    name: str
    merged: Score
    served: Score
    difference: Difference | None


@dataclasses.dataclass(frozen=True, slots=True)
class ServedVerdict(Record):
    """Whether a run's verdict holds for the model that is served.

    Attributes:
        run: The run folder.
        answers: The folder below it with the responses and verdicts.
        base_url: The server.
        model: The model's name there.
        point: The run's merged model.
        holds: Whether every bound of the run is kept.
        reason: Why, one sentence for each bound.
        measures: The scores of both models.
        notes: What was not compared, and which settings the server ignored.
    """

    run: Path
    answers: Path
    base_url: str
    model: str
    point: MergePoint
    holds: bool
    reason: str
    measures: Sequence[ServedMeasure]
    notes: Sequence[str]

    def to_rows(self) -> list[dict[str, Any]]:
        """A row per score."""
        rows = []
        for each in self.measures:
            row: dict[str, Any] = {"score": each.name, "merged": each.merged.value, "served": each.served.value}
            row |= dataclasses.asdict(each.difference) if each.difference else {}
            rows.append(row)
        return rows


class _ServedPaths(RunPaths):
    """The layout of a run folder in which the merged model's files are those of the served model."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self.served = folder / "served" / name

    def measurements(self, point: MergePoint) -> Path:
        """The served model's folder, whatever the point."""
        return self.served


def verify_served(
    folder: Path,
    runner: Runner,
    *,
    model: str | None = None,
    name: str | None = None,
    changes: Mapping[str, Any],
    allow_ignored: bool = False,
    on_event: OnEvent | None = None,
) -> ServedVerdict:
    """Ask a served model a run's test prompts, and compare it in pairs with the run's merged model.

    Args:
        folder: A finished run.
        runner: The server and its limits.
        model: The model's name on the server; None if it has only one.
        name: The name of the folder for its responses, below `served/`; defaults to the model's.
        changes: Fields of the `select` section that replace the run's, such as `{"select.margin": 0.05}`.
        allow_ignored: Go on if the server ignores a setting; a note says which.
        on_event: Receives the progress, in responses.

    Raises:
        DataError: It is not a finished run, or there are too few test prompts to show that a bound is kept.
        ModelError: The server is unreachable, does not know the model, or ignores a setting.
    """
    emit = on_event or ignore
    plan, point = _open_finished(folder)
    bounds = _bounds(plan, changes)
    engine = OpenAIEngine(servers_of(runner), model, system=plan.recipe.system, thinking=plan.recipe.generate.thinking)
    served = engine.served[0]
    paths = _ServedPaths(folder, name or re.sub(r"[^\w.-]+", "-", served).strip("-.") or "model")
    asked = _askable(dataclasses.replace(plan, paths=paths))
    notes = [*_check_server(engine, asked, allow_ignored), *_not_compared(plan, asked)]
    with RunFolder(folder).locked():
        trial = _measure(asked, point, engine, served, emit)
        merged = read_record(plan.paths.trial(point, "test"), Trial)
        base = _hits(plan, BASE)
        hits = {where: _hits(each, point) for where, each in (("merged", plan), ("served", asked))}
        checks = [
            _check(rate, rule, base[rate], hits["merged"][rate], hits["served"][rate])
            for rate, rule in bounds.items()
            if rate in base
        ]
        verdict = ServedVerdict(
            run=folder,
            answers=paths.served,
            base_url=engine.servers.base,
            model=served,
            point=point,
            holds=all(kept for kept, _ in checks),
            reason=" ".join(text for _, text in checks),
            measures=[
                ServedMeasure(score, merged.scores[score], found, _difference(score, merged.scores[score], found, hits))
                for score, found in trial.scores.items()
                if score in merged.scores
            ],
            notes=notes,
        )
        atomic_text(paths.served / "verdict.json", jsonio.dumps(verdict.to_dict(), indent=1) + "\n")
    return verdict


def _open_finished(folder: Path) -> tuple[Plan, MergePoint]:
    """A finished run's plan and its chosen model; raises `DataError` if its records are not those that it wrote."""
    if not (folder / LEDGER).is_file():
        raise DataError(f"{folder}: is not a run folder", "name the folder of a run", code="data.not_a_run")
    plan, ledger = open_plan(folder), read_ledger(folder)
    point = plan.chosen
    if not isinstance(point, MergePoint) or not plan.paths.trial(point, "test").is_file():
        hint = "finish it with `mooring run` first"
        raise DataError(f"{folder}: has not measured its chosen model yet", hint, code="data.run_unfinished")
    for path in _inputs(plan, point):
        check_unmodified(folder, ledger, path)
    return plan, point


def _bounds(plan: Plan, changes: Mapping[str, Any]) -> dict[str, Rule]:
    """What bounds each rate; raises `DataError` if the run has too few test prompts to show that a bound is kept."""
    section = plan.recipe.override(changes).select
    bounds = rules(section.model_copy(update={"bound_on": (NONE,)}))
    for rate, rule in bounds.items():
        if prompts := _prompts_of(plan, rate):
            rule.check(rate, len(prompts))
    return bounds


def _not_compared(plan: Plan, asked: Plan) -> list[str]:
    """A sentence for each measure of the run that the served model cannot be compared by."""
    notes = []
    if plan.attacks:
        notes.append(f"the served model is asked directly, not under {', '.join(plan.attacks)}")
    missing = [metric for metric in plan.metrics["test"] if metric not in asked.metrics["test"]]
    notes += [f"{metric} is not compared: a server gives no likelihoods" for metric in missing]
    return notes + [f"lm-eval's {task} is not compared: it needs likelihoods" for task in plan.recipe.score.lm_eval]


def _prompts_of(plan: Plan, rate: str) -> list[Prompt]:
    kind = next(kind for kind, score in BOUNDED_RATES.items() if score == rate)
    return plan.prompts("test").get(kind, [])


def _inputs(plan: Plan, point: MergePoint) -> list[Path]:
    """The run's records that the served model is compared with."""
    paths = [plan.paths.trial(point, "test")]
    for name in BOUNDED_RATES:
        if name in plan.prompts("test"):
            judge = plan.judging.of(name)[0]
            paths += [plan.paths.verdicts(each, name, "test", judge) for each in (BASE, point)]
    return paths


def _askable(plan: Plan) -> Plan:
    """The plan without attacks, and without the measures that a server cannot give."""
    score = plan.recipe.score.model_copy(update={"lm_eval": (), "attacks": (NONE,)})
    direct = {name: halves for name, halves in plan.sets.items() if attack_of(name) == NONE}
    reduced = dataclasses.replace(plan, recipe=plan.recipe.model_copy(update={"score": score}), sets=direct)
    test = tuple(metric for metric in plan.metrics["test"] if not needs_likelihoods([metric]))
    reduced.__dict__["metrics"] = {**plan.metrics, "test": test}
    return reduced


def _check_server(engine: OpenAIEngine, plan: Plan, allow_ignored: bool) -> list[str]:
    """Notes on the settings that the server ignores, which is an error unless allowed, or follows in another way."""
    used = [plan.sampling(name) for name in _asked(plan)]
    found = ignored_settings(engine, used)
    if found and not allow_ignored:
        what = f"{engine.servers.base}: ignores {' and '.join(found)}"
        hint = "set it where the model is served and add --allow-ignored, or use a server that follows it"
        raise ModelError(what, hint, code="model.server_ignores_setting")
    notes = [f"the server ignores {each}: its responses are not sampled as the run's" for each in found]
    return notes + differing_settings(engine, used)


def _asked(plan: Plan) -> dict[SetName, list[Prompt]]:
    """The test prompts that the served model answers, by set."""
    prompts = plan.prompts("test")
    return {n: each for n, each in prompts.items() if n != "task" or needs_completions(plan.metrics["test"])}


def _measure(plan: Plan, point: MergePoint, engine: OpenAIEngine, served: str, emit: OnEvent) -> Trial:
    """Ask, judge and score; what exists from an earlier call with the same model is used again."""
    made_by = {"served": served, "server": engine.servers.base}
    for name, prompts in _asked(plan).items():
        out, params = plan.paths.completions(point, name, "test"), plan.sampling(name)
        keys = [sample_key(prompt.id, sample) for prompt in prompts for sample in range(params.n)]
        completions = _finished(out, made_by | {"settings": dataclasses.asdict(params)}, keys)
        completions = completions or complete_to_file(
            engine, prompts, params, out, made_by=made_by, on_event=_labelled(emit, f"ask {name}")
        )
        for judge in plan.judging.of(name) if name != "task" else ():
            verdicts = plan.paths.verdicts(point, name, "test", judge)
            relay = _labelled(emit, f"judge {name} by {judge}")
            plan.judging.judge(judge, prompts, completions, verdicts, relay, kind=kind_of(name))
    plan.judging.close()
    return score_trial(plan, point, "test")


def _labelled(emit: OnEvent, label: str) -> Callable[[Event], None]:
    return lambda event: emit(dataclasses.replace(event, step="verify_served", label=label))


def _finished(path: Path, made_by: Mapping[str, Any], keys: Sequence[str]) -> list[Completion]:
    """The responses of an earlier call, if they are all there and of the same model and settings."""
    if not path.is_file():
        return []
    try:
        found = read_jsonl(path, Completion)
    except DataError:
        return []
    plain = loads(json.dumps(made_by))
    same = all({key: each.made_by.get(key) for key in plain} == plain for each in found)
    return found if same and [each.key for each in found] == list(keys) else []


def _hits(plan: Plan, point: MergePoint) -> dict[str, Hits]:
    """The deciding judge's verdicts on a model's test responses, by score."""
    return {rate: of_point[point] for rate, of_point in verdicts_by_point(plan, [point], "test").items()}


def _difference(name: str, merged: Score, served: Score, hits: Mapping[str, Mapping[str, Hits]]) -> Difference | None:
    if name in hits["merged"]:
        return compare_rates(hits["merged"][name], hits["served"][name])
    if merged.each and merged.each.keys() == served.each.keys():
        return compare_scores(merged.each, served.each, weights=merged.weights or None)
    return None


def _check(rate: str, rule: Rule, base: Hits, merged: Hits, served: Hits) -> tuple[bool, str]:
    """Whether a bound is kept, and a sentence about it.

    A margin above the base must be kept against the base, as in the run, and the served model must not be worse than
    the merged one by more than the margin, so that it does not use up what the merged model was better by.
    """
    if rule.confidence is None:
        judged, count = [hit for hit in served.values() if hit is not None], flips
    else:  # what could not be judged counts at its worst, as it did when λ was chosen
        judged, count = [hit is not False for hit in served.values()], worst_flips
    label = "ASR" if rate == "asr" else "over-refusal"
    sure = "" if rule.confidence is None else f" with {100 * rule.confidence:g} % confidence"
    if not rule.paired:
        kept = rule.holds(len(judged), sum(judged), 0)
        words = f"{label} is {'' if kept else 'not shown to be '}at most {percent(rule.bound)}"
        return kept, f"{words}{sure}: {sum(judged)} of {len(judged)} on the test prompts."
    against = {"the base": count(base, served), "the merged model": count(merged, served)}
    kept_by = {who: rule.holds(f.pairs, f.worse, f.better) for who, f in against.items()}
    counts = "; ".join(
        f"against {who} {f.worse} worse and {f.better} better of {f.pairs}" for who, f in against.items()
    )
    kept = all(kept_by.values())
    failed = " and ".join(who for who, ok in kept_by.items() if not ok)
    where = "within" if kept else "not shown to be within"
    words = f"{where} {points(rule.bound)} of {failed or 'the base and of the merged model'}"
    return kept, f"{label} is {words}{sure}: {counts}."
