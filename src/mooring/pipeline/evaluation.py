"""One model on one split: ask it, judge what it answered, score it. Every step goes through the run's ledger."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.config import Metric, Recipe
from mooring.data import prompts_digest
from mooring.events import OnEvent
from mooring.files import atomic_text
from mooring.inference.engine import Engine, accepted_share
from mooring.inference.store import complete_to_file, likelihood_to_file
from mooring.jsonio import read_as
from mooring.merge_point import MergePoint
from mooring.metrics import needs_completions, needs_likelihoods
from mooring.pipeline.judging import RULES, Judging, renamed
from mooring.pipeline.lm_eval.evaluate import run_tasks
from mooring.pipeline.run_folder import Event, Store, key_of
from mooring.pipeline.sets import SET, Sets, asked, task_metrics
from mooring.records import (
    Completion,
    Half,
    Kind,
    Likelihood,
    Prompt,
    Score,
    Trial,
    Verdict,
    read_jsonl,
    read_record,
    to_dict,
)
from mooring.scoring.safety import attack_success_by
from mooring.scoring.task import TaskData, task_scores

# --- What models answer: whole sets or some prompts of them, kept as they are made, a ---


Place = tuple[MergePoint, str, str]
"""A model, a half and a set: where completions belong."""


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A model of a run.

    Attributes:
        point: Which one.
        key: Digest of what it is made from.
        engine: Brings it into memory. Called whenever it must be asked something, since another model may have taken
            its place meanwhile.
    """

    point: MergePoint
    key: str
    engine: Callable[[], Engine]


class Answers:
    """The answers of a run's models.

    Args:
        recipe: The run's recipe.
        store: The run folder.
    """

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self._recipe, self._store = recipe, store
        self._keys: dict[Place, str] = {}
        self._parts: dict[Place, list[Path]] = {}
        self._drafted: list[Completion] = []

    def whole(self, subject: Subject, split: Half, name: Kind, prompts: Sequence[Prompt]) -> str:
        """Ask a model a whole set, but for what it was asked before; returns the step's key."""
        place = subject.point, split, name
        step, inputs, path = self._step(subject, name, split, prompts)
        self._keys[place] = self._store.once(
            step, inputs, [path], lambda: self._write(step, subject, name, prompts, path, place, self._known(place))
        )
        return self._keys[place]

    def some(
        self,
        subject: Subject,
        split: Half,
        name: Kind,
        prompts: Sequence[Prompt],
        all_prompts: Sequence[Prompt],
    ) -> list[Completion]:
        """Ask a model some prompts of a set, but for what it was asked before, of the whole set or of some.

        `whole` takes these completions over. A step each, so that a search which is stopped goes on: asked the same in
        the same order, it does nothing twice.

        Args:
            subject: The model.
            split: A half of the set.
            name: The set.
            prompts: Prompts of it.
            all_prompts: The whole of it.

        Returns:
            Their completions, in the order of the prompts; the first of each where there are several.
        """
        place = subject.point, split, name
        step, inputs, path = self._step(subject, name, split, all_prompts)
        if place not in self._keys and self._store.is_done(step, key_of([step, inputs]), [path]):
            self._keys[place] = self._store.once(step, inputs, [path], lambda: None)
        known = self._known(place)
        missing = [prompt for prompt in prompts if prompt.id not in known]
        if missing:
            parts = self._parts.setdefault(place, [])
            part, inputs[1] = f"{step}, part {len(parts) + 1}", prompts_digest(missing)
            out = path.with_name(f"{path.stem}.part-{len(parts) + 1}.jsonl")
            self._store.once(part, inputs, [out], lambda: self._write(part, subject, name, missing, out, place, {}))
            parts.append(out)
            known = self._known(place)
        return [known[prompt.id] for prompt in prompts]

    def _step(
        self, subject: Subject, name: Kind, split: Half, prompts: Sequence[Prompt]
    ) -> tuple[str, list[Any], Path]:
        """The step of a model's answers to a set: its name, all that they hang on, and their file."""
        section = self._recipe.generate
        inputs = [
            subject.key,
            prompts_digest(prompts),
            dataclasses.asdict(self._recipe.generate.sampling(name, self._recipe.seed)),
            self._recipe.system,
            [section.engine, section.batch_size, section.dtype, section.device, *versions(section.engine)],
        ]
        path = self._store.folder / "completions" / subject.point.folder / f"{name}-{split}.jsonl"
        return f"{subject.point.label}: answer {name} ({split})", inputs, path

    def _write(
        self,
        step: str,
        subject: Subject,
        name: Kind,
        prompts: Sequence[Prompt],
        path: Path,
        place: Place,
        known: Mapping[str, Completion],
    ) -> None:
        """Answer prompts into a file, with the nearest λ's answers as drafts."""
        settings = self._recipe.generate.sampling(name, self._recipe.seed)
        section = self._recipe.generate
        helps = section.drafts and section.engine == "transformers" and settings.temperature == 0
        near = self._nearest(place) if helps else None
        drafts = {} if near is None else {key: c.text for key, c in self._known(near).items()}
        made_by = {"model": subject.key} | ({} if near is None else {"drafts": near[0].key})
        made = complete_to_file(
            subject.engine(),
            prompts,
            settings,
            path,
            made_by=made_by,
            drafts=drafts,
            known=known,
            on_event=self._tick(step),
        )
        self._drafted += [c for c in made if c.key not in known and "accepted" in c.made_by]

    def saved(self) -> float | None:
        """The share of tokens that drafts saved, of all answers that had drafts since it was last asked for."""
        share = accepted_share(self._drafted)
        self._drafted.clear()
        return share

    def _nearest(self, place: Place) -> Place | None:
        """Of the models that were asked the same so far in this run, the one with the nearest λ.

        Of a merge with λ by module that is the single λ which it began from. What was asked so far hangs on the recipe
        alone, not on where a run was stopped; so do the drafts.
        """
        own, split, name = place
        others = [p for p in {**self._keys, **self._parts} if p[1:] == (split, name) and p[0] != own]
        return min(others, key=lambda p: (abs(p[0].lam - own.lam), p[0]), default=None)

    def _known(self, place: Place) -> dict[str, Completion]:
        """What the model at a λ has answered so far, by key."""
        point, split, name = place
        whole = self._store.folder / "completions" / point.folder / f"{name}-{split}.jsonl"
        files = [whole] if place in self._keys else self._parts.get(place, [])
        return {completion.key: completion for path in files for completion in read_jsonl(path, Completion)}

    def _tick(self, step: str) -> OnEvent:
        return lambda event: self._store.emit(Event(step, "progress", event.done, event.total, "", event.tokens))


