"""Run lm-eval's tasks on a model, and return scores and samples."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring import jsonio
from mooring.chat import DEFAULT_SYSTEM, has_system_role
from mooring.config import Runner, settings
from mooring.errors import DataError, UserError
from mooring.events import OnEvent
from mooring.files import atomic_text
from mooring.inference.transformers import DEFAULT_BATCH_SIZE, TransformersEngine
from mooring.merge_methods import Role
from mooring.merging.pair import open_pair, resolved
from mooring.merging.tensor_value import Given as Lam
from mooring.models.resolve import resolve_model
from mooring.options import TaskOptions
from mooring.pipeline.lm_eval.scores import to_scores
from mooring.pipeline.lm_eval.tasks import lm_eval_version, load_tasks, seeded
from mooring.pipeline.open_model import open_model
from mooring.pipeline.plan import merge_options
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.quiet import quiet
from mooring.records import Score


@dataclasses.dataclass(frozen=True)
class LmEvalResult:
    """What lm-eval measured.

    Attributes:
        scores: `lm_eval:<name>` to the score of a group or a task; the requested ones first.
        samples: Request, answer and metrics, one per question and filter: `task`, and lm-eval's own fields.
    """

    scores: Mapping[str, Score]
    samples: Sequence[Mapping[str, Any]]

    def write_samples(self, path: Path) -> None:
        """Write the samples as JSON Lines."""
        lines = (jsonio.dumps(sample, default=_plain) for sample in self.samples)
        atomic_text(path, "".join(line + "\n" for line in lines))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """Which tasks of lm-eval are run, and how their questions are asked.

    Attributes:
        names: Tasks, groups and tags by lm-eval's names; `bbh` is BIG-Bench Hard, 3-shot with reasoning, 27 tasks.
        data: Local files instead of the hub's, as in `tasks.load_tasks`.
        limit: Only the first questions of each task.
        num_fewshot: Number of examples before each question; defaults to the task's own number.
        apply_chat_template: Ask by the model's chat template, with the engine's system prompt; a tokenizer without a
            template is asked in plain text.
        fewshot_as_multiturn: Examples are turns of the conversation; otherwise they are part of the question.
        seed: Seed of the choice of examples, and of sampling if a task samples.
    """

    names: Sequence[str]
    data: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        for name, number, least in (("limit", self.limit, 1), ("few-shot", self.num_fewshot, 0)):
            if number is not None and number < least:
                hint = f"give {least} or more, or omit it for all questions and the task's own number of examples"
                raise UserError(f"{name}: {number} is too few", hint, code="usage.out_of_range")


def run_tasks(
    model: Any,
    run: TaskRun,
    *,
    cache: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> LmEvalResult:
    """Run tasks of lm-eval on a `TransformersEngine`, or on any `lm_eval.api.model.LM`.

    `cache` is a file with an engine's answers, written per batch: a call that was killed resumes from it, with the same
    scores. `made_by` is what these answers depend on that the engine does not know, such as the model's digest.
    """
    loaded = load_tasks(run.names, data=run.data, num_fewshot=run.num_fewshot)
    import lm_eval
    from lm_eval.api.model import LM

    lm, system, chat = model, None, run.apply_chat_template
    if not isinstance(model, LM):
        from mooring.pipeline.lm_eval.model import MooringLM

        lm = MooringLM(model, seed=run.seed, cache=cache, made_by=made_by, on_event=on_event)
        chat = chat and bool(model.tokenizer.chat_template)
        # A template without a system role leaves out the default text; any other is put before the question.
        if chat and (has_system_role(model.tokenizer) or model.system != DEFAULT_SYSTEM):
            system = model.system
    multiturn = chat and run.fewshot_as_multiturn
    with quiet("datasets", "lm_eval"), seeded(run.seed):
        for task in loaded.tasks.values():
            task.set_fewshot_seed(seed=run.seed)
        try:
            results = lm_eval.evaluate(
                lm=lm,
                task_dict={"tasks": dict(loaded.tasks), "groups": dict(loaded.groups)},
                limit=run.limit,
                bootstrap_iters=0,  # intervals are computed from the samples
                system_instruction=system,
                apply_chat_template=chat,
                fewshot_as_multiturn=multiturn,
            )
        except LookupError as error:
            if type(error) is not LookupError:  # a KeyError or IndexError is a bug and keeps its traceback
                raise
            raise _missing_nltk_data(error) from error
    truncated = {} if lm is model else {name: lm.truncated[name] for name in loaded.tasks}
    conditions = [
        *["chat template"] * chat,
        *["system prompt"] * bool(system),
        *["examples as turns"] * multiturn,
        *([] if run.limit is None else [f"the first {run.limit} questions"]),
    ]
    notes = {
        name: ", ".join([*conditions, *([f"rows of {loaded.data[name].name}"] if name in loaded.data else [])])
        for name in loaded.tasks
    }
    scores = to_scores(results, loaded.names, f"lm-eval {lm_eval_version()}", notes, truncated)
    samples = [{"task": name, **row} for name, rows in results["samples"].items() for row in rows]
    return LmEvalResult(scores, samples)


def evaluate(
    model: str,
    tuned: str | None,
    tasks: Sequence[str],
    options: Mapping[str, Any],
    *,
    lam: "Lam | None",
    samples: Path | None,
    on_event: OnEvent | None,
) -> dict[str, Score]:
    """Run tasks on a model, or on a merge; arguments and errors as in `mooring.lm_eval`."""
    own = dict(options)
    popped = {name: own.pop(name, None) for name in TaskOptions.__annotations__}
    given = {name: value for name, value in popped.items() if value is not None}
    recipe = settings("lm_eval", own)
    lm_eval_version()  # before a model is downloaded
    if "data" in given:
        given["data"] = Path(given["data"])
    run = TaskRun(names=tasks, seed=recipe.seed, **given)
    engine = open_engine(
        model,
        tuned,
        lam=lam,
        method=recipe.merge.method,
        options=merge_options(recipe) if tuned else recipe.merge.options,
        references=recipe.merge.references,
        runner=recipe.generate,
        system=recipe.system,
    )
    result = run_tasks(engine, run, on_event=on_event)
    if samples is not None:
        result.write_samples(samples)
    return dict(result.scores)


def open_engine(
    base: str | Path,
    tuned: str | Path | None = None,
    *,
    lam: "Lam | None" = None,
    method: str = "linear",
    options: Mapping[str, Any] | None = None,
    references: Mapping[Role, str] | None = None,
    runner: Runner | None = None,
    system: str | None = DEFAULT_SYSTEM,
) -> TransformersEngine:
    """Load a model; or, if a tuned model is given, their merge in memory at λ.

    `options` are those of the method besides λ, and `references` its further models; they and λ require `tuned`.
    """
    runner = runner or Runner()
    runner = runner.model_copy(update={"batch_size": runner.batch_size or DEFAULT_BATCH_SIZE})  # lm-eval halves nothing
    if tuned is None:
        if lam is not None or options or references:
            given = "λ" if lam is not None else next(iter((*(options or {}), *(references or {}))))
            what = f"{given} is given, but no tuned model"
            raise UserError(what, "name the tuned model too, or omit it", code="usage.no_tuned_model")
        engine = open_model(resolve_model(str(base)), runner.model_copy(update={"engine": "transformers"}), system)
        assert isinstance(engine, TransformersEngine)
        return engine
    if lam is None and method != "model_stock":
        hint = "give λ, or name it as the only model"
        raise UserError(f"{tuned}: there is no λ to merge it with", hint, code="usage.no_lam")
    folders = resolved(references or {})
    pair = open_pair(resolve_model(str(base)), resolve_model(str(tuned)), references=folders)
    spec = SweepSpec(pair=pair, method=method, options=options or {}, runner=runner, system=system)
    with MergedModel(spec) as merged:
        return merged.at(lam)


def _missing_nltk_data(error: LookupError) -> DataError:
    """nltk's own error spans many lines."""
    match = re.search(r"Resource\W+(?:\[\d+m)?(\w+)", str(error))
    name = match[1] if match else "popular"
    return DataError(
        f"lm-eval: nltk's {name}, which a task needs, is not on this machine",
        f"run: python -m nltk.downloader {name}",
        code="data.missing_nltk_data",
    )


def _plain(value: Any) -> Any:
    """For values that JSON has no type for: numpy's numbers become numbers, anything else text."""
    return value.item() if hasattr(value, "item") else str(value)
