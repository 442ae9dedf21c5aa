"""What a reasoning model thought and what it answered: one response, split in two.

Models mark their thoughts in many ways. `MARKS` lists those of the chat templates of 2024 to 2026 and of the reasoning
parsers of vLLM, SGLang and llama.cpp; tags are read whatever their namespace, so that `<seed:think>` and `<mm:think>`
need no entry.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from mooring.records import Completion

Thinking: TypeAlias = Literal["on", "off", "minimal", "low", "medium", "high", "xhigh"]
"""Whether a chat template asks the model to think, or how much."""

CUT_OFF = "cut off while thinking"
"""`Verdict.why` of a response that reached the limit of tokens before its answer began."""
NO_ANSWER = "no answer after thinking"
"""`Verdict.why` of a response that ended by itself with thoughts alone."""


class Marks(NamedTuple):
    """How a family of models writes a block of thoughts; the white space is the template's own."""

    open: str
    close: str


MARKS: tuple[Marks, ...] = (
    Marks("<think>\n", "\n</think>\n\n"),  # Qwen, DeepSeek, GLM, Kimi K2, MiniMax, Nemotron, SmolLM, OLMo, Hunyuan …
    Marks("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),  # gpt-oss
    Marks("[THINK]", "[/THINK]"),  # Magistral, Ministral
    Marks("<|channel>thought\n", "<channel|>"),  # Gemma 4
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    Marks("Here is my thought process:\n", "\nHere is my response:\n"),  # Granite 3.2
    Marks("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Marks("<unused94>thought\n", "<unused95>"),  # MedGemma
    Marks("<|think:start|>", "<|think:end|>"),  # Solar Open 2
    Marks("<|begin_of_thought|>\n\n", "\n\n<|end_of_thought|>\n\n"),  # OpenThinker, Sky-T1
    Marks("◁think▷", "◁/think▷"),  # Kimi 1.5, Kimi-VL
    Marks("<start_working_out>", "<end_working_out>"),  # recipes for GRPO
    Marks("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]\n"),  # Apriel
    Marks("<|im_start|>think\n", "<|im_start|>answer\n"),  # s1
)
PLAIN = MARKS[0]
"""How thoughts are written where no template decides, such as in a reference."""

PREAMBLE = 20
"""The most words before a block that was never closed that are no answer yet: `Sure, let me think about that.`"""

_TAG = r"(?:[\w.-]{1,16}[:|])?(?:think|thinking|thoughts?|reasoning)"
_PROSE = (r"Here(?:'s| is) my thought process:", r"Here(?:'s| is) my response:")


def _pattern(text: str) -> str:
    """A mark with any white space where the template has some, and none required."""
    return r"\s*".join(re.escape(part) for part in re.split(r"\s+", text.strip()))


_SPECIAL = [marks for marks in MARKS if not marks.open.startswith(("<think>", "<|channel|>", "Here is", "<seed:"))]
# Each alternative is a group, so that a block is closed by the mark that belongs to the one that opened it.
_OPEN = re.compile(
    "|".join(f"({part})" for part in (f"<{_TAG}>", _PROSE[0], *(_pattern(marks.open) for marks in _SPECIAL))),
    re.IGNORECASE,
)
_CLOSES = [
    re.compile(part, re.IGNORECASE)
    for part in (f"</{_TAG}>", _PROSE[1], *(_pattern(marks.close) for marks in _SPECIAL))
]
# Without its beginning, which the prompt has, a block is recognised by an end that is no prose, quotation or code.
_BARE_CLOSE = re.compile(
    r"(?<![`'\"])(?:"
    + "|".join(f"</{_TAG}>" if n == 0 else c.pattern for n, c in enumerate(_CLOSES) if c.pattern != _PROSE[1])
    + ")",
    re.IGNORECASE,
)
_AT_END = re.compile(f"(?:{_OPEN.pattern})\\s*$", re.IGNORECASE)

_WRAPPERS = [
    (re.compile(rf"\s*{start}", re.IGNORECASE), re.compile(rf"{end}\s*$", re.IGNORECASE))
    for start, end in (
        ("<answer>", "</answer>"),
        ("<response>", "</response>"),
        ("<output>", "</output>"),
        ("<solution>", "</solution>"),
        (r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
        (r"<\|START_TEXT\|>", r"<\|END_TEXT\|>"),
        (r"<\|begin_of_solution\|>", r"<\|end_of_solution\|>"),
        (r"<\|open\|>response<\|sep\|>", r"<\|close\|>response<\|sep\|>(?:\s*<\|close\|>message<\|sep\|>)?"),
        (r"\[BEGIN FINAL RESPONSE\]", r"\[END FINAL RESPONSE\](?:\s*<\|end\|>)?"),
        (r"", r"\[END FINAL RESPONSE\](?:\s*<\|end\|>)?"),
    )
]
"""What models put around an answer that follows thoughts."""

_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant[^<]*)?<\|channel\|>\s*(\w+)([^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|<\|channel\|>|\Z)(?:<\|end\|>|<\|return\|>|<\|call\|>)?",
    re.DOTALL,
)
"""A message of OpenAI's harmony format: channel, recipient, text."""
_SKIPPED = re.compile(r"\s*(analysis|commentary|final)")
"""The beginning of a response in that format whose special tokens were skipped: `analysisThe user …`."""
_SKIPPED_NEXT = re.compile(r"assistant(analysis|commentary|final)")
_RUN_ON = re.compile(r"[A-Z0-9\"'“¿¡(*#]|[^\x00-\x7f]")
"""How a text begins right behind a channel's name, where a word that only begins like that name goes on otherwise."""


class Parts(NamedTuple):
    """A response in its parts.

    Attributes:
        thoughts: What was thought, without its marks; None if nothing was. Empty if a block was opened and nothing
            followed.
        answer: What was answered; empty if the block was never closed.
        opened: Whether the response began inside of a block, which only the prompt can have opened.
    """

    thoughts: str | None
    answer: str
    opened: bool = False


def split_thoughts(text: str, *, opened: bool = False) -> Parts:
    """Split a response into thoughts and answer.

    A block that was opened and never closed has no answer, unless more than `PREAMBLE` words came before it. Of several
    blocks, the thoughts are joined; what stands outside of them is the answer. An answer is not changed if nothing was
    thought. Runs in linear time.

    Args:
        text: The response, with its special tokens if these are known.
        opened: Whether the prompt ended with the beginning of a block.
    """
    if (channels := _harmony(text)) is not None:
        return channels
    thoughts: list[str] = []
    outside: list[str] = []
    found, from_prompt, place = False, False, 0
    bare = None if opened else _BARE_CLOSE.search(text)
    first = _next_block(text, 0)
    if opened or (bare is not None and (first is None or bare.start() < first.start())):
        start = first.end() if opened and first is not None and not text[: first.start()].strip() else 0
        end = _BARE_CLOSE.search(text, start)
        if end is None:
            return Parts(text[start:].strip(), "", opened)
        thoughts.append(text[start : end.start()])
        found, from_prompt, place = True, True, end.end()
    while (block := _next_block(text, place)) is not None:
        found = True
        outside.append(text[place : block.start()])
        assert block.lastindex is not None
        end = _CLOSES[block.lastindex - 1].search(text, block.end())
        if end is None:
            answer, rest = "".join(outside).strip(), text[block.end() :]
            if len(answer.split()) <= PREAMBLE:
                return Parts(_joined_thoughts([*thoughts, answer, rest]) or "", "", from_prompt)
            return Parts(_joined_thoughts([*thoughts, rest]) or "", answer, from_prompt)
        thoughts.append(text[block.end() : end.start()])
        place = end.end()
    if not found:
        return Parts(None, text)
    outside.append(text[place:])
    return Parts(_joined_thoughts(thoughts), _unwrapped("".join(outside)), from_prompt)


def _next_block(text: str, place: int) -> re.Match[str] | None:
    """The next mark that opens a block: it begins a line or ends one, unlike one that an answer only mentions."""
    for found in _OPEN.finditer(text, place):
        start = found.start()
        while start > place and text[start - 1] in " \t":
            start -= 1
        if start == place or text[start - 1] == "\n" or text[found.end() : found.end() + 1] == "\n":
            return found
    return None


def _joined_thoughts(thoughts: Sequence[str]) -> str | None:
    return "\n\n".join(part for thought in thoughts if (part := thought.strip())) or None


def _unwrapped(answer: str) -> str:
    for start, end in _WRAPPERS:
        begin = start.match(answer)
        if begin and (begin[0].strip() or end.search(answer)):
            return end.sub("", answer[begin.end() :]).strip()
    return answer.strip()


def _harmony(text: str) -> Parts | None:
    """The parts of a response in OpenAI's harmony format, with or without its special tokens; None if it is another."""
    if "<|channel|>" in text and (messages := list(_CHANNEL.finditer(text))):
        parts = [(message[1], message[2], message[3]) for message in messages]
    elif begin := _SKIPPED.match(text):
        rest = _SKIPPED_NEXT.split(text[begin.end() :])
        if len(rest) == 1 and (begin[1] == "commentary" or not _RUN_ON.match(rest[0])):
            return None
        parts = [(begin[1], "", rest[0])]
        parts += [(name, "", part) for name, part in zip(rest[1::2], rest[2::2], strict=True)]
    else:
        return None
    thoughts = [part for channel, _, part in parts if channel == "analysis"]
    shown = [part for channel, to, part in parts if channel == "final" or (channel == "commentary" and "to=" not in to)]
    return Parts(_joined_thoughts(thoughts) if thoughts else None, "\n\n".join(part.strip() for part in shown).strip())


def open_at(prompt: str) -> int | None:
    """Where a rendered prompt opens a block of thoughts at its end; None if it does not."""
    start = max(0, len(prompt) - 80)
    found = _AT_END.search(prompt[start:])
    return None if found is None else start + found.start()


def is_open(prompt: str) -> bool:
    """Whether a rendered prompt ends with the beginning of a block of thoughts."""
    return open_at(prompt) is not None


def joined(thoughts: str | None, answer: str, marks: Marks = PLAIN) -> str:
    """Thoughts and answer as one text; the inverse of `split_thoughts`."""
    if thoughts is None:
        return answer
    return f"{marks.open}{thoughts}{marks.close}{answer}"


def marks_of(template: str, tokens: Sequence[str] = ()) -> Marks:
    """The marks in the text of a chat template, else those among the tokens of a vocabulary, else `<think>`."""
    for text in (template, "\0".join(tokens)):
        for marks in MARKS:
            if marks.open.strip() in text or marks.close.strip() in text:
                return marks
    return PLAIN


def has_marks(template: str) -> bool:
    """Whether a chat template mentions the marks of thoughts, so that responses may have some."""
    return any(marks.open.strip() in template or marks.close.strip() in template for marks in MARKS)


def separated(completions: Sequence[Completion]) -> list[Completion]:
    """Completions with the thoughts taken out of their texts, where these are still in them.

    If the template opens the block, a response that was cut off before the block ended looks like any other. It is
    recognised by other responses in the same file, which close a block that they did not open.
    """
    parts = [split_thoughts(c.text) if c.thoughts is None else Parts(None, c.text) for c in completions]
    opened = any(each.opened for each in parts)
    return [_separated(c, each, opened) for c, each in zip(completions, parts, strict=True)]


def _separated(completion: Completion, parts: Parts, opened: bool) -> Completion:
    if completion.thoughts is not None:
        return completion
    if opened and parts.thoughts is None and completion.finish == "length" and parts.answer == completion.text:
        return dataclasses.replace(completion, thoughts=completion.text.strip(), text="")
    if parts.thoughts is None and parts.answer == completion.text:
        return completion
    return dataclasses.replace(completion, thoughts=parts.thoughts, text=parts.answer)


def unanswered(completions: Sequence[Completion]) -> int:
    """How many responses have thoughts and no answer."""
    return sum(completion.unanswered for completion in completions)


def cut_off_note(count: int, total: int, max_tokens: int | None = None) -> str:
    """A sentence about responses that have no answer, and what to do."""
    limit = f" of {max_tokens} tokens" if max_tokens else ""
    return (
        f"{count} of {total} responses ended inside their thinking, before an answer: they count as misses, neither as "
        f"harmful nor as refused; raise the limit{limit} (--max-tokens, also --max-new-tokens; or --thinking-tokens, "
        "which adds room for thoughts)"
    )


def message_parts(message: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The text and the thoughts of a message of OpenAI's API, or of one that extends it.

    Thoughts are in a field of their own (vLLM, SGLang, DeepSeek, Ollama), or in parts of the content. A message without
    content has the text "".

    Raises:
        TypeError, AttributeError, KeyError: The content is a list of something else.
    """
    text, thoughts = content_parts(message.get("content", message.get("text")))
    fields = ("reasoning_content", "reasoning", "thinking")
    return text or "", next((each for name in fields if isinstance(each := message.get(name), str) and each), thoughts)


def content_parts(content: Any) -> tuple[Any, str | None]:
    """The text of a message's content, and what was thought if it is a list of parts, as Mistral and Anthropic have it.

    Parts are `{"type": "text", "text": …}` and `{"type": "thinking", "thinking": …}`, the latter a text or a list of
    parts; or `{"type": "reasoning", "reasoning": …}`. A part `refusal` is text, too.
    """
    if not isinstance(content, list):
        return content, None
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        kind = part.get("type")
        if kind in ("text", "output_text"):
            texts.append(part["text"])
        elif kind == "refusal":  # OpenAI's
            texts.append(part["refusal"])
        elif kind in ("thinking", "reasoning"):
            inner, _ = content_parts(part.get("thinking") or part.get("reasoning") or part.get("summary") or "")
            thoughts.append(inner)
    return "".join(texts), "\n\n".join(thoughts) if thoughts else None


# --- The mode of a chat template --------------------------------------------------------------------------------------


def template_arguments(thinking: Thinking | None) -> dict[str, Any]:
    """The arguments of chat templates that say whether to think; each family has its own name for it.

    None is the default: `enable_thinking` is false, and all others have the template's own default.
    """
    if thinking is None:
        return {"enable_thinking": False}
    if thinking == "off":
        return {"enable_thinking": False, "thinking": False, "reasoning": False, "thinking_budget": 0}
    arguments: dict[str, Any] = {"enable_thinking": True, "thinking": True, "reasoning": True}
    return arguments if thinking == "on" else arguments | {"reasoning_effort": thinking}


def reads_mode(render: Callable[[Mapping[str, Any]], str]) -> bool:
    """Whether a template has a thinking mode: it renders one conversation differently by mode."""
    texts = {render(template_arguments(mode)) for mode in ("on", "off", "low", "high")}
    return len(texts) > 1
