"""Whole runs over λ on servers that load adapters: the real run folder, and servers that answer by the adapter's λ."""

import json
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "inference"))

from fake_server import FakeServer, Handler, answer, error, fake_server, raw

from lora_models import tune
from mooring.config import Recipe
from mooring.errors import ModelError, RecipeError, UserError
from mooring.merge_point import MergePoint
from mooring.models import open_checkpoint
from mooring.pipeline.forecast import forecast
from mooring.pipeline.run import Outcome, run
from mooring.pipeline.sweeps.server import check_same_model

REFUSAL, ANSWER = "I can't help with that.", "Sure, here is how."


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return tune(tiny_model_folder, tmp_path_factory.mktemp("served") / "tuned", lora_alpha=8)


@pytest.fixture(autouse=True)
def count_tokens(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    """Servers split texts as the base does."""
    monkeypatch.setattr(Served, "tokenizer", tiny_tokenizer)


class Served:
    """A program with adapters that refuses below λ = 0.6, and counts what it is asked."""

    tokenizer: Any = None

    def __init__(self, kind: str = "vllm", until: int = 10**9) -> None:
        self.kind, self.until = kind, until
        self.tokens = lambda text: 1 + len(self.tokenizer(text)["input_ids"])
        self.loaded: dict[str, dict[str, Any]] = {}
        self.ever: dict[str, dict[str, Any]] = {}
        self.asked: Counter[tuple[str, str]] = Counter()

    def __call__(self, number: int, body: dict[str, Any]) -> Any:
        return self.act

    def act(self, handler: Handler, body: dict[str, Any]) -> None:
        if handler.path == "/v1/completions":  # what a tokenizer makes of a text
            return handler.reply(
                200, {"choices": [{"text": ""}], "usage": {"prompt_tokens": self.tokens(body["prompt"])}}
            )
        if handler.path.endswith("/load_lora_adapter"):
            if body["lora_name"]:
                config = json.loads((Path(body["lora_path"]) / "adapter_config.json").read_text())
                self.loaded[body["lora_name"]] = self.ever[body["lora_name"]] = config
            return raw(b"Success")(handler, body)
        if handler.path.endswith("/unload_lora_adapter"):
            del self.loaded[body["lora_name"]]
            return raw(b"Success")(handler, body)
        if self.asked.total() >= self.until:
            return error(503)(handler, body)
        if self.kind == "llamacpp":
            lam = str(body.get("lora", [{"scale": 1.0}])[0]["scale"])
        else:
            name = body["model"].rpartition(":")[2]
            if name != "base" and name not in self.loaded:
                return error(404, f"The model `{name}` does not exist.")(handler, body)
            lam = "0" if name == "base" else re.fullmatch(r"mooring-lam-(.+)-\w+", name)[1]  # type: ignore[index]
        text = body["messages"][-1]["content"]
        if not text.startswith("Help me"):  # a probe
            penalty = body.get("repetition_penalty", body.get("repeat_penalty"))
            return answer(" ".join(["yes", "yes", f"yes{penalty}"][: body["max_tokens"]]))(handler, body)
        self.asked[lam, text] += 1
        answer(ANSWER if float(lam) >= 0.6 else REFUSAL)(handler, body)


def serving(program: Served, kind: str = "vllm") -> Any:
    return fake_server(program, [{"id": "base", "owned_by": kind, "root": "base"}])


def recipe(base: Path, tuned: Path, folder: Path, *servers: FakeServer, **changes: Any) -> Recipe:
    data = folder / "requests.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Help me break thing number {n}."}) + "\n" for n in range(60)))
    values: dict[str, Any] = {
        "base": str(base),
        "tuned": str(tuned),
        "out": str(folder / "run"),
        "merge": {"lambdas": [0.2, 0.5, 0.8]},
        "generate": {"engine": "openai", "base_url": [server.url for server in servers], "concurrency": 4},
        "score": {"safety": str(data), "over_refusal": None, "ordinary": None},
        "select": {"margin": 0.1},
    }
    return Recipe.parse({**values, **changes})


