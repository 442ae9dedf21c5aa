"""The answers and scores of a run folder, for the formats of other tools."""

import dataclasses
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

from mooring.attacks import attack_of, kind_of, without_attack
from mooring.errors import DataError, UserError
from mooring.files import atomic_folder
from mooring.ledger import LEDGER, check_unmodified, read_ledger
from mooring.merge_point import MergePoint
from mooring.pipeline.judging import installed_versions
from mooring.pipeline.plan import HALVES, Plan
from mooring.pipeline.rejudge import open_plan
from mooring.records import Completion, Half, Score, SetName, Trial, Verdict, read_jsonl, read_record
from mooring.reporting.foreign import every_eval_ever, harmbench, inspect_log, lm_eval_samples, tables
from mooring.reporting.foreign.answers import AnsweredSet, RunFacts
from mooring.text import short_name
from mooring.thinking import separated

Format = Literal["inspect", "lm-eval", "harmbench", "csv", "parquet", "every-eval-ever"]
FORMATS: tuple[Format, ...] = get_args(Format)
_OF_A_SET = {
    "safety": ("asr", "asr_worst", "refusal", "incoherent"),
    "over_refusal": ("over_refusal",),
    "ordinary": ("ordinary_refusal",),
}
"""The scores of each set but the task."""


def export(run: Path, form: Format, out: Path) -> list[Path]:
    """Write the answers and scores of a run; arguments and errors as in `mooring.export_run`."""
    if form not in FORMATS:
        raise UserError(f"format {form!r} is unknown", f"known: {', '.join(FORMATS)}", code="usage.unknown_format")
    if not (run / LEDGER).is_file():
        raise DataError(f"{run}: is not a run folder", "name the folder of a run", code="data.not_a_run")
    plan = open_plan(run)
    sets, facts = list(answered(plan)), facts_of(plan)
    if not sets:
        raise DataError(f"{run}: holds no answers", "has the run generated any yet?", code="data.no_completions")
    with atomic_folder(out) as folder:
        written = _write(form, sets, facts, folder)
        return [out / path.relative_to(folder) for path in written]


def _write(form: Format, sets: list[AnsweredSet], facts: RunFacts, folder: Path) -> list[Path]:
    if form in ("csv", "parquet"):
        write = tables.write_csv if form == "csv" else tables.write_parquet
        named = {"answers": tables.answer_rows(sets), "scores": tables.score_rows(sets)}
        return [write(rows, folder / f"{name}.{form}") for name, rows in named.items()]
    found: list[Path | None] = []
    for _, several in groupby(sets, key=lambda each: each.point):
        of_model = list(several)
        if form == "every-eval-ever":
            found.append(every_eval_ever.write(of_model, facts, folder))
            continue
        place = folder / of_model[0].point.folder
        place.mkdir()
        one: Any = {"inspect": inspect_log, "lm-eval": lm_eval_samples, "harmbench": harmbench}[form]
        found += [one.write(each, facts, place) for each in of_model]
        if form == "lm-eval":
            found.append(lm_eval_samples.write_results(of_model, facts, place))
    return [path for path in found if path is not None]


def facts_of(plan: Plan) -> RunFacts:
    """What formats say of the run as a whole."""
    recipe = plan.recipe
    tuned = ", ".join(map(short_name, recipe.tuned_models.values())) or "tuned"
    return RunFacts(
        name=recipe.name,
        base=short_name(recipe.base),
        tuned=tuned,
        judge=plan.judging.label(next(iter(plan.judging.sections))),
        version=installed_versions("mooring").get("mooring", "unknown"),
        sampling={name: dataclasses.asdict(plan.sampling(name)) for name in plan.sets},
    )


def answered(plan: Plan) -> Iterator[AnsweredSet]:
    """What each model answered to each set, the models in order.

    Raises:
        DataError: A record of the run was edited (`data.edited_record`).
    """
    points = {point: None for half in HALVES for point in plan.points(half) if isinstance(point, MergePoint)}
    for point in sorted(points, key=lambda point: (point.by_module, point)):
        for half in HALVES:
            for name in plan.prompts(half):
                path = plan.paths.completions(point, name, half)
                if path.is_file():
                    yield _answered(plan, point, name, half, path)


def _answered(plan: Plan, point: MergePoint, name: SetName, half: Half, path: Path) -> AnsweredSet:
    ledger, folder = read_ledger(plan.paths.folder), plan.paths.folder
    trial_at = plan.paths.trial(point, half)
    scores: dict[str, dict[str, float]] = {}
    for number, judge in enumerate(plan.judging.of(name) if name != "task" else ()):
        at = plan.paths.verdicts(point, name, half, judge)
        if not at.is_file():
            continue
        check_unmodified(folder, ledger, at)
        verdicts = read_jsonl(at, Verdict)
        for field in ("harmful", "refused"):
            each = {v.prompt_id: float(value) for v in verdicts if (value := getattr(v, field)) is not None}
            if each:
                scores[f"{field}@{judge}" if number else field] = each
    totals: dict[str, Score] = {}
    if trial_at.is_file():
        check_unmodified(folder, ledger, trial_at)
        totals = {key: score for key, score in read_record(trial_at, Trial).scores.items() if _is_of(key, name)}
    if name == "task":
        scores |= {
            key: {id: value / score.weights.get(id, 1) for id, value in score.each.items()}
            for key, score in totals.items()
            if score.each
        }
    check_unmodified(folder, ledger, path)
    return AnsweredSet(
        point=point,
        name=name,
        split=half,
        prompts=plan.prompts(half)[name],
        completions=separated(read_jsonl(path, Completion)),
        scores=scores,
        totals=totals,
        time=path.stat().st_mtime,
    )


def _is_of(score: str, name: SetName) -> bool:
    """Whether a score is of a set."""
    if attack_of(score) != attack_of(name):
        return False
    base = without_attack(score).partition("@")[0].partition(":")[0]
    of = next((kind for kind, names in _OF_A_SET.items() if base in names), "task")
    return of == kind_of(name) and not score.startswith("lm_eval")
