"""The engine on vLLM, on a stand-in for vLLM with its names and parameters and a tiny model of transformers in it.

What it cannot show is that vLLM itself keeps to them.
"""

import dataclasses
import importlib.machinery
import json
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lora_models import peft, tune
from mooring.chat import encode_prompt
from mooring.config import Generate, Judge
from mooring.errors import DataError, MissingExtraError, ModelError
from mooring.inference.encode import response_seed
from mooring.inference.load import load_engine
from mooring.inference.transformers import TransformersEngine
from mooring.inference.vllm import VLLMEngine
from mooring.inference.vllm_shared import VLLMOptions
from mooring.records import Completion, Message, Prompt, sample_key
from mooring.sampling import SamplingParams

TEXTS = ["Hi", "What is the capital of Norway?", "Write a poem about the sea. " * 3, "Why?", "user: 12 hours"]


@dataclasses.dataclass
class FakeSamplingParams:
    """vLLM's, as far as it is used: another name is a TypeError."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: Any = None


@dataclasses.dataclass
class LoRARequest:
    """vLLM's."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """vLLM's: the engine generates one response at each step."""

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        enforce_eager: bool = False,
        generation_config: str = "auto",
        enable_lora: bool = False,
        max_loras: int = 1,
        max_lora_rank: int = 16,
        lora_target_modules: list[str] | None = None,
        worker_extension_cls: str = "",
    ) -> None:
        self.asked_for = dict(locals())
        dtype = "float16" if dtype == "auto" else dtype  # what vLLM makes of a float32 checkpoint
        self.base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        longest = max_model_len or self.base.config.max_position_embeddings
        self.llm_engine = self
        self.model_config = types.SimpleNamespace(max_model_len=longest, dtype=getattr(torch, dtype))
        self.requests: list[Any] = []
        self.adapters: dict[int, Any] = {}
        self._queue: list[Any] = []

    def add_lora(self, request: LoRARequest) -> bool:
        rank = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())["r"]
        assert self.asked_for["enable_lora"]
        assert rank <= self.asked_for["max_lora_rank"]
        self.adapters[request.lora_int_id] = peft(Path(self.asked_for["model"]), Path(request.lora_path))
        return True

    def add_request(self, request_id: str, prompt: Any, params: Any, *, lora_request: Any = None) -> str:
        assert params.output_kind == "final only"
        self.requests.append((prompt, params))
        self._queue.append((request_id, prompt["prompt_token_ids"], params, lora_request))
        return request_id

    def abort_request(self, request_ids: list[str]) -> None:
        self._queue = [each for each in self._queue if each[0] not in request_ids]

    def step(self) -> list[Any]:
        """A RequestOutput, when it has finished."""
        id_, row, params, adapter = self._queue.pop(0)
        output = self._one(self.base if adapter is None else self.adapters[adapter.lora_int_id], row, params)
        output.request_id, output.finished = id_, True
        return [output]

    @torch.inference_mode()
    def _one(self, model: Any, row: list[int], params: FakeSamplingParams) -> Any:
        assert len(row) + 1 <= self.llm_engine.model_config.max_model_len
        stops = {*(params.stop_token_ids or []), self.tokenizer.eos_token_id}
        sampled = {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p} | (
            {"top_k": params.top_k} if params.top_k > 0 else {"top_k": 0}
        )
        config = GenerationConfig(
            max_new_tokens=params.max_tokens,
            repetition_penalty=params.repetition_penalty,
            eos_token_id=sorted(stops),
            pad_token_id=0,
            **(sampled if params.temperature else {"do_sample": False}),
        )
        if params.seed is not None:
            torch.manual_seed(params.seed)
        ids = torch.tensor([row])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(row) :]
        output = types.SimpleNamespace(token_ids=tuple(made.tolist()), text="" if not params.detokenize else "text")
        logprobs = None
        if params.prompt_logprobs is not None:
            logs = model(ids).logits[0].log_softmax(-1)
            logprobs = [None] + [
                {token: types.SimpleNamespace(logprob=logs[place, token].item())} for place, token in enumerate(row[1:])
            ]
        return types.SimpleNamespace(prompt_token_ids=row, outputs=[output], prompt_logprobs=logprobs)


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLM, "SamplingParams": FakeSamplingParams, "__version__": "0.0.fake"},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.sampling_params": {"RequestOutputKind": types.SimpleNamespace(FINAL_ONLY="final only")},
    }
    for name, members in names.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


def prompts(texts: list[str] = TEXTS, reference: str | None = None) -> list[Prompt]:
    return [
        Prompt(id=f"p{i}", messages=(Message("user", text),), reference=reference, origin=f"set.jsonl:{i + 1}")
        for i, text in enumerate(texts)
    ]


def answers(engine: Any, asked: list[Prompt], settings: SamplingParams) -> dict[str, Completion]:
    return {c.key: c for batch in engine.complete(asked, settings) for c in batch}


@pytest.fixture
def engine(tiny_model_folder: Path) -> VLLMEngine:
    return VLLMEngine.load(tiny_model_folder)


@pytest.fixture(scope="module")
def stopping(save_tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends some of its answers, with a generation config that would change all of them."""
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("vllm") / "stopping", seed=1, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[2] *= 1.5
    model.save_pretrained(folder)
    config = json.loads((folder / "generation_config.json").read_text())
    changed = config | {"repetition_penalty": 2.0, "eos_token_id": [2, 300]}
    (folder / "generation_config.json").write_text(json.dumps(changed))
    return folder


