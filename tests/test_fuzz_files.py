"""Files and answers that are anything at all, through the commands: a result, or one line, soon, in little memory."""

import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent / "reporting"))
sys.path.insert(1, str(Path(__file__).parent / "inference"))
sys.path.insert(1, str(Path(__file__).parent / "models"))

from fake_server import Handler, fake_server
from report_sample import results
from test_gguf import write_tiny

from fuzzing import Worker, anything, damaged_bytes, damaged_json, damaged_value, limited, listing, noise
from mooring import import_labels
from mooring.cli import main
from mooring.config import Recipe
from mooring.data.bundled import load_bundled
from mooring.errors import UserError
from mooring.inference.openai import OpenAIEngine
from mooring.inference.retry import RequestLimits
from mooring.printable import visible
from mooring.records import Message, Prompt
from mooring.reporting.results import dumps
from mooring.sampling import SamplingParams

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("MOORING_FUZZ", "150"))
"""How many inputs of each kind; `make fuzz` tries 10,000."""

numbered = given(st.integers(0, 2**64 - 1))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # an input follows from a number, which does not shrink
    suppress_health_check=list(HealthCheck),
    database=None,
)

NEEDED = ("base", "tuned", "out", "merge_method", "base_model")
"""Fields of a recipe, or of mergekit's."""
Damage = Callable[[random.Random, bytes], bytes]
Command = tuple[str, ...]


def damaged_yaml(chance: random.Random, original: bytes) -> bytes:
    """A recipe in which values are gone, moved, or anything; or a text that is hardly YAML."""
    if chance.random() < 0.2:
        return noise(chance, 200, "[]{}&*<: -,\n!?|>%@`'\"#ab1.e").encode()
    if chance.random() < 0.2:
        return damaged_bytes(chance, original)
    whole = json.loads(original)
    few = chance.random() < 0.8  # sections, which are parsed sooner
    chosen = {key: value for key, value in whole.items() if key in NEEDED or chance.random() < 0.3} if few else whole
    return json.dumps(damaged_value(chance, chosen)).encode()


def damaged_lines(chance: random.Random, original: bytes) -> bytes:
    """JSON Lines of which some are damaged."""
    lines = original.splitlines()
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(lines))
        lines[at] = damaged_json(chance, lines[at])
    return b"\n".join(lines)


def damaged_log(chance: random.Random, original: bytes) -> bytes:
    """A log of Inspect, a ZIP archive, of which a sample or the archive is damaged."""
    if chance.random() < 0.4:
        return damaged_bytes(chance, original, len(original))
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(original)) as whole, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        damaged = chance.choice(whole.namelist())
        for name in whole.namelist():
            text = whole.read(name)
            archive.writestr(name, damaged_json(chance, text) if name == damaged else text)
    return made.getvalue()


def damaged_text(chance: random.Random, original: bytes) -> bytes:
    """A text of which pieces are gone, moved, or anything."""
    return damaged_bytes(chance, original, len(original))


@dataclasses.dataclass(frozen=True)
class Target:
    """Files of one kind, how they are damaged, and the commands that read them; `OUT` is where one writes."""

    files: tuple[str, ...]
    damage: Damage
    commands: tuple[Command, ...]


MERGE = ("merge", "base", "tuned", "--lam", "0.5", "--out", "out")
INSPECT = ("inspect", "base", "tuned", "--quick", "--json")
OF_ADAPTER = tuple(tuple("adapter" if part == "tuned" else part for part in command) for command in (INSPECT, MERGE))
OF_GGUF = tuple(f"{part}.gguf" if part in ("base", "tuned") else part for part in INSPECT)
OF_ANSWERS = ("score", "answers.jsonl", "set.jsonl", "--kind")
READERS = (("select", "run"), ("gate", "run"), ("select", "run", "--margin", "0.1", "--json"))
TOKENIZERS = (
    ("data", "set.jsonl", "--model", "tuned"),
    (*MERGE, "--tokenizer", "tuned"),
    (*MERGE, "--tokenizer", "base"),
)


