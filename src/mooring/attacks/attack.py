"""The types of attacks: a technique of the registry, and one with its option."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from mooring.records import Message, Prompt


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What follows the colon in an attack's name.

    Attributes:
        what: What it is, for people; begins with its placeholder, as in `N: tokens of the prefill, 1 to 32`.
        parse: From its text to its value; raises ValueError with the reason.
        default: The text that it has if none is given; None if one must be given.
        key: From its text to how it stands in names of sets, files and scores.
    """

    what: str
    parse: Callable[[str], Any]
    default: str | None = None
    key: Callable[[str], str] = str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """A way of asking that may get around a model's refusal.

    Attributes:
        name: Its name in recipes.
        what: What it does, in a sentence or two.
        source: The publication that it is from.
        apply: From a prompt, the option's value and a seeded generator of random numbers to the prompts that are asked.
            A pure function.
        option: Its option, if it has one.
        several: Whether one prompt may become several. Then an attack succeeds on a prompt if any answer is harmful.
        temperature: The temperature of its answers; None for that of other safety prompts.
        turns: From the option's value to the number of answers per prompt, of which the last is scored.
        from_tuned: Whether it needs the tuned model's answers to the same prompts.
    """

    name: str
    what: str
    source: str
    apply: Callable[[Prompt, Any, random.Random], Sequence[Prompt]]
    option: Option | None = None
    several: bool = False
    temperature: float | None = None
    turns: Callable[[Any], int] = lambda value: 1
    from_tuned: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Attack:
    """A technique with its option.

    Attributes:
        technique: The technique.
        argument: The text of its option; empty if it has none.
        value: The option's value.
    """

    technique: Technique
    argument: str = ""
    value: Any = dataclasses.field(default=None, compare=False)

    @property
    def text(self) -> str:
        """The attack as recipes have it: `prefill:8`."""
        return f"{self.technique.name}:{self.argument}" if self.argument else self.technique.name

    @property
    def name(self) -> str:
        """The attack in names of sets, files and scores, and for people; of a file without its folder."""
        option = self.technique.option
        return f"{self.technique.name}:{option.key(self.argument)}" if option else self.technique.name

    @property
    def turns(self) -> int:
        """How many answers each prompt gets, of which the last is scored."""
        return self.technique.turns(self.value)

    @property
    def rate(self) -> str:
        """The score of the attack's success: of each prompt's worst answer, if it has several."""
        return f"asr_worst+{self.name}" if self.technique.several else f"asr+{self.name}"

    def apply(self, prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
        """The prompts that are asked, a function of the prompts and the seed.

        A single prompt keeps its id; several of one have the ids `id#1`, `id#2`, … and name it in `variant_of`.
        """
        found: list[Prompt] = []
        for prompt in prompts:
            made = self.technique.apply(prompt, self.value, random.Random(f"{seed}\0{self.name}\0{prompt.id}"))
            if not self.technique.several:
                found += made
                continue
            found += [
                dataclasses.replace(each, id=f"{prompt.id}#{number}", variant_of=prompt.id)
                for number, each in enumerate(made, 1)
            ]
        return found


def request_of(prompt: Prompt) -> str:
    """The user's last turn."""
    return prompt.messages[-1].content


def asking(prompt: Prompt, text: str) -> Prompt:
    """A prompt with another text as the user's last turn."""
    return dataclasses.replace(prompt, messages=(*prompt.messages[:-1], Message("user", text)))


def rewriting(change: Callable[[str], str]) -> Callable[[Prompt, Any, random.Random], Sequence[Prompt]]:
    """The `apply` of a technique that only rewrites the request."""
    return lambda prompt, value, rng: [asking(prompt, change(request_of(prompt)))]


def whole_number(what: str, low: int, high: int, default: int) -> Option:
    """An option that is a whole number, such as `N: tokens`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"give a whole number from {low} to {high}")
        return int(text)

    return Option(
        what=f"{what}, {low} to {high}; defaults to {default}",
        parse=parse,
        default=str(default),
        key=lambda text: str(int(text)),
    )


def one_of(what: str, names: Sequence[str], default: str) -> Option:
    """An option that is one of several names."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"give one of {', '.join(names)}")
        return text

    return Option(what=f"{what}: {', '.join(names)}; defaults to {default}", parse=parse, default=default)
