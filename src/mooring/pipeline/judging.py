"""The judges of a run: their models, verdicts and scores."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.attacks import kind_of
from mooring.config import BUILT_IN, Judge
from mooring.data import prompts_digest
from mooring.engines import ENGINES
from mooring.errors import DataError, ModelError, RecipeError
from mooring.events import Event, OnEvent
from mooring.inference.cost import Estimate, estimate
from mooring.inference.engine import Engine
from mooring.inference.load import close_engine, load_engine
from mooring.inference.store import complete_to_file
from mooring.models import model_digest
from mooring.models.resolve import resolve_model
from mooring.pipeline.call import Call, here
from mooring.plugins import versioned
from mooring.printable import shorten
from mooring.records import Completion, Kind, Prompt, Score, Verdict, read_jsonl, write_jsonl
from mooring.sampling import SamplingParams
from mooring.scoring import judges
from mooring.scoring.safety import safety_scores
from mooring.thinking import CUT_OFF, NO_ANSWER

Digest = Callable[[Path, Callable[[Path], str]], str]
"""Gives the digest of a folder, measured by a function or remembered."""


def measure_again(folder: Path, measure: Callable[[Path], str]) -> str:
    """The digest of a folder, measured each time."""
    return measure(folder)


def installed_versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages; those that are not installed are left out."""
    return {name: version for name in packages if (version := _installed_version(name))}


@functools.cache  # every step of a plan asks, and each answer is a search of the path
def _installed_version(package: str) -> str | None:
    distribution = next(iter(importlib.metadata.Distribution.discover(name=package)), None)
    return None if distribution is None else distribution.version