@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_greedy_answers_are_those_of_transformers(stopping: Path, penalty: float, system: str | None) -> None:
    settings = SamplingParams(max_tokens=40, repetition_penalty=penalty)
    asked = [*prompts(), Prompt(id="judge", messages=(Message("user", "a"),), rendered="user: the sea\n---\nAnswers:")]
    engine = VLLMEngine.load(stopping, system=system)
    made = answers(engine, asked, settings)
    assert made == answers(TransformersEngine.load(stopping, system=system, device="cpu"), asked, settings)
    assert {c.finish for c in made.values()} == {"stop", "length"}
    rows = [request["prompt_token_ids"] for request, _ in engine.shared.llm.requests]
    assert sorted(rows) == sorted(encode_prompt(engine.tokenizer, prompt, system) for prompt in asked)


def test_vllm_is_opened_with_the_expected_options(stopping: Path) -> None:
    engine = VLLMEngine.load(stopping, options=VLLMOptions(tensor_parallel=2, max_model_len=128, gpu_memory=0.5))
    asked = engine.shared.llm.asked_for
    assert asked["generation_config"] == "vllm"
    assert asked["trust_remote_code"] is False
    assert asked["dtype"] == "float32"  # the checkpoint's own
    assert not asked["enable_lora"]
    assert (asked["tensor_parallel_size"], asked["max_model_len"], asked["gpu_memory_utilization"]) == (2, 128, 0.5)
    assert VLLMEngine.load(stopping, options=VLLMOptions(dtype="bfloat16")).shared.llm.asked_for["dtype"] == "bfloat16"
    about = dict(engine.about)
    assert json.loads(json.dumps(about)) == about
    assert about["vllm"] == "0.0.fake"
    assert about["enforce_eager"] is False
    assert (about["tensor_parallel"], about["dtype"], about["max_model_len"]) == (2, "float32", 128)


def test_a_recipe_s_engine_options_reach_vllm(stopping: Path) -> None:
    plain = {"engine": "vllm", "tensor_parallel": 2, "max_model_len": 64, "gpu_memory": 0.4, "enforce_eager": True}
    expected = {"tensor_parallel_size": 2, "max_model_len": 64, "gpu_memory_utilization": 0.4, "enforce_eager": True}
    for runner in (Generate(**plain), Judge(**plain)):
        engine = load_engine(stopping, runner, None)
        assert isinstance(engine, VLLMEngine)
        assert expected.items() <= engine.shared.llm.asked_for.items()
        assert engine.about["enforce_eager"] is True
    for runner in (Generate(engine="vllm"), Judge(engine="vllm")):
        engine = load_engine(stopping, runner, None)
        assert isinstance(engine, VLLMEngine)
        assert engine.shared.llm.asked_for["gpu_memory_utilization"] == 0.9


