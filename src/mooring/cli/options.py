"""Options that several verbs share, and what is read from their text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

import mooring

Base = Annotated[str, typer.Argument(metavar="BASE", help="The aligned model: folder, .gguf file or hub id.")]
Tuned = Annotated[str, typer.Argument(metavar="TUNED", help="The model tuned from it: checkpoint or LoRA adapter.")]
System = Annotated[str, typer.Option(help="System prompt where the data brings none; '' for none.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", callback=lambda value: seed(value))]
Part = Annotated[Literal["tune", "validation", "test"], typer.Option("--split", help="Which part of a bundled set.")]
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
