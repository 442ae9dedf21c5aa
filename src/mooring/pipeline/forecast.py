"""What a run will do and need, for `--dry-run`: read from its steps, without opening a model that is not here."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring.config import Recipe, Select
from mooring.config import Tune as TuneConfig
from mooring.export import Record
from mooring.ledger import LEDGER, read_ledger
from mooring.models import open_checkpoint
from mooring.models.resolve import resolve_model
from mooring.pipeline.plan import Plan, build
from mooring.pipeline.preflight import check_selection, downloads, unavailable
from mooring.pipeline.steps import Generate
from mooring.records import Half

PYTHON = 3 * 2**28
"""Bytes that Python, torch and the libraries take by themselves, about."""


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast(Record):
    """What a run will do and need.

    Attributes:
        stages: (stage, what it will do), in order.
        facts: Other things that a person would ask: the run folder, and how much of it is done.
        disk: The most bytes that the run will have on the disk; None if the base's size is not known.
        memory: The most bytes of memory, about; None if the base's size is not known.
    """

    stages: Sequence[tuple[str, str]]
    facts: Mapping[str, str]
    disk: int | None
    memory: int | None


def forecast(recipe: Recipe) -> Forecast:
    """What `run` would do with a recipe; reads the data sets, and writes and downloads nothing.

    Raises:
        UserError: The run would refuse the recipe, or a data set or a local model cannot be read. What only lacks a
            download, a package or a sandbox is among the facts instead.
    """
    missing: dict[str, str] = {}
    plan = build(recipe, missing)
    size, config = _base(recipe.base)
    facts = {"run folder": f"{recipe.folder}, {_state(plan)}"}
    if size is None:
        facts["base"] = f"{recipe.base} is not on this machine yet: it will be downloaded, and its size is not known"
    facts |= {f"not here: {ref}": why for ref, why in missing.items()}
    if not missing:
        check_selection(recipe, plan.sets)
    metrics = {metric for half in plan.metrics.values() for metric in half}
    if missing:  # of a task that cannot be read, what the recipe says
        metrics |= {*recipe.score.metrics, *recipe.score.validation_metrics}
    lacks = unavailable(recipe, metrics, plan.judging, plan.sets)
    facts |= {f"not available here: {name}": why for name, why in lacks.items()}
    if remote := downloads(recipe, metrics, plan.judging):
        facts["to be downloaded"] = "; ".join(remote)
    if departures := recipe.departures():
        facts["departs from the paper"] = "; ".join(departures)
    return Forecast(
        stages=_stages(plan, missing),
        facts=facts,
        disk=None if size is None else disk_bytes(recipe, size),
        memory=None if size is None else _memory_bytes(recipe, size, config),
    )


def disk_bytes(recipe: Recipe, size: int) -> int:
    """The most bytes that a run has on the disk, given those of one model's weights."""
    written = recipe.generate.engine != "transformers"  # which merges in memory; others open a folder for each λ
    return (1 + written + (recipe.align is not None)) * size  # the chosen model, a merge, and an aligned base


def _stages(plan: Plan, missing: Mapping[str, str]) -> list[tuple[str, str]]:
    recipe = plan.recipe
    bisects, modules = recipe.select.search == "bisect", recipe.select.search == "modules"
    stages = [("base", recipe.base)]
    if recipe.align:
        stages.append(("align", _tuning(plan, "align", recipe.align)))
    tuned = _tuning(plan, "tune", recipe.tune) if recipe.tune else str(recipe.tuned)
    stages.append(("tune" if recipe.tune else "tuned", tuned))
    grid = ", ".join(f"{lam:g}" for lam in recipe.merge.lambdas)
    stages.append(
        ("merge", f"{recipe.merge.method} at {'the λ that the bisection asks for' if bisects else f'λ = {grid}'}")
    )
    halves: tuple[Half, ...] = ("validation", "test")
    for split in halves:
        work = [step for step in plan.steps.values() if isinstance(step.work, Generate) and step.work.split == split]
        models = {step.work.point for step in work if isinstance(step.work, Generate)}
        total = sum(step.units or 0 for step in work)
        parts = []
        for name, prompts in plan.prompts(split).items():
            if any(isinstance(step.work, Generate) and step.work.name == name for step in work):
                n = plan.sampling(name).n
                parts.append(f"{len(prompts)} {name}" + (f" × {n} samples" if n > 1 else ""))
        limit = max((plan.sampling(name).max_tokens for name in plan.prompts(split)), default=0)
        most = "at most " if modules else ""
        what = (
            f"{split}: {most}{len(models)} models × ({' + '.join(parts)}) = {total} responses of at most {limit} tokens"
        )
        if bisects and split == "validation":
            what += "; and as many safety prompts for other λ as the evidence takes"
        stages.append(("generate", what))
    stages.append(("judge", ", ".join(plan.judging.label(judge) for judge in plan.judging.sections)))
    for split in halves:
        metrics = [*plan.metrics[split], *(recipe.score.lm_eval if split == "test" else ())]
        if metrics:
            stages.append(("score", f"{split}: {', '.join(metrics)}"))
    stages.append(("select", _selection(recipe.select)))
    stages.append(("report", str(plan.paths.report / "index.html")))
    return stages


def _selection(section: Select) -> str:
    """How λ is chosen, in a phrase."""
    if section.policy != "bound":
        return {"paper": "best task score, whatever the attack success rate", "knee": "knee"}[section.policy]
    most = f"the base's + {section.margin:g}" if section.bound is None else f"{section.bound:g}"
    sure = "" if section.confidence is None else f", with {100 * section.confidence:g} % confidence"
    merges = f"{section.budget} merge{'s' * (section.budget != 1)}"
    searches = {"bisect": ", by bisection", "modules": f"; then λ by module, at most {merges}"}
    search = searches.get(section.search, "")
    return f"best task score with an attack success rate of at most {most}{sure}{search}"


def _tuning(plan: Plan, stage: str, section: TuneConfig) -> str:
    if stage not in plan.examples:  # a data set that is not here
        return f"LoRA r={section.r} on {', '.join(section.data)}"
    count = len(plan.examples[stage])
    kept = count - round(count * section.val_set_size)
    batch = section.per_device_train_batch_size
    steps = section.max_steps or math.ceil(kept / batch * section.num_train_epochs)
    last = section.checkpoint_step
    taken = f", taken at step {last}" if last and last < steps else ""
    return f"LoRA r={section.r}, {steps} steps of {batch}{taken} on {', '.join(section.data)} ({count} rows)"


def _base(ref: str) -> tuple[int | None, Mapping[str, object]]:
    """Bytes of a model's weights and its configuration, if they are on this machine."""
    folder = Path(ref).expanduser()
    if not folder.is_dir() and not ref.startswith("bundled:") and folder.suffix != ".gguf":
        if ref.startswith((".", "/", "~")):
            resolve_model(ref)  # which says what is wrong with it
        return None, {}
    with open_checkpoint(resolve_model(ref)) as checkpoint:
        return checkpoint.nbytes, checkpoint.config


def _memory_bytes(recipe: Recipe, size: int, config: Mapping[str, object]) -> int:
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


def _state(plan: Plan) -> str:
    """How much of a run is done."""
    if not (plan.paths.folder / LEDGER).exists():
        return "not started"
    done = sum(step.done for step in read_ledger(plan.paths.folder).steps.values())
    return f"{done} step{'s' * (done != 1)} done"
