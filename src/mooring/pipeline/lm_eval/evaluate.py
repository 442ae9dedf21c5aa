"""Run lm-eval's tasks on a model, and keep scores and samples."""

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import UserError
from mooring.files import atomic_text
from mooring.inference.transformers import Dtype, TransformersEngine
from mooring.pipeline.lm_eval.tasks import Tasks, load_tasks, quiet, seeded, version
from mooring.pipeline.merged_model import MergedModel
from mooring.records import Score
from mooring.stats import Z95, wilson

if TYPE_CHECKING:
    from mooring.inference.transformers import TransformersEngine


# --- From lm-eval's results to scores with intervals ---


PREFIX = "lm_eval:"
"""What the names of these scores begin with."""


def scores_of(
    results: Mapping[str, Any],
    names: Sequence[str],
    method: str,
    notes: Mapping[str, str],
    cut: Mapping[str, int] | None = None,
) -> dict[str, Score]:
    """A score for each group and each task: its first metric; the others are among the details.

    The interval is Wilson's where every single value is 0 or 1, else normal, from the values' own variance. A metric
    that is not the mean of its values (such as F1 over all) has none.

    Args:
        results: What `lm_eval.evaluate` gives, samples included.
        names: Groups and tasks that were asked for; they come first.
        method: Name and version of lm-eval.
        notes: Task to what else its numbers hang on, for the record.
        cut: Task to how many of its prompts lost tokens on their left, where that is known: `details["cut"]`.

    Returns:
        `lm_eval:<name>` to its score.
    """
    groups = results.get("group_subtasks", {})
    ordered = [*names, *(name for name in results["results"] if name not in names)]
    found = {}
    for name in ordered:
        score = _group(results, name, groups[name], method) if name in groups else _task(results, name, method, notes)
        if score is not None:
            leaves = _leaves(results, [name])
            found[score.name] = _with_cut(score, [cut[leaf] for leaf in leaves if cut and leaf in cut])
    return found


def _with_cut(score: Score, counts: Sequence[int]) -> Score:
    """The score with the number of prompts that were cut, which its method says, too, where there are any."""
    if not counts:
        return score
    total = sum(counts)
    said = f", {total} prompt{'' if total == 1 else 's'} cut from the left" if total else ""
    return dataclasses.replace(score, method=score.method + said, details={**score.details, "cut": total})


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of results, by `metric,filter`, without their standard errors."""
    return {
        key: float(value)
        for key, value in row.items()
        if "," in key and not key.split(",")[0].endswith("_stderr") and isinstance(value, (int, float))
    }


def _task(results: Mapping[str, Any], name: str, method: str, notes: Mapping[str, str]) -> Score | None:
    metrics = _metrics(results["results"][name])
    if not metrics:
        return None
    key, value = next(iter(metrics.items()))
    values = _values(results, name, key)
    low, high = interval(value, list(values.values()))
    shots = results["n-shot"].get(name, 0)
    said = f"{method}, {name} v{results['versions'].get(name)}, {shots}-shot, {key}"
    return Score(
        name=PREFIX + name,
        value=value,
        low=low,
        high=high,
        n=results["n-samples"][name]["effective"],
        better=_better(results, name, key),
        method=said + (f", {notes[name]}" if notes.get(name) else ""),
        details={other: number for other, number in metrics.items() if other != key},
        each=values if low is not None else {},
    )


def _group(results: Mapping[str, Any], name: str, members: Sequence[str], method: str) -> Score | None:
    """A group's score: lm-eval's, mostly the mean over all questions; `mean_of_tasks` weighs each task alike."""
    metrics = _metrics(results["results"].get(name, {}))
    if not metrics:
        return None
    key, value = next(iter(metrics.items()))
    leaves = list(_leaves(results, members))
    of_tasks = [number for leaf in leaves if (number := _metrics(results["results"][leaf]).get(key)) is not None]
    values = {f"{leaf}/{doc}": single for leaf in leaves for doc, single in _values(results, leaf, key).items()}
    low, high = interval(value, list(values.values()))
    shots = {results["n-shot"].get(leaf, 0) for leaf in leaves}
    shown = "/".join(str(number) for number in sorted(shots))
    return Score(
        name=PREFIX + name,
        value=value,
        low=low,
        high=high,
        n=sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
        better=_better(results, name, key),
        method=f"{method}, {name} v{results['versions'].get(name)}, {shown}-shot, {key}, {len(leaves)} tasks",
        details={other: number for other, number in metrics.items() if other != key}
        | {"mean_of_tasks": statistics.fmean(of_tasks), "tasks": len(leaves)},
        each=values if low is not None else {},
    )


def _leaves(results: Mapping[str, Any], members: Sequence[str]) -> Sequence[str]:
    groups = results.get("group_subtasks", {})
    found: dict[str, None] = {}
    for member in members:
        found.update(dict.fromkeys(_leaves(results, groups[member]) if member in groups else [member]))
    return list(found)


def _values(results: Mapping[str, Any], name: str, key: str) -> dict[str, float]:
    """A metric's value at every question, by its number; none where it has no such values."""
    metric, _, chosen = key.partition(",")
    rows = [row for row in results["samples"][name] if row["filter"] == chosen and metric in row]
    if not all(isinstance(row[metric], (int, float)) for row in rows):
        return {}
    return {str(row["doc_id"]): float(row[metric]) for row in rows}


