"""What a judge is: it says what to ask about a completion, and reads the answers. It loads no model."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from mooring.errors import DataError
from mooring.records import Completion, Message, Prompt

# --- Small, strict pieces of which the judges' readers are made: linear in the answer, and ---


LONGEST = 20_000
"""Characters after which nothing is read: no judge's answer is that long."""


class UnreadableError(ValueError):
    """An answer is not of the form that its judge gives; the message says in a few words in what."""


def clean(answer: str) -> str:
    """An answer without the white space around it.

    Raises:
        UnreadableError: It is too long to be one.
    """
    if len(answer) > LONGEST:
        raise UnreadableError("too long")
    return answer.strip()


def after_thinking(text: str) -> str:
    """What follows a leading `<think>…</think>`, or all of it where there is none.

    Raises:
        UnreadableError: The thinking has no end.
    """
    if not text.startswith("<think>"):
        return text
    _, end, rest = text.partition("</think>")
    if not end:
        raise UnreadableError("unfinished thinking")
    return rest.strip()


def filled_lines(text: str) -> list[str]:
    """Lines that hold anything, without the white space around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def yes_no(value: str) -> bool:
    """Whether a value is yes; upper or lower case is the same.

    Raises:
        UnreadableError: It is neither yes nor no.
    """
    word = value.strip().lower()
    if word not in ("yes", "no"):
        raise UnreadableError("neither yes nor no")
    return word == "yes"


def labelled(line: str, label: str) -> str:
    """The value of a line `label: value`.

    Raises:
        UnreadableError: The line is not of that form, or of another label.
    """
    name, colon, value = line.partition(":")
    if not colon or name.strip().lower() != label.lower():
        raise UnreadableError(f"no line of {label.lower()}")
    return value.strip()


def split_list(value: str) -> list[str]:
    """The items of a list with commas, without the white space around them."""
    return [item.strip() for item in value.split(",")]


NUMBER = "\x1f"
"""Stands between a completion's key and the number of a question about it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What a judge's answers say.

    Attributes:
        harmful: Whether the response is harmful; None where the answers cannot be read (a miss).
        refused: Whether it refuses; None likewise, or where the judge does not say.
        category: The kinds of harm, where the judge names any.
        why: In a word or two, why it was a miss, or what the verdict rests on.
    """

    harmful: bool | None
    refused: bool | None
    category: str | None = None
    why: str = ""


class Judge(Protocol):
    """A safety judge. Text goes into its questions as it is, as its makers' own code does it."""

    @property
    def name(self) -> str:
        """What it is called in recipes and records; settings that change verdicts are part of it."""
        ...

    @property
    def model(self) -> str | None:
        """The hub id of the model that it was made for; None where it goes with any, or needs none."""
        ...

    @property
    def needs_model(self) -> bool:
        """Whether a model has to be asked."""
        ...

    @property
    def gated(self) -> bool:
        """Whether the hub gives its model only to those who have accepted terms."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest answer, in tokens."""
        ...

    @property
    def whole_lines(self) -> int | None:
        """How many whole lines an answer that the limit cut off must have to be read all the same.

        0 where its first word is the verdict; None where a cut answer is always a miss.
        """
        ...

    @property
    def says_refused(self) -> bool:
        """Whether it says whether a response refuses, besides whether it is harmful."""
        ...

    def ask(self, prompt: Prompt, completion: Completion) -> list[Prompt]:
        """The questions about one completion.

        Returns:
            Prompts with the ids of `question_id`: `rendered`, without a BOS token (which the engine puts in front),
            where the judge has a text of its own, else as messages for any chat model.

        Raises:
            DataError: The prompt has no user's turn.
        """
        ...

    def read(self, answers: Sequence[str]) -> Reading:
        """Read the answers, one to each question and in their order; what cannot be read is a miss."""
        ...


Self = TypeVar("Self")
Read = Callable[[Self, Sequence[str]], Reading]


def readable(read: Read[Self]) -> Read[Self]:
    """Make a reader that raises `UnreadableError` one that returns a miss, and give it answers cleaned by `clean`."""

    @functools.wraps(read)
    def checked(self: Self, answers: Sequence[str]) -> Reading:
        try:
            return read(self, [clean(answer) for answer in answers])
        except UnreadableError as error:
            return Reading(None, None, why=str(error))

    return checked


def question_id(completion: Completion, number: int = 0) -> str:
    """The id of the question of that number about a completion."""
    return f"{completion.key}{NUMBER}{number}"


def question(completion: Completion, text: str, number: int = 0) -> Prompt:
    """A question whose whole text is fixed."""
    return Prompt(id=question_id(completion, number), messages=(Message("user", text),), rendered=text)


def request(prompt: Prompt) -> str:
    """What the user asked last.

    Raises:
        DataError: There is no user's turn.
    """
    for message in reversed(prompt.messages):
        if message.role == "user":
            return message.content
    raise DataError(f"{prompt.origin or f'prompt {prompt.id}'}: has no user's turn to judge the answer to")


def conversation(prompt: Prompt, completion: Completion) -> list[Message]:
    """The user's and the assistant's turns, the completion last. A system message is no part of what is judged."""
    request(prompt)
    turns = [message for message in prompt.messages if message.role in ("user", "assistant")]
    return [*turns, Message("assistant", completion.text)]
