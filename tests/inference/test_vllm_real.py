"""Real vLLM on a CPU, on a tiny random Llama: what the stand-in of `test_vllm_engine.py` cannot show."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.inference.transformers import TransformersEngine
from mooring.inference.vllm import VLLMEngine
from mooring.records import Message, Prompt
from mooring.sampling import SamplingParams

pytestmark = pytest.mark.vllm

TEXTS = ["Hi", "What is the capital of Norway?", "Write a poem about the sea. " * 3, "Why?", "user: 12 hours"]
PROMPTS = [Prompt(id=f"p{i}", messages=(Message("user", text),)) for i, text in enumerate(TEXTS)]
EXAMPLES = [
    Prompt(id=f"p{i}", messages=(Message("user", text),), reference="The capital of Norway is Oslo.")
    for i, text in enumerate(TEXTS)
]


@pytest.fixture(scope="module")
def engines(
    tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any
) -> Iterator[tuple[VLLMEngine, TransformersEngine]]:
    # vLLM's attention on CPUs has no heads smaller than 32.
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("vllm") / "model", hidden_size=128)
    engine = VLLMEngine.load(folder, dtype="float32", max_model_len=256, enforce_eager=True)
    yield engine, TransformersEngine.load(folder, device="cpu", dtype="float32")
    engine.llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_those_of_transformers(
    engines: tuple[VLLMEngine, TransformersEngine], penalty: float
) -> None:
    settings = SamplingParams(max_tokens=24, repetition_penalty=penalty)
    ours, reference = (
        {c.prompt_id: c for batch in engine.complete(PROMPTS, settings) for c in batch} for engine in engines
    )
    assert ours == reference
    assert len({c.text for c in ours.values()}) > 1


def test_likelihoods_are_those_of_transformers(engines: tuple[VLLMEngine, TransformersEngine]) -> None:
    ours, reference = ({x.prompt_id: x for batch in engine.likelihood(EXAMPLES) for x in batch} for engine in engines)
    for key, expected in reference.items():
        assert ours[key].tokens == expected.tokens
        assert ours[key].nll == pytest.approx(expected.nll, rel=1e-4)
    assert len(reference) == len(EXAMPLES)


def test_samples_depend_on_the_prompt_and_the_seed_only(engines: tuple[VLLMEngine, TransformersEngine]) -> None:
    settings = SamplingParams(max_tokens=16, temperature=1.0, seed=3)
    engine, _ = engines
    together = {c.prompt_id: c for batch in engine.complete(PROMPTS, settings) for c in batch}
    alone = {c.prompt_id: c for p in PROMPTS for batch in engine.complete([p], settings) for c in batch}
    other = SamplingParams(max_tokens=16, temperature=1.0, seed=4)
    assert together == alone
    assert together != {c.prompt_id: c for batch in engine.complete(PROMPTS, other) for c in batch}