def interval(value: float, values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean, or twice None where the value is not the mean of the single ones.

    Wilson's where all are 0 or 1; else normal: value ± 1.96 s/√n.
    """
    if not values or not math.isclose(statistics.fmean(values), value, rel_tol=1e-6, abs_tol=1e-9):
        return None, None
    if set(values) <= {0.0, 1.0}:
        return wilson(round(sum(values)), len(values))
    if len(values) < 2:
        return None, None
    half = Z95 * statistics.stdev(values) / math.sqrt(len(values))
    return value - half, value + half


def _better(results: Mapping[str, Any], name: str, key: str) -> Literal["higher", "lower"]:
    higher = results["higher_is_better"].get(name, {}).get(key.partition(",")[0])
    return "lower" if higher is False else "higher"


# --- A merge at any λ as an engine that can be asked, without a folder of its weights ---


def load_merged(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    *,
    lam: Any,
    method: str = "linear",
    system: str | None = DEFAULT_SYSTEM,
    batch_size: int = 32,
    dtype: Dtype = "auto",
    device: str = "auto",
    **settings: Any,
) -> TransformersEngine:
    """The model that `merge` would write at λ, as `TransformersEngine.load` would load it from there.

    On the CPU, in the type of the checkpoint, it takes the memory of one model. Configuration and tokenizer pass
    through a temporary folder.

    Args:
        base: Folder of the aligned model.
        tuned: Folder of the tuned model, or of a LoRA adapter on the base; or several of them.
        lam: λ, the weight of the tuned models.
        method: A name in `merge.rules.METHODS`.
        system: As the engine's.
        batch_size: As the engine's.
        dtype: Type in memory; `auto` is the checkpoint's.
        device: `auto` is a GPU where there is one.
        settings: Other settings of the method.

    Raises:
        UserError: As `MergedModel` and its `at`.
        ModelError: transformers cannot make a model of the merged tensors.
    """
    model = MergedModel(
        base, tuned, method=method, system=system, batch_size=batch_size, dtype=dtype, device=device, **settings
    )
    try:
        return model.at(lam)
    finally:
        model.close()


def open_engine(
    base: str | Path,
    tuned: str | Path | None = None,
    *,
    lam: Any = None,
    method: str = "linear",
    system: str | None = DEFAULT_SYSTEM,
    batch_size: int = 32,
    dtype: Dtype = "auto",
    device: str = "auto",
    **settings: Any,
) -> TransformersEngine:
    """A model as it lies in its folder, or, where a tuned model and λ are named too, their merge in memory.

    Args:
        base: A model's folder: a checkpoint, or an adapter on a base that lies here.
        tuned: A model that was tuned from it.
        lam: λ, the weight of the tuned model; it comes with `tuned`.
        method: As `load_merged`'s; it, too, means something only with `tuned`, and so do the rest.
        system: As `load_merged`'s.
        batch_size: As `load_merged`'s.
        dtype: As `load_merged`'s.
        device: As `load_merged`'s.
        settings: As `load_merged`'s.

    Raises:
        UserError: One of `tuned` and `lam` came without the other; or as `load_merged`.
        ModelError: The folder is not a model that can be loaded.
    """
    common: dict[str, Any] = {"system": system, "batch_size": batch_size, "dtype": dtype, "device": device}
    if tuned is None:
        if lam is not None or settings:
            what = "λ" if lam is not None else next(iter(settings))
            raise UserError(f"{what} is given, but no tuned model", "name the tuned model, too, or leave it out")
        return TransformersEngine.load(Path(base), **common)
    if lam is None and method != "model_stock":
        raise UserError(f"{tuned}: there is no λ to merge it with", "give λ, or name it as the one model")
    return load_merged(base, tuned, lam=lam, method=method, **common, **settings)


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
        from mooring.pipeline.lm_eval.model import MooringLM

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
    from mooring.models.resolve import resolve_model

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
