"""The recipe: everything that a run needs to know.

A run is a function of its recipe and of the files and models that it names. Unknown keys are refused.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError, field_validator, model_validator

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import RecipeError
from mooring.sections import Generate, Merge, Report, Score, Section, Seed, Select, Task, Tune
from mooring.tasks import TASKS, departures, fill


class Recipe(Section):
    """One whole run. Either `tune` says how the tuned model is made, or `tuned` names it."""

    name: str = "run"
    """A short name, used in the report."""
    out: str | None = None
    """The run folder; `runs/<name>` where it is not given."""
    seed: Seed = 42
    """Seed of everything that has no other."""
    base: str
    """The aligned model: a folder, a GGUF file, a hub id, or a bundled model."""
    tuned: str | None = None
    """The tuned model: a folder (checkpoint or LoRA adapter) or a hub id."""
    system: str | None = DEFAULT_SYSTEM
    """System prompt for tuning and inference, where the data brings none."""
    align: Tune | None = None
    """Make `base` refuse first. For a model that hardly refuses; the report says so."""
    task: Task | None = None
    """One of the paper's tasks: fills in its data, prompts, metrics and judge wherever this recipe says nothing."""
    tune: Tune | None = None
    """Tune the base on a task."""
    merge: Merge = Merge()
    generate: Generate = Generate()
    score: Score = Score()
    select: Select = Select()
    report: Report = Report()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_task(cls, data: Any) -> Any:
        task = data.get("task") if isinstance(data, Mapping) else None
        if not isinstance(task, str) or task not in TASKS:
            return data
        preset = TASKS[task]
        return fill(data, {k: v for k, v in preset.items() if k != "tune" or data.get("tuned") is None})

    @field_validator("generate")
    @classmethod
    def _merges_are_served_by_nobody(cls, value: Generate) -> Generate:
        if value.engine == "openai":
            raise ValueError("a server holds one model: a run asks its models by transformers or vllm")
        return value

    def departures(self) -> list[str]:
        """Where this recipe departs from the paper's settings for its task, a phrase each; empty without a task."""
        if self.task is None:
            return []
        same = {"name", "out", "base", "report"}
        bare = {key: getattr(self, key) for key in ("base", "task", "tuned") if getattr(self, key) is not None}
        paper = type(self).model_validate(bare).model_dump(mode="json", exclude=same)
        return list(departures(self.model_dump(mode="json", exclude=same), paper))

    @model_validator(mode="after")
    def _lines_has_its_own_lambdas(self) -> "Recipe":
        if self.select.search == "modules" and self.merge.method == "lines":
            raise ValueError("`search: modules` sets λ by module, and so does `method: lines`; use one of the two")
        return self

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
        except (yaml.YAMLError, RecursionError) as error:
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


SECTIONS: dict[str, type[Section]] = {"tune": Tune, "generate": Generate, "score": Score, "select": Select}
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
    message = "give at least one" if first["type"] == "too_short" else first["msg"].removeprefix("Value error, ")
    if not field:
        return f"{where}: {message}", ""
    if first["type"] == "missing":
        return f"{where}: `{field}` is missing", "add it"
    if isinstance(first["input"], Mapping):  # a whole section would fill the line
        return f"{where}: `{field}`: {message[0].lower()}{message[1:]}", ""
    return f"{where}: `{field}` is {first['input']!r}", message[0].lower() + message[1:]


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that a place in a recipe belongs to."""
    for part in loc:
        if isinstance(part, str):  # a number is a place in a list, whose model the annotation names
            model = next(_models(model.model_fields[part].annotation))
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, at whatever depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
