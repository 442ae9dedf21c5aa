"""One model on one split: ask it, judge what it answered, score it. Every step goes through the run's ledger."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring import sources
from mooring.files import atomic_text
from mooring.generate.store import likelihood_to_file
from mooring.plain import read_as
from mooring.recipe import Recipe
from mooring.records import Completion, Likelihood, Prompt, Score, Trial, Verdict, read_jsonl, read_record, to_dict
from mooring.run.judging import RULES, Judging, renamed
from mooring.run.lm_eval.evaluate import run_tasks
from mooring.run.sets import SET, Name, Sets, asked, task_metrics
from mooring.run.store import Event, Store
from mooring.run.sweep.answers import Answers, Place, Subject, folder_of, versions
from mooring.score.safety import attack_success_by
from mooring.score.task import TaskOptions, needs_completions, task_scores
from mooring.sections import Metric

__all__ = ["Subject", "Trials", "verdict_file"]


class Trials:
    """The trials of a run.

    Args:
        recipe: The run's recipe.
        store: The run folder.
        sets: What is asked.
    """

    def __init__(self, recipe: Recipe, store: Store, sets: Sets) -> None:
        self.recipe = recipe
        self.store = store
        self.sets = sets
        self.judging = Judging(recipe.score.judges, store.digest)
        self._keys: dict[Place, str] = {}
        self._answers = Answers(recipe, store)

    def metrics(self, split: sources.Half) -> tuple[Metric, ...]:
        """The task metrics of a split."""
        return task_metrics(self.recipe, self.sets, split)

    # --- ask ------------------------------------------------------------------------------------------------------

    def ask(self, subject: Subject, split: sources.Half) -> None:
        """Ask a model all that a split asks; what was asked before is kept."""
        metrics = self.metrics(split)
        for name, prompts in asked(self.sets, split).items():
            if name != "task" or needs_completions(metrics):
                self._keys[subject.spot, split, name] = self._answers.whole(subject, split, name, prompts)
        if "response_loss" in metrics:
            self._likelihood(subject, split, asked(self.sets, split)["task"])
        if split == "test" and self.recipe.score.lm_eval:
            self._lm_eval(subject)

    def ask_some(
        self, subject: Subject, split: sources.Half, name: Name, prompts: Sequence[Prompt]
    ) -> list[Completion]:
        """Ask a model some prompts of a set, as `Answers.some`; `ask` takes these completions over."""
        return self._answers.some(subject, split, name, prompts, asked(self.sets, split)[name])

    def saved(self) -> float | None:
        """As `Answers.saved`."""
        return self._answers.saved()

    def _likelihood(self, subject: Subject, split: sources.Half, prompts: list[Prompt]) -> None:
        path, step = self._out(subject) / f"likelihood-{split}.jsonl", f"{subject.label}: response loss ({split})"
        section = self.recipe.generate
        inputs = [subject.key, sources.digest(prompts), self.recipe.system, section.batch_size, section.dtype]
        inputs += versions(section.engine)
        self._keys[subject.spot, split, "likelihood"] = self.store.once(
            step,
            inputs,
            [path],
            lambda: likelihood_to_file(subject.engine(), prompts, path, {"model": subject.key}, self._tick(step)),
        )

    def _lm_eval(self, subject: Subject) -> None:
        section = self.recipe.score
        path, step = self._out(subject) / "lm-eval.json", f"{subject.label}: lm-eval {', '.join(section.lm_eval)}"

        def make() -> None:
            result = run_tasks(
                subject.engine(),
                section.lm_eval,
                limit=section.lm_eval_limit,
                seed=self.recipe.seed,
                keep=path.with_name("lm-eval-answers.jsonl"),
                made_by={"model": subject.key},
                on_progress=lambda done, total: self._tick(step)(done, total, 0),
            )
            result.write_samples(path.with_name("lm-eval-samples.jsonl"))
            # What one task of a group scored is a detail of the group's.
            whole = {f"lm_eval:{name}" for name in section.lm_eval}
            scores = [
                score if name in whole else dataclasses.replace(score, name=_below(section.lm_eval, name), each={})
                for name, score in result.scores.items()
            ]
            plain = {score.name: to_dict(score) for score in scores}
            atomic_text(path, json.dumps(plain, ensure_ascii=False, indent=1) + "\n")

        inputs = [subject.key, section.lm_eval, section.lm_eval_limit, self.recipe.system, self.recipe.seed]
        inputs += versions(self.recipe.generate.engine)
        self._keys[subject.spot, "test", "lm_eval"] = self.store.once(step, inputs, [path], make)

    # --- judge and score ------------------------------------------------------------------------------------------

    def score(self, subject: Subject, split: sources.Half) -> Trial:
        """Judge and score what a model answered."""
        prompts = asked(self.sets, split)
        judged = [(name, judge) for name in prompts if name != "task" for judge in self.judging.of(name)]
        order = [*self.judging.sections, RULES]
        verdicts = {
            f"{judge} {name}": self._judge(subject, judge, name, split, prompts[name])
            for name, judge in sorted(judged, key=lambda pair: order.index(pair[1]))  # one model after the other
        }
        out = self._out(subject)
        path = out / f"trial-{split}.json"

        def make() -> None:
            scores = self._task_scores(out, split, prompts.get("task", []))
            for name, judge in judged:
                found = self._safety_scores(out, judge, name, split, prompts[name])
                scores |= found if judge == self.judging.of(name)[0] else renamed(found, judge)
            if split == "test" and self.recipe.score.lm_eval:
                scores |= read_as(out / "lm-eval.json", Mapping[str, Score], "scores")
            role = "base" if subject.lam == 0 else "tuned" if subject.lam == 1 else "merged"
            rule: Any = {"model": role, "method": self.recipe.merge.method, "modules": subject.modules}
            trial = Trial(lam=subject.lam, split=split, scores=scores, **rule)
            atomic_text(path, json.dumps(to_dict(trial), ensure_ascii=False, indent=1) + "\n")

        keys = {what: key for (spot, half, what), key in self._keys.items() if (spot, half) == (subject.spot, split)}
        section = self.recipe.score
        inputs = [keys, verdicts, self.metrics(split), section.bertscore_model, section.bertscore_layer]
        self.store.once(f"{subject.label}: score ({split})", [*inputs, self.recipe.seed], [path], make)
        return read_record(path, Trial)

    def hits(
        self, lams: Sequence[float], split: sources.Half, folders: Mapping[float, str] | None = None
    ) -> dict[str, dict[float, dict[str, bool | None]]]:
        """What the deciding judge said of each prompt, by score (`asr`, `over_refusal`) and λ; to be scored before.

        `folders` names the folder of a λ's model where that is not the single λ's.
        """
        found: dict[str, dict[float, dict[str, bool | None]]] = {}
        for name, score in (("safety", "asr"), ("over_refusal", "over_refusal")):
            if name not in asked(self.sets, split):
                continue
            for lam in lams:
                file = verdict_file(name, split, self.judging.of(name)[0])
                folder = (folders or {}).get(lam, folder_of(lam))
                verdicts = read_jsonl(self.store.folder / "completions" / folder / file, Verdict)
                said = {v.prompt_id: v.harmful if name == "safety" else v.refused for v in verdicts}
                found.setdefault(score, {})[lam] = said
        return found

    def _judge(self, subject: Subject, judge: str, name: Name, split: sources.Half, prompts: list[Prompt]) -> str:
        out = self._out(subject)
        path, step = out / verdict_file(name, split, judge), f"{subject.label}: judge {name} ({split}) by {judge}"

        def make() -> None:
            completions = read_jsonl(out / f"{name}-{split}.jsonl", Completion)
            self.judging.judge(
                judge,
                prompts,
                completions,
                path,
                self._tick(step),
                lambda line: self.store.emit(Event(step, "say", note=line)),
            )

        inputs = [self._keys[subject.spot, split, name], self.judging.about(judge), self.judging.label(judge)]
        return self.store.once(step, inputs, [path], make)

    def _safety_scores(
        self, out: Path, judge: str, name: Name, split: sources.Half, prompts: list[Prompt]
    ) -> dict[str, Score]:
        assert name != "task"
        verdicts = read_jsonl(out / verdict_file(name, split, judge), Verdict)
        scores = self.judging.scores(judge, name, verdicts)
        if name == "safety" and any(SET in p.extra for p in prompts):
            scores |= attack_success_by({p.id: p.extra[SET] for p in prompts}, verdicts)
        return scores

    def _task_scores(self, out: Path, split: sources.Half, prompts: list[Prompt]) -> dict[str, Score]:
        metrics, section = self.metrics(split), self.recipe.score
        if not metrics:
            return {}
        completions = read_jsonl(out / f"task-{split}.jsonl", Completion) if needs_completions(metrics) else []
        losses = read_jsonl(out / f"likelihood-{split}.jsonl", Likelihood) if "response_loss" in metrics else []
        options = TaskOptions(section.bertscore_model, section.bertscore_layer, section.unsafe_exec)
        return task_scores(metrics, prompts, completions, losses, seed=self.recipe.seed, options=options)

    def _out(self, subject: Subject) -> Path:
        return self.store.folder / "completions" / subject.name

    def _tick(self, step: str) -> Callable[[int, int, int], None]:
        return lambda done, total, tokens: self.store.emit(Event(step, "progress", done, total, "", tokens))


def _below(groups: Sequence[str], name: str) -> str:
    """The name of a task's score below that of its group: `lm_eval:bbh/bbh_cot_fewshot_navigate`."""
    return f"lm_eval:{'+'.join(groups)}/{name.removeprefix('lm_eval:')}"


def verdict_file(name: Name, split: sources.Half, judge: str) -> str:
    """Where a judge's verdicts on a set lie, below a model's completions."""
    return f"verdicts-{name}-{split}-{judge}.jsonl"
