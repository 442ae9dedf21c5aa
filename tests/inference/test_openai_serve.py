"""The engine on a real `transformers serve` on loopback: the same answers as in this process; a server that dies."""

import importlib.util
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.events import Event
from mooring.inference.openai import OpenAIEngine
from mooring.inference.retry import RequestLimits
from mooring.inference.store import complete_to_file
from mooring.inference.transformers import TransformersEngine
from mooring.records import Completion, Message, Prompt
from mooring.sampling import SamplingParams
from server_process import ServerProcess

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="`transformers serve` needs pip install 'transformers[serving]'",
)
TEXTS = [
    "Hi",
    "What is the capital of Norway?",
    "Write a poem about the sea. " * 3,
    "Why?",
    "12 hours, 12 foxes",
    "I'm sorry",
    "user",
    "the quick brown fox",
]


def transformers_serve(model: Path, log: Path) -> ServerProcess:
    """`transformers serve` of one model."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", "{port}"]
    return ServerProcess(model, command, log, {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def model(save_tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 model that ends some of its answers by itself."""
    import torch
    from transformers import LlamaForCausalLM

    folder: Path = save_tiny_model(tmp_path_factory.mktemp("serve") / "model", seed=1, tie_word_embeddings=False)
    network = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        network.lm_head.weight[network.config.eos_token_id] *= 1.5
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def serve(model: Path) -> Iterator[ServerProcess]:
    server = transformers_serve(model, model.parent / "serve.log")
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def prompts(texts: list[str] = TEXTS) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message("user", text),)) for i, text in enumerate(texts)]


def answers(engine: Any, asked: list[Prompt], settings: SamplingParams) -> dict[str, Completion]:
    return {c.key: c for batch in engine.complete(asked, settings) for c in batch}


@pytest.fixture
def gemma_like(model: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """The same model behind a chat template that refuses system messages; its server only says 500 then."""
    folder = tmp_path / "gemma-like"
    shutil.copytree(model, folder)
    template = (folder / "chat_template.jinja").read_text()
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refuse + template)
    server = transformers_serve(folder, tmp_path / "serve.log")
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("system", [None, "You are a helpful assistant.", "Be brief."])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_answers_are_those_of_this_process(
    serve: ServerProcess, model: Path, system: str | None, penalty: float
) -> None:
    settings = SamplingParams(max_tokens=48, repetition_penalty=penalty)
    turns = (Message("system", "Mind the gap."), Message("user", "Hi"), Message("assistant", "a"), Message("user", "b"))
    own = Prompt(id="own", messages=turns)
    judged = Prompt(id="judged", messages=(Message("user", "a"),), rendered="Human user:\nthe sea\n---\nAnswers:")
    asked = [*prompts(), own, judged]
    here = answers(TransformersEngine.load(model, system=system, dtype="float32", device="cpu"), asked, settings)
    there = answers(
        OpenAIEngine(serve.url, str(model), system=system, limits=RequestLimits(concurrency=4)), asked, settings
    )
    assert there == here
    assert {c.finish for c in here.values()} == {"stop", "length"}
    assert len({c.text.strip() for c in here.values()}) > 2  # a model that says one thing would agree with anything


@pytest.mark.slow
def test_a_template_without_a_system_role_gives_the_answers_of_this_process(gemma_like: ServerProcess) -> None:
    settings = SamplingParams(max_tokens=24, repetition_penalty=1.2)
    for system in ("You are a helpful assistant.", "Be brief."):
        local = TransformersEngine.load(gemma_like.model, system=system, dtype="float32", device="cpu")
        remote = OpenAIEngine(gemma_like.url, str(gemma_like.model), system=system, limits=RequestLimits(concurrency=2))
        assert answers(remote, prompts(), settings) == answers(local, prompts(), settings)


@pytest.mark.slow
def test_sampling_depends_on_neither_order_nor_concurrency(serve: ServerProcess, model: Path) -> None:
    settings = SamplingParams(max_tokens=12, temperature=0.9, top_p=0.9, top_k=50, n=2)
    first = answers(OpenAIEngine(serve.url, str(model), limits=RequestLimits(concurrency=4)), prompts(), settings)
    again = answers(OpenAIEngine(serve.url, str(model), limits=RequestLimits(concurrency=1)), prompts()[::-1], settings)
    assert first == again
    assert len({c.text for c in first.values()}) > len(TEXTS)  # samples of a prompt differ


@pytest.mark.slow
def test_a_server_that_dies_midway_and_comes_back(serve: ServerProcess, model: Path, tmp_path: Path) -> None:
    asked = prompts([f"{text} {i}" for i in range(5) for text in TEXTS[:4]])
    settings = SamplingParams(max_tokens=100)

    def engine() -> OpenAIEngine:
        return OpenAIEngine(serve.url, str(model), limits=RequestLimits(concurrency=3))

    before = serve.answered()
    complete_to_file(engine(), asked, settings, tmp_path / "whole.jsonl")
    assert serve.answered() - before == 20
    killed = threading.Event()

    def kill(event: Event) -> None:
        if event.done >= 7 and not killed.is_set():
            killed.set()
            serve.kill()
            threading.Timer(1.0, serve.start).start()

    before = serve.answered()
    made = complete_to_file(engine(), asked, settings, tmp_path / "broken.jsonl", on_event=kill)
    assert killed.is_set()
    assert len(made) == 20
    assert 20 <= serve.answered() - before <= 20 + 3
    assert (tmp_path / "broken.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()

    def leave(event: Event) -> None:
        if event.done == 9:
            raise KeyboardInterrupt

    before = serve.answered()
    with pytest.raises(KeyboardInterrupt):
        complete_to_file(engine(), asked, settings, tmp_path / "left.jsonl", on_event=leave)
    complete_to_file(engine(), asked, settings, tmp_path / "left.jsonl")
    assert serve.answered() - before <= 20 + 4
    assert (tmp_path / "left.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
