"""Small, strict pieces of which the judges' readers are made: linear in the answer, and never a guess."""

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
