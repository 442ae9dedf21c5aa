"""Prompts answered by base, tuned model and merges at any λ, with one model in memory."""

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.config import settings
from mooring.errors import DataError, RecipeError
from mooring.events import Event, OnEvent, ignore
from mooring.export import Record
from mooring.inference.engine import Engine
from mooring.inference.load import close_engine
from mooring.merge_point import BASE, TUNED, MergePoint, grid
from mooring.merging.compatibility import check_pair
from mooring.merging.pair import open_pair, resolved
from mooring.models.resolve import resolve_model
from mooring.pipeline.open_model import open_model
from mooring.pipeline.plan import merge_options
from mooring.pipeline.sweeps.load import open_sweep
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.records import Kind, Message, Prompt
from mooring.sampling import SamplingParams

LAMBDAS = (0.2, 0.5, 0.8)
Model = MergePoint | None
"""Which model: a point, or `None` for the third model, given as a folder."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Record):
    """What one model answered.

    Attributes:
        point: The model; `None` for a third model that was given as a folder.
        text: The model's text, unchanged: untrusted.
        tokens: Number of tokens generated.
        finish: `stop` if the model ended its turn, `length` if it reached the limit.
    """

    point: Model
    text: str
    tokens: int
    finish: str

    @property
    def label(self) -> str:
        """The name of the model: `base`, `tuned`, `λ = 0.5`, or `merged` for a third model."""
        return self.point.label if self.point else "merged"

    def to_dict(self) -> dict[str, Any]:
        """The reply as plain JSON values."""
        lam = self.point.lam if self.point else None
        return {"lam": lam, "model": self.label, "text": self.text, "tokens": self.tokens, "finish": self.finish}


class Comparison:
    """Answers of base, tuned model and merges. Replies are cached, and a change of λ replaces the weights in memory.

    Args:
        spec: The base and the tuned model, open, and the method between them.
        params: How responses are sampled.
        third: Folder of a third model to compare with, such as a run's chosen one.

    Attributes:
        warnings: What is unusual about the pair, one line each.

    Raises:
        UserError: The models do not belong together, or the method does not take an option.
    """

    def __init__(self, spec: SweepSpec, params: SamplingParams, third: Path | None = None) -> None:
        self.warnings = check_pair(spec.pair)
        self._spec = dataclasses.replace(spec, runner=spec.runner.model_copy(update={"batch_size": 1}))
        self._scratch = tempfile.TemporaryDirectory(prefix="mooring-compare-")
        self._sweep = open_sweep(self._spec, Path(self._scratch.name) / "models")
        self._params = params
        self._third = third
        self._third_engine: Engine | None = None
        self._replies: dict[tuple[str, Model], Reply] = {}

    def models_at(self, lambdas: Iterable[float] | None = None) -> list[Model]:
        """The base, each λ in ascending order, the tuned model, and the third one if there is one.

        Args:
            lambdas: Defaults to 0.2, 0.5 and 0.8.

        Raises:
            RecipeError: A λ is not from 0 to 1 (`recipe.lam_out_of_range`).
        """
        rounded = (round(lam, 6) for lam in (LAMBDAS if lambdas is None else lambdas))  # 0.1 + 0.2 is 0.3
        return [*grid([BASE.lam, *rounded, TUNED.lam]), *([None] if self._third else [])]

    def ask(self, prompt: Prompt, model: Model) -> Reply:
        """Return one model's answer.

        Raises:
            DataError: The prompt does not fit the model's context.
            ModelError: The model cannot be loaded.
        """
        key = (prompt.id, model)
        if key not in self._replies:
            ((completion,),) = self._engine(model).complete([prompt], self._params)
            self._replies[key] = Reply(
                point=model, text=completion.text, tokens=completion.tokens, finish=completion.finish
            )
        return self._replies[key]

    def ask_all(
        self, prompts: Sequence[Prompt], models: Sequence[Model], on_event: OnEvent | None = None
    ) -> list[list[Reply]]:
        """Ask all models all prompts, one model after the other.

        Args:
            prompts: The prompts; ids are unique.
            models: The models, as `models_at` returns them.
            on_event: Receives a progress event (`compare`, in replies) after each; its message is the model's label.

        Returns:
            One list per prompt, ordered as `models`.
        """
        emit = on_event or ignore
        event = Event(step="compare", kind="progress", total=len(prompts) * len(models), unit="replies")
        rows: list[list[Reply]] = [[] for _ in prompts]
        for model in models:
            for row, prompt in zip(rows, prompts, strict=True):
                row.append(self.ask(prompt, model))
                event = dataclasses.replace(event, done=event.done + 1, message=row[-1].label)
                emit(event)
        return rows

    def close(self) -> None:
        """Free the models and close their files."""
        self._free_third()
        self._sweep.close()
        self._spec.pair.close()
        self._scratch.cleanup()

    def __enter__(self) -> "Comparison":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _engine(self, model: Model) -> Engine:
        """The engine of a model; one is in memory at a time."""
        if model is not None:
            self._free_third()
            return self._sweep.at(model)
        if self._third_engine is None:
            self._sweep.close()
            assert self._third is not None
            self._third_engine = open_model(self._third, self._spec.runner, self._spec.system)
        return self._third_engine

    def _free_third(self) -> None:
        if self._third_engine is not None:
            close_engine(self._third_engine)
            self._third_engine = None


def open_comparison(base: str, tuned: str, third: str | None, options: Mapping[str, Any], kind: Kind) -> Comparison:
    """Open the models; arguments and errors as in `mooring.open_comparison`."""
    recipe = settings("compare", options, kind)
    if third and recipe.generate.engine == "openai":
        hint = "leave it out, or use the engine transformers or vllm"
        raise RecipeError(f"{third}: a server has only base, tuned and λ", hint, code="recipe.third_on_a_server")
    spec = SweepSpec(
        pair=open_pair(resolve_model(base), resolve_model(tuned), references=resolved(recipe.merge.references)),
        method=recipe.merge.method,
        options=merge_options(recipe),
        runner=recipe.generate,
        system=recipe.system,
    )
    params = recipe.generate.sampling(kind, recipe.seed)
    return Comparison(spec, params, resolve_model(third) if third else None)


def as_prompt(text: str, number: int = 1) -> Prompt:
    """A text as a user's turn."""
    if not text.strip():
        raise DataError("the prompt is empty", "give some text", code="data.empty_prompt")
    return Prompt(id=f"{number}: {text}", messages=(Message("user", text),))
