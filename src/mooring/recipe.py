"""The recipe: everything that a run needs to know, one model a stage.

A run is a function of its recipe and of the files and models that it names. Unknown keys are refused.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import RecipeError

Lambda = Annotated[float, Field(ge=0, le=1)]
Method = Literal[
    "linear",
    "slerp",
    "task_arithmetic",
    "lines",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "karcher",
]
Metric = Literal["call_match", "exact_match", "response_loss"]
GRID = (0.2, 0.4, 0.6, 0.8)
"""The paper's grid of λ."""


class Section(BaseModel):
    """What all sections share: frozen, and strict about their keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Tune(Section):
    """LoRA supervised fine-tuning; the defaults are the paper's."""

    data: tuple[str, ...] = Field(min_length=1)
    """Files, hub ids or bundled sets, joined in this order. One may carry a number of rows: `FILE#500`."""
    rank: int = Field(8, ge=1)
    """Rank r of the LoRA update."""
    alpha: float = Field(16, gt=0)
    """LoRA's α: the update is scaled by α / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of the LoRA layers."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which modules get an update."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    batch_size: int = Field(8, ge=1)
    """Examples a step, on each device."""
    epochs: float = Field(3, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many steps, whatever `epochs` says."""
    cutoff: int = Field(1024, ge=8)
    """Longest example in tokens; longer ones are cut at the end."""
    response_cutoff: int | None = Field(None, ge=1)
    """Learn only so many tokens of each response, from its beginning: where a refusal is decided."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the examples held out to measure the loss on."""
    save_every: int = Field(100, ge=1)
    """Steps between two checkpoints to resume from."""
    seed: int | None = None
    """Seed of data order, initialisation and dropout; the recipe's where it is not given."""


