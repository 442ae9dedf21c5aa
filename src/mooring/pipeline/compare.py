"""One prompt answered by base, tuned model and merges at any λ, one model in memory."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import UserError
from mooring.inference.engine import Engine
from mooring.inference.transformers import Dtype, TransformersEngine
from mooring.merging.compatibility import belong_together
from mooring.pipeline.merged_model import MergedModel
from mooring.records import Completion, Prompt
from mooring.sampling import SamplingParams

Place = float | None
"""Which model: λ, or `None` for the merged model that was given as a folder."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one model answered.

    Attributes:
        lam: Its λ; `None` of a merged model that was given as a folder.
        model: `base`, `tuned`, `λ = 0.5`, or `merged`.
        text: The model's text as it came: untrusted.
        tokens: Tokens generated.
        finish: `stop` where the model ended its turn, `length` where the limit did.
    """

    lam: Place
    model: str
    text: str
    tokens: int
    finish: str


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
        self._kept: dict[tuple[str, Place], Reply] = {}

    def places(self, lambdas: Sequence[float]) -> list[Place]:
        """The models to ask: the base, each λ, the tuned model, and the merged one where there is one."""
        between = sorted({check_lam(lam) for lam in lambdas} - {0.0, 1.0})
        return [0.0, *between, 1.0, *([None] if self._merged else [])]

    def ask(self, prompt: Prompt, place: Place) -> Reply:
        """One model's answer.

        Raises:
            UserError: λ is not from 0 to 1, the prompt does not fit the model, or the model cannot be loaded.
        """
        place = place if place is None else check_lam(place)
        key = (prompt.id, place)
        if key not in self._kept:
            (batch,) = self._engine(place).complete([prompt], self._settings)
            self._kept[key] = _reply(place, batch[0])
        return self._kept[key]

    def ask_all(
        self, prompts: Sequence[Prompt], places: Sequence[Place], on_reply: Callable[[Reply], None] | None = None
    ) -> list[list[Reply]]:
        """Every prompt by every model, a model at a time.

        Returns:
            A list a prompt, in the order of `places`.
        """
        found: list[list[Reply]] = [[] for _ in prompts]
        for place in places:
            for row, prompt in zip(found, prompts, strict=True):
                row.append(self.ask(prompt, place))
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

    def _engine(self, place: Place) -> Engine:
        """The model at a place; one is in memory at a time."""
        if place is not None:
            self._third = None
            # λ = 1 is the tuned model itself, whatever the method would drop of it.
            return self._model.at(place, plain=place == 1)
        if self._third is None:
            assert self._merged is not None
            self._model.unload()
            self._third = TransformersEngine.load(self._merged, **self._asking)
        return self._third


def check_lam(lam: float) -> float:
    """λ, rounded so that what looks the same is the same.

    Raises:
        UserError: It is not from 0 to 1.
    """
    if not 0 <= lam <= 1:
        raise UserError(f"λ = {lam:g}: is not from 0 (the base) to 1 (the tuned model)", "give a λ such as 0.5")
    return round(float(lam), 6)


def name_of(place: Place) -> str:
    """What a model is called: both ends of λ have names."""
    return {0.0: "base", 1.0: "tuned", None: "merged"}.get(place, f"λ = {place:g}" if place is not None else "")


def _reply(place: Place, completion: Completion) -> Reply:
    return Reply(
        lam=place,
        model=name_of(place),
        text=completion.text,
        tokens=completion.tokens,
        finish=completion.finish,
    )
