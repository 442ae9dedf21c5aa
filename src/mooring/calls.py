"""Function calls and the functions that may be called: as data sets, chat templates and servers write them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mooring.bounded import LINE, parse_json
from mooring.records import Message, ToolCall
from mooring.thinking import message_parts


def parse_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The functions that a model may call, in OpenAI's form: `{"type": "function", "function": {"name": …}}`.

    Args:
        value: A list of them, also without the outer object, or as JSON in a text.

    Raises:
        ValueError: It is no such list.
    """
    tools = _from_text(value)
    tools = [tools] if isinstance(tools, Mapping) else tools
    if not isinstance(tools, list):
        raise ValueError("not a list of functions")
    found = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise ValueError("a function without a name")
        found.append({"type": "function", "function": dict(function)})
    _check_text(found)
    return tuple(found)


def parse_calls(value: Any) -> tuple[ToolCall, ...]:
    """The calls of a turn.

    Args:
        value: `[{"function": {"name": …, "arguments": …}}]`, also without the outer objects or with the name alone as
            the `function`, a single call, or one of these as JSON. Arguments are an object, or JSON in a text.

    Raises:
        ValueError: It has another form.
    """
    calls = _from_text(value)
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list):
        raise ValueError("not a list of calls")
    found = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, str):  # Inspect's form
            function = {**call, "name": function}
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise ValueError("a call without the name of a function")
        arguments = _from_text(function.get("arguments", function.get("parameters")) or {})
        if not isinstance(arguments, Mapping):
            raise ValueError("a call whose arguments are not an object")
        id = call.get("id")
        text = json.dumps(arguments, ensure_ascii=False)
        found.append(ToolCall(function["name"], text, id if isinstance(id, str) else ""))
    _check_text([[call.name, call.arguments, call.id] for call in found])
    return tuple(found)


def _check_text(values: Any) -> None:
    """Raise ValueError for half a surrogate pair, which UTF-8 and tokenizers cannot contain."""
    if re.search("[\ud800-\udfff]", json.dumps(values, ensure_ascii=False)):
        raise ValueError("text with half a surrogate pair")


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value, LINE)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def as_text(message: Message) -> str:
    """A turn as one text: its content, and a line of JSON for each call: `{"name": …, "arguments": …}`."""
    calls = [
        f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'
        for call in message.tool_calls
    ]
    return "\n".join([message.content] * bool(message.content.strip() or not calls) + calls)


def answer_parts(message: Mapping[str, Any]) -> tuple[str, str | None]:
    """The answer and the thoughts of an assistant's message, as APIs and the logs of other tools have it.

    The answer is its text, or the refusal that OpenAI's models put into a field of its own, and its calls (`as_text`).

    Raises:
        TypeError, AttributeError, LookupError, ValueError: It has another form.
    """
    text, thoughts = message_parts(message)
    text = text or message.get("refusal") or ""
    content = message.get("content")
    used = [part for part in content if part.get("type") == "tool_use"] if isinstance(content, list) else []
    made = message.get("tool_calls") or [{**part, "arguments": part.get("input")} for part in used]
    if isinstance(text, str) and made:
        text = as_text(Message("assistant", text, parse_calls(made)))
    if not isinstance(text, str):
        raise TypeError("a text was expected")
    return text, thoughts


def as_turn(message: Message, *, arguments_as_text: bool = False) -> dict[str, Any]:
    """A turn as chat templates take it, or, with arguments as text, OpenAI's API."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if arguments_as_text else json.loads(call.arguments),
                },
            }
            for call in message.tool_calls
        ]
    further = {"tool_call_id": message.tool_call_id, "name": message.name}
    return turn | {name: value for name, value in further.items() if value}


def called(messages: Sequence[Message]) -> list[str]:
    """The names of the functions that turns call."""
    return [call.name for message in messages for call in message.tool_calls]