def test_stops_are_those_of_the_generation_config_too(stopping: Path) -> None:
    engine = VLLMEngine.load(stopping)
    assert engine.stops == TransformersEngine.load(stopping, device="cpu").stops == {2, 300}
    answers(engine, prompts(["Hi"]), SamplingParams(max_tokens=4))
    assert engine.shared.llm.requests[0][1].stop_token_ids == [2, 300]
    (stopping.parent / "bare").mkdir()
    for path in stopping.iterdir():
        if path.name != "generation_config.json":
            (stopping.parent / "bare" / path.name).write_bytes(path.read_bytes())
    assert VLLMEngine.load(stopping.parent / "bare").stops == {2}


def test_sampling_has_a_seed_for_each_answer_and_does_not_depend_on_the_batch(tiny_model_folder: Path) -> None:
    settings = SamplingParams(max_tokens=8, temperature=0.6, top_p=0.9, top_k=50, n=3, seed=7)
    engine = VLLMEngine.load(tiny_model_folder)
    made = answers(engine, prompts(), settings)
    sent = [params for _, params in engine.shared.llm.requests]
    assert {params.seed for params in sent} == {
        response_seed(7, sample_key(f"p{i}", n)) for i in range(len(TEXTS)) for n in range(3)
    }
    assert {(p.n, p.temperature, p.top_p, p.top_k) for p in sent} == {(1, 0.6, 0.9, 50)}
    assert made == answers(VLLMEngine.load(tiny_model_folder), prompts()[::-1], settings)
    assert len({c.text for c in made.values()}) > len(TEXTS)


def test_greedy_and_top_k_0_are_translated_for_vllm(engine: VLLMEngine) -> None:
    answers(engine, prompts(["Hi"]), SamplingParams(max_tokens=2, top_p=0.5, top_k=3))
    answers(engine, prompts(["Hi"]), SamplingParams(max_tokens=2, temperature=1.0))
    greedy, free = (params for _, params in engine.shared.llm.requests)
    assert (greedy.temperature, greedy.seed, greedy.top_p) == (0.0, None, 1.0)
    assert (free.temperature, free.top_k) == (1.0, -1)


def test_a_resumed_run_generates_only_what_is_missing(tiny_model_folder: Path) -> None:
    engine = VLLMEngine.load(tiny_model_folder)
    settings = SamplingParams(max_tokens=4)
    made = [c for batch in engine.complete(prompts(), settings) for c in batch]
    done = {c.key for c in made[:3]}
    assert [c for batch in engine.complete(prompts(), settings, done=done) for c in batch] == made[3:]
    assert list(engine.complete(prompts(), settings, done={c.key for c in made})) == []


def test_threads_share_an_engine_and_a_caller_that_stops_leaves_no_request(tiny_model_folder: Path) -> None:
    engine = VLLMEngine.load(tiny_model_folder)
    settings = SamplingParams(max_tokens=6)
    alone = answers(engine, prompts(), settings)
    with ThreadPoolExecutor(4) as threads:
        stopped = engine.complete(prompts(), settings)
        next(stopped)
        shared = list(threads.map(lambda _: answers(engine, prompts(), settings), range(4)))
        stopped.close()
    assert shared == [alone] * 4
    assert not engine.shared.llm._queue
    assert answers(engine, prompts(), settings) == alone


