"""What a judge is, and the strict, linear-time pieces of which the judges' questions and readers are made."""

import dataclasses
from collections.abc import Callable, Sequence

from mooring.errors import DataError
from mooring.records import Completion, Message, Prompt

LONGEST = 20_000
"""Characters of an answer above which it is not read: no judge's answer is that long."""
_NUMBER = "\x1f"
"""Separates a completion's key from the number of a question about it."""


class UnreadableError(ValueError):
    """An answer does not have the form that its judge gives; the message says in a few words why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What a judge's answers say.

    Attributes:
        harmful: Whether the response is harmful; None if the answers cannot be read (a miss).
        refused: Whether it refuses; None if that cannot be read, or the judge does not say.
        category: The kinds of harm, if the judge names any.
        why: In a word or two, why it was a miss, or what the verdict rests on.
    """

    harmful: bool | None
    refused: bool | None
    category: str | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A safety judge: what to ask about a completion, and what the answers say. It loads no model.

    Text goes into its questions unescaped, as its makers' own code sends it.

    Attributes:
        name: Its name in recipes and records; options that change verdicts are part of it.
        ask: Returns the questions about one completion, with the ids of `question_id`: `rendered`, without a BOS
            token (which the engine adds), if the judge has a text of its own, else as messages for any chat model.
            Raises DataError if the prompt has no user's turn.
        reader: Reads the answers, one argument per question, in their order. Raises UnreadableError.
        model: The hub id of the model that it was made for; None if it works with any, or needs none.
        needs_model: Whether a model has to be asked.
        gated: Whether the hub provides its model only to those who have accepted terms.
        max_tokens: Longest answer, in tokens.
        complete_lines: How many complete lines an answer that `max_tokens` cut off must have to be read anyway: 0 if
            its first word is the verdict; None if such an answer is always a miss.
        says_refused: Whether it also says whether a response refuses.
    """

    name: str
    ask: Callable[[Prompt, Completion], list[Prompt]]
    reader: Callable[..., Reading]
    model: str | None = None
    needs_model: bool = True
    gated: bool = False
    max_tokens: int = 0
    complete_lines: int | None = None
    says_refused: bool = False

    def read(self, answers: Sequence[str]) -> Reading:
        """Read the answers, one per question and in their order; answers that cannot be read are a miss."""
        try:
            return self.reader(*map(_clean, answers))
        except UnreadableError as error:
            return Reading(None, None, why=str(error))


def _clean(answer: str) -> str:
    if len(answer) > LONGEST:
        raise UnreadableError("too long")
    return answer.strip()


# --- Questions -------------------------------------------------------------------------------------------------------


def question_id(completion: Completion, number: int = 0) -> str:
    """The id of the question of that number about a completion."""
    return f"{completion.key}{_NUMBER}{number}"


def question(completion: Completion, text: str, number: int = 0) -> Prompt:
    """A question whose whole text is fixed."""
    return Prompt(id=question_id(completion, number), messages=(Message("user", text),), rendered=text)


def ask_text(template: str) -> Callable[[Prompt, Completion], list[Prompt]]:
    """An `ask` that fills the request and the response into a fixed text, at `{prompt}` and `{response}`."""
    return lambda prompt, completion: [question(completion, _fill(template, prompt, completion))]


def ask_chat(template: str, system: str | None = None) -> Callable[[Prompt, Completion], list[Prompt]]:
    """An `ask` for any chat model: `template` as `ask_text`, as the user's message after an optional system message."""
    before = () if system is None else (Message("system", system),)

    def ask(prompt: Prompt, completion: Completion) -> list[Prompt]:
        text = Message("user", _fill(template, prompt, completion))
        return [Prompt(id=question_id(completion), messages=(*before, text))]

    return ask


def _fill(template: str, prompt: Prompt, completion: Completion) -> str:
    return template.format(prompt=request(prompt), response=completion.text)


def request(prompt: Prompt) -> str:
    """The user's last message.

    Raises:
        DataError: There is no user's turn.
    """
    for message in reversed(prompt.messages):
        if message.role == "user":
            return message.content
    where = prompt.origin or f"prompt {prompt.id}"
    raise DataError(f"{where}: has no user's turn to judge the answer to", code="data.no_user_turn")


def conversation(prompt: Prompt, completion: Completion) -> list[Message]:
    """The user's and the assistant's turns, the completion last. System messages are not judged."""
    request(prompt)
    turns = [message for message in prompt.messages if message.role in ("user", "assistant")]
    return [*turns, Message("assistant", completion.text)]


# --- Readers; all raise UnreadableError ------------------------------------------------------------------------------


def after_thinking(text: str) -> str:
    """What follows a leading `<think>…</think>`, or the whole text if there is none."""
    if not text.startswith("<think>"):
        return text
    _, end, rest = text.partition("</think>")
    if not end:
        raise UnreadableError("unfinished thinking")
    return rest.strip()


def filled_lines(text: str) -> list[str]:
    """The lines that are not blank, stripped."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def yes_no(value: str) -> bool:
    """Whether a value is yes rather than no, in any case."""
    word = value.strip().lower()
    if word not in ("yes", "no"):
        raise UnreadableError("neither yes nor no")
    return word == "yes"


def labelled(line: str, label: str) -> str:
    """The value of a line `label: value`."""
    name, colon, value = line.partition(":")
    if not colon or name.strip().lower() != label.lower():
        raise UnreadableError(f"no line of {label.lower()}")
    return value.strip()


def split_list(value: str) -> list[str]:
    """The items of a comma-separated list, stripped."""
    return [item.strip() for item in value.split(",")]
