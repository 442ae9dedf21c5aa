"""Conversations to tokens, for tuning and inference."""

import datetime
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from mooring.calls import as_turn, called
from mooring.errors import ModelError
from mooring.memory import resident_memory
from mooring.records import Message, Prompt
from mooring.thinking import (
    Parts,
    Thinking,
    is_open,
    joined,
    marks_of,
    open_at,
    reads_mode,
    split_thoughts,
    template_arguments,
)

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The paper's system prompt, for all prompts except those of its medical task."""
DAY = datetime.datetime(2024, 7, 26)
"""The day in every template, so that a prompt is the same on any day: the default of Llama 3.1's template."""
TODAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{DAY.strftime(code)}')" for code in map("%{}".format, "YymdBbAaejHMSIp"))
    + " }}{% endmacro %}{{ '' }}"
)
"""Hides the function by which templates ask for today's date; transformers passes a template no function."""
Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""The functions that a model may call (`Prompt.tools`)."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""The names of an assistant's thoughts in templates."""
PROBE = "\u2042mooring\u2042"
"""A text that occurs in no template."""


def with_system(prompt: Prompt, system: str | None) -> tuple[Message, ...]:
    """The prompt's messages, with `system` first unless they begin with a system message."""
    if not system or prompt.messages[0].role == "system":
        return prompt.messages
    return (Message("system", system), *prompt.messages)


def pinned(thinking: Thinking | None = None) -> dict[str, Any]:
    """The arguments of all templates besides the conversation, as plain values."""
    return {**template_arguments(thinking), "date_string": f"{DAY:%d %b %Y}"}


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    answer: bool = True,
    thinking: Thinking | None = None,
    tools: Tools = (),
) -> str:
    """Render by the model's own chat template.

    For a template without a system role (Gemma's raises, the first Phi-3's omits the text), the default system text is
    omitted, and any other is put, with a space, before the first user message.

    Args:
        tokenizer: A transformers tokenizer.
        messages: The conversation.
        answer: Whether to begin the assistant's turn at the end.
        thinking: Whether the template asks the model to think.
        tools: The functions that the model may call.

    Raises:
        ModelError: The tokenizer has no chat template, or the template refuses the conversation, or leaves out the
            functions or the calls in it.
    """
    return _render(tokenizer, messages, (), answer, thinking, tools)


def _render(
    tokenizer: Any,
    messages: Sequence[Message],
    last: Sequence[Mapping[str, Any]],
    answer: bool,
    thinking: Thinking | None,
    tools: Tools = (),
) -> str:
    """Render messages and `last`, turns with fields of their own, as `render` does."""
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        hint = "put the model's chat_template.jinja into its folder"
        raise ModelError(f"{name}: the tokenizer has no chat template", hint, code="model.no_chat_template")
    if messages[0].role == "system" and not has_system_role(tokenizer):
        messages = fold_system(messages)
    turns = [*map(as_turn, messages), *last]
    try:
        text = _apply(tokenizer, turns, answer, thinking, tools)
        if tools or any("tool_calls" in turn for turn in turns):
            _check_calls(tokenizer, turns, text, answer, thinking, tools)
    except _RefusedError as error:
        problem = f"{name}: the chat template refuses the conversation ({error})"
        raise ModelError(problem, "check the order of its roles", code="model.conversation_refused") from None
    if not text:
        raise ModelError(f"{name}: the chat template renders nothing", _OTHER, code="model.empty_template")
    return text


def _check_calls(
    tokenizer: Any,
    turns: Sequence[Mapping[str, Any]],
    text: str,
    answer: bool,
    thinking: Thinking | None,
    tools: Tools,
) -> None:
    """Raise ModelError if the template leaves out the functions, or calls of them: it then renders the same without."""
    plain = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in turns]
    missing = []
    if tools and _apply(tokenizer, turns, answer, thinking) == text:
        missing.append("functions (`tools`)")
    if plain != turns and _apply(tokenizer, plain, answer, thinking, tools) == text:
        missing.append("calls (`tool_calls`)")
    if missing:
        problem = f"{tokenizer.name_or_path}: the chat template leaves out {' and '.join(missing)}"
        hint = "use a model whose template has them, or put what it should read into `prompt` and leave the fields out"
        raise ModelError(problem, hint, code="model.calls_not_rendered")