def of_files(*names: str) -> tuple[Command, ...]:
    """The commands that read answers or scores of other tools, of each file."""
    scores = (("score", name, "set.jsonl", "--kind", "safety") for name in names)
    return (*scores, *(("compare-evals", name, name, "--common") for name in names))


TARGETS = {
    "recipes": Target(("r.yaml",), damaged_yaml, (("run", "r.yaml", "--dry-run"),)),
    "mergekit configurations": Target(("m.yaml",), damaged_yaml, (("mergekit", "run", "m.yaml", "--out", "out"),)),
    "ledgers": Target(("run/ledger.json",), damaged_json, READERS),
    "results": Target(("run/report/results.json",), damaged_json, READERS),
    "reports": Target(("run/report/results.json",), damaged_json, (("report", "run"),)),
    "configurations": Target(("base/config.json", "tuned/config.json"), damaged_json, (INSPECT, MERGE, MERGE, MERGE)),
    "configurations of adapters": Target(("adapter/adapter_config.json",), damaged_json, OF_ADAPTER),
    "indexes": Target(("tuned/model.safetensors.index.json",), damaged_json, (INSPECT, MERGE)),
    "tokenizers": Target(
        ("tuned/tokenizer.json", "tuned/tokenizer_config.json", "base/tokenizer_config.json"), damaged_json, TOKENIZERS
    ),
    "templates": Target(("tuned/chat_template.jinja",), damaged_text, TOKENIZERS),
    "headers of safetensors": Target(("base/model.safetensors",), damaged_bytes, (INSPECT, MERGE)),
    "headers of adapters": Target(("adapter/adapter_model.safetensors",), damaged_bytes, OF_ADAPTER),
    "headers of GGUF": Target(("base.gguf",), damaged_bytes, (OF_GGUF,)),
    "data": Target(("set.jsonl",), damaged_lines, (("data", "set.jsonl"), (*OF_ANSWERS, "task"))),
    "logs": Target(("log.json", "behaviors.json"), damaged_json, of_files("log.json", "behaviors.json")),
    "lines of logs": Target(("samples.jsonl", "batch.jsonl"), damaged_lines, of_files("samples.jsonl", "batch.jsonl")),
    "archives of logs": Target(("log.eval",), damaged_log, of_files("log.eval")),
    "labels": Target(
        ("run/labels.jsonl", "l.jsonl"),
        damaged_lines,
        (("label", "run", "--show"), ("label", "run", "--import", "l.jsonl")),
    ),
    "answers": Target(("answers.jsonl",), damaged_lines, ((*OF_ANSWERS, "safety"),)),
}
SHARES = {"reports": 0.2}
"""Of a kind of which fewer are tried: a report takes seconds to draw."""


