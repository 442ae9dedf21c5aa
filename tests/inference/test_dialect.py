"""What a server is sent of functions and calls, and what is read of its own calls."""

from mooring.inference.dialect import Dialect, parse_completion, request_body
from mooring.records import Message, Prompt, ToolCall
from mooring.sampling import SamplingParams

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_functions_and_calls_are_sent_as_openai_has_them() -> None:
    turns = (
        Message("user", "Hi"),
        Message("assistant", "", (ToolCall("f", '{"a": 1}', "c1"),)),
        Message("tool", "2", (), "c1"),
    )
    prompt = Prompt(id="p", messages=turns, tools=(TOOL,))
    _, body = request_body(prompt, 0, SamplingParams(), model="m", system=None, dialect=Dialect())
    assert body["tools"] == [TOOL]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert body["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert body["messages"][2] == {"role": "tool", "content": "2", "tool_call_id": "c1"}


def test_a_call_of_a_server_is_the_text_of_the_answer() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    completion = parse_completion({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    assert (completion.text, completion.finish) == ('{"name": "f", "arguments": {"a": 1}}', "stop")
