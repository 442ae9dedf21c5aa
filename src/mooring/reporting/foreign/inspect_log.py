"""Logs of Inspect, written by its own package: one for each model and set, for `inspect view`."""

import datetime
import json
from pathlib import Path
from typing import Any

from mooring.errors import MissingExtraError
from mooring.records import Completion, Prompt
from mooring.reporting.foreign.answers import AnsweredSet, RunFacts, encodable


def write(found: AnsweredSet, facts: RunFacts, folder: Path) -> Path:
    """Write a log.

    Raises:
        MissingExtraError: `inspect_ai` is not installed (`extra.inspect`).
    """
    try:
        from inspect_ai import log
    except ImportError:
        raise MissingExtraError("inspect-ai", "pip install 'mooring[inspect]'", code="extra.inspect") from None
    model = f"mooring/{found.point.folder}"
    about = {
        "lam": found.point.lam,
        "model": found.point.label,
        "base": facts.base,
        "tuned": facts.tuned,
        "judge": facts.judge,
    }
    samples = [
        _sample(prompt, completion, found.scores_of(prompt), model)
        for prompt, completions in found.answers
        for completion in completions
    ]
    written = log.EvalLog(
        status="success",
        eval=log.EvalSpec(
            created=datetime.datetime.fromtimestamp(int(found.time), datetime.UTC).isoformat(),
            task=f"{facts.name}: {found.task}",
            model=model,
            dataset=log.EvalDataset(name=found.task, samples=len(found.prompts)),
            config=log.EvalConfig(epochs=max((len(each) for _, each in found.answers), default=1)),
            packages={"mooring": facts.version},
            metadata=about,
        ),
        results=log.EvalResults(
            total_samples=len(samples),
            completed_samples=len(samples),
            scores=[
                log.EvalScore(name=name, scorer=name, metrics={"mean": log.EvalMetric(name="mean", value=score.value)})
                for name, score in found.totals.items()
                if score.value is not None
            ],
        ),
        samples=samples,
    )
    path = folder / f"{found.task}.eval"
    log.write_eval_log(written, str(path), format="eval")
    return path


def _sample(prompt: Prompt, completion: Completion, scores: dict[str, float], model: str) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        ContentReasoning,
        ContentText,
        ModelOutput,
        ModelUsage,
    )
    from inspect_ai.scorer import Score

    said: Any = encodable(completion.answer)
    if completion.thoughts is not None:
        said = [ContentReasoning(reasoning=encodable(completion.thoughts)), ContentText(text=said)]
    turn = ChatMessageAssistant(content=said, source="generate", model=model)
    turns = _turns(prompt)
    return EvalSample(
        id=encodable(prompt.id),
        epoch=completion.sample + 1,
        input=turns[0].content if len(turns) == 1 else turns,
        target=encodable(prompt.reference or ""),
        messages=[*turns, turn],
        output=ModelOutput(
            model=model,
            choices=[
                ChatCompletionChoice(
                    message=turn, stop_reason="max_tokens" if completion.finish == "length" else "stop"
                )
            ],
            usage=ModelUsage(output_tokens=completion.tokens, total_tokens=completion.tokens),
        ),
        scores={name: Score(value=value) for name, value in scores.items()},
        metadata=_metadata(prompt),
    )


def _metadata(prompt: Prompt) -> dict[str, Any]:
    """What Inspect has no field for: the category of a prompt, and the functions that the model may call."""
    category = {"category": encodable(prompt.category)} if prompt.category else {}
    return category | ({"tools": [dict(tool) for tool in prompt.tools]} if prompt.tools else {})


def _turns(prompt: Prompt) -> list[Any]:
    """The turns of a prompt as Inspect's messages."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageTool, ChatMessageUser
    from inspect_ai.tool import ToolCall

    found: list[Any] = []
    for message in prompt.messages:
        text = encodable(message.content)
        if message.role == "system":
            found.append(ChatMessageSystem(content=text))
        elif message.role == "user":
            found.append(ChatMessageUser(content=text))
        elif message.role == "tool":
            found.append(
                ChatMessageTool(content=text, tool_call_id=message.tool_call_id, function=message.name or None)
            )
        else:
            calls = [
                ToolCall(id=call.id, function=call.name, arguments=json.loads(call.arguments))
                for call in message.tool_calls
            ]
            found.append(ChatMessageAssistant(content=text, tool_calls=calls or None))
    return found