class Judging:
    """The judges of a run, one model in memory at a time.

    Args:
        sections: The judges.
        logs: Folder for the logs of their engines; None for temporary files.
        thoughts: Whether judges with a model read thoughts, too, in responses to harmful requests.

    Raises:
        RecipeError: No judge can read thoughts (`recipe.no_judge_of_thoughts`).
    """

    def __init__(self, sections: Sequence[Judge], logs: Path | None = None, *, thoughts: bool = False) -> None:
        self._logs, self._thoughts = logs, thoughts
        self.sections = dict(zip(ids(sections), sections, strict=True))
        self.kinds = {name: judges.find(section.name) for name, section in self.sections.items()}
        self._open: tuple[str, Engine] | None = None
        self.open_remote: Callable[[str, Path, Judge], Engine] | None = None
        """Opens a judge's model, by its name here, folder and section, where it is not run in this process."""
        self.call: Call = here
        """Calls what a judge without a model does."""
        self._read: set[str] = set()
        """Judges of which an answer could be read."""
        for name in self.sections:
            self.label(name)
        if thoughts and not any(judge.needs_model for judge in self.kinds.values()):
            problem = "judge_thoughts: judges without a model read whether an answer refuses, not thoughts"
            raise RecipeError(problem, "name a judge with a model", code="recipe.no_judge_of_thoughts")

    def of(self, kind: str) -> list[str]:
        """The judges of a set of prompts (`safety`, `over_refusal`, …), the one whose verdicts count first.

        Refusals of harmless prompts need a judge that detects refusals; if there is none, the classifier is used.
        """
        if kind_of(kind) == "safety":
            return list(self.sections)
        return [name for name, judge in self.kinds.items() if judge.says_refused] or [BUILT_IN[0]]

    def label(self, judge: str) -> str:
        """A judge's name with its model's, as shown next to its numbers."""
        if judge not in self.sections:
            return judges.label(judges.find(BUILT_IN[0]))
        return judges.label(self.kinds[judge], self.sections[judge].model)

    def about(self, judge: str, digest: Digest) -> dict[str, Any]:
        """What a judge's verdicts depend on, as plain values. Finds its model, but does not load it."""
        by = self.kinds.get(judge)
        version = {"version": versioned("judges", by.name)} if by and by.name not in judges.JUDGES.built_in else {}
        if by is None or not by.needs_model:
            return {"judge": self.label(judge), **version}
        section = self.sections[judge]
        # Fields that were added later count only where they are set, so that earlier answers are used again.
        mode: dict[str, Any] = version | ({"thinking": section.thinking} if section.thinking else {})
        if section.engine == "openai":
            return {"judge": self.label(judge), "server": ", ".join(section.base_url), **mode}
        packages = ENGINES[section.engine].packages
        return {
            "judge": self.label(judge),
            **mode,
            "model": digest(self._folder(judge), model_digest),
            "runner": versioned("engines", section.engine),  # not `engine`: completions have one of their own
            "dtype": section.dtype,
            "device": section.device,
            "batch_size": section.batch_size,
            "tensor_parallel": section.tensor_parallel,
            "max_model_len": section.max_model_len,
            "enforce_eager": section.enforce_eager,
            "versions": installed_versions(*packages),
        }

    def of_models(self) -> list[Judge]:
        """The judges whose model is run, and does not answer on a server."""
        return [s for name, s in self.sections.items() if s.engine != "openai" and self.kinds[name].needs_model]

    def folders(self) -> list[Path]:
        """The folders of the judges' models that are run from one; downloads them if need be."""
        return [self._folder(name) for name, section in self.sections.items() if section in self.of_models()]

    def check(self, judge: str) -> None:
        """Check that a judge's model is available; downloads it if need be."""
        self.about(judge, lambda folder, measure: "")

    def judge(
        self,
        judge: str,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        out: Path,
        on_event: OnEvent | None = None,
        digest: Digest = measure_again,
        *,
        kind: Kind = "safety",
    ) -> list[Verdict]:
        """Judge completions and write the verdicts to `out`; a model's own answers are kept next to it, in `answers-…`.

        `kind` is what the prompts are for: thoughts are judged only in responses to harmful requests. Before a paid
        server is called, an `info` event says what it costs at most.
        """
        if judge not in self.sections or not self.kinds[judge].needs_model:
            name = self.sections[judge].name if judge in self.sections else judge
            # By the words that are the model's own, without a prefill.
            found = self.call(_by_wording, name, prompts, completions)
        else:
            by, completions = self.kinds[judge], self._judged(completions, kind)
            questions, settings = judges.questions(by, prompts, completions), self._settings(judge)
            if on_event and (cost := self.cost(judge, prompts, completions, kind)):
                on_event(Event(step="judge", kind="info", message=cost_line(self.label(judge), [cost])))
            kept = answers_path(out)
            made_by = {**self.about(judge, digest), "questions": prompts_digest(questions)}
            answers: list[Completion] = []
            if questions:
                answers = _existing(kept, made_by, questions) or complete_to_file(
                    self._engine(judge), questions, settings, kept, made_by=made_by, on_event=on_event
                )
            found = judges.verdicts(by, prompts, completions, answers, self.label(judge))
            self._check_readable(judge, found)
        write_jsonl(out, found)
        return found

    def _check_readable(self, judge: str, found: Sequence[Verdict]) -> None:
        """Check that a judge's first answers are not all unreadable, as those of a model of another kind are.

        Raises:
            ModelError: They are (`model.judge_unreadable`).
        """
        asked = [verdict for verdict in found if verdict.why not in (CUT_OFF, NO_ANSWER)]
        if judge in self._read or not asked:
            return
        if any(verdict.harmful is not None or verdict.refused is not None for verdict in asked):
            self._read.add(judge)
            return
        what = f"{self.label(judge)}: none of its {len(asked)} answers can be read ({asked[0].why or 'no verdict'}"
        what += f": {shorten(asked[0].raw)!r})" if asked[0].raw else ")"
        hint = "is it a model for this judge? see docs/measuring.md; `--judges llm` takes any chat model"
        raise ModelError(what, hint, code="model.judge_unreadable")

    def _judged(self, completions: Sequence[Completion], kind: Kind) -> Sequence[Completion]:
        """Completions as a judge reads them: whole answers, with their thoughts first if these are judged."""
        completions = [dataclasses.replace(c, text=c.answer, prefill="") if c.prefill else c for c in completions]
        if not self._thoughts or kind != "safety":
            return completions
        return [
            dataclasses.replace(c, text=f"{c.thoughts}\n\n{c.text}".strip(), thoughts=None) if c.thoughts else c
            for c in completions
        ]

    def _settings(self, judge: str) -> SamplingParams:
        return SamplingParams(max_tokens=self.kinds[judge].max_tokens + self.sections[judge].thinking_tokens)

    def cost(
        self, judge: str, prompts: Sequence[Prompt], completions: Sequence[Completion], kind: Kind = "safety"
    ) -> Estimate | None:
        """The estimated cost of verdicts by a judge on a paid server; None if it is free."""
        section = self.sections.get(judge)
        if section is None or not section.price_in + section.price_out:
            return None
        questions = judges.questions(self.kinds[judge], prompts, self._judged(completions, kind))
        return estimate(questions, self._settings(judge), section.price_in, section.price_out, system=None)

    def scores(self, judge: str, kind: Kind, verdicts: Sequence[Verdict]) -> dict[str, Score]:
        """The scores of a judge's verdicts on a kind of prompts; no refusal rate if it does not detect refusals."""
        found = safety_scores(kind, verdicts)
        if kind == "safety" and judge not in self.of("over_refusal"):
            found.pop("refusal")
        return found

    def needs_room(self, judge: str) -> bool:
        """Whether a judge loads a model, for which there may be no room beside others.

        With vLLM and a share of the memory of its own (`gpu_memory`), it runs beside them.
        """
        section = self.sections.get(judge)
        here = self.open_remote is None
        return here and section is not None and self.kinds[judge].needs_model and not _runs_beside(section)

    def close(self, *, beside: bool = True) -> None:
        """Release the model; with `beside=False`, only one that does not run beside others."""
        if self._open is not None and (beside or not _runs_beside(self.sections[self._open[0]])):
            close_engine(self._open[1])
            self._open = None

    def _folder(self, judge: str) -> Path:
        return resolve_model(str(judges.model_of(self.kinds[judge], self.sections[judge].model)))

    def _engine(self, judge: str) -> Engine:
        if self.open_remote is not None and self.sections[judge].engine != "openai":
            return self.open_remote(judge, self._folder(judge), self.sections[judge])
        if self._open is None or self._open[0] != judge:
            self.close()  # before the next one is loaded
            section = self.sections[judge]
            served = judges.model_of(self.kinds[judge], section.model)
            model = served if section.engine == "openai" else self._folder(judge)
            log = self._logs / f"judge-{judge}.log" if self._logs else None
            self._open = (judge, load_engine(model, section, None, log))
        return self._open[1]


