"""What a run will do and need, for `--dry-run`: read from its steps, without opening a model that is not here."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.config import Recipe, Select
from mooring.config import Tune as TuneConfig
from mooring.export import Record
from mooring.ledger import LEDGER, read_ledger
from mooring.merge_methods import METHODS
from mooring.models import open_checkpoint, refuse_quantized
from mooring.models.classes import text_fields
from mooring.models.resolve import local_model
from mooring.pipeline.baselines import in_words
from mooring.pipeline.lengths import describe
from mooring.pipeline.plan import HALVES, Plan, build
from mooring.pipeline.preflight import check_models, check_room, check_selection, disk_bytes, downloads, unavailable
from mooring.pipeline.run_folder import check_place
from mooring.pipeline.steps import Generate
from mooring.records import Half

PYTHON = 3 * 2**28
"""Bytes that Python, torch and the libraries take by themselves, about."""


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast(Record):
    """What a run will do and need.

    Attributes:
        stages: (stage, what it will do), in order.
        facts: Other facts for people, such as the run folder and how much of it is done.
        disk: The most bytes that the run will have on the disk; None if the base's size is not known.
        memory: The most bytes of memory, about; None if the base's size is not known.
    """

    stages: Sequence[tuple[str, str]]
    facts: Mapping[str, str]
    disk: int | None
    memory: int | None


def forecast(recipe: Recipe) -> Forecast:
    """What `run` would do with a recipe; reads the data sets, and writes and downloads nothing."""
    check_place(recipe.folder, (recipe.base, *recipe.tuned_models.values()))
    plan = build(recipe, skip_missing=True)
    base = local_model(recipe.base)
    size, config = (None, {}) if base is None else _size(base)
    facts = {"run folder": f"{recipe.folder}, {_state(plan)}"}
    if size is None:
        facts["base"] = f"{recipe.base} is not on this machine yet: it will be downloaded, and its size is not known"
    facts |= {f"not here: {ref}": why for ref, why in plan.missing.items()}
    if plan.notes:
        facts["not read"] = "; ".join(note.replace(": fields that are not read", "") for note in plan.notes)
    if not plan.missing:
        check_selection(plan)
    if base is not None and not plan.paths.results.exists():
        here = {name: local_model(ref) for name, ref in recipe.tuned_models.items()}
        further = {role: folder for role, ref in recipe.merge.references.items() if (folder := local_model(ref))}
        check_models(plan, base, {name: folder for name, folder in here.items() if folder}, further)
        if not plan.series and not plan.paths.model.exists():
            check_room(plan, base)
    if plan.skipped:
        facts["left out"] = describe(plan.skipped)
    facts |= {f"not available here: {name}": why for name, why in unavailable(plan).items()}
    if remote := downloads(plan):
        facts["to be downloaded"] = "; ".join(remote)
    if departures := recipe.departures():
        facts["departs from the paper"] = "; ".join(departures)
    return Forecast(
        stages=_stages(plan),
        facts=facts,
        disk=None if size is None else disk_bytes(recipe, size),
        memory=None if size is None else _memory_bytes(recipe, size, config),
    )


def _stages(plan: Plan) -> list[tuple[str, str]]:
    recipe, search = plan.recipe, plan.recipe.select.search
    lams = (
        "the λ of the bisection" if search == "bisect" else f"λ = {', '.join(f'{x:g}' for x in recipe.merge.lambdas)}"
    )
    stages = [("base", recipe.base)]
    if recipe.align:
        stages.append(("align", _tuning(plan, "align", recipe.align)))
    stages += [
        ("tune", _tuning(plan, "tune", recipe.tune))
        if recipe.tune
        else ("tuned", ", ".join(recipe.tuned_models.values())),
        *([("compare with", _baselines(recipe))] if recipe.compare_with else []),
        ("merge", _merging(plan, lams)),
        *(("generate", _generation(plan, split)) for split in HALVES),
        ("judge", ", ".join(plan.judging.label(judge) for judge in plan.judging.sections)),
    ]
    for split in HALVES:
        if metrics := [*plan.metrics[split], *(recipe.score.lm_eval if split == "test" else ())]:
            stages.append(("score", f"{split}: {', '.join(metrics)}"))
    return [*stages, ("select", _selection(recipe.select)), ("report", str(plan.paths.report / "index.html"))]


def _merging(plan: Plan, lams: str) -> str:
    """The methods and what they are tried at, in a phrase."""
    methods = [METHODS[name] for name in plan.recipe.merge.compared]
    parts = [f"{', '.join(method.name for method in methods if method.has_lam)} at {lams}".removeprefix(" at ")]
    if not any(method.has_lam for method in methods):
        parts = []
    parts += [f"{method.name} of all tuned models" for method in methods if not method.has_lam]
    return "; ".join(parts) + (f" ({len(plan.series)} series, each asked once)" if plan.series else "")


def _generation(plan: Plan, split: Half) -> str:
    """How many responses are generated on a split, in a phrase."""
    search, prompts = plan.recipe.select.search, plan.prompts(split)
    work = {
        step.work: step.units or 0
        for step in plan.steps.values()
        if isinstance(step.work, Generate) and step.work.split == split
    }
    parts = []
    for name in prompts:
        if any(each.name == name for each in work):
            n = plan.sampling(name).n
            turns = attack.turns if (attack := plan.attack(name)) else 1
            more = (f" × {n} samples" if n > 1 else "") + (f" × {turns} turns" if turns > 1 else "")
            parts.append(f"{len(prompts[name])} {name}{more}")
    models = f"{'at most ' if plan.recipe.select.by_module else ''}{len({each.point for each in work})} models"
    limit = max((plan.sampling(name).max_tokens for name in prompts), default=0)
    more = f"; and {' and '.join(plan.bisected)} prompts for other λ until the search ends" * (
        search == "bisect" and split == "validation"
    )
    total = sum(work.values())
    return f"{split}: {models} × ({' + '.join(parts)}) = {total} responses of at most {limit} tokens{more}"


def _selection(section: Select) -> str:
    """How λ is chosen, in a phrase."""
    if section.policy != "bound":
        return {"paper": "best task score, whatever the attack success rate", "knee": "knee"}[section.policy]
    most = f"the base's + {section.margin:g}" if section.bound is None else f"{section.bound:g}"
    sure = "" if section.confidence is None else f", with {100 * section.confidence:g} % confidence"
    merges = f"{section.budget} merge{'s' * (section.budget != 1)}"
    searches = {
        "bisect": ", by bisection",
        "modules": f"; then λ by module, at most {merges}",
        "gradient": f"; then λ by gradient ({section.groups}), and a test of the result",
    }
    search = searches.get(section.search, "")
    return f"best task score with an attack success rate of at most {most}{sure}{search}"


def _tuning(plan: Plan, stage: str, section: TuneConfig) -> str:
    if stage not in plan.examples:  # a data set that is not here
        return f"LoRA r={section.r} on {', '.join(section.data)}"
    count = len(plan.examples[stage])
    kept = count - round(count * section.val_set_size)
    batch = section.batch_size or section.per_device_train_batch_size
    steps = section.max_steps or math.ceil(kept / batch * section.num_train_epochs)
    last = section.checkpoint_step
    taken = f", taken at step {last}" if last and last < steps else ""
    return f"LoRA r={section.r}, {steps} steps of {batch}{taken} on {', '.join(section.data)} ({count} rows)"


def _baselines(recipe: Recipe) -> str:
    """The gentler tunings, and which of them cost a training of their own."""
    found = [
        f"{each.text} ({in_words(recipe, each)}{'; from the same training' * each.same_run})"
        for each in recipe.baselines
    ]
    return "; ".join(found)


def _size(folder: Path) -> tuple[int, dict[str, Any]]:
    """Bytes of a model's weights, and its configuration."""
    with open_checkpoint(folder) as checkpoint:
        refuse_quantized(checkpoint)
        return checkpoint.nbytes, checkpoint.config


def _memory_bytes(recipe: Recipe, size: int, config: dict[str, Any]) -> int:
    """Weights, the cache and logits of a batch at its longest, and Python itself."""

    fields = text_fields(config)

    def number(name: str, default: int) -> int:
        value = fields.get(name, default)
        return value if isinstance(value, int) else default

    hidden, heads = number("hidden_size", 4096), number("num_attention_heads", 32)
    width = number("head_dim", hidden // heads) * number("num_key_value_heads", heads)
    rows = recipe.generate.batch_size or 32
    tokens = rows * (recipe.generate.max_tokens + 256)
    cache = 2 * 2 * tokens * width * number("num_hidden_layers", 32)
    logits = 4 * rows * number("vocab_size", 128_000) * 3
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
