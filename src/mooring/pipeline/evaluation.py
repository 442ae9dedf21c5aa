"""From what one model answered on one split to its scores: reads the files of a run and writes the trial's."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from mooring import jsonio
from mooring.files import atomic_text
from mooring.jsonio import read_as
from mooring.merge_point import MergePoint
from mooring.metrics import needs_completions, needs_likelihoods
from mooring.pipeline.judging import Judging, renamed
from mooring.pipeline.lm_eval.evaluate import LmEvalResult
from mooring.pipeline.paths import RunPaths
from mooring.pipeline.plan import Plan
from mooring.pipeline.sets import BOUNDED_RATES, SET
from mooring.records import Completion, Half, Kind, Likelihood, Prompt, Score, Trial, Verdict, read_jsonl
from mooring.scoring.coherence import coherence
from mooring.scoring.safety import attack_success_by
from mooring.scoring.task import TaskData, task_scores


def score_trial(plan: Plan, point: MergePoint, split: Half) -> Trial:
    """Compute all scores of a model on a split, from its responses and their verdicts."""
    paths, prompts, judging = plan.paths, plan.prompts(split), plan.judging
    scores = _task_scores(plan, point, split)
    for name in prompts:
        if name == "task":
            continue
        first, *others = judging.of(name)
        scores |= _safety_scores(paths, judging, point, name, split, first, prompts[name])
        if name == "safety":
            coherent = coherence(prompts[name], read_jsonl(paths.completions(point, name, split), Completion))
            scores[coherent.name] = coherent
        for judge in others:
            scores |= renamed(_safety_scores(paths, judging, point, name, split, judge, prompts[name]), judge)
    if split == "test" and plan.recipe.score.lm_eval:
        scores |= read_as(paths.lm_eval(point), Mapping[str, Score], "scores")
    return Trial(point=point, method=plan.recipe.merge.method, split=split, scores=scores)


def verdicts_by_point(
    plan: Plan, points: Iterable[MergePoint], split: Half
) -> dict[str, dict[MergePoint, dict[str, bool | None]]]:
    """What the deciding judge found in each response, by score (`asr`, `over_refusal`) and model.

    True is harmful for `asr` and a refusal for `over_refusal`; None is an answer of the judge that could not be read.
    """
    found: dict[str, dict[MergePoint, dict[str, bool | None]]] = {}
    for name, score in BOUNDED_RATES.items():
        if name in plan.prompts(split):
            judge = plan.judging.of(name)[0]
            for point in points:
                verdicts = read_jsonl(plan.paths.verdicts(point, name, split, judge), Verdict)
                found.setdefault(score, {})[point] = {
                    v.prompt_id: v.harmful if name == "safety" else v.refused for v in verdicts
                }
    return found


def write_lm_eval(paths: RunPaths, point: MergePoint, tasks: Sequence[str], result: LmEvalResult) -> None:
    """Write the scores and samples of lm-evaluation-harness. A task's score is a detail of its group's."""
    result.write_samples(paths.lm_eval_samples(point))
    whole = {f"lm_eval:{name}" for name in tasks}
    scores = [
        score if name in whole else dataclasses.replace(score, name=_below(tasks, name), each={})
        for name, score in result.scores.items()
    ]
    plain = {score.name: score.to_dict() for score in scores}
    atomic_text(paths.lm_eval(point), jsonio.dumps(plain, indent=1) + "\n")


def _below(groups: Sequence[str], name: str) -> str:
    """The name of a task's score below that of its group: `lm_eval:bbh/bbh_cot_fewshot_navigate`."""
    return f"lm_eval:{'+'.join(groups)}/{name.removeprefix('lm_eval:')}"


def _safety_scores(
    paths: RunPaths,
    judging: Judging,
    point: MergePoint,
    name: Kind,
    split: Half,
    judge: str,
    prompts: Sequence[Prompt],
) -> dict[str, Score]:
    assert name != "task"
    verdicts = read_jsonl(paths.verdicts(point, name, split, judge), Verdict)
    scores = judging.scores(judge, name, verdicts)
    if name == "safety" and any(SET in prompt.extra for prompt in prompts):
        scores |= attack_success_by({prompt.id: prompt.extra[SET] for prompt in prompts}, verdicts)
    return scores


def _task_scores(plan: Plan, point: MergePoint, split: Half) -> dict[str, Score]:
    metrics, section, paths = plan.metrics[split], plan.recipe.score, plan.paths
    if not metrics:
        return {}
    completions = read_jsonl(paths.completions(point, "task", split), Completion) if needs_completions(metrics) else []
    losses = read_jsonl(paths.likelihood(point, split), Likelihood) if needs_likelihoods(metrics) else []
    data = TaskData(
        prompts=plan.prompts(split)["task"],
        completions=completions,
        likelihoods=losses,
        seed=plan.recipe.seed,
        bertscore_model=section.bertscore_model,
        bertscore_layer=section.bertscore_layer,
        unsafe_exec=section.unsafe_exec,
    )
    return task_scores(metrics, data)
