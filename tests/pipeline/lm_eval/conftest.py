"""A scripted model for lm-eval, and where to find its data."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def scripted() -> Callable[[Callable[[dict[str, Any]], str]], Any]:
    """`scripted(answer)` is a model of lm-eval that answers each question with `answer(row)`."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.model import LM

    class Scripted(LM):
        def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
            super().__init__()
            self.answer = answer

        def loglikelihood(self, requests: Any) -> Any:
            raise AssertionError("not asked for here")

        def loglikelihood_rolling(self, requests: Any) -> Any:
            raise AssertionError("not asked for here")

        def generate_until(self, requests: Any) -> list[str]:
            return [self.answer(request.doc) for request in requests]

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return "\n".join(turn["content"] for turn in chat_history)

        @property
        def tokenizer_name(self) -> str:
            return "scripted"

    return Scripted


@pytest.fixture
def bbh() -> Path:
    """The folder with BIG-Bench Hard's files."""
    home = os.environ.get("MOORING_DATA")
    if not home or not (Path(home) / "bbh/tasks").is_dir():
        pytest.skip("MOORING_DATA names no folder with bbh/tasks")
    return Path(home) / "bbh/tasks"
