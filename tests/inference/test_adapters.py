"""Adapters on servers, in the forms of vLLM, SGLang and llama.cpp: loaded, selected, lost, refused."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_server import Act, FakeServer, Handler, answer, error, fake_server, raw

from mooring.errors import ModelError
from mooring.inference.adapters import AdapterServers, LoadedAdapter, ScaledAdapter, ServedBase
from mooring.inference.openai import OpenAIEngine
from mooring.inference.retry import RequestLimits
from mooring.inference.servers import Servers
from mooring.records import Message, Prompt
from mooring.sampling import SamplingParams

PROMPTS = [Prompt(id=f"p{i}", messages=(Message("user", f"question number {i}"),)) for i in range(4)]
SUCCESS = raw(b"Success: LoRA adapter added successfully.")
Load = Callable[[dict[str, Any]], Act | None]


class Program:
    """A server that keeps a registry of adapters, as vLLM or SGLang do; `load` may answer a request to load one."""

    def __init__(self, kind: str, load: Load | None = None) -> None:
        self.kind, self.load = kind, load
        self.loaded: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.calls: list[str] = []

    def __call__(self, number: int, body: dict[str, Any]) -> Act:
        return self.act

    def act(self, handler: Handler, body: dict[str, Any]) -> None:
        prefix = "/v1/" if self.kind == "vllm" else "/"
        if handler.path == f"{prefix}load_lora_adapter":
            self.calls.append("load")
            own = self.load(body) if self.load else None
            if own is None and body["lora_name"] in self.loaded:
                own = error(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
            if own is None:
                self.loaded[body["lora_name"]] = body["lora_path"]
            (own or SUCCESS)(handler, body)
        elif handler.path == f"{prefix}unload_lora_adapter":
            self.calls.append("unload")
            del self.loaded[body["lora_name"]]
            SUCCESS(handler, body)
        elif "lora_adapter" in handler.path:
            error(404, "Not Found")(handler, body)
        else:
            self.asked.append(body)
            self.missing(body)(handler, body)

    def missing(self, body: dict[str, Any]) -> Act:
        name = body["model"].rpartition(":")[2] if self.kind == "sglang" else body["model"]
        if name == "base" or name in self.loaded:
            return answer()
        if self.kind == "sglang":
            return error(400, f"The following requested LoRA adapters are not loaded: {name}\nLoaded adapters: {{}}.")
        return error(404, f"The model `{name}` does not exist.")


def card(kind: str, **more: Any) -> list[dict[str, Any]]:
    return [{"id": "base", "owned_by": kind, "root": "org/base", **more}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 64}))
    return tmp_path


def servers(*found: FakeServer) -> Servers:
    return Servers([each.url for each in found], "OPENAI_API_KEY", RequestLimits(concurrency=2), found[0].clock)


def ask(at: Servers, served: Any) -> list[str]:
    engine = OpenAIEngine(at, "base", served=served)
    return sorted(c.text for batch in engine.complete(PROMPTS, SamplingParams(max_tokens=8)) for c in batch)


ANSWERS = [f"QUESTION NUMBER {i}" for i in range(4)]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("vllm", {"model": "a-1"}), ("sglang", {"model": "base:a-1", "lora_path": "a-1"})],
)
def test_an_adapter_is_loaded_once_selected_and_unloaded(kind: str, fields: dict[str, str], folder: Path) -> None:
    program = Program(kind)
    with fake_server(program, card(kind)) as server:
        at = servers(server)
        adapters = AdapterServers(at)
        assert ask(at, LoadedAdapter("a-1", folder, adapters)) == ANSWERS
        assert program.loaded == {"a-1": str(folder.resolve())}
        assert program.calls == ["load"]
        assert all(fields.items() <= body.items() for body in program.asked)
        assert ask(at, ServedBase(adapters)) == ANSWERS
        assert program.asked[-1]["model"] == "base"
        adapters.unload()
    assert program.calls == ["load", "unload"]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_adapter_that_a_restarted_server_lost_is_loaded_again(kind: str, folder: Path) -> None:
    program = Program(kind)
    with fake_server(program, card(kind)) as server:
        at = servers(server)
        adapter = LoadedAdapter("a-1", folder, AdapterServers(at))
        ask(at, adapter)
        program.loaded.clear()
        assert ask(at, adapter) == ANSWERS
    assert program.calls.count("load") == 2 or program.calls.count("load") == 3  # two requests at a time


def test_an_adapter_left_by_a_killed_run_is_used(folder: Path) -> None:
    program = Program("vllm")
    program.loaded["a-1"] = "there"
    with fake_server(program, card("vllm")) as server:
        at = servers(server)
        assert ask(at, LoadedAdapter("a-1", folder, AdapterServers(at))) == ANSWERS


def test_every_server_loads_the_adapter(folder: Path) -> None:
    together = threading.Barrier(2, timeout=10)
    programs = [Program("vllm", load=lambda body: (together.wait(), None)[1]) for _ in range(2)]
    with fake_server(programs[0], card("vllm")) as one, fake_server(programs[1], card("vllm")) as two:
        at = servers(one, two)
        assert ask(at, LoadedAdapter("a-1", folder, AdapterServers(at))) == ANSWERS
    assert all(program.loaded.keys() == {"a-1"} for program in programs)


@pytest.mark.parametrize(
    ("response", "code", "words"),
    [
        (error(404, "Loading lora a-1 failed: No adapter found for there"), "model.adapter_unreadable", "mount"),
        (error(404, "Not Found"), "model.server_without_adapters", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        (error(400, "LoRA is not enabled. Please set `--enable-lora`."), "model.server_without_adapters", "--lora"),
        (error(500, "LoRA rank 64 is greater than max_lora_rank 16."), "model.adapter_rejected", "64: --max-lora-rank"),
        (error(400, "unexpected modules"), "model.adapter_rejected", "modules"),
    ],
)
def test_why_an_adapter_is_not_loaded_is_one_line(response: Act, code: str, words: str, folder: Path) -> None:
    with fake_server(Program("vllm", load=lambda body: response), card("vllm")) as server:
        at = servers(server)
        with pytest.raises(ModelError) as caught:
            ask(at, LoadedAdapter("a-1", folder, AdapterServers(at)))
    assert caught.value.code == code
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)


@pytest.fixture
def llama() -> Iterator[FakeServer]:
    with fake_server(models=card("llamacpp")) as server:
        server.adapters = [
            {"id": 0, "path": "other.gguf", "scale": 1.0},
            {"id": 1, "path": "x/mine.gguf", "scale": 1.0},
        ]
        yield server


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0])
def test_llama_cpp_gets_the_scale_of_every_adapter_with_each_request(llama: FakeServer, scale: float) -> None:
    at = servers(llama)
    assert ask(at, ScaledAdapter(scale, "mine", AdapterServers(at))) == ANSWERS
    assert {json.dumps(request["body"]["lora"]) for request in llama.seen} == {
        json.dumps([{"id": 0, "scale": 0.0}, {"id": 1, "scale": scale}])
    }


def test_llama_cpp_that_came_back_without_the_adapter_is_not_asked(llama: FakeServer) -> None:
    """It would ignore the scale of an adapter that it does not have, and answer as the base."""
    at = servers(llama)
    adapter = ScaledAdapter(0.4, "mine", AdapterServers(at))
    ask(at, adapter)
    asked = len(llama.seen)

    def script(number: int, body: dict[str, Any]) -> Act | None:
        llama.adapters = []
        return error(503) if number == asked else None

    llama.script = script
    with pytest.raises(ModelError) as caught:
        ask(at, adapter)
    assert caught.value.code == "model.server_without_adapters"


def test_llama_cpp_with_several_adapters_needs_one_of_that_name(llama: FakeServer) -> None:
    at = servers(llama)
    with pytest.raises(ModelError) as caught:
        ask(at, ScaledAdapter(0.4, "third", AdapterServers(at)))
    assert caught.value.code == "model.server_adapters"


@pytest.mark.parametrize(
    ("kind", "script", "code"),
    [
        ("vllm", Program("vllm", load=lambda body: error(400, "Both must be provided.")), ""),
        ("vllm", Program("other"), "model.server_without_adapters"),
        ("sglang", Program("sglang", load=lambda body: error(400, "no such adapter")), ""),
        (
            "sglang",
            Program("sglang", load=lambda body: error(400, "LoRA is not enabled")),
            "model.server_without_adapters",
        ),
        ("llamacpp", None, "model.server_without_adapters"),
        ("library", None, "model.server_without_adapters"),
    ],
)
def test_whether_a_server_loads_adapters_is_known_without_loading_one(kind: str, script: Any, code: str) -> None:
    with fake_server(script, card(kind)) as server:
        at = servers(server)
        if not code:
            AdapterServers(at).check(at.all[0])
            return
        with pytest.raises(ModelError) as caught:
            AdapterServers(at).check(at.all[0])
    assert caught.value.code == code


def test_the_base_is_the_only_model_that_is_no_adapter_or_the_one_named() -> None:
    models = [*card("vllm"), {"id": "style", "parent": "base"}]
    with fake_server(models=models) as server:
        at = servers(server)
        assert AdapterServers(at).name(at.all[0]) == "base"
        server.models = [*models, {"id": "two", "root": "there"}]
        assert AdapterServers(at, known_as=("there",)).name(at.all[0]) == "two"
        assert AdapterServers(at, "base").name(at.all[0]) == "base"
        for named, code in ((None, "model.not_named"), ("three", "model.not_on_server")):
            with pytest.raises(ModelError) as caught:
                AdapterServers(at, named).name(at.all[0])
            assert caught.value.code == code


def test_a_server_that_comes_back_with_another_model_is_an_error(folder: Path) -> None:
    with fake_server(Program("vllm"), card("vllm")) as server:
        at = servers(server)
        adapters = AdapterServers(at)
        ask(at, ServedBase(adapters))
        server.models = card("vllm", root="org/another")
        adapters.forget(at.all[0])
        with pytest.raises(ModelError, match="org/another now, and before org/base") as caught:
            ask(at, ServedBase(adapters))
    assert caught.value.code == "model.server_changed"