def sharded(folder: Path) -> None:
    """Write the weights of a model in two shards with an index."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / file, {"format": "pt"})
    size = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": {n: file for file, held in shards.items() for n in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """Models, an adapter, a finished run, recipes and data, as the commands of `TARGETS` name them."""
    root = tmp_path_factory.mktemp("fuzz")
    small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 2048}
    save_tiny_model(root / "base", **small)
    save_tiny_model(root / "tuned", seed=1, **small)
    sharded(root / "tuned")
    (root / "adapter").mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 16), f"{module}.lora_B.weight": torch.ones(16, 2)}
    save_file(factors, root / "adapter" / "adapter_model.safetensors")
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    for name in ("base.gguf", "tuned.gguf"):
        write_tiny(root / name, tiny_tokenizer, "Q8_0")
    with (root / "tuned.gguf").open("r+b") as file:  # another weight
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    rows = [{"prompt": f"Call {n}", "completion": f"call({n})", "category": "a"} for n in range(4)]
    (root / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"prompt_id": str(n), "response": "call(1)", "prompt": f"Call {n}"} for n in range(4)]
    (root / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    write_logs(root)
    sets = dict.fromkeys(("task", "safety", "over_refusal", "ordinary"), "set.jsonl")
    sections = {"score": sets, "select": {"confidence": None}}
    recipe = Recipe.parse({"base": "base", "tuned": "tuned", **sections})
    plain = recipe.model_dump(mode="json")
    (root / "r.yaml").write_text(json.dumps({**plain, "out": "new"}))  # JSON is YAML
    (root / "m.yaml").write_text(json.dumps(MERGEKIT))
    (root / "run" / "report").mkdir(parents=True)
    (root / "run" / "recipe.yaml").write_text(recipe.dump())
    (root / "run" / "report" / "results.json").write_text(dumps(results(recipe=plain)))
    step = {"label": "l", "key": "k", "done": True, "seconds": 1.0, "files": {}}
    ledger = {"steps": {"a": step, "b": step}, "digests": {"m": {"stats": "s", "digest": "d"}}}
    (root / "run" / "ledger.json").write_text(json.dumps(ledger))
    (root / "run" / ".labels.jsonl.lock").touch()
    given = [
        {"prompt_id": f"h{n}", "model": model, "label": "harmful"} for n in range(6) for model in ("base", "tuned")
    ]
    (root / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    import_labels(root / "run", root / "l.jsonl", annotator="ana")
    return root


def write_logs(root: Path) -> None:
    """Answers and scores to `set.jsonl`, as other tools write them."""
    said = [
        {
            "choices": [{"message": {"role": "assistant", "content": f"call({n})"}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 3},
        }
        for n in range(4)
    ]
    samples = [
        {
            "id": n,
            "epoch": 1,
            "input": f"Call {n}",
            "target": "x",
            "output": body,
            "scores": {"m": {"value": "C"}},
            "metadata": {},
        }
        for n, body in enumerate(said)
    ]
    (root / "log.json").write_text(json.dumps({"version": 2, "eval": {"task": "t"}, "samples": samples}))
    with zipfile.ZipFile(root / "log.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"version": 2, "eval": {"task": "t"}}))
        for n, sample in enumerate(samples):
            archive.writestr(f"samples/{n}_epoch_1.json", json.dumps(sample))
    behaviors = {f"{n}": [{"test_case": f"Call {n}", "generation": f"call({n})", "label": n % 2}] for n in range(4)}
    (root / "behaviors.json").write_text(json.dumps(behaviors))
    rows: list[dict[str, Any]] = [
        {"doc_id": n, "doc": {"question": f"Call {n}"}, "arguments": [[f"Call {n}", {}]], "resps": [[f"call({n})"]]}
        | {"filtered_resps": ["x"], "filter": "none", "metrics": ["x"], "x": 1.0, "doc_hash": f"{n}"}
        for n in range(4)
    ]
    (root / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [
        {"custom_id": f"request-{n}", "response": {"status_code": 200, "body": body}, "score": n}
        for n, body in enumerate(said)
    ]
    (root / "batch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "base",
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 8},
    "modules_to_save": None,
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "layers_to_transform": None,
    "layers_pattern": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}
MERGEKIT: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": "tuned", "parameters": {"weight": 0.5, "density": [0.2, 0.8]}}, {"model": "base"}],
    "parameters": {"normalize": True, "lambda": 0.5, "weight": [{"filter": "mlp", "value": 0.1}, {"value": 1}]},
    "dtype": "float32",
    "tokenizer_source": "base",
}


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def attempt(folder: Path, command: Command) -> int:
    """Run a command within the limits: the documented codes, at most one line of error, nothing that acts, no rest."""
    out, err, before = io.StringIO(), io.StringIO(), listing(folder)
    with within(folder), limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(command))
        except SystemExit as stop:
            code = int(stop.code or 0)
    assert code in (0, 2, 3), err.getvalue()
    for text in (out.getvalue(), err.getvalue()):
        assert visible(text) == text
    notes = ("mooring: warning: ", "mooring: set.jsonl: fields that are not read: ")
    lines = [line for line in err.getvalue().splitlines() if not line.startswith(notes)]
    assert len(lines) <= 1, lines
    assert all(line.startswith("mooring: ") for line in lines)
    assert code != 2 or lines or '"problems": ["' in out.getvalue().replace("\n", "").replace("  ", "")
    shutil.rmtree(os.environ["MOORING_CACHE"], ignore_errors=True)
    if code == 0:
        shutil.rmtree(folder / "out", ignore_errors=True)
        for path in folder.glob("verdicts-*-classifier.jsonl"):
            path.unlink()
    assert listing(folder) == before or (code == 0 and command[0] in ("report", "label"))
    return code


@pytest.mark.parametrize("kind", TARGETS)
def test_files(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORING_CACHE", str(folder.parent / "cache"))
    # A recipe that names no set of its own plans with hundreds of prompts, which takes seconds.
    monkeypatch.setattr("mooring.data.sets.load_bundled", lambda *given: load_bundled(*given)[:4])
    target = TARGETS[kind]
    originals = {name: (folder / name).read_bytes() for name in target.files}
    whole = [attempt(folder, command) for command in target.commands]  # and loads what is needed, before the limits
    assert set(whole) <= {0, 3}

    def damaged(number: int) -> None:
        chance = random.Random(number)
        name = chance.choice(target.files)
        (folder / name).write_bytes(target.damage(chance, originals[name]))
        fitting = [command for command in target.commands if name in command]
        attempt(folder, chance.choice(fitting or target.commands))

    worker = Worker(damaged)

    @seed(0)
    @settings(fuzzed, max_examples=max(3, round(EXAMPLES * SHARES.get(kind, 1))))
    @numbered
    def check(number: int) -> None:
        try:
            worker(number)
        finally:
            for name, original in originals.items():
                (folder / name).write_bytes(original)

    with contextlib.closing(worker):
        check()


def test_headers_of_gguf(folder: Path, tmp_path: Path) -> None:
    """What passes the check, the library reads, and each tensor lies in the file."""
    from gguf import GGUFReader

    from mooring.models.gguf_header import check_header

    original, file = (folder / "base.gguf").read_bytes(), tmp_path / "x.gguf"

    @seed(0)
    @fuzzed
    @numbered
    def check(number: int) -> None:
        file.write_bytes(damaged_bytes(random.Random(number), original))
        with limited(), contextlib.suppress(UserError):
            check_header(file)
            for tensor in GGUFReader(file).tensors:
                assert tensor.data_offset + tensor.n_bytes <= file.stat().st_size

    check()


ANSWER = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
    "usage": {"completion_tokens": 1},
}
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 4096}]}
HEADS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n",
    b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n",
)


def response(chance: random.Random, value: Any) -> bytes:
    """The bytes of a response, of which the body, the headers or both are damaged."""
    where = chance.randrange(4)
    error = {"error": {"message": anything(chance), "code": anything(chance), "type": "t"}}
    body = json.dumps(damaged_value(chance, chance.choice((value, value, error))) if where else value).encode()
    head = HEADS[0] if chance.random() < 0.6 else chance.choice(HEADS)
    head %= len(body)
    end = b"\r\n0\r\n\r\n" if b"chunked" in head else b""
    return damaged_bytes(chance, head, len(head)) + body + end if where in (0, 3) else head + body + end


def test_servers() -> None:
    """Whatever a server says to a request for its models, and for an answer."""
    sent = b""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.connection.sendall(sent)
            handler.connection.shutdown(socket.SHUT_WR)

    prompt = Prompt(id="p", messages=(Message("user", "Hello"),), origin="set.jsonl:1")
    with fake_server(lambda number, body: act) as server:
        server.answer_get = lambda handler: act(handler, {})
        limits = RequestLimits(retries=1, timeout=10, patience=5)

        @seed(0)
        @fuzzed
        @numbered
        def check(number: int) -> None:
            nonlocal sent
            server.seen.clear()
            server.times.clear()
            chance = random.Random(number)
            lists = chance.random() < 0.3
            sent = response(chance, MODELS if lists else ANSWER)
            engine = OpenAIEngine(server.url, None if lists else "m", limits=limits, clock=server.clock, system=None)
            said = ""
            with limited():
                try:
                    if lists:
                        assert all(isinstance(each, (str, tuple, type(None))) for each in engine.served)
                    else:
                        (batch,) = engine.complete([prompt], SamplingParams(max_tokens=8))
                        assert [(type(each.text), 0 <= each.tokens < 2**31) for each in batch] == [(str, True)]
                except UserError as error:
                    said = str(error)
            assert "\n" not in said
            assert visible(said) == said

        check()
