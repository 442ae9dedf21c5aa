"""The bundled tool-calling task: short questions with the one function call that answers each.

`bundled/functions.json` lists, for each function, its parameters, phrasings of a question, and values to put into them.
A value is either the same in the question and in the call (`"Oslo"`), or worded in one way and passed in another
(`{"say": "3 March 2025", "value": "2025-03-03"}`). A phrasing that omits an optional parameter omits it from the call
too, so that every question has exactly one right answer.
"""

import dataclasses
import json
import random
import string
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import product
from typing import get_args

from mooring.errors import DataError
from mooring.records import Split

SPLITS: tuple[Split, ...] = get_args(Split)

Value = str | int | float | bool
"""The value of an argument."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a function; `type` is string, integer, number, boolean, or enum (one of `options`)."""

    name: str
    type: str
    description: str
    required: bool
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """A function of the task, with the phrasings of questions and, per parameter, (wording, argument) pairs."""

    name: str
    description: str
    split: str
    parameters: tuple[Parameter, ...]
    phrasings: tuple[str, ...]
    values: dict[str, tuple[tuple[str, Value], ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class ToolExample:
    """A question, the prompt that contains it, and the right call."""

    id: str
    function: str
    question: str
    prompt: str
    call: str


def fields(phrasing: str) -> list[str]:
    """Return the parameters in a phrasing, in the order of the text."""
    return [name for _, name, _, _ in string.Formatter().parse(phrasing) if name]


@cache
def load_functions() -> tuple[Function, ...]:
    """Read the bundled functions, in the order of the file."""
    text = (resources.files("mooring.data.bundled") / "functions.json").read_text(encoding="utf-8")
    return tuple(
        Function(
            name=row["name"],
            description=row["description"],
            split=row["split"],
            parameters=tuple(
                Parameter(p["name"], p["type"], p["description"], p["required"], tuple(p.get("options", ())))
                for p in row["parameters"]
            ),
            phrasings=tuple(row["phrasings"]),
            values={
                name: tuple((v["say"], v["value"]) if isinstance(v, dict) else (str(v), v) for v in values)
                for name, values in row["values"].items()
            },
        )
        for row in json.loads(text)
    )


def render_prompt(function: Function, question: str) -> str:
    """Format the prompt: the task, the question, the function and its parameters."""
    names = ", ".join(p.name + ("" if p.required else "?") for p in function.parameters)
    lines = [
        "Answer with one function call.",
        f"Question: {question}",
        f"Function: {function.name}({names})",
        function.description,
    ]
    for p in function.parameters:
        kind = " | ".join(p.options) if p.type == "enum" else p.type
        optional = "" if p.required else ", optional"
        lines.append(f"- {p.name} ({kind}{optional})" + (f": {p.description}" if p.description else ""))
    return "\n".join(lines)


def render_call(function: Function, values: dict[str, Value]) -> str:
    """Format a call with these values: keywords in the order of the parameters, strings in single quotes."""
    arguments = [f"{p.name}={values[p.name]!r}" for p in function.parameters if p.name in values]
    return f"{function.name}({', '.join(arguments)})"


def simplify(function: Function) -> Function | None:
    """Simplify a function for a very small model: the question states every parameter as the call passes it.

    Nothing is optional, nothing is converted, and there are no booleans. Returns `None` if that leaves no question.
    """
    booleans = {p.name for p in function.parameters if p.type == "boolean"}
    stated = [frozenset(fields(phrasing)) for phrasing in function.phrasings]
    candidates = [names for names in stated if not names & booleans]
    if not candidates:
        return None
    names = max(candidates, key=lambda each: (stated.count(each), len(each)))
    return dataclasses.replace(
        function,
        parameters=tuple(dataclasses.replace(p, required=True) for p in function.parameters if p.name in names),
        phrasings=tuple(phrasing for phrasing, each in zip(function.phrasings, stated, strict=True) if each == names),
        values={name: tuple((str(value), value) for _, value in function.values[name]) for name in names},
    )


def generate(split: str, count: int, seed: int = 0, *, simple: bool = False) -> list[ToolExample]:
    """Generate `count` different examples of a split, spread evenly over its functions.

    The same arguments give the same examples, and a smaller count gives the beginning of a larger one. No two splits
    share a function. With `simple`, each function is first simplified.

    Raises:
        DataError: The split is unknown (`data.unknown_split`), or has fewer examples (`data.too_few_rows`).
    """
    if split not in SPLITS:
        hint = f"use one of {', '.join(SPLITS)}"
        raise DataError(f"the tool task has no split {split!r}", hint, code="data.unknown_split")
    if count < 0:
        raise ValueError(f"count is {count}, but cannot be negative")
    functions = [function for function in load_functions() if function.split == split]
    if simple:
        functions = [plain for function in functions if (plain := simplify(function)) is not None]
    random.Random(f"{split}/{seed}").shuffle(functions)
    streams = [(function, _questions(function, seed)) for function in functions]
    examples: list[ToolExample] = []
    while len(examples) < count:
        if not streams:
            message = f"the split {split!r} has fewer than {count} tool examples"
            raise DataError(message, f"request {len(examples)} at most", code="data.too_few_rows")
        active = []
        for function, stream in streams:
            if (item := next(stream, None)) is None:
                continue
            question, call = item
            active.append((function, stream))
            identifier = f"tool-{split}-{seed}-{len(examples) + 1:04d}"
            prompt = render_prompt(function, question)
            examples.append(ToolExample(identifier, function.name, question, prompt, call))
        streams = active
    return examples[:count]


def _questions(function: Function, seed: int) -> Iterator[tuple[str, str]]:
    """Yield every question about a function with its call, in an order given by the seed; phrasings alternate."""
    rng = random.Random(f"{function.name}/{seed}")
    stacks = []
    for phrasing in function.phrasings:
        names = fields(phrasing)
        choices = list(product(*(function.values[name] for name in names)))
        rng.shuffle(choices)
        stacks.append((phrasing, names, choices))
    rng.shuffle(stacks)
    seen: set[str] = set()
    while stacks:
        for phrasing, names, choices in stacks:
            while choices:
                choice = dict(zip(names, choices.pop(), strict=True))
                question = phrasing.format_map({name: wording for name, (wording, _) in choice.items()})
                question = question[0].upper() + question[1:]
                if question in seen:
                    continue
                seen.add(question)
                yield question, render_call(function, {name: value for name, (_, value) in choice.items()})
                break
        stacks = [stack for stack in stacks if stack[2]]