def versions(engine: str) -> list[str]:
    """Versions of the packages that answers of an engine depend on."""
    names = ("torch", "transformers", *(("vllm",) if engine == "vllm" else ()))
    installed = {name for name in names if next(iter(importlib.metadata.Distribution.discover(name=name)), None)}
    return [f"{name} {importlib.metadata.version(name) if name in installed else 'unknown'}" for name in names]


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

    def metrics(self, split: Half) -> tuple[Metric, ...]:
        """The task metrics of a split."""
        return task_metrics(self.recipe, self.sets, split)

    # --- ask ------------------------------------------------------------------------------------------------------

    def ask(self, subject: Subject, split: Half) -> None:
        """Ask a model all that a split asks; what was asked before is kept."""
        metrics = self.metrics(split)
        for name, prompts in asked(self.sets, split).items():
            if name != "task" or needs_completions(metrics):
                self._keys[subject.point, split, name] = self._answers.whole(subject, split, name, prompts)
        if needs_likelihoods(metrics):
            self._likelihood(subject, split, asked(self.sets, split)["task"])
        if split == "test" and self.recipe.score.lm_eval:
            self._lm_eval(subject)

    def ask_some(self, subject: Subject, split: Half, name: Kind, prompts: Sequence[Prompt]) -> list[Completion]:
        """Ask a model some prompts of a set, as `Answers.some`; `ask` takes these completions over."""
        return self._answers.some(subject, split, name, prompts, asked(self.sets, split)[name])

    def saved(self) -> float | None:
        """As `Answers.saved`."""
        return self._answers.saved()

    def _likelihood(self, subject: Subject, split: Half, prompts: list[Prompt]) -> None:
        path, step = self._out(subject) / f"likelihood-{split}.jsonl", f"{subject.point.label}: response loss ({split})"
        section = self.recipe.generate
        inputs = [subject.key, prompts_digest(prompts), self.recipe.system, section.batch_size, section.dtype]
        inputs += versions(section.engine)
        self._keys[subject.point, split, "likelihood"] = self.store.once(
            step,
            inputs,
            [path],
            lambda: likelihood_to_file(
                subject.engine(), prompts, path, made_by={"model": subject.key}, on_event=self._tick(step)
            ),
        )

    def _lm_eval(self, subject: Subject) -> None:
        section = self.recipe.score
        path, step = self._out(subject) / "lm-eval.json", f"{subject.point.label}: lm-eval {', '.join(section.lm_eval)}"

        def make() -> None:
            result = run_tasks(
                subject.engine(),
                section.lm_eval,
                limit=section.lm_eval_limit,
                seed=self.recipe.seed,
                keep=path.with_name("lm-eval-answers.jsonl"),
                made_by={"model": subject.key},
                on_event=lambda event: self.store.emit(Event(step, "progress", event.done, event.total)),
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
        self._keys[subject.point, "test", "lm_eval"] = self.store.once(step, inputs, [path], make)

    # --- judge and score ------------------------------------------------------------------------------------------

    def score(self, subject: Subject, split: Half) -> Trial:
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
            trial = Trial(point=subject.point, method=self.recipe.merge.method, split=split, scores=scores)
            atomic_text(path, json.dumps(to_dict(trial), ensure_ascii=False, indent=1) + "\n")

        keys = {what: key for (point, half, what), key in self._keys.items() if (point, half) == (subject.point, split)}
        section = self.recipe.score
        inputs = [keys, verdicts, self.metrics(split), section.bertscore_model, section.bertscore_layer]
        self.store.once(f"{subject.point.label}: score ({split})", [*inputs, self.recipe.seed], [path], make)
        return read_record(path, Trial)

    def hits(self, points: Sequence[MergePoint], split: Half) -> dict[str, dict[MergePoint, dict[str, bool | None]]]:
        """What the deciding judge said of each prompt, by score (`asr`, `over_refusal`) and model, once scored."""
        found: dict[str, dict[MergePoint, dict[str, bool | None]]] = {}
        for name, score in (("safety", "asr"), ("over_refusal", "over_refusal")):
            if name not in asked(self.sets, split):
                continue
            for point in points:
                file = verdict_file(name, split, self.judging.of(name)[0])
                verdicts = read_jsonl(self.store.folder / "completions" / point.folder / file, Verdict)
                said = {v.prompt_id: v.harmful if name == "safety" else v.refused for v in verdicts}
                found.setdefault(score, {})[point] = said
        return found

    def _judge(self, subject: Subject, judge: str, name: Kind, split: Half, prompts: list[Prompt]) -> str:
        out = self._out(subject)
        path, step = out / verdict_file(name, split, judge), f"{subject.point.label}: judge {name} ({split}) by {judge}"

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

        inputs = [self._keys[subject.point, split, name], self.judging.about(judge), self.judging.label(judge)]
        return self.store.once(step, inputs, [path], make)

    def _safety_scores(self, out: Path, judge: str, name: Kind, split: Half, prompts: list[Prompt]) -> dict[str, Score]:
        assert name != "task"
        verdicts = read_jsonl(out / verdict_file(name, split, judge), Verdict)
        scores = self.judging.scores(judge, name, verdicts)
        if name == "safety" and any(SET in p.extra for p in prompts):
            scores |= attack_success_by({p.id: p.extra[SET] for p in prompts}, verdicts)
        return scores

    def _task_scores(self, out: Path, split: Half, prompts: list[Prompt]) -> dict[str, Score]:
        metrics, section = self.metrics(split), self.recipe.score
        if not metrics:
            return {}
        completions = read_jsonl(out / f"task-{split}.jsonl", Completion) if needs_completions(metrics) else []
        losses = read_jsonl(out / f"likelihood-{split}.jsonl", Likelihood) if needs_likelihoods(metrics) else []
        data = TaskData(
            prompts=prompts,
            completions=completions,
            likelihoods=losses,
            seed=self.recipe.seed,
            bertscore_model=section.bertscore_model,
            bertscore_layer=section.bertscore_layer,
            unsafe_exec=section.unsafe_exec,
        )
        return task_scores(metrics, data)

    def _out(self, subject: Subject) -> Path:
        return self.store.folder / "completions" / subject.point.folder

    def _tick(self, step: str) -> OnEvent:
        return lambda event: self.store.emit(Event(step, "progress", event.done, event.total, "", event.tokens))


def _below(groups: Sequence[str], name: str) -> str:
    """The name of a task's score below that of its group: `lm_eval:bbh/bbh_cot_fewshot_navigate`."""
    return f"lm_eval:{'+'.join(groups)}/{name.removeprefix('lm_eval:')}"


def verdict_file(name: Kind, split: Half, judge: str) -> str:
    """Where a judge's verdicts on a set lie, below a model's completions."""
    return f"verdicts-{name}-{split}-{judge}.jsonl"
