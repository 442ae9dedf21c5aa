"""Real vLLM: what it answers beside transformers, and what a run over λ starts, writes and leaves behind."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_models import tune
from mooring.config import Generate
from mooring.data import load_splits
from mooring.inference.transformers import TransformersEngine
from mooring.inference.vllm import VLLMEngine
from mooring.inference.vllm_shared import VLLMOptions
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.models.bundled import INSTRUCT
from mooring.models.resolve import resolve_model
from mooring.pipeline.sweeps.folders import FolderSweep
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import TransformersSweep
from mooring.pipeline.sweeps.vllm import VLLMSweep
from mooring.records import Completion, Likelihood, Message, Prompt
from mooring.sampling import SamplingParams

pytestmark = pytest.mark.vllm

VLLM = {"engine": "vllm", "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "gpu_memory": 0.3}
LAMBDAS = [0.2, 0.4, 0.5, 0.6, 0.8]


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM on a CPU takes as much memory for its cache as it is told."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def answers(engine: Any, prompts: list[Prompt], params: SamplingParams) -> dict[str, Completion]:
    return {c.key: c for batch in engine.complete(prompts, params) for c in batch}


def likelihoods(engine: Any, prompts: list[Prompt]) -> dict[str, Likelihood]:
    return {x.prompt_id: x for batch in engine.likelihood(prompts) for x in batch}


def same(ours: dict[str, Completion], theirs: dict[str, Completion]) -> float:
    """The share of equal responses, their lengths and endings included."""
    assert ours.keys() == theirs.keys()
    return sum(
        (ours[k].text, ours[k].tokens, ours[k].finish) == (theirs[k].text, theirs[k].tokens, theirs[k].finish)
        for k in ours
    ) / len(ours)


def questions(count: int) -> list[Prompt]:
    """Ordinary prompts and tool calls, half of each; the latter with references."""
    halves = (load_splits(name, 0.5, 42, None) for name in ("bundled:ordinary", "bundled:tools-simple"))
    ordinary, tools = ([prompt for rows in half.values() for prompt in rows] for half in halves)
    assert min(len(ordinary), len(tools)) >= count // 2
    return [*ordinary[: count // 2], *tools[: count // 2]]


# --- one model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm() -> Path:
    return resolve_model(INSTRUCT)


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Iterator[VLLMEngine]:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    engine = VLLMEngine.load(
        smollm, options=VLLMOptions(dtype="float32", enforce_eager=True, max_model_len=1024, gpu_memory=0.3)
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(smollm: Path) -> TransformersEngine:
    return TransformersEngine.load(smollm, dtype="float32", device="cpu")


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_greedy_tokens_are_those_of_transformers(engine: VLLMEngine, reference: TransformersEngine, count: int) -> None:
    prompts = questions(count)
    equal, endings = [], set()
    for half, penalty in ((prompts[::2], 1.0), (prompts[1::2], 1.2)):
        params = SamplingParams(max_tokens=24, repetition_penalty=penalty)
        ours, theirs = answers(engine, half, params), answers(reference, half, params)
        equal.append(same(ours, theirs))
        endings |= {c.finish for c in ours.values()}
    assert sum(equal) / 2 >= 0.98
    assert endings == {"stop", "length"}


def test_likelihoods_are_those_of_transformers(engine: VLLMEngine, reference: TransformersEngine) -> None:
    prompts = questions(80)[40:]
    ours, theirs = likelihoods(engine, prompts), likelihoods(reference, prompts)
    assert {k: x.tokens for k, x in ours.items()} == {k: x.tokens for k, x in theirs.items()}
    assert {k: x.nll for k, x in ours.items()} == pytest.approx({k: x.nll for k, x in theirs.items()}, rel=1e-3)


def test_a_sample_depends_on_its_prompt_and_number_alone(engine: VLLMEngine) -> None:
    prompts = questions(12)
    params = SamplingParams(max_tokens=12, temperature=0.8, top_p=0.95, top_k=50, n=2, seed=3)
    made = answers(engine, prompts, params)
    assert len({c.text for c in made.values()}) > 12
    assert same(answers(engine, prompts[::-1], params), made) == 1
    few = answers(engine, prompts[:2], params)
    assert same(few, {key: made[key] for key in few}) == 1
    assert same(answers(engine, prompts, dataclasses.replace(params, seed=4)), made) < 1


def test_a_prefilled_answer_continues_as_in_transformers(engine: VLLMEngine, reference: TransformersEngine) -> None:
    prefilled = [
        dataclasses.replace(p, prefill="Certainly, the first thing", prefill_tokens=4) for p in questions(12)[:6]
    ]
    params = SamplingParams(max_tokens=12)
    ours, theirs = answers(engine, prefilled, params), answers(reference, prefilled, params)
    assert same(ours, theirs) == 1
    assert {c.prefill for c in ours.values()} == {"Certainly, the first"}
    several = SamplingParams(max_tokens=12, temperature=0.8, n=3)
    made = answers(engine, prefilled, several)
    assert len(made) == 18
    assert len({c.text for c in made.values()}) > 12
    assert same(answers(engine, prefilled[::-1], several), made) == 1


# --- a sweep ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(save_tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of a shape that vLLM's kernels support."""
    folder: Path = tmp_path_factory.mktemp("vllm") / "base"
    save_tiny_model(folder, hidden_size=128, num_attention_heads=2, num_key_value_heads=2, head_dim=64)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return tune(base, base.parent / "adapter", target_modules="all-linear")


