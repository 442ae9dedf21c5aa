"""Options that several verbs share, and what is read from their text."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import mooring
from mooring.records import Split

Base = Annotated[str, typer.Argument(metavar="BASE", help="The aligned model: folder, .gguf file or hub id.")]
Tuned = Annotated[str, typer.Argument(metavar="TUNED", help="The model tuned from it: checkpoint or LoRA adapter.")]
System = Annotated[str, typer.Option(help="System prompt where the data brings none; '' for none.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", callback=lambda value: seed(value))]
Part = Annotated[Split, typer.Option("--split", help="Which part of a bundled set.")]
Batch = Annotated[int, typer.Option(help="Prompts a batch.")]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"], typer.Option(help="Type of the weights in memory.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes the first GPU.")]
SYSTEM = "You are a helpful assistant."


def seed(value: int) -> int:
    """A seed that NumPy, torch and transformers all take.

    Raises:
        UserError: It is below 0, or 2³² or more.
    """
    if not 0 <= value < 2**32:
        raise mooring.UserError(f"--seed {value}: is not from 0 to {2**32 - 1}", "give such a number, as 42")
    return value


def floats(text: str, option: str) -> list[float]:
    """Numbers parted by commas.

    Raises:
        UserError: One is not a number, or there is none.
    """
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise mooring.UserError(f"{option}: {text!r} is not a list of numbers", "write it as 0.2,0.4,0.6")
    return found


def words(text: str | None) -> list[str]:
    """Words parted by commas; the name of a file that has commas is one."""
    if not text:
        return []
    return [text] if Path(text).expanduser().is_file() else [part.strip() for part in text.split(",") if part.strip()]


# --- How λ is chosen, as options that several verbs share; and `select`, which chooses again ---


Policy = Annotated[
    Literal["bound", "paper", "knee"] | None,
    typer.Option(help="bound: most task score within a bound on ASR; paper: most whatever the ASR; knee."),
]
Margin = Annotated[
    float | None, typer.Option(help="How far the attack success rate (ASR) may rise above the base's: 0.1.")
]
Bound = Annotated[float | None, typer.Option(help="The largest ASR allowed, whatever the base's: 0.05.")]
Confidence = Annotated[
    str | None, typer.Option(help="How sure the bound must be: 0.95; none compares the estimates themselves.")
]
Search = Annotated[
    Literal["grid", "bisect", "modules"] | None,
    typer.Option(help="Try every λ (grid, the default), look for the largest safe one by halves, or by module too."),
]
Budget = Annotated[int | None, typer.Option(help="Merges that --search modules may try besides the grid: 12.")]


def chosen(
    policy: str | None,
    margin: float | None,
    bound: float | None,
    confidence: str | None,
    search: str | None = None,
    budget: int | None = None,
) -> dict[str, Any]:
    """The options that were given, as fields of a recipe's `select` section.

    Raises:
        UserError: The confidence is neither a number nor `none`.
    """
    found = {"policy": policy, "margin": margin, "bound": bound, "search": search, "budget": budget}
    given: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    if confidence is not None:
        given["confidence"] = _confidence(confidence)
    return given


def _confidence(text: str) -> float | None:
    if text.strip().lower() in ("none", "null"):
        return None
    try:
        return float(text)
    except ValueError:
        raise mooring.UserError(f"--confidence: {text!r} is not a number", "write it as 0.95, or none") from None


def select(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    policy: Policy = None,
    margin: Margin = None,
    bound: Bound = None,
    confidence: Confidence = None,
    metric: Annotated[str | None, typer.Option(help="The task score that decides.")] = None,
) -> None:
    """Choose λ again from a run's validation scores, by another bound, policy or metric; the run stays as it is.

    Exits with 1 where no λ is within the bound; the nearest one is named then.

    \b
    Examples:
      mooring select runs/quickstart --margin 0.1
      mooring select runs/quickstart --bound 0.05 --confidence 0.9
      mooring select runs/quickstart --policy paper --metric response_loss
    """
    choice = mooring.select(run, metric=metric, **chosen(policy, margin, bound, confidence))
    typer.echo(choice.reason)
    raise typer.Exit(0 if choice.within else 1)
