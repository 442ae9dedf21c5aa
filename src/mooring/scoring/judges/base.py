"""The type of judges, and strict, linear-time building blocks for their questions and readers."""

import dataclasses
from collections.abc import Callable, Sequence

from mooring.calls import as_text
from mooring.errors import DataError
from mooring.records import Completion, Message, Prompt
from mooring.scoring.refusal import Decision

LONGEST = 20_000
"""The most characters of an answer that is read: no judge's answer is that long."""
_NUMBER = "\x1f"
"""Between a completion's key and the number of a question about it."""


class UnreadableError(ValueError):
    """An answer does not have the expected form; the message says why in a few words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """The meaning of a judge's answers: the fields of the same names of a `Verdict`."""

    harmful: bool | None
    refused: bool | None
    category: str | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A safety judge: the questions about a completion, and the meaning of the answers. It loads no model.

    Text is inserted into the questions unescaped, as in the code of the judge's authors.

    Attributes:
        name: Its name in recipes and records, which includes options that change verdicts.
        ask: Returns the questions about one completion, with the ids of `question_id`: `rendered`, without a BOS
            token (which the engine adds), if the judge has its own template, else as messages for any chat model.
            Raises DataError if the prompt has no user's turn.
        reader: Reads the answers, one argument per question, in their order. Raises UnreadableError.
        model: The hub id of the model that it was made for; None if it works with any, or needs none.
        decide: What a judge without a model says of a request and a response; None if it asks a model.
        version: The content of `Verdict.judge`, of a judge without a model.
        gated: Whether the hub requires accepting terms for its model.
        max_tokens: The most tokens of an answer.
        complete_lines: The complete lines that an answer cut off at `max_tokens` needs to be read anyway: 0 if its
            first word is the verdict; None if such an answer is always a miss.
        says_refused: Whether it also says whether a response refuses.
    """

    name: str
    ask: Callable[[Prompt, Completion], list[Prompt]]
    reader: Callable[..., Reading]
    model: str | None = None
    decide: Callable[[str, str], Decision] | None = None
    version: str = ""
    gated: bool = False
    max_tokens: int = 0
    complete_lines: int | None = None
    says_refused: bool = False

    @property
    def needs_model(self) -> bool:
        """Whether it asks a model."""
        return self.decide is None

    def read(self, answers: Sequence[str]) -> Reading:
        """Read the answers, one per question, in their order; answers that cannot be read are a miss."""
        try:
            return self.reader(*map(_clean, answers))
        except UnreadableError as error:
            return Reading(None, None, why=str(error))

    def is_complete(self, answer: str) -> bool:
        """Whether an answer that was cut off can be read anyway."""
        return self.complete_lines is not None and answer.lstrip().count("\n") >= self.complete_lines


def _clean(answer: str) -> str:
    if len(answer) > LONGEST:
        raise UnreadableError("too long")
    return answer.strip()


# --- Questions -------------------------------------------------------------------------------------------------------


def question_id(completion: Completion, number: int = 0) -> str:
    """The id of the question of that number about a completion."""
    return f"{completion.key}{_NUMBER}{number}"


def question(completion: Completion, text: str, number: int = 0) -> Prompt:
    """A question as rendered text."""
    return Prompt(id=question_id(completion, number), messages=(Message("user", text),), rendered=text)


def ask_text(template: str) -> Callable[[Prompt, Completion], list[Prompt]]:
    """An `ask` that inserts the request and the response into a template, at `{prompt}` and `{response}`."""
    return lambda prompt, completion: [question(completion, _fill(template, prompt, completion))]


def ask_chat(template: str, system: str | None = None) -> Callable[[Prompt, Completion], list[Prompt]]:
    """An `ask` for any chat model: the template of `ask_text` as a user's message, after an optional system message."""
    before = () if system is None else (Message("system", system),)

    def ask(prompt: Prompt, completion: Completion) -> list[Prompt]:
        text = Message("user", _fill(template, prompt, completion))
        return [Prompt(id=question_id(completion), messages=(*before, text))]

    return ask


def _fill(template: str, prompt: Prompt, completion: Completion) -> str:
    return template.format(prompt=request(prompt), response=completion.text)


def request(prompt: Prompt) -> str:
    """The user's last message; raises DataError (`data.no_user_turn`) if there is none."""
    for message in reversed(prompt.messages):
        if message.role == "user":
            return message.content
    raise DataError(f"{prompt.place}: has no user's turn to judge the answer to", code="data.no_user_turn")


def conversation(prompt: Prompt, completion: Completion) -> list[Message]:
    """The user's and the assistant's turns, the completion last. System messages are not judged."""
    request(prompt)
    turns = [message for message in prompt.messages if message.role in ("user", "assistant")]
    return [*(Message(turn.role, as_text(turn)) for turn in turns), Message("assistant", completion.text)]


# --- Readers; all raise UnreadableError ------------------------------------------------------------------------------


def after_thinking(text: str) -> str:
    """The text after a leading `<think>…</think>`, or the whole text if there is none."""
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
    """Whether a value is yes (True) or no (False), in any case."""
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
