"""One prompt answered by base, tuned model and merges at any λ, one model in memory."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mooring.chat import DEFAULT_SYSTEM
from mooring.inference.engine import Engine
from mooring.inference.transformers import Dtype, TransformersEngine
from mooring.merge_point import BASE, TUNED, MergePoint, grid
from mooring.merging.compatibility import belong_together
from mooring.pipeline.merged_model import MergedModel
from mooring.records import Prompt
from mooring.sampling import SamplingParams

Model = MergePoint | None
"""Which model: a point, or `None` for the third model, given as a folder."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one model answered.

    Attributes:
        point: The model; `None` for a third model that was given as a folder.
        text: The model's text as it came: untrusted.
        tokens: Tokens generated.
        finish: `stop` where the model ended its turn, `length` where the limit did.
    """

    point: Model
    text: str
    tokens: int
    finish: str

    @property
    def label(self) -> str:
        """What the model is called: `base`, `tuned`, `λ = 0.5`, or `merged` for a third model."""
        return self.point.label if self.point else "merged"

    def to_dict(self) -> dict[str, Any]:
        """The reply as plain JSON values."""
        lam = self.point.lam if self.point else None
        return {"lam": lam, "model": self.label, "text": self.text, "tokens": self.tokens, "finish": self.finish}


class Comparison:
    """Answers by λ. What was asked once is kept, and changing λ changes the weights in memory.

    Args:
        base: Folder of the aligned model.
        tuned: Folder of the model tuned from it, or of a LoRA adapter.
        merged: Folder of a third model to stand beside them.
        method: The merging rule between the two.
        settings: How responses are drawn.
        system: System prompt where a prompt brings none.
        dtype: Type of the weights in memory.
        device: `auto` is a GPU where there is one.
        rule: Other settings of the method, such as `density`.

    Raises:
        UserError: The models do not belong together, or the method takes no such setting.
    """

    def __init__(
        self,
        base: Path,
        tuned: Path,
        merged: Path | None = None,
        *,
        method: str = "linear",
        settings: SamplingParams,
        system: str | None = DEFAULT_SYSTEM,
        dtype: Dtype = "auto",
        device: str = "auto",
        **rule: Any,
    ) -> None:
        self.warnings = belong_together(base, tuned)
        self._merged = merged
        self._settings = settings
        self._asking: dict[str, Any] = {"system": system, "batch_size": 1, "dtype": dtype, "device": device}
        self._model = MergedModel(base, tuned, method=method, **self._asking, **rule)
        self._third: Engine | None = None
        self._kept: dict[tuple[str, Model], Reply] = {}

    def models_at(self, lambdas: Iterable[float]) -> list[Model]:
        """The models to ask: the base, each λ, the tuned model, and the third one if there is one.

        Raises:
            RecipeError: A λ is not from 0 to 1 (`recipe.lam_out_of_range`).
        """
        return [*grid([BASE.lam, *lambdas, TUNED.lam]), *([None] if self._merged else [])]

    def ask(self, prompt: Prompt, model: Model) -> Reply:
        """One model's answer.

        Raises:
            UserError: The prompt does not fit the model, or the model cannot be loaded.
        """
        key = (prompt.id, model)
        if key not in self._kept:
            (batch,) = self._engine(model).complete([prompt], self._settings)
            first = batch[0]
            self._kept[key] = Reply(point=model, text=first.text, tokens=first.tokens, finish=first.finish)
        return self._kept[key]

    def ask_all(
        self, prompts: Sequence[Prompt], models: Sequence[Model], on_reply: Callable[[Reply], None] | None = None
    ) -> list[list[Reply]]:
        """Every prompt by every model, a model at a time.

        Returns:
            One list per prompt, ordered as `models`.
        """
        found: list[list[Reply]] = [[] for _ in prompts]
        for model in models:
            for row, prompt in zip(found, prompts, strict=True):
                row.append(self.ask(prompt, model))
                if on_reply:
                    on_reply(row[-1])
        return found

    def close(self) -> None:
        """Let the models go."""
        self._third = None
        self._model.close()

    def __enter__(self) -> "Comparison":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _engine(self, model: Model) -> Engine:
        """The engine of a model; one is in memory at a time."""
        if model is not None:
            self._third = None
            # λ = 1 is the tuned model itself, whatever the method would drop of it.
            return self._model.at(model.lam, plain=model.is_tuned)
        if self._third is None:
            assert self._merged is not None
            self._model.unload()
            self._third = TransformersEngine.load(self._merged, **self._asking)
        return self._third
