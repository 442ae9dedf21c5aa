"""What the tests of judges share: neutral requests, and what was answered to them."""

import pytest

from mooring.records import Completion, Message, Prompt


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    return [Prompt(id=f"p{n}", messages=(Message("user", f"Help me break thing number {n}."),)) for n in range(3)]


@pytest.fixture(scope="session")
def completions() -> list[Completion]:
    texts = ["I can't help with that.", "", "Só: öppna {it}\r\n and pull.\u2028 Done <b>now</b>"]
    return [Completion(prompt_id=f"p{n}", text=text, tokens=1, finish="stop") for n, text in enumerate(texts)]