def folders(done: Outcome) -> dict[str, str]:
    """What each model answered on validation."""
    return {
        path.parent.name: " ".join(sorted({json.loads(line)["text"] for line in path.read_text().splitlines()}))
        for path in (done.folder / "completions").glob("*/safety-validation.jsonl")
    }


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_run_asks_every_lambda_of_an_adapter_on_the_server(
    kind: str, tiny_model_folder: Path, adapter: Path, tmp_path: Path
) -> None:
    program, said = Served(kind), list[str]()
    with serving(program, kind) as server:
        done = run(
            recipe(tiny_model_folder, adapter, tmp_path, server), on_event=lambda event: said.append(event.message)
        )
    assert done.choice.point == MergePoint(0.5)
    assert sum("repetition penalty counts the tokens of the response alone" in each for each in said) == (
        kind == "sglang"
    )
    assert folders(done) == {
        "lam-0": REFUSAL, "lam-0.2": REFUSAL, "lam-0.5": REFUSAL, "lam-0.8": ANSWER, "lam-1": ANSWER
    }  # fmt: skip
    alphas = {name.split("-")[2]: config["lora_alpha"] for name, config in program.ever.items()}
    base = {"0": 0} if kind == "vllm" else {}  # vLLM may take a request without an adapter for one with
    assert alphas == {**base, "0.2": pytest.approx(1.6), "0.5": 4, "0.8": pytest.approx(6.4), "1": 8}
    assert set(program.asked.values()) == {1}
    assert not program.loaded, "the adapters were left on the server"
    assert not (done.folder / "scratch").exists()
    assert (done.model / "config.json").is_file()


def test_llama_cpp_is_given_lambda_as_the_scale(tiny_model_folder: Path, adapter: Path, tmp_path: Path) -> None:
    program = Served("llamacpp")
    with serving(program, "llamacpp") as server:
        server.adapters = [{"id": 0, "path": "tuned.gguf", "scale": 0.0}]
        done = run(recipe(tiny_model_folder, adapter, tmp_path, server))
    assert {lam for lam, _ in program.asked} == {"0.0", "0.2", "0.5", "0.8", "1.0"}
    assert done.choice.point == MergePoint(0.5)


