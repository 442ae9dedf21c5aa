"""What a run will do and need, before it begins."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.config import Recipe, Select, Tune
from mooring.data import load_examples
from mooring.errors import FetchError
from mooring.ledger import LEDGER, read_ledger
from mooring.merge_point import grid
from mooring.metrics import needs_completions
from mooring.models import open_checkpoint
from mooring.models.resolve import resolve_model
from mooring.pipeline.judging import Judging
from mooring.pipeline.preflight import check_selection, downloads, unavailable
from mooring.pipeline.sets import Sets, asked, evaluation_sets, task_metrics
from mooring.records import Half

PYTHON = 3 * 2**28
"""Bytes that Python, torch and the libraries take by themselves, about."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A run, foretold.

    Attributes:
        stages: (stage, what it will do), in order.
        facts: What else a person would ask: the run folder, and how much of it is done.
        disk: Bytes that the run will have on the disk at its fullest; `None` where the base's size is not known.
        memory: Bytes of memory at the fullest, about; `None` likewise.
    """

    stages: Sequence[tuple[str, str]]
    facts: Mapping[str, str]
    disk: int | None
    memory: int | None


def plan(recipe: Recipe) -> Plan:
    """What `run` would do with a recipe; reads the data sets, and writes nothing.

    Models that are not here are not fetched. What the run would lack here (a package, a sandbox, a judge's folder) is
    among the facts.

    Raises:
        UserError: The recipe contradicts itself, has too few prompts for its bound, or a data set or a local model
            cannot be read. A set that would have to be fetched, and cannot be, is said to be missing instead.
    """
    merge_settings(recipe)
    missing: dict[str, str] = {}
    sets = evaluation_sets(recipe, missing)
    size, config = _base(recipe.base)
    facts = {"run folder": f"{recipe.folder}, {_state(recipe.folder)}"}
    if size is None:
        facts["base"] = f"{recipe.base} is not on this machine yet: it will be fetched, and its size is not known"
    judging = Judging(recipe.score.judges, lambda folder, measure: "")
    stages = _stages(recipe, sets, missing, judging)
    facts |= {f"not here: {ref}": why for ref, why in missing.items()}
    if not missing:
        check_selection(recipe, sets)
    metrics = {*task_metrics(recipe, sets, "validation"), *task_metrics(recipe, sets, "test")}
    if missing:  # of a task that cannot be read, what the recipe says
        metrics |= {*recipe.score.metrics, *recipe.score.validation_metrics}
    facts |= {f"cannot be had here: {name}": why for name, why in unavailable(recipe, metrics, judging, sets).items()}
    if afar := downloads(recipe, metrics, judging):
        facts["to be fetched"] = "; ".join(afar)
    if departures := recipe.departures():
        facts["departs from the paper"] = "; ".join(departures)
    return Plan(
        stages=stages,
        facts=facts,
        disk=None if size is None else disk(recipe, size),
        memory=None if size is None else _memory(recipe, size, config),
    )


def merge_settings(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says to the merging rule besides λ; what is drawn is drawn by the run's seed.

    Raises:
        UserError: The rule takes no such setting, or it is out of range.
    """
    from mooring.merging.methods import METHODS
    from mooring.merging.parameters import options_of

    method = recipe.merge.method
    given = recipe.merge.model_dump(exclude_none=True, exclude={"lambdas", "method"})
    settings = given | ({"seed": recipe.seed} if "seed" in METHODS[method].options else {})
    options_of(method, recipe.merge.lambdas[0], **settings)
    return settings


def disk(recipe: Recipe, size: int) -> int:
    """Bytes that a run has on the disk at its fullest, given those of one model's weights."""
    written = recipe.generate.engine != "transformers"  # which merges in memory; others are given a folder for each λ
    return (1 + written + (recipe.align is not None)) * size  # and the chosen model, and an aligned base


def _stages(recipe: Recipe, sets: Sets, missing: dict[str, str], judging: Judging) -> list[tuple[str, str]]:
    merged, halves = recipe.merge.lambdas, recipe.select.search == "bisect"
    stages = [("base", recipe.base)]
    if recipe.align:
        stages.append(("align", _tuning(recipe.align, recipe.seed, missing)))
    tuned = _tuning(recipe.tune, recipe.seed, missing) if recipe.tune else str(recipe.tuned)
    stages.append(("tune" if recipe.tune else "tuned", tuned))
    lams = "the λ that bisection tries" if halves else "λ = " + ", ".join(point.key for point in grid(merged))
    stages.append(("merge", f"{recipe.merge.method} at {lams}"))
    more = recipe.select.budget if recipe.select.search == "modules" else 0
    whole = 1 if halves else len(merged) + more
    asked_of: list[tuple[Half, int]] = [("validation", 2 + whole), ("test", 4 if more else 3)]
    for split, models in asked_of:
        parts, total = [], 0
        for name, prompts in asked(sets, split).items():
            samples = recipe.generate.sampling(name, recipe.seed).n
            if name == "task" and not needs_completions(task_metrics(recipe, sets, split)):
                continue
            parts.append(f"{len(prompts)} {name}" + (f" × {samples} samples" if samples > 1 else ""))
            total += models * len(prompts) * samples
        limit = recipe.generate.max_tokens
        most = "at most " if more else ""
        what = f"{split}: {most}{models} models × ({' + '.join(parts)}) = {total} responses of at most {limit} tokens"
        if halves and split == "validation":
            what += "; and of the search's other λ as many safety prompts as the evidence takes"
        stages.append(("generate", what))
    stages.append(("judge", ", ".join(judging.label(judge) for judge in judging.sections)))
    for split, _ in asked_of:
        metrics = [*task_metrics(recipe, sets, split), *(recipe.score.lm_eval if split == "test" else ())]
        if metrics:
            stages.append(("score", f"{split}: {', '.join(metrics)}"))
    stages.append(("select", _choosing(recipe.select)))
    stages.append(("report", str(recipe.folder / "report" / "index.html")))
    return stages


def _choosing(section: Select) -> str:
    """How λ is chosen, in a phrase."""
    if section.policy != "bound":
        return {"paper": "best task score, whatever the attack success rate", "knee": "knee"}[section.policy]
    most = f"the base's + {section.margin:g}" if section.bound is None else f"{section.bound:g}"
    sure = "" if section.confidence is None else f", {100 * section.confidence:g} % sure"
    merges = f"{section.budget} merge{'s' * (section.budget != 1)}"
    searches = {"bisect": ", by halves", "modules": f"; then λ by module, at most {merges}"}
    search = searches.get(section.search, "")
    return f"most task score with an attack success rate of at most {most}{sure}{search}"


def _tuning(section: Tune, seed: int, missing: dict[str, str]) -> str:
    try:
        count = len(load_examples(section.data, split="tune", seed=seed))
    except FetchError as error:
        missing[", ".join(section.data)] = str(error)
        return f"LoRA r={section.r} on {', '.join(section.data)}"
    kept = count - round(count * section.val_set_size)
    steps = section.max_steps or math.ceil(kept / section.per_device_train_batch_size * section.num_train_epochs)
    last = section.checkpoint_step or steps
    taken = f", taken at step {last}" if last < steps else ""
    rows = f"{', '.join(section.data)} ({count} rows)"
    return f"LoRA r={section.r}, {steps} steps of {section.per_device_train_batch_size}{taken} on {rows}"


def _base(ref: str) -> tuple[int | None, dict[str, object]]:
    """Bytes of a model's weights and its configuration, as far as they are on this machine."""
    folder = Path(ref).expanduser()
    if not folder.is_dir() and not ref.startswith("bundled:") and folder.suffix != ".gguf":
        if ref.startswith((".", "/", "~")):
            resolve_model(ref)  # says what is wrong with it
        return None, {}
    folder = resolve_model(ref)
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.nbytes, checkpoint.config


def _memory(recipe: Recipe, size: int, config: Mapping[str, object]) -> int:
    """Weights, the cache and logits of a batch at its longest, and Python itself."""

    def number(name: str, default: int) -> int:
        value = config.get(name, default)
        return value if isinstance(value, int) else default

    hidden, heads = number("hidden_size", 4096), number("num_attention_heads", 32)
    width = number("head_dim", hidden // heads) * number("num_key_value_heads", heads)
    tokens = recipe.generate.batch_size * (recipe.generate.max_tokens + 256)
    cache = 2 * 2 * tokens * width * number("num_hidden_layers", 32)
    logits = 4 * recipe.generate.batch_size * number("vocab_size", 128_000) * 3
    tuning = 0
    for section in (recipe.align, recipe.tune):
        if section is not None:
            row = 34 * hidden * number("num_hidden_layers", 32) + 12 * number("vocab_size", 128_000)
            tuning = max(tuning, section.per_device_train_batch_size * min(section.max_length, 256) * row)
    return PYTHON + size + max(cache + logits, tuning)


def _state(folder: Path) -> str:
    """How far a run folder is."""
    if not (folder / LEDGER).exists():
        return "not begun"
    done = sum(step.done for step in read_ledger(folder).steps.values())
    return f"{done} step{'s' * (done != 1)} done"
