"""Prompts under attacks: how they are asked and judged, and those that contain responses of an earlier step."""

import dataclasses
from collections.abc import Sequence

from mooring.attacks import Attack
from mooring.records import Completion, Message, Prompt
from mooring.sampling import SamplingParams
from mooring.scoring import judges


def requests(prompts: Sequence[Prompt], asked: Sequence[Prompt]) -> list[Prompt]:
    """The requests from which the prompts of an attack were made, with their ids: what answers are judged by."""
    known = {prompt.id: prompt for prompt in prompts}
    return [
        dataclasses.replace(known[each.variant_of or each.id], id=each.id, variant_of=each.variant_of) for each in asked
    ]


def sampled(params: SamplingParams, attack: Attack | None) -> SamplingParams:
    """How the answers under an attack are sampled."""
    temperature = attack.technique.temperature if attack else None
    return params if temperature is None else dataclasses.replace(params, temperature=temperature)


def prefilled_with(prompts: Sequence[Prompt], answers: Sequence[Completion]) -> list[Prompt]:
    """Prompts whose answers begin as another model answered the same requests.

    Where it refused, by the judge `rules`, or gave no answer, the prefill stays as it is.
    """
    known, judge = {answer.prompt_id: answer for answer in answers if answer.sample == 0}, judges.find("rules")

    def prefilled(prompt: Prompt) -> Prompt:
        answer = known.get(prompt.id)
        if answer is None or not answer.text.strip():
            return prompt
        if judges.by_wording(judge, [prompt], [answer])[0].refused:
            return prompt
        return dataclasses.replace(prompt, prefill=answer.text)

    return [prefilled(prompt) for prompt in prompts]


def continued(prompts: Sequence[Prompt], answers: Sequence[Completion]) -> list[Prompt]:
    """The next turn of conversations: each prompt with its answer and the first of its `follow_ups`."""
    known = {answer.prompt_id: answer for answer in answers if answer.sample == 0}

    def after(prompt: Prompt) -> Prompt:
        turns = (Message("assistant", known[prompt.id].answer), Message("user", prompt.follow_ups[0]))
        return dataclasses.replace(prompt, messages=(*prompt.messages, *turns), follow_ups=prompt.follow_ups[1:])

    return [after(prompt) for prompt in prompts]
