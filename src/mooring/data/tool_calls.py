"""The bundled tool-calling task: short questions with the one function call that answers each.

The functions lie in `data/functions.json`. A function has its parameters, some phrasings of a question, and values to
put into them. A value is either the same in the question and in the call (`"Oslo"`) or is said one way and passed
another (`{"say": "3 March 2025", "value": "2025-03-03"}`). A phrasing that leaves out an optional parameter leaves it
out of the call too, so that every question has exactly one right answer.
"""

import dataclasses
import json
import math
import random
import string
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import product

from mooring.errors import DataError

SPLITS = ("tune", "validation", "test")

Value = str | int | float | bool
"""What a parameter can hold in a call."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a function."""

    name: str
    type: str
    """string, integer, number, boolean or enum"""
    description: str
    required: bool
    options: tuple[str, ...] = ()
    """The values that an enum allows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """One function of the task, and what questions about it are made of."""

    name: str
    description: str
    split: str
    parameters: tuple[Parameter, ...]
    phrasings: tuple[str, ...]
    values: dict[str, tuple[tuple[str, Value], ...]]
    """For each parameter: what the question says, and what the call passes."""

    @property
    def capacity(self) -> int:
        """How many questions can be made, if no two of them come out alike."""
        return sum(math.prod(len(self.values[name]) for name in fields(phrasing)) for phrasing in self.phrasings)


@dataclasses.dataclass(frozen=True, slots=True)
class ToolExample:
    """A question, the prompt that asks it, and the right call."""

    id: str
    function: str
    question: str
    prompt: str
    call: str


def fields(phrasing: str) -> list[str]:
    """The parameters that a phrasing states, in the order of the text."""
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
    """The text that a model is given: the task, the question, the function and its parameters."""
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
    """The call with these values: keywords in the order of the parameters, strings in single quotes."""
    given = [f"{p.name}={values[p.name]!r}" for p in function.parameters if p.name in values]
    return f"{function.name}({', '.join(given)})"


def simplify(function: Function) -> Function | None:
    """A function as a very small model can learn it: the question states every parameter as the call passes it.

    Nothing is optional, nothing is converted, and there are no booleans. `None` where that leaves no question.
    """
    booleans = {p.name for p in function.parameters if p.type == "boolean"}
    stated = [frozenset(fields(phrasing)) for phrasing in function.phrasings]
    candidates = [names for names in stated if not names & booleans]
    if not candidates:
        return None
    kept = max(candidates, key=lambda names: (stated.count(names), len(names)))
    return dataclasses.replace(
        function,
        parameters=tuple(dataclasses.replace(p, required=True) for p in function.parameters if p.name in kept),
        phrasings=tuple(phrasing for phrasing, names in zip(function.phrasings, stated, strict=True) if names == kept),
        values={name: tuple((str(value), value) for _, value in function.values[name]) for name in kept},
    )


def generate(split: str, count: int, seed: int = 0, *, simple: bool = False) -> list[ToolExample]:
    """Make `count` different examples of a split, spread evenly over its functions.

    The same arguments give the same examples, and a smaller count gives the beginning of a larger one. A split never
    uses another one's functions. With `simple`, each function is first simplified. DataError if the split is unknown,
    or if it cannot yield so many.
    """
    if split not in SPLITS:
        raise DataError(f"the tool task has no split {split!r}", f"use one of {', '.join(SPLITS)}")
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
            raise DataError(f"the split {split!r} has no {count} tool examples", f"ask for {len(examples)} at most")
        going = []
        for function, stream in streams:
            if len(examples) == count:
                break
            item = next(stream, None)
            if item is None:
                continue
            question, call = item
            going.append((function, stream))
            identifier = f"tool-{split}-{seed}-{len(examples) + 1:04d}"
            prompt = render_prompt(function, question)
            examples.append(ToolExample(identifier, function.name, question, prompt, call))
        streams = going
    return examples


def _questions(function: Function, seed: int) -> Iterator[tuple[str, str]]:
    """Every question about a function with its call, in an order drawn from the seed; phrasings take turns."""
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
                question = phrasing.format_map({name: said for name, (said, _) in choice.items()})
                question = question[0].upper() + question[1:]
                if question in seen:
                    continue
                seen.add(question)
                yield question, render_call(function, {name: value for name, (_, value) in choice.items()})
                break
        stacks = [stack for stack in stacks if stack[2]]