def test_a_prompt_over_the_context_is_named_before_anything_is_generated(tiny_model_folder: Path) -> None:
    engine = VLLMEngine.load(tiny_model_folder, options=VLLMOptions(max_model_len=64))
    asked = prompts(["Hi", "fox " * 60])
    with pytest.raises(DataError) as caught:
        next(engine.complete(asked, SamplingParams(max_tokens=8)))
    assert caught.value.message.startswith("set.jsonl:2: ")
    assert caught.value.code == "data.context_exceeded"
    with pytest.raises(DataError) as caught:
        next(engine.likelihood(prompts(["Hi", "fox " * 60], "a")))
    assert caught.value.message.startswith("set.jsonl:2: ")
    assert caught.value.code == "data.context_exceeded"
    assert not engine.shared.llm.requests
    room = 64 - len(encode_prompt(engine.tokenizer, asked[0], engine.system))
    assert len(answers(engine, asked[:1], SamplingParams(max_tokens=room))) == 1
    with pytest.raises(DataError):
        answers(engine, asked[:1], SamplingParams(max_tokens=room + 1))


def test_likelihood_is_that_of_transformers(tiny_model_folder: Path) -> None:
    examples = [
        Prompt(id=str(i), messages=(Message("user", text),), reference="Oslo is the capital. " * (i + 1))
        for i, text in enumerate(TEXTS)
    ]
    engine = VLLMEngine.load(tiny_model_folder)
    ours = {x.prompt_id: x for batch in engine.likelihood(examples) for x in batch}
    theirs = {
        x.prompt_id: x
        for batch in TransformersEngine.load(tiny_model_folder, device="cpu").likelihood(examples)
        for x in batch
    }
    assert {i: x.tokens for i, x in ours.items()} == {i: x.tokens for i, x in theirs.items()}
    assert {i: x.nll for i, x in ours.items()} == pytest.approx({i: x.nll for i, x in theirs.items()}, rel=1e-5)
    with pytest.raises(DataError) as caught:
        next(engine.likelihood(prompts(["Hi"])))
    assert caught.value.message.startswith("set.jsonl:1: ")
    assert caught.value.code == "data.no_reference"


def test_an_adapter_runs_on_its_base(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter = tune(tiny_model_folder, tmp_path / "adapter", r=12, target_modules="all-linear")
    engine = VLLMEngine.load(adapter)
    asked = engine.shared.llm.asked_for
    assert (asked["model"], asked["enable_lora"], asked["max_lora_rank"]) == (str(tiny_model_folder), True, 16)
    assert "lm_head" not in asked["lora_target_modules"]
    settings = SamplingParams(max_tokens=12)
    made = answers(engine, prompts(), settings)
    assert made == answers(TransformersEngine.load(adapter, device="cpu"), prompts(), settings)
    assert made != answers(VLLMEngine.load(tiny_model_folder), prompts(), settings)
    assert engine.about["adapter"] is True


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"r": 600}, "rank 600"),
        ({"rank_pattern": {"q_proj": 600}}, "rank 600"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save, lm_head"),
    ],
)
def test_an_adapter_that_vllm_cannot_apply_is_refused(
    config: dict[str, Any], what: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter = tune(tiny_model_folder, tmp_path / "adapter", **{"target_modules": ["q_proj"]} | config)
    with pytest.raises(ModelError) as caught:
        VLLMEngine.load(adapter)
    assert f"({what})" in caught.value.message
    assert caught.value.code == "model.unsupported_adapter"


def load_error(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        VLLMEngine.load(folder)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_folder_without_a_model_is_rejected(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert load_error(tmp_path / "nowhere").code == "model.not_found"
    assert load_error(tmp_path).code == "model.empty"
    (tmp_path / "adapter_config.json").write_text("[]")
    assert load_error(tmp_path).code == "model.bad_json"
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    error = load_error(tmp_path)
    assert error.code == "model.base_not_found"
    assert "some/model" in error.message
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_model_folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: None if path.suffix != ".safetensors" else 100])
    error = load_error(broken)
    assert error.code == "model.unloadable"
    assert str(broken) in error.message


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError) as caught:
        VLLMEngine.load(tiny_model_folder)
    assert "mooring[vllm]" in caught.value.hint
    assert caught.value.code == "extra.vllm"
