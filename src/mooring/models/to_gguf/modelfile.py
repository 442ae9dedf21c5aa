"""A Modelfile, from which `ollama create` makes a model: the GGUF file, its chat template, and where answers stop.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md. Ollama's templates are Go's, and the model's own
is Jinja; the template is written only if it renders conversations as the model's own does.
"""

import dataclasses
from pathlib import Path
from typing import Any

from mooring.chat import end_of_turn, fold_system, has_system_role, render, turn_tail
from mooring.errors import ModelError
from mooring.records import Message


@dataclasses.dataclass(frozen=True, slots=True)
class Turns:
    """The text around the messages of a conversation, without a BOS that the tokenizer adds.

    Attributes:
        opening: What comes before the first turn if there is no system message, such as a default one.
        before: What comes before a message, by role.
        after: What comes after it, by role.
        answer: What begins the answer.
        folds: Whether a system message goes, with a space, before the first user message: there is no system role.
    """

    opening: str
    before: dict[str, str]
    after: dict[str, str]
    answer: str
    folds: bool = False

    def render(self, messages: list[Message]) -> str:
        """A conversation up to the beginning of the answer."""
        if self.folds and messages[0].role == "system":
            messages = fold_system(messages)
        opening = "" if messages[0].role == "system" else self.opening
        turns = (f"{self.before[m.role]}{m.content}{self.after[m.role]}" for m in messages)
        return f"{opening}{''.join(turns)}{self.answer}"

    def template(self) -> str:
        """The same as a template of Ollama."""
        opening = self.opening
        if opening and not self.folds:
            opening = f"{{{{ if not .System }}}}{opening}{{{{ end }}}}"
        roles = []
        for number, role in enumerate(self.before):
            test = "if" if number == 0 else "else if"
            content = f"{_FOLDED if self.folds and role == 'user' else ''}{{{{ .Content }}}}"
            roles.append(f'{{{{ {test} eq .Role "{role}" }}}}{self.before[role]}{content}{self.after[role]}')
        return f"{opening}{{{{ range $i, $_ := .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}{self.answer}"

    def is_writable(self) -> bool:
        """Whether no text would be taken for a part of the template's or the Modelfile's own syntax."""
        texts = (self.opening, self.answer, *self.before.values(), *self.after.values())
        template = self.template()
        quotes = '"""' in template or template.startswith('"') or template.endswith('"')
        return not quotes and not any("{{" in text or text.endswith("{") for text in texts)


_FOLDED = '{{ if and (eq $i 1) (eq (index $.Messages 0).Role "system") }}{{ (index $.Messages 0).Content }} {{ end }}'


def find_turns(tokenizer: Any) -> Turns | None:
    """How a chat template frames messages, found by trial; None if conversations are not rendered turn by turn.

    A BOS that the tokenizer adds to every text is left out, since llama.cpp adds it too.
    """
    adds = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    bos = tokenizer.bos_token if adds else ""

    def rendered(*messages: Message, answer: bool) -> str:
        return render(tokenizer, list(messages), answer=answer).removeprefix(bos)

    system, user = Message("system", "\u2042system\u2042"), Message("user", "\u2042user\u2042")
    assistant, again = Message("assistant", "\u2042assistant\u2042"), Message("user", "\u2042again\u2042")
    try:
        first = rendered(user, answer=False)
        pair = rendered(user, assistant, answer=False)
        three = rendered(user, assistant, again, answer=False)
        whole = rendered(user, assistant, again, answer=True)
    except ModelError:
        return None
    if not (whole.startswith(three) and three.startswith(pair) and pair.startswith(first)):
        return None
    front, _, after_user = first.partition(user.content)
    before_assistant, _, after_assistant = pair.removeprefix(first).partition(assistant.content)
    before_user, _, end = three.removeprefix(pair).partition(again.content)
    if end != after_user or not front.endswith(before_user):
        return None
    before = {"user": before_user, "assistant": before_assistant}
    after = {"user": after_user, "assistant": after_assistant}
    has_system = has_system_role(tokenizer)
    if has_system:
        front_system, _, rest = rendered(system, user, answer=False).partition(system.content)
        before["system"] = front_system
        after["system"] = rest.removesuffix(f"{before_user}{user.content}{after_user}")
    opening, answer = front.removesuffix(before_user), whole.removeprefix(three)
    turns = Turns(opening, before, after, answer, folds=not has_system)
    trials = [[user], [user, assistant, again], [system, user], [system, user, assistant, again]]
    same = all(turns.render(trial) == rendered(*trial, answer=True) for trial in trials)
    return turns if same and turns.is_writable() else None


def model_modelfile(file: str, tokenizer: Any) -> str:
    """The Modelfile of a model; `file` is the name of the GGUF file beside it."""
    lines = [f"FROM ./{file}"]
    turns = find_turns(tokenizer) if tokenizer.chat_template else None
    if turns is not None:
        lines.append(f'TEMPLATE """{turns.template()}"""')
        tail = turn_tail(tokenizer)
        stop = end_of_turn(tokenizer, tail).strip() if tail is not None else ""
        if stop and stop == one_word(stop):
            lines.append(f'PARAMETER stop "{stop}"')
    elif tokenizer.chat_template:
        lines.append("# The chat template is in the GGUF file. Ollama's own form of it is not written here, because it")
        lines.append("# would not render conversations in the same way; Ollama falls back on what it recognizes.")
    return "\n".join(lines) + "\n"


def adapter_modelfile(file: str, base: Path) -> str:
    """The Modelfile of an adapter on a base."""
    note = "# The base as Ollama knows it: a name in its library, or a GGUF file."
    return f"{note}\nFROM {one_word(base.resolve().name)}\nADAPTER ./{file}\n"


def one_word(text: str) -> str:
    """Text without what would end a value of a Modelfile, or stand for something else in it: each becomes `_`."""
    return "".join(c if c.isprintable() and c not in '"\\/' else "_" for c in text)
