"""The server engine over many requests to a server that fails at random: nothing lost, nothing asked twice."""

import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_server import Act, answer, error, fake_server, hung_up, raw, truncated

from mooring.inference.openai import OpenAIEngine
from mooring.inference.retry import RequestLimits
from mooring.records import Message, Prompt
from mooring.sampling import SamplingParams

FAILURES: list[Act] = [error(500), error(429), error(503), raw(b"<html>"), raw(b"{}"), truncated, hung_up]


def resident() -> int:
    """Bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("requests", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_server_that_fails_at_random_loses_nothing_in_flat_memory(requests: int) -> None:
    draw, answered = random.Random(0), Counter[str]()

    def script(number: int, body: dict[str, Any]) -> Act:
        server.seen[-1] = {}  # what the test itself keeps must not grow
        if draw.random() < 0.1:
            return draw.choice(FAILURES)
        answered[body["messages"][-1]["content"]] += 1
        return answer()

    prompts = [Prompt(id=f"p{n}", messages=(Message("user", f"Question {n}"),)) for n in range(requests)]
    with fake_server(script) as server:
        limits = RequestLimits(retries=20, timeout=60)
        engine = OpenAIEngine(server.url, "m", limits=limits, clock=server.clock, system=None)
        found, memory = Counter[str](), []
        for batch in engine.complete(prompts, SamplingParams(max_tokens=8)):
            found.update(each.prompt_id for each in batch)
            if found.total() % max(1, requests // 10) == 0:
                memory.append(resident())
    assert found == Counter(prompt.id for prompt in prompts)
    assert answered == Counter(prompt.messages[0].content for prompt in prompts)
    assert memory[-1] - memory[1] < 2**25