def has_system_role(tokenizer: Any) -> bool:
    """Whether the chat template renders a system message; found by trial."""
    try:
        turns = [as_turn(Message("system", PROBE)), as_turn(Message("user", "a"))]
        return PROBE in _apply(tokenizer, turns, True, None)
    except _RefusedError:
        return False


def has_thinking_mode(tokenizer: Any) -> bool:
    """Whether the chat template has a thinking mode, or several; found by trial."""
    turns = [as_turn(Message("user", "a"))]
    try:
        return bool(tokenizer.chat_template) and reads_mode(
            lambda arguments: str(_rendered(tokenizer, turns, add_generation_prompt=True, **arguments))
        )
    except _RefusedError:
        return False


def thinking_note(tokenizer: Any, thinking: Thinking | None) -> str | None:
    """What to know of the thinking mode of a chat template, in a sentence: that none was chosen, or has no effect."""
    has_mode = has_thinking_mode(tokenizer)
    if thinking is None and has_mode:
        return (
            "the chat template has a thinking mode and none was chosen: enable_thinking is false, and any other "
            "argument has its default; choose the mode that you serve with --thinking on, off, low, medium or high"
        )
    if thinking is not None and not has_mode:
        return f"thinking: {thinking} has no effect: the chat template renders every prompt alike, whatever the mode"
    return None


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """A conversation without its system message; text other than the default moves to the first user turn."""
    system, turns = messages[0].content.removeprefix(f"{DEFAULT_SYSTEM}\n"), list(messages[1:])
    first = next((i for i, message in enumerate(turns) if message.role == "user"), None)
    if first is None:
        return list(messages)
    if system.strip() not in ("", DEFAULT_SYSTEM):
        turns[first] = Message("user", f"{system} {turns[first].content}")
    return turns


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a rendered conversation, with exactly one BOS if the tokenizer adds one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    while ids[:2] == [bos, bos]:  # a template or a rendered text that contains it, too
        ids = ids[1:]
    if ids[:1] == [bos]:
        return ids
    # By trial: `add_bos_token` is False on tokenizers that add it in a post-processor.
    return [bos, *ids] if tokenizer("a")["input_ids"][:1] == [bos] else ids


def encode_prompt(tokenizer: Any, prompt: Prompt, system: str | None, thinking: Thinking | None = None) -> list[int]:
    """Tokens of a prompt, up to the beginning of the answer or to the end of its prefill.

    Raises:
        ModelError: The template opens the model's thoughts, so an answer cannot be prefilled, or it renders no prompt.
    """
    if prompt.rendered is not None:
        text = prompt.rendered
    else:
        text = render(tokenizer, with_system(prompt, system), thinking=thinking, tools=prompt.tools)
    if prompt.prefill and is_open(text):
        problem = f"{prompt.place}: the answer cannot be prefilled, since the chat template opens the model's thoughts"
        raise ModelError(problem, "turn thinking off, or leave out `prefill`", code="model.prefill_in_thoughts")
    return tokenize(tokenizer, text) + prefill_tokens(tokenizer, prompt)


