"""Models beside each other: one prompt at every λ, and many runs in the paper's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mooring.records import Prompt
    from mooring.report.paper.write import Paper
    from mooring.run.compare import Comparison, Reply


def paper(runs: str | Path, out: str | Path, *, published: str | Path | None = None, main: str | None = None) -> Paper:
    """Write the paper's Tables 1 to 3 and Figures 2 and 3 from a folder of runs.

    Args:
        runs: A folder that holds run folders.
        out: Folder for the files: Markdown, LaTeX, CSV, PNG and SVG.
        published: Published numbers to stand beside the measured ones: CSV or YAML (docs/paper.md).
        main: The base of Tables 1 and 2 and the figures; that of most runs where it is not given.

    Raises:
        UserError: No run can be read, or `published` is malformed.
    """
    from mooring.report.paper.write import write_paper

    return write_paper(Path(runs), Path(out), known=Path(published) if published else None, main=main)


def open_comparison(
    base: str | Path,
    tuned: str | Path,
    merged: str | Path | None = None,
    *,
    method: str = "linear",
    system: str | None = "You are a helpful assistant.",
    seed: int = 42,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    repetition_penalty: float = 1.0,
    dtype: Any = "auto",
    device: str = "auto",
    **rule: Any,
) -> Comparison:
    """Base, tuned model and all between them, open to be asked; arguments as in `compare`.

    Raises:
        UserError: The models do not belong together, or a setting is bad.
    """
    from mooring import sources
    from mooring.errors import UserError
    from mooring.generate.engine import Settings
    from mooring.merge.sites import method_named, options_of
    from mooring.run.compare import Comparison

    drawn = "seed" in method_named(method).options
    options_of(method, 0.5, **rule)
    if max_new_tokens < 1 or temperature < 0 or repetition_penalty <= 0:
        raise UserError("max_new_tokens, temperature, repetition_penalty: one is out of range", "see --help")
    return Comparison(
        sources.resolve_model(str(base)),
        sources.resolve_model(str(tuned)),
        sources.resolve_model(str(merged)) if merged else None,
        method=method,
        settings=Settings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            repetition_penalty=repetition_penalty,
            seed=seed,
        ),
        system=system,
        dtype=dtype,
        device=device,
        **rule,
        **({"seed": seed} if drawn else {}),
    )


def compare(
    base: str | Path,
    tuned: str | Path,
    merged: str | Path | None = None,
    *,
    prompts: str | Sequence[str] | Sequence[Prompt],
    lambdas: Sequence[float] = (0.2, 0.5, 0.8),
    on_reply: Callable[[Reply], None] | None = None,
    **settings: Any,
) -> list[list[Reply]]:
    """Answer prompts by the base, the merges at each λ, the tuned model, and a merged model beside them.

    No merged model is written: λ is changed in memory.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        merged: Another model to stand beside them, such as a run's chosen one.
        prompts: What to ask: a text or several, or prompts that `load_prompts` gave.
        lambdas: The λ between 0 (the base) and 1 (the tuned model).
        on_reply: Told of each answer.
        settings: `method` and its settings (`density`, …), `system`, `seed`, `max_new_tokens`, `temperature`,
            `repetition_penalty`, `dtype`, `device`.

    Returns:
        A list a prompt: the answers of base, each λ in order, tuned, merged.

    Raises:
        UserError: Bad input.
    """
    texts: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    asked = [as_prompt(text, number) if isinstance(text, str) else text for number, text in enumerate(texts, 1)]
    with open_comparison(base, tuned, merged, **settings) as comparison:
        return comparison.ask_all(asked, comparison.places(lambdas), on_reply)


def as_prompt(text: str, number: int = 1) -> Prompt:
    """A text as a user's turn.

    Raises:
        DataError: There is none.
    """
    from mooring.errors import DataError
    from mooring.records import Message, Prompt

    if not text.strip():
        raise DataError("the prompt is empty", "say something")
    return Prompt(id=f"{number}: {text}", messages=(Message("user", text),))
