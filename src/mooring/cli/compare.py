"""`mooring compare`: one prompt side by side at each λ, and, on a terminal, λ movable."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import rich.box
import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

import mooring
from mooring.cli import render
from mooring.cli.options import SYSTEM, Base, Device, Dtype, Part, Seed, System, Tuned, floats
from mooring.merge_point import MergePoint

if TYPE_CHECKING:
    from mooring.pipeline.compare import Comparison, Reply
    from mooring.records import Prompt

NARROWEST = 26
"""Characters of a column below which answers go one under the other."""
STEP = 0.1
"""How far `+` and `-` move λ."""
KEYS = "a number: λ · + and -: λ by 0.1 · p TEXT: another prompt · q: quit"


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """What a line at the prompt asks for: `point`, `prompt`, `quit`, or `help` if it cannot be read."""

    kind: Literal["point", "prompt", "quit", "help"]
    point: MergePoint | None = None
    text: str = ""


def read_command(line: str, shown: MergePoint) -> Command:
    """Parse a line that was typed, given the point that is shown. λ is clamped to 0 to 1."""
    said = line.strip()
    if said in ("q", "quit", "exit"):
        return Command("quit")
    if said in ("+", "-"):
        moved = shown.lam + (STEP if said == "+" else -STEP)
        return Command("point", MergePoint(round(min(1.0, max(0.0, moved)), 6)))
    if said.startswith("p ") and said[2:].strip():
        return Command("prompt", text=said[2:].strip())
    try:
        return Command("point", MergePoint.parse(said.replace("λ", "").replace("=", "").replace(",", ".")))
    except mooring.UserError:
        return Command("help")


def compare(
    base: Base,
    tuned: Tuned,
    merged: Annotated[
        str | None,
        typer.Argument(metavar="MERGED", help="Another model to stand beside them, such as a run's model/."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Ask prompts of a set instead: FILE, advbench …; FILE#3 draws three.")
    ] = None,
    lam: Annotated[str, typer.Option(help="λ between 0 (BASE) and 1 (TUNED).")] = "0.2,0.5,0.8",
    method: Annotated[str, typer.Option(help="Merging rule.")] = "linear",
    density: Annotated[
        float | None, typer.Option(help="Share of the change that is kept (ties, dare, della …).")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest response, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="1 is none; the paper's safety prompts use 1.2.")] = 1.0,
    split: Part = "test",
    system: System = SYSTEM,
    seed: Seed = 42,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer a prompt by BASE, TUNED and their merges at each λ, side by side; nothing is written.

    On a terminal λ can then be moved: type a λ, + or -, another prompt with `p TEXT`, or q.

    \b
    Examples:
      mooring compare base/ tuned/ --prompt "What is the capital of Norway?"
      mooring compare base/ adapter/ runs/mine/model --prompt "Set an alarm for 6." --lam 0.3,0.6
      mooring compare base/ tuned/ --prompts questions.jsonl#3 --lam 0.5 --method slerp
    """
    asked = _prompts(prompt, prompts, split, seed)
    with mooring.api.open_comparison(
        base,
        tuned,
        merged,
        method=method,
        options={"density": density},
        system=system,
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        dtype=dtype,
        device=device,
    ) as comparison:
        models = comparison.models_at(floats(lam, "--lam"))
        with render.bar("compare", resumes=False) as tick:
            answers = comparison.ask_all(asked, models, lambda event: tick(event.done, event.total, event.message))
        if as_json:
            print(json.dumps([_plain(p, replies) for p, replies in zip(asked, answers, strict=True)], indent=1))
            return
        out = console()
        for warning in comparison.warnings:
            out.print(Text(f"note: {_visible(warning)}", style="dim"))
        for each, replies in zip(asked, answers, strict=True):
            out.print(answered(each, replies, out.width))
        if sys.stdin.isatty() and out.is_terminal:
            merges = [point for point in models if point and point.role == "merged"]
            interact(comparison, asked[-1], merges[len(merges) // 2] if merges else MergePoint(0.5), out)


def _prompts(text: str | None, refs: str | None, split: Part, seed: int) -> "list[Prompt]":
    """What to ask.

    Raises:
        UserError: Nothing was given, or both ways, or the set cannot be read.
    """
    if (text is None) == (refs is None):
        raise mooring.UserError("--prompt and --prompts: one of them is needed", 'ask with --prompt "…"')
    if text is not None:
        return [mooring.api.as_prompt(text)]
    from mooring.data import load_prompts

    assert refs is not None
    return load_prompts(refs, split=split, seed=seed)


def console() -> Console:
    """Standard output, in which no markup, emoji code or number of a model's text is read."""
    return Console(highlight=False, markup=False, emoji=False)


def _visible(text: str) -> str:
    from mooring.text import visible

    return visible(text)


def _plain(prompt: "Prompt", replies: "Sequence[Reply]") -> dict[str, object]:
    return {"prompt": prompt.messages[-1].content, "answers": [reply.to_dict() for reply in replies]}


def answered(prompt: "Prompt", replies: "Sequence[Reply]", width: int) -> RenderableType:
    """A prompt with its answers: side by side where the width allows, else one under the other."""
    asked = Text(f"\n{_visible(prompt.messages[-1].content)}\n", style="bold")
    columns = [(heading(reply), Text(body(reply))) for reply in replies]
    if width // len(columns) < NARROWEST:
        parts: list[RenderableType] = [asked]
        for head, text in columns:
            parts += [Text(f"── {head}", style="cyan"), text, Text()]
        return Group(*parts)
    table = Table(box=rich.box.SIMPLE_HEAD, expand=True, pad_edge=False, header_style="cyan")
    for head, _ in columns:
        table.add_column(Text(head), ratio=1, overflow="fold")
    table.add_row(*(text for _, text in columns))
    return Group(asked, table)


def heading(reply: "Reply") -> str:
    """The heading of a column."""
    return reply.point.long_label if reply.point else "merged (as given)"


def body(reply: "Reply") -> str:
    """A model's text, in which nothing acts unseen, with a mark where the limit cut it."""
    text = _visible(reply.text).strip() or "(nothing)"
    return f"{text} … (cut at {reply.tokens} tokens)" if reply.finish == "length" else text


def interact(comparison: "Comparison", prompt: "Prompt", point: MergePoint, out: Console) -> None:
    """Ask what is typed, until `q` or the end of the input."""
    number = 1
    while True:
        out.print(Text(KEYS, style="dim"))
        try:
            line = input(f"λ = {point.key} > ")
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        command = read_command(line, point)
        if command.kind == "quit":
            return
        if command.kind == "help":
            continue
        if command.kind == "prompt":
            number += 1
            prompt = mooring.api.as_prompt(command.text, number)
        elif command.point:
            point = command.point
        try:
            with out.status(point.label):
                replies = [comparison.ask(prompt, model) for model in comparison.models_at([point.lam])]
        except mooring.UserError as error:  # a prompt that is too long ends nothing
            out.print(Text(f"mooring: {_visible(' '.join(str(error).split()))}"))
            continue
        out.print(answered(prompt, replies, out.width))