@pytest.fixture(scope="module")
def whole(base: Path, adapter: Path) -> Path:
    return merge(base, adapter, base.parent / "whole", lam=1.0)


def sweep_answers(sweep: Any, points: list[MergePoint], prompts: list[Prompt]) -> dict[str, Any]:
    params = SamplingParams(max_tokens=16)
    found: dict[str, Any] = {}
    for point in points:
        engine = sweep.at(point)
        found[point.key] = answers(engine, prompts, params), likelihoods(engine, prompts[:5])
    return found


@pytest.mark.parametrize("kind", [pytest.param("adapter", marks=pytest.mark.slow), "whole"])
def test_a_sweep_answers_as_one_engine_for_each_model(
    kind: str, base: Path, adapter: Path, whole: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tuned: Path = request.getfixturevalue(kind)
    prompts = [
        Prompt(id=f"p{n}", messages=(Message("user", f"Tell me about {n} " + "foxes " * (n % 7)),), reference="A fox.")
        for n in range(24)
    ]
    points = [BASE, MergePoint(0.4), TUNED, MergePoint(0.7, {"early mlp": 0.2}), MergePoint(0.4)]
    with open_pair(base, tuned) as pair:
        spec = SweepSpec(pair=pair, runner=Generate(**VLLM))
        sweep = VLLMSweep(spec, tmp_path / "scratch")
        assert sweep.concurrent == (kind == "adapter")
        ours = sweep_answers(sweep, points, prompts)
        started = sweep.started
        sweep.close()
        assert started == 1
        assert not list(tmp_path.rglob("model*.safetensors"))
        theirs = {}
        if kind == "adapter":
            single = FolderSweep(spec, tmp_path / "models")
            theirs = sweep_answers(single, points[1:2], prompts)
            single.close()
        memory = SweepSpec(pair=pair, runner=Generate(dtype="float32", device="cpu"))
        exact = TransformersSweep(memory, tmp_path / "memory")
        expected = sweep_answers(exact, points[:4], prompts)
        exact.close()
    for key, (made, scored) in theirs.items():
        assert same(ours[key][0], made) >= 0.95
        assert {k: x.nll for k, x in ours[key][1].items()} == pytest.approx(
            {k: x.nll for k, x in scored.items()}, rel=1e-3
        )
    for key, (made, scored) in expected.items():
        assert same(ours[key][0], made) >= 0.95, key
        assert {k: x.nll for k, x in ours[key][1].items()} == pytest.approx(
            {k: x.nll for k, x in scored.items()}, rel=1e-3
        )
    assert len({tuple(c.text for c in made.values()) for made, _ in ours.values()}) == 4


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "kind"),
    [("slerp", {}, "whole"), ("ties", {"density": 0.5}, "adapter"), ("model_stock", {}, "two adapters")],
)
def test_other_methods_have_one_engine_too(
    method: str,
    options: dict[str, Any],
    kind: str,
    base: Path,
    adapter: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    second = tune(base, tmp_path / "second", seed=2, target_modules="all-linear") if kind == "two adapters" else None
    tuned = {"whole": [whole], "adapter": [adapter], "two adapters": [adapter, second]}[kind]
    prompts = [Prompt(id=f"p{n}", messages=(Message("user", f"Tell me about {n} foxes."),)) for n in range(12)]
    points = [BASE, MergePoint(0.4), MergePoint(0.8)]
    with open_pair(base, tuned) as pair:
        spec = SweepSpec(pair=pair, method=method, options=options, runner=Generate(**VLLM))
        sweep = VLLMSweep(spec, tmp_path / "scratch")
        params = SamplingParams(max_tokens=16)
        ours = {point.key: answers(sweep.at(point), prompts, params) for point in points}
        assert sweep.concurrent == (kind == "two adapters")
        assert not list(tmp_path.rglob("model*.safetensors"))
        sweep.close()
        assert sweep.started == 1
        exact = TransformersSweep(
            dataclasses.replace(spec, runner=Generate(dtype="float32", device="cpu")), tmp_path / "memory"
        )
        theirs = {point.key: answers(exact.at(point), prompts, params) for point in points}
        exact.close()
    for point in points:
        assert same(ours[point.key], theirs[point.key]) >= 0.9, point.key
    assert len({tuple(c.text for c in made.values()) for made in ours.values()}) == len(points)


# --- a run --------------------------------------------------------------------------------------------------------


def recipe(base: Path, tuned: Path, folder: Path, **select: Any) -> Path:
    """A recipe file; greedy and short. With `select`, the section is that, and there is a task."""
    data = folder / "requests.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Help me with thing number {n}."}) + "\n" for n in range(40)))
    values = {
        "base": str(base),
        "tuned": str(tuned),
        "out": "run",
        "merge": {"lambdas": LAMBDAS},
        "generate": {**VLLM, "max_tokens": 16},
        "score": {"safety": str(data), "over_refusal": None, "ordinary": None},
        "select": {"margin": 1.0, **select},
    }
    if select:
        task = folder / "task.jsonl"
        rows = [{"prompt": f"Set the alarm to {n}.", "completion": f"alarm.set(hour={n})"} for n in range(8)]
        task.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values["score"] |= {"task": str(task), "metrics": "response_loss"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Watched:
    """A run in a process of its own, and vLLM's processes that were alive while it ran."""

    def __init__(self, path: Path) -> None:
        import psutil

        self.process = subprocess.Popen(
            [sys.executable, "-m", "mooring", "run", path.name],
            cwd=path.parent,
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.psutil = psutil
        self.engines: set[int] = set()
        self.most = 0
        self.family: set[int] = set()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            alive = set()
            try:
                for child in self.psutil.Process(self.process.pid).children(recursive=True):
                    self.family.add(child.pid)
                    if child.status() == self.psutil.STATUS_ZOMBIE or child.ppid() in alive:
                        continue  # a process that an engine starts has the engine's name at first
                    if "EngineCore" in " ".join(child.cmdline()):
                        alive.add(child.pid)
            except self.psutil.Error:
                continue
            self.engines |= alive
            self.most = max(self.most, len(alive))
            time.sleep(0.05)

    def wait(self) -> str:
        out, _ = self.process.communicate(timeout=900)
        assert self.process.returncode in (0, 3), out[-3000:]  # 3: random models need not be fit to ship
        return out

    def left(self, seconds: float = 30) -> list[int]:
        """Processes of the run that are still alive after some seconds."""
        deadline = time.monotonic() + seconds
        while True:
            left = [pid for pid in self.family if self.psutil.pid_exists(pid) and not self._is_zombie(pid)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)

    def _is_zombie(self, pid: int) -> bool:
        try:
            return bool(self.psutil.Process(pid).status() == self.psutil.STATUS_ZOMBIE)
        except self.psutil.Error:
            return True


def results(folder: Path) -> Any:
    return json.loads((folder / "run" / "report" / "results.json").read_text())


def texts(folder: Path) -> dict[str, list[str]]:
    root = folder / "run" / "completions"
    return {
        str(path.relative_to(root)): [json.loads(line)["text"] for line in path.read_text().split("\n")[:-1]]
        for path in sorted(root.rglob("safety-*.jsonl"))
        if not path.name.startswith("verdicts")
    }


@pytest.fixture(scope="module")
def finished(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched, str]:
    """A run over an adapter: its folder, its processes, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    watched = Watched(recipe(base, adapter, folder))
    return folder, watched, watched.wait()


def check_run(folder: Path, watched: Watched, out: str) -> None:
    """One engine, one model written, and nothing printed by vLLM; every λ answered."""
    check_engine(folder, watched, out)
    assert len(texts(folder)) == len(LAMBDAS) + 2 + 3


def check_engine(folder: Path, watched: Watched, out: str) -> None:
    """One engine, never a second one beside it; no checkpoint but the chosen one; vLLM's lines are in its log file."""
    assert len(watched.engines) == 1
    assert watched.most == 1
    assert not watched.left()
    written = [path.parent.name for path in (folder / "run").rglob("*.safetensors")]
    assert written == ["model"]
    assert not re.search(r"\b(INFO|WARNING) \d\d-\d\d", out)
    assert (folder / "run" / "logs" / "models.log").stat().st_size


def test_a_run_starts_one_engine_and_writes_one_model(finished: tuple[Path, Watched, str]) -> None:
    check_run(*finished)


@pytest.mark.slow
def test_a_run_over_whole_checkpoints_does_so_too(base: Path, whole: Path, tmp_path: Path) -> None:
    watched = Watched(recipe(base, whole, tmp_path))
    check_run(tmp_path, watched, watched.wait())


@pytest.mark.slow
@pytest.mark.parametrize(("search", "kind"), [("modules", "adapter"), ("bisect", "whole")])
def test_a_search_shares_the_engine(
    search: str, kind: str, base: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = {"search": search, "confidence": None} | ({"budget": 3} if search == "modules" else {"bound": 1.0})
    watched = Watched(recipe(base, request.getfixturevalue(kind), tmp_path, **options))
    check_engine(tmp_path, watched, watched.wait())
    models = [path.name for path in (tmp_path / "run" / "completions").iterdir()]
    assert len(models) > (len(LAMBDAS) + 2 if search == "modules" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_run_that_was_stopped_ends_with_the_same_results_and_leaves_no_process(
    how: signal.Signals, base: Path, adapter: Path, finished: tuple[Path, Watched, str], tmp_path: Path
) -> None:
    path = recipe(base, adapter, tmp_path)
    watched = Watched(path)
    parts = tmp_path / "run" / "completions"
    deadline = time.monotonic() + 600
    while not any(file.stat().st_size > 2000 for file in parts.rglob("*.jsonl*")):
        assert time.monotonic() < deadline
        assert watched.process.poll() is None, watched.wait()
        time.sleep(0.02)
    if how is signal.SIGKILL:
        watched.process.kill()
    else:
        os.killpg(watched.process.pid, how)  # Ctrl-C reaches vLLM's processes too
    out, _ = watched.process.communicate(timeout=120)
    if how is signal.SIGINT:
        assert watched.process.returncode == 130, out[-3000:]
        assert "Traceback" not in out
    assert not watched.left(), "vLLM's processes outlived the run"
    Watched(path).wait()
    assert texts(tmp_path) == texts(finished[0])
    assert results(tmp_path)["trials"] == results(finished[0])["trials"]
