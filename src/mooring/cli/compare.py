"""`mooring compare`: the answers to a prompt at each λ side by side, and, on a terminal, at any λ that is typed."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click
import rich.box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

import mooring
from mooring.cli import render
from mooring.cli.options import (
    HELP,
    Verb,
    base_argument,
    fields_given,
    floats,
    json_option,
    kind_option,
    split_option,
    tuned_argument,
)
from mooring.cli.terminal import Screen
from mooring.errors import UserError
from mooring.merge_point import MergePoint
from mooring.printable import visible
from mooring.records import Split

if TYPE_CHECKING:
    from mooring.pipeline.compare import Comparison, Reply
    from mooring.records import Prompt

NARROWEST = 26
"""Minimum width of a column; answers that have less are printed one below the other."""
STEP = 0.1
"""How much `+` and `-` change λ."""
KEYS = "a number: λ · + and -: λ by 0.1 · p TEXT: another prompt · q: quit"


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """A typed line: go to a point, ask another prompt, quit, or print the help."""

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


@click.command("compare", cls=Verb, context_settings=HELP, fields="compare")
@base_argument
@tuned_argument
@click.argument("merged", required=False, help="Another model to show beside them, such as a run's model/.")
@click.option("--prompt", help="A prompt.")
@click.option("--prompts", help="Prompts of a data set instead: FILE, advbench …; FILE#3 draws three.")
@click.option("--lambdas", help="λ between 0 (BASE) and 1 (TUNED). [default: 0.2,0.5,0.8]")
@kind_option
@split_option
@json_option
def compare(base: str, tuned: str, merged: str | None, as_json: bool, **options: Any) -> None:
    """Show the answers of base, tuned and merges side by side.

    No model is written. On a terminal λ can then be changed: type a λ, + or -, another prompt with `p TEXT`, or q.

    \b
    Examples:
      mooring compare base/ tuned/ --prompt "What is the capital of Norway?"
      mooring compare base/ adapter/ runs/mine/model --prompt "Set an alarm for 6." --lambdas 0.3,0.6
      mooring compare base/ tuned/ --prompts questions.jsonl#3 --lambdas 0.5 --method slerp
      mooring compare base/ adapter/ --prompt "Set an alarm for 6." --engine vllm
    """
    from mooring.pipeline.responses import find_kind

    given = fields_given(options)
    prompts = _prompts(options["prompt"], options["prompts"], options["split"], given)
    lambdas = None if options["lambdas"] is None else floats(options["lambdas"], "--lambdas")
    kind = options["kind"] or find_kind(options["prompts"] or ())
    with mooring.open_comparison(base, tuned, merged, kind=kind, **given) as comparison:
        with render.bar("compare", resumes=False) as on_event:
            answers = comparison.ask_all(prompts, comparison.models_at(lambdas), on_event)
        if as_json:
            print(json.dumps([_plain(p, replies) for p, replies in zip(prompts, answers, strict=True)], indent=1))
            return
        out = console()
        for warning in comparison.warnings:
            out.print(Text(f"note: {warning}", style="dim"))
        for each, replies in zip(prompts, answers, strict=True):
            out.print(answered(each, replies, out.width))
        if sys.stdin.isatty() and out.is_terminal:
            merges = [reply.point for reply in answers[0] if reply.point and reply.point.role == "merged"]
            interact(comparison, prompts[-1], merges[len(merges) // 2] if merges else MergePoint(0.5), out)


def _prompts(text: str | None, refs: str | None, split: Split, given: Mapping[str, Any]) -> "list[Prompt]":
    """The prompts of a text or a data set."""
    from mooring.config import settings
    from mooring.data import load_prompts
    from mooring.pipeline.compare import as_prompt

    if (text is None) == (refs is None):
        problem = "--prompt and --prompts: one of them is required"
        raise UserError(problem, 'give a prompt: --prompt "…"', code="usage.one_prompt")
    if text is not None:
        return [as_prompt(text)]
    assert refs is not None
    return load_prompts(refs, split=split, seed=settings("compare", given).seed)


def console() -> Screen:
    """Standard output, without markup or emoji codes in a model's text."""
    return Screen(markup=False, emoji=False)


def _plain(prompt: "Prompt", replies: "Sequence[Reply]") -> dict[str, object]:
    return {"prompt": prompt.messages[-1].content, "answers": [reply.to_dict() for reply in replies]}


def answered(prompt: "Prompt", replies: "Sequence[Reply]", width: int) -> RenderableType:
    """A prompt with its answers: side by side if the width allows it, else one below the other."""
    asked = Text(f"\n{visible(prompt.messages[-1].content)}\n", style="bold")
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
    """A model's text, marked if it was cut at the limit; controls are written out before it is broken into lines."""
    text = visible(reply.text).strip() or "(nothing)"
    return f"{text} … (cut at {reply.tokens} tokens)" if reply.finish == "length" else text


def interact(comparison: "Comparison", prompt: "Prompt", point: MergePoint, out: Console) -> None:
    """Ask what is typed, until `q` or the end of the input."""
    from mooring.pipeline.compare import as_prompt

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
            prompt = as_prompt(command.text, number)
        elif command.point:
            point = command.point
        try:
            with out.status(point.label):
                replies = [comparison.ask(prompt, model) for model in comparison.models_at([point.lam])]
        except mooring.UserError as error:  # such as a prompt that is too long
            out.print(Text(f"mooring: {' '.join(str(error).split())}"))
            continue
        out.print(answered(prompt, replies, out.width))
