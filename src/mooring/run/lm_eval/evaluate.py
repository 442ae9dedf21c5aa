"""Run lm-eval's tasks on a model, and keep scores and samples."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import UserError
from mooring.files import atomic_text
from mooring.records import Score
from mooring.run.lm_eval.quiet import quiet, seeded, version
from mooring.run.lm_eval.scores import scores_of
from mooring.run.lm_eval.tasks import Tasks, load_tasks

if TYPE_CHECKING:
    from mooring.generate.transformers_engine import TransformersEngine

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class LmEvalResult:
    """What lm-eval found.

    Attributes:
        scores: `lm_eval:<name>` to the score of a group or a task; those that were asked for first.
        samples: What was asked, answered and found, one a question and filter: `task`, and lm-eval's own fields.
    """

    scores: Mapping[str, Score]
    samples: Sequence[Mapping[str, Any]]

    def write_samples(self, path: Path) -> None:
        """Write the samples as JSON Lines; the file appears whole or not at all.

        Raises:
            OutputError: The disk is full, or the folder may not be written.
        """
        lines = (json.dumps(sample, ensure_ascii=False, default=_plain) for sample in self.samples)
        atomic_text(path, "".join(line + "\n" for line in lines))


def run_tasks(
    model: "TransformersEngine | Any",
    tasks: Sequence[str],
    *,
    data: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = True,
    fewshot_as_multiturn: bool = True,
    seed: int = 42,
    on_progress: Progress | None = None,
    keep: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> LmEvalResult:
    """Run tasks of lm-eval on a model.

    Args:
        model: An engine on transformers, or any `lm_eval.api.model.LM`.
        tasks: Tasks, groups and tags as lm-eval names them; `bbh` is BIG-Bench Hard, 3-shot with reasoning, 27 tasks.
        data: Local files in place of the hub's; see `tasks.load_tasks`.
        limit: Only so many questions of each task.
        num_fewshot: Examples before each question; the task's own number without.
        apply_chat_template: Ask by the model's chat template, with the engine's system prompt; a tokenizer without a
            template is asked in plain text.
        fewshot_as_multiturn: Examples are turns of the conversation; else they stand in the one question.
        seed: Seed of the choice of examples, and of sampling where a task samples.
        on_progress: Called with (requests done, requests of this kind in all).
        keep: A file in which an engine's answers are kept batch by batch. Called again after a kill, with the same
            arguments, it goes on from there, and the scores are the same. It stays: more questions build on it.
        made_by: What those answers hang on that the engine does not know of itself, such as the model's digest.

    Raises:
        MissingExtraError: lm-eval, or what a task needs, is not installed.
        DataError: A data set cannot be had, or a task does not fit the model.
        UserError: A name is unknown, or a task looks at pictures or hears.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: {limit} is too few", "give 1 or more, or leave it out")
    loaded = load_tasks(tasks, data=data, num_fewshot=num_fewshot)
    import lm_eval
    from lm_eval.api.model import LM

    if isinstance(model, LM):
        asked, system, ours = model, None, None
    else:
        from mooring.run.lm_eval.model import MooringLM

        apply_chat_template = apply_chat_template and bool(model.tokenizer.chat_template)
        asked = ours = MooringLM(model, seed=seed, on_progress=on_progress, keep=keep, made_by=made_by)
        # A template without a system role leaves out the default text; any other goes before the question.
        shown = ours.takes_system() or model.system != DEFAULT_SYSTEM
        system = model.system if apply_chat_template and shown else None
    with quiet(), seeded(seed):
        for task in loaded.tasks.values():
            task.set_fewshot_seed(seed=seed)
        try:
            results = lm_eval.evaluate(
                lm=asked,
                task_dict={"tasks": dict(loaded.tasks), "groups": dict(loaded.groups)},
                limit=limit,
                bootstrap_iters=0,  # intervals are made from the samples
                system_instruction=system,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=apply_chat_template and fewshot_as_multiturn,
            )
        except LookupError as error:
            if type(error) is not LookupError:  # a KeyError or the like is a fault, and keeps its traceback
                raise
            raise UserError(*_nltk(error)) from error
    chat = ["chat template"] * apply_chat_template + ["system prompt"] * bool(system)
    chat += ["examples as turns"] * (apply_chat_template and fewshot_as_multiturn)
    notes = {name: ", ".join([*chat, *_notes(name, loaded, limit)]) for name in loaded.tasks}
    cut = {} if ours is None else {name: ours.cut[name] for name in loaded.tasks}
    scores = scores_of(results, loaded.names, f"lm-eval {version()}", notes, cut)
    samples = [{"task": name, **row} for name, rows in results["samples"].items() for row in rows]
    return LmEvalResult(scores, samples)


def _notes(name: str, loaded: Tasks, limit: int | None) -> list[str]:
    """What else a task's number hangs on."""
    said = [] if limit is None else [f"the first {limit} questions"]
    return said + ([f"rows of {loaded.data[name].name}"] if name in loaded.data else [])


def _nltk(error: LookupError) -> tuple[str, str]:
    """What is missing, and how to get it, where nltk looked for data of its own in vain."""
    found = re.search(r"Resource\W+(?:\[\d+m)?(\w+)", str(error))
    name = found[1] if found else "popular"
    return (
        f"lm-eval: nltk's {name}, which a task needs, is not on this machine",
        f"run: python -m nltk.downloader {name}",
    )


def _plain(value: Any) -> Any:
    """What JSON has no form for: numpy's numbers as numbers, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def score_lm_eval(
    base: str | Path,
    tuned: str | Path | None = None,
    *,
    tasks: Sequence[str],
    lam: Any = None,
    method: str = "linear",
    data: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = True,
    fewshot_as_multiturn: bool = True,
    seed: int = 42,
    samples: Path | None = None,
    on_progress: Progress | None = None,
    system: str | None = DEFAULT_SYSTEM,
    batch_size: int = 32,
    dtype: Any = "auto",
    device: str = "auto",
    **settings: Any,
) -> dict[str, Score]:
    """Run tasks of lm-eval on a model, or on the merge of two at λ, which is never written to disk.

    Args:
        base: A model's folder or hub id: the one to ask, or the base of the merge.
        tuned: A model that was tuned from it, or a LoRA adapter on it.
        tasks: As `run_tasks`'s, and so with the arguments that are not named here.
        lam: λ, the weight of the tuned model; it comes with `tuned`.
        method: A merging method's name; `settings` are its settings.
        samples: A file to keep the samples in, as JSON Lines.
        system: System prompt, where a chat template has a place for one.
        batch_size: Requests a batch.
        dtype: Type in memory; `auto` is the checkpoint's.
        device: `auto` is a GPU where there is one.

    Returns:
        `lm_eval:<name>` to its score; groups and tasks that were asked for first.

    Raises:
        UserError: As `run_tasks` and `merged.open_engine`.
    """
    version()
    from mooring.run.lm_eval.merged import open_engine
    from mooring.sources.models import resolve_model

    folders = [resolve_model(str(ref)) for ref in (base, tuned) if ref is not None]
    engine = open_engine(
        *folders, lam=lam, method=method, system=system, batch_size=batch_size, dtype=dtype, device=device, **settings
    )
    result = run_tasks(
        engine,
        tasks,
        data=data,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn,
        seed=seed,
        on_progress=on_progress,
    )
    if samples is not None:
        result.write_samples(samples)
    return dict(result.scores)