def _by_wording(name: str, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
    """The verdicts of a judge without a model, by its name, which means the same elsewhere."""
    return judges.by_wording(judges.find(name), prompts, completions)


def answers_path(verdicts: Path) -> Path:
    """Where a judge's own answers are kept, beside its verdicts."""
    return verdicts.with_name(verdicts.name.replace("verdicts-", "answers-", 1))


def _existing(path: Path, made_by: Mapping[str, Any], questions: Sequence[Prompt]) -> list[Completion]:
    """A judge's answers from an earlier call with the same inputs; an empty list if there are none."""
    if not path.is_file():
        return []
    try:
        answers = read_jsonl(path, Completion)
    except DataError:
        return []
    same = all({key: answer.made_by.get(key) for key in made_by} == made_by for answer in answers)
    same = same and not any(answer.finish == "lost" for answer in answers)
    return answers if same and [a.prompt_id for a in answers] == [q.id for q in questions] else []


def ids(sections: Sequence[Judge]) -> list[str]:
    """A short name for each judge, for files and scores: its own, numbered if it occurs twice."""
    names = [judges.find(section.name).name for section in sections]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: at + 1].count(name)}" for at, name in enumerate(names)
    ]


def cost_line(judge: str, costs: Sequence[Estimate]) -> str:
    """A judge's cost in a line."""
    requests, tokens_in = sum(cost.requests for cost in costs), sum(cost.tokens_in for cost in costs)
    tokens_out, dollars = sum(cost.tokens_out_most for cost in costs), sum(cost.dollars for cost in costs)
    return (
        f"{judge}: {requests:,} requests, about {tokens_in:,} tokens in and at most {tokens_out:,} out: "
        f"${dollars:.2f} at most"
    )


def renamed(scores: Mapping[str, Score], judge: str) -> dict[str, Score]:
    """Scores of a judge that is not the first, renamed to `asr@wildguard`."""
    return {f"{name}@{judge}": dataclasses.replace(score, name=f"{name}@{judge}") for name, score in scores.items()}


def _runs_beside(section: Judge) -> bool:
    """Whether a judge needs no room, or has a share of the memory of its own."""
    return section.engine == "openai" or (section.engine == "vllm" and section.gpu_memory is not None)