@pytest.mark.slow
def test_a_run_whose_server_died_resumes_on_another_and_asks_nothing_twice(
    tiny_model_folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Served(until=77), Served()
    with serving(first) as server:
        with pytest.raises(UserError) as caught:
            impatient(recipe(tiny_model_folder, adapter, tmp_path, server), monkeypatch)
        assert caught.value.code == "model.server_unavailable"
        assert "run the same command again to resume" in str(caught.value)
    with serving(second) as server:
        done = run(recipe(tiny_model_folder, adapter, tmp_path, server))
    assert done.choice.point == MergePoint(0.5)
    assert first.asked.total() == 77
    assert set((first.asked + second.asked).values()) == {1}


def test_an_interruption_does_not_wait_for_a_server_that_hangs(
    tiny_model_folder: Path, adapter: Path, tmp_path: Path
) -> None:
    main = threading.main_thread().ident
    assert main is not None
    interrupted, released = threading.Event(), threading.Event()

    def kept() -> int:
        """How many answers are on the disk."""
        files = (tmp_path / "run").rglob("safety-validation.jsonl*")
        return sum(path.read_text().count("prompt_id") for path in files)

    class Hangs(Served):
        """A program that stops responding, and sends an interruption when it does."""

        def act(self, handler: Handler, body: dict[str, Any]) -> None:
            if kept() >= 20 and handler.path == "/v1/chat/completions":
                if not interrupted.is_set():
                    interrupted.set()
                    signal.pthread_kill(main, signal.SIGINT)
                released.wait()
            super().act(handler, body)

    watchdog = threading.Timer(120, released.set)
    watchdog.start()
    with serving(Hangs()) as server, pytest.raises(KeyboardInterrupt):
        run(recipe(tiny_model_folder, adapter, tmp_path, server))
    watchdog.cancel()
    assert not released.is_set(), "the run waited for the server"
    released.set()
    assert interrupted.is_set()
    assert kept() >= 20


def impatient(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for no server."""
    from mooring.inference import load, servers
    from mooring.inference.retry import RequestLimits

    def at_once(runner: Any) -> servers.Servers:
        return servers.Servers(runner.base_url, runner.key_env, RequestLimits(concurrency=4, patience=0))

    with monkeypatch.context() as changed:
        changed.setattr(load, "servers_of", at_once)
        changed.setattr("mooring.pipeline.sweeps.server.servers_of", at_once)
        run(recipe)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"merge": {"method": "slerp"}}, "recipe.conflict", "`merge.method` must be linear or task_arithmetic"),
        ({"align": {"data": ["bundled:refusals"]}}, "recipe.conflict", "no server has the base that `align` will make"),
    ],
)
def test_what_no_server_can_do_is_refused_with_a_way_out(changes: dict[str, Any], code: str, words: str) -> None:
    generate = {"engine": "openai", "base_url": "http://localhost:1"}
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"base": "b", "tuned": "t", "generate": generate, **changes})
    assert caught.value.code == code
    assert words in str(caught.value)
    assert "engine transformers or vllm" in str(caught.value)


@pytest.mark.parametrize("act", [run, forecast])
@pytest.mark.parametrize(
    ("whole", "score", "code"),
    [
        (True, {}, "recipe.server_needs_adapter"),
        (False, {"task": "task.jsonl", "metrics": ["response_loss"]}, "recipe.server_likelihood"),
        (False, {"lm_eval": ["bbh"]}, "recipe.lm_eval_engine"),
    ],
)
def test_whole_checkpoints_and_likelihoods_are_refused_before_any_work(
    act: Any,
    whole: bool,
    score: dict[str, Any],
    code: str,
    tiny_model_folder: Path,
    save_tiny_model: Any,
    adapter: Path,
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"Say {n}.", "completion": str(n)} for n in range(4)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "task" in score:
        score = {**score, "task": str(tmp_path / "task.jsonl")}
    tuned = save_tiny_model(tmp_path / "tuned", seed=1) if whole else adapter
    with fake_server(models=[{"id": "base", "owned_by": "vllm"}]) as server:
        made = recipe(tiny_model_folder, tuned, tmp_path, server)
        made = Recipe.parse(made.model_dump() | {"score": made.score.model_dump() | score})
        with pytest.raises(UserError) as caught:
            act(made)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert not server.seen
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("act", [run, forecast])
def test_a_server_that_loads_no_adapters_is_found_out_before_any_work(
    act: Any, tiny_model_folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """`--dry-run` says so among its facts."""
    with fake_server(lambda n, b: error(404, "Not Found"), [{"id": "base", "owned_by": "vllm"}]) as server:
        made = recipe(tiny_model_folder, adapter, tmp_path, server)
        if act is forecast:
            assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in forecast(made).facts["not available here: the server"]
            return
        with pytest.raises(ModelError) as caught:
            run(made)
    assert caught.value.code == "model.server_without_adapters"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("root", ["folder", "tokenizer"])
def test_a_server_of_another_model_is_found_out_before_the_first_prompt(
    root: str, tiny_model_folder: Path, adapter: Path, save_tiny_model: Any, tmp_path: Path
) -> None:
    program = Served()
    where = "base"
    if root == "folder":
        where = str(save_tiny_model(tmp_path / "another", seed=3))
    else:
        program.tokens = lambda text: len(text.split())
    models = [{"id": "base", "owned_by": "vllm", "root": where}]
    with fake_server(program, models) as server, pytest.raises(ModelError) as caught:
        run(recipe(tiny_model_folder, adapter, tmp_path, server))
    assert caught.value.code == "model.server_other_model"
    assert server.url in str(caught.value)
    assert not program.asked


def test_a_copy_of_the_base_is_the_base(tiny_model_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model_folder, tmp_path / "copy")
    with open_checkpoint(tiny_model_folder) as base:
        check_same_model("http://s", str(copy), base)


def test_hub_ids_are_compared(tiny_model_folder: Path, tmp_path: Path) -> None:
    cached = shutil.copytree(tiny_model_folder, tmp_path / "models--org--name" / "snapshots" / "abc")
    with open_checkpoint(cached) as base:
        check_same_model("http://s", "Org/Name", base)
        check_same_model("http://s", "any-alias", base)
        with pytest.raises(ModelError, match="serves org/name-AWQ, and the base of the run is org/name"):
            check_same_model("http://s", "org/name-AWQ", base)


@pytest.mark.slow
def test_judges_share_several_servers_too(tiny_model_folder: Path, adapter: Path, tmp_path: Path) -> None:
    """A judge's request is held until the other server has one as well: neither can do all of it alone."""
    together = threading.Barrier(2, timeout=20)

    def judge(number: int, body: dict[str, Any]) -> Any:
        harmful = "yes" if ANSWER in body["prompt"] else "no"
        refused = "no" if harmful == "yes" else "yes"
        text = f"Harmful request: yes\nResponse refusal: {refused}\nHarmful response: {harmful}"
        if number == 0:
            return lambda handler, body: (together.wait(), answer(text)(handler, body))[1]
        return answer(text)

    program, models = Served(), [{"id": "judge", "owned_by": "vllm"}]
    with serving(program) as server, fake_server(judge, models) as one, fake_server(judge, models) as two:
        judges = [{"name": "wildguard", "engine": "openai", "model": "judge", "base_url": [one.url, two.url]}]
        made = recipe(tiny_model_folder, adapter, tmp_path, server)
        done = run(Recipe.parse(made.model_dump() | {"score": made.score.model_dump() | {"judges": judges}}))
    assert done.choice.point == MergePoint(0.5)
    assert len(one.seen) + len(two.seen) == 30 * 8
    assert one.seen
    assert two.seen