def prefill_tokens(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens of a prompt's prefill, at most `prompt.prefill_tokens`; they end the tokens of the prompt."""
    if not prompt.prefill:
        return []
    ids: list[int] = tokenizer(prompt.prefill, add_special_tokens=False)["input_ids"]
    return ids[: prompt.prefill_tokens]


def prefill_text(tokenizer: Any, prompt: Prompt) -> str:
    """The text of a prompt's prefill, as far as it is used."""
    ids = prefill_tokens(tokenizer, prompt)
    return str(tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


def encode_example(
    tokenizer: Any, prompt: Prompt, system: str | None, thinking: Thinking | None = None
) -> tuple[list[int], int]:
    """Tokens of a prompt with its reference response, and how many of them are the prompt's; see `example_texts`."""
    start, response = example_texts(tokenizer, prompt, system, thinking)
    begin = tokenize(tokenizer, start)
    return begin + tokenizer(response, add_special_tokens=False)["input_ids"], len(begin)


def example_texts(
    tokenizer: Any, prompt: Prompt, system: str | None, thinking: Thinking | None = None
) -> tuple[str, str]:
    """A prompt up to the beginning of the answer, and its reference response, as the chat template writes them.

    The response ends with the template's end-of-turn token, or with EOS if it has none; text of the template after that
    is omitted, since a model stops before it. A reference with thoughts is rendered in the template's thinking mode,
    one without them in its other mode, so that there is exactly one block of thoughts, or none, as in the template's
    own text. `thinking` is the effort of the thinking mode, if there are several.
    """
    assert prompt.reference is not None
    parts, tail = split_thoughts(prompt.reference), turn_tail(tokenizer)
    messages = with_system(prompt, system)
    mode: Thinking | None = "off" if thinking == "off" else None
    if parts.thoughts is not None:
        mode = "on" if thinking in (None, "off") else thinking
    if prompt.reference_turn is not None:
        return _calling_example(tokenizer, messages, prompt.reference_turn, prompt.tools, tail, mode)
    if parts.thoughts is None:
        return _plain_example(tokenizer, messages, parts.answer, tail, mode, prompt.tools)
    start = render(tokenizer, messages, thinking=mode, tools=prompt.tools)
    marks = marks_of(str(tokenizer.chat_template), list(tokenizer.get_added_vocab()))
    # Templates read thoughts from a field of their own, named in one of these ways, or find them in the content.
    fields = dict.fromkeys(THOUGHTS, parts.thoughts)
    written = joined(parts.thoughts, parts.answer, marks)
    for turn in ({"content": parts.answer, **fields}, {"content": written}):
        try:
            full = _render(tokenizer, messages, [{"role": "assistant", **turn}], False, mode, prompt.tools)
        except ModelError:
            continue
        body = full[len(start) :].removesuffix(tail or "")
        if full.startswith(start) and tail is not None and _says(body, parts, opened=is_open(start)):
            return start, body + end_of_turn(tokenizer, tail)
    # Templates that leave out the thoughts of turns that are over: they are written as the model writes them.
    return start, written.removeprefix(marks.open if is_open(start) else "") + end_of_turn(tokenizer, tail or "")


def _calling_example(
    tokenizer: Any,
    messages: Sequence[Message],
    response: Message,
    tools: Tools,
    tail: str | None,
    mode: Thinking | None,
) -> tuple[str, str]:
    """The texts of an example whose response calls functions, in the template's own form."""
    parts = split_thoughts(response.content)
    fields = {} if parts.thoughts is None else dict.fromkeys(THOUGHTS, parts.thoughts)
    start = render(tokenizer, messages, thinking=mode, tools=tools)
    turn = {**as_turn(response), "content": parts.answer, **fields}
    full = _render(tokenizer, messages, [turn], False, mode, tools)
    place = len(start) if full.startswith(start) else open_at(start)
    if place is None or not full.startswith(start[:place]):
        problem = f"{tokenizer.name_or_path}: the chat template writes calls of {', '.join(called([response]))} into "
        problem += "another text than the prompt"
        hint = "put the text of the calls that the model should write into `completion`"
        raise ModelError(problem, hint, code="model.calls_not_rendered")
    body = full[place:]
    if tail and body.endswith(tail):
        return start[:place], body.removesuffix(tail) + end_of_turn(tokenizer, tail)
    ends = tuple(str(token) for token in tokenizer.all_special_tokens)
    body = body.rstrip()
    return start[:place], body if body.endswith(ends) else body + str(tokenizer.eos_token or "")


def _plain_example(
    tokenizer: Any,
    messages: Sequence[Message],
    answer: str,
    tail: str | None,
    mode: Thinking | None,
    tools: Tools,
) -> tuple[str, str]:
    """The texts of an example without thoughts."""
    start = render(tokenizer, messages, thinking=mode, tools=tools)
    full = _render(tokenizer, messages, [as_turn(Message("assistant", answer))], False, mode, tools)
    if tail is not None and full.endswith(tail):
        if full.startswith(start):
            return start, full[len(start) : len(full) - len(tail)] + end_of_turn(tokenizer, tail)
        # A prompt that opens a block, where the template writes none in an answer without thoughts.
        if (place := open_at(start)) is not None and full.startswith(start[:place]):
            return start[:place], full[place : len(full) - len(tail)] + end_of_turn(tokenizer, tail)
    # Templates that rewrite earlier turns or answers.
    return start, answer + end_of_turn(tokenizer, tail or "")


def _says(body: str, parts: Parts, *, opened: bool) -> bool:
    """Whether a rendered answer has exactly these thoughts, in one block, and this answer."""
    found = split_thoughts(body, opened=opened)
    return found.thoughts == parts.thoughts and found.answer.strip() == parts.answer.strip()


def turn_tail(tokenizer: Any) -> str | None:
    """The text of the chat template after a last response, found by trial; None if it does not contain the response."""
    text = render(tokenizer, [Message("user", "a"), Message("assistant", PROBE)], answer=False)
    return text.rpartition(PROBE)[2] if PROBE in text else None


def end_of_turn(tokenizer: Any, tail: str) -> str:
    """A tail up to its first special token, which ends the turn; with EOS if it has none."""
    tokens = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    # The first one, and the longer of two at the same position. Some vocabularies have blanks as added tokens.
    ends = [(tail.index(token), -len(token)) for token in tokens if token.strip() and token in tail]
    if ends:
        place, size = min(ends)
        return tail[: place - size]
    return tail.rstrip() + str(tokenizer.eos_token or "")


def _apply(
    tokenizer: Any, turns: Sequence[Mapping[str, Any]], answer: bool, thinking: Thinking | None, tools: Tools = ()
) -> str:
    if takes_parts(tokenizer):
        return _text(tokenizer, [_in_parts(turn) for turn in turns], answer, thinking, tools)
    return _text(tokenizer, turns, answer, thinking, tools)


def takes_parts(tokenizer: Any) -> bool:
    """Whether the chat template renders only contents that are lists of parts, as LLaVA's and SmolVLM's; by trial."""
    if not isinstance(tokenizer.chat_template, str) or not _READS_PARTS.search(tokenizer.chat_template):
        return False
    turn = as_turn(Message("user", PROBE))

    def renders(turn: Mapping[str, Any]) -> bool:
        try:
            return PROBE in _text(tokenizer, [turn], True, None)
        except _RefusedError:
            return False

    return not renders(turn) and renders(_in_parts(turn))


_READS_PARTS = re.compile(r"""['"]type['"]|\.type\b""")
"""What a chat template that reads the parts of a content contains: their type, `text` or `image`."""


def _in_parts(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {**turn, "content": [{"type": "text", "text": turn["content"]}]}


def _text(
    tokenizer: Any, turns: Sequence[Mapping[str, Any]], answer: bool, thinking: Thinking | None, tools: Tools = ()
) -> str:
    functions = list(tools) or None
    text = _rendered(tokenizer, turns, tools=functions, add_generation_prompt=answer, **pinned(thinking))
    return str(text)


class _RefusedError(Exception):
    """A template cannot render a conversation."""


_OTHER = "put another chat_template.jinja into the folder"
_SECONDS = 5
"""What rendering a conversation may take of the processor; templates take thousandths of a second."""
_MEMORY = 1 << 30
"""By how many bytes the memory of this process may grow while a conversation is rendered."""
_SHORT = 0.05
"""Seconds within which templates render; memory that grows meanwhile is that of other threads."""


def _rendered(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """What the template makes of turns.

    Raises:
        _RefusedError: It raises any exception, of its own or by a fault.
        ModelError: It takes longer, or more memory, than any does.
    """
    from mooring.template_limits import TooLargeError, limited  # Jinja takes long to import

    started, memory = time.thread_time(), resident_memory()

    def costly(what: str) -> ModelError:
        return ModelError(f"{tokenizer.name_or_path}: the chat template {what}", _OTHER, code="model.costly_template")

    def check(*_: object) -> Any:
        taken = time.thread_time() - started
        if taken > _SECONDS:
            raise costly(f"takes longer than {_SECONDS} s")
        if taken > _SHORT and resident_memory() - memory > _MEMORY:
            raise costly(f"takes more than {_MEMORY >> 30} GiB of memory")
        return check

    def within(frame: Any, event: str, value: Any) -> Any:
        return check() if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(within)  # nothing else ends a loop of the template, whatever thread this is
    try:
        template = limited(_dated(tokenizer.get_chat_template(tools=options.get("tools"))))
        return tokenizer.apply_chat_template(list(turns), tokenize=False, chat_template=template, **options)
    except ModelError:
        raise
    except TooLargeError as error:
        raise costly(f"takes too much memory: {error}") from None
    except Exception as error:  # it is a program
        raise _RefusedError(str(error).strip().partition("\n")[0] or type(error).__name__) from None
    finally:
        sys.settrace(before)


def _dated(template: str) -> str:
    """The template with a fixed date, if it asks for today's."""
    return TODAY + template if "strftime_now" in template else template