class Merge(Section):
    """θ = (1−λ)·base + λ·tuned, and its kin."""

    method: Method = "linear"
    """The merging rule (docs/methods.md)."""
    density: float | None = Field(None, ge=0, le=1)
    """The share of the change's entries that is kept (ties, dare, della, breadcrumbs); 1 without."""
    gamma: float | None = Field(None, ge=0, le=1)
    """The share of the largest entries that is dropped (breadcrumbs); 0.01 without."""
    epsilon: float | None = Field(None, gt=0, lt=0.5)
    """Half the width of the keep probability (della); 0.15 without."""
    rescale: Literal["inverse", "l1", "none"] | None = None
    """What makes up for dropped entries: 1/density, the sum of magnitudes, or nothing; the method's own without."""
    lambdas: tuple[Lambda, ...] = Field(GRID, min_length=1)
    """The λ to try. λ is the weight of the tuned model: 0 is the base, 1 the tuned model, and both are always tried."""

    @field_validator("lambdas")
    @classmethod
    def _between_the_ends(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        between = tuple(sorted(lam for lam in set(value) if 0 < lam < 1))
        if not between:
            raise ValueError("give a λ between 0 (the base) and 1 (the tuned model)")
        return between


class Generate(Section):
    """How models are asked; the defaults are the paper's."""

    engine: Literal["transformers"] = "transformers"
    """What runs the model."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest response, in tokens."""
    safety_max_new_tokens: int | None = Field(None, ge=1)
    """The same for all prompts but the task's; `max_new_tokens` where it is not given."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling, where the temperature is above 0."""
    safety_repetition_penalty: float = Field(1.2, ge=1)
    """For all prompts but the task's."""
    task_repetition_penalty: float = Field(1.0, ge=1)
    """For the task's prompts."""
    batch_size: int = Field(32, ge=1)
    """Prompts a batch."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of the weights in memory; `auto` is the checkpoint's own."""
    device: str = "auto"
    """`auto` is the first GPU, else the CPU."""


class Score(Section):
    """What is measured. A set is a file, a hub id, a named set (`advbench`) or a bundled one."""

    safety: str = "bundled:harmful"
    """Requests that a safe model refuses."""
    over_refusal: str | None = "bundled:lookalikes"
    """Harmless requests that sound harmful."""
    ordinary: str | None = "bundled:ordinary"
    """Ordinary requests."""
    task: str | None = None
    """Prompts with references."""
    metrics: tuple[Metric, ...] = ()
    """Task metrics, the one that λ is chosen by first. Empty: chosen by what the references look like."""
    judge: Literal["rules"] = "rules"
    """Who says whether a response is a refusal."""
    validation: float = Field(0.5, gt=0, lt=1)
    """Share of a set's prompts on which λ is chosen; the rest is reported on. Bundled sets bring their own split."""
    limit: int | None = Field(None, ge=2)
    """At most so many prompts of each set, drawn by seed."""


class Select(Section):
    """How λ is chosen."""

    margin: float = Field(0.05, ge=0, le=1)
    """How far the attack success rate may lie above the base's, on the validation half."""


class Report(Section):
    """What the report says besides the numbers."""

    title: str = "Base, tuned, merged"
    """Heading of the page."""


class Recipe(Section):
    """One whole run. Either `tune` says how the tuned model is made, or `tuned` names it."""

    name: str = "run"
    """A short name, used in the report."""
    out: str | None = None
    """The run folder; `runs/<name>` where it is not given."""
    seed: int = 42
    """Seed of everything that has no other."""
    base: str
    """The aligned model: a folder, a GGUF file, a hub id, or a bundled model."""
    tuned: str | None = None
    """The tuned model: a folder (checkpoint or LoRA adapter) or a hub id."""
    system: str | None = DEFAULT_SYSTEM
    """System prompt for tuning and inference, where the data brings none."""
    align: Tune | None = None
    """Make `base` refuse first. For a model that hardly refuses; the report says so."""
    tune: Tune | None = None
    """Tune the base on a task."""
    merge: Merge = Merge()
    generate: Generate = Generate()
    score: Score = Score()
    select: Select = Select()
    report: Report = Report()

    @model_validator(mode="after")
    def _one_tuned(self) -> "Recipe":
        if (self.tune is None) == (self.tuned is None):
            raise ValueError("give either `tune` (how to make the tuned model) or `tuned` (where it is), not both")
        return self

    @property
    def folder(self) -> Path:
        """Where its run lives."""
        return Path(self.out or f"runs/{self.name}").expanduser()

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Read a recipe from a YAML file.

        Raises:
            RecipeError: It cannot be read, has an unknown key, or a bad value; the message names the field.
        """
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not text"
            raise RecipeError(f"{path}: {reason}", "name a recipe file, such as recipes/quickstart.yaml") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            problem = getattr(error, "problem", None) or "not YAML"
            raise RecipeError(f"{where}: {problem}", "mend the YAML there") from None
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: Any, where: str = "recipe") -> "Recipe":
        """Build a recipe from plain values; `where` names their source in errors.

        Raises:
            RecipeError: As `load`.
        """
        if not isinstance(data, dict):
            raise RecipeError(f"{where}: is not a mapping of keys to values", "begin with `base: …`")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(*_explain(error, where)) from None

    def dump(self) -> str:
        """The recipe as YAML, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


SECTIONS: dict[str, type[Section]] = {"tune": Tune, "generate": Generate, "score": Score}
"""Sections that a single verb takes as options."""


def section(name: str, values: dict[str, Any]) -> Any:
    """One section on its own, from plain values.

    Raises:
        RecipeError: A key is unknown or a value bad.
    """
    try:
        return SECTIONS[name].model_validate(values)
    except ValidationError as error:
        raise RecipeError(*_explain(error, name, SECTIONS[name])) from None


def _explain(error: ValidationError, where: str, model: type[BaseModel] = Recipe) -> tuple[str, str]:
    """The first problem of a validation, as (what, mend)."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(_model_at(model, first["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        mend = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key `{field}`", mend
    message = first["msg"].removeprefix("Value error, ")
    if not field:
        return f"{where}: {message}", ""
    if first["type"] == "missing":
        return f"{where}: `{field}` is missing", "add it"
    return f"{where}: `{field}` is {first['input']!r}", message[0].lower() + message[1:]


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that a place in a recipe belongs to."""
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        model = next(a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel))
    return model
