"""Files and answers that are anything at all: a value, or the documented error in one line, soon, in little memory."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent / "reporting"))

from report_sample import results

import mooring
from fuzzing import VALUES, damaged_bytes, damaged_json, limited, listing
from mooring.bounded import RECORD, parse_json
from mooring.config import Recipe
from mooring.errors import UserError
from mooring.inference.dialect import parse_completion
from mooring.inference.server import TransientError
from mooring.ledger import LEDGER, read_ledger
from mooring.models.classes import load_tokenizer
from mooring.models.gguf_header import check_header
from mooring.models.safetensors_file import read_header
from mooring.models.vocabulary import adds_tokens, chat_template, ids_by_token, special_tokens, vocabulary
from mooring.printable import as_json
from mooring.reporting.results import dumps, load

EXAMPLES = int(os.environ.get("MOORING_FUZZ", "60"))
"""How many inputs of each kind; `make fuzz` tries 10,000."""

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)


def one_line(error: UserError) -> None:
    """Check that an error is one line with a code."""
    assert "\n" not in str(error)
    assert error.code.count(".") == 1


def edited(original: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping of which some values, at the top or one level below, are anything."""
    inner = {key: edited(value) | VALUES for key, value in original.items() if isinstance(value, dict) and value}
    return st.fixed_dictionaries(
        {}, optional={**{key: st.just(value) | VALUES for key, value in original.items()}, **inner}
    )


RECIPE = Recipe.parse({"base": "b", "tuned": "t", "score": {"safety": "bundled:harmful"}}).model_dump(mode="json")
STEP = {"label": "l", "key": "k", "done": True, "seconds": 1.0, "files": {"a.json": "0"}}
ANSWER = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
    "usage": {"completion_tokens": 1},
}


@seed(0)
@fuzzed
@given(data=edited(RECIPE) | VALUES)
def test_recipes(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=False), encoding="utf-8", errors="surrogatepass")
    try:
        Recipe.load(path)
    except UserError as error:
        one_line(error)
    assert [each.name for each in tmp_path.iterdir()] == ["r.yaml"]


@seed(0)
@fuzzed
@given(data=st.binary(max_size=200) | st.text("[]{}&*<: -,\n!?|>%@`'\"#ab1.e", max_size=200).map(str.encode))
def test_recipes_that_are_hardly_yaml(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(UserError) as caught:
        Recipe.load(tmp_path / "r.yaml")
    one_line(caught.value)


@seed(0)
@fuzzed
@given(data=edited({"steps": {"a": STEP}, "digests": {"m": {"stats": "s", "digest": "d"}}}) | VALUES)
def test_ledgers(data: Any, tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text(json.dumps(data))
    try:
        read_ledger(tmp_path)
    except UserError as error:
        one_line(error)


@seed(0)
@fuzzed
@given(
    data=edited(ANSWER)
    | st.fixed_dictionaries(
        {"choices": st.lists(edited(ANSWER["choices"][0]), min_size=1, max_size=1), "usage": VALUES}
    )
    | VALUES
)
def test_answers_of_servers(data: Any) -> None:
    try:
        found = parse_completion(parse_json(json.dumps(data, default=str), RECORD), "p")
    except (TransientError, ValueError):
        return
    assert isinstance(found.text, str)
    assert 0 <= found.tokens < 2**31


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a run's `results.json`, and files of a model: a tokenizer's, safetensors and GGUF."""
    import gguf

    root = tmp_path_factory.mktemp("fuzz")
    found = results(recipe=Recipe.parse({"base": "b", "tuned": "t", "score": {"task": "bundled:tools"}}).model_dump())
    (root / "run" / "report").mkdir(parents=True)
    (root / "run" / "report" / "results.json").write_text(dumps(found))
    tiny_tokenizer.save_pretrained(root / "tokenizer")
    tiny_tokenizer.save_pretrained(root / "other")
    save_file({"a": torch.ones(4, 2), "b": torch.ones(3, dtype=torch.bfloat16)}, root / "model.safetensors")
    writer = gguf.GGUFWriter(root / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_scores([0.5, 1.0, 2.0])
    for name in ("token_embd.weight", "blk.0.attn_q.weight"):
        writer.add_tensor(name, torch.ones(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return root


@contextlib.contextmanager
def replaced(folder: Path, name: str, data: bytes) -> Iterator[None]:
    """Other bytes in a file of a folder, in which nothing else is written meanwhile, and an error is one line."""
    path = folder / name
    original = path.read_bytes()
    path.write_bytes(data)
    before = listing(folder)
    try:
        with limited():
            yield
    except UserError as error:
        one_line(error)
    finally:
        after = listing(folder)
        path.write_bytes(original)
    assert after == before


@pytest.fixture(scope="module")
def inputs(folder: Path) -> dict[str, st.SearchStrategy[bytes]]:
    """Damaged files, by their names."""
    texts = {name: json.loads((folder / name).read_text()) for name in JSON_FILES}
    binary = {name: damaged_bytes((folder / name).read_bytes(), 600) for name in ("model.safetensors", "model.gguf")}
    return {name: damaged_json(value) for name, value in texts.items()} | binary


JSON_FILES = ("run/report/results.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")


@seed(0)
@fuzzed
@given(data=st.data())
def test_results(folder: Path, inputs: Any, data: Any) -> None:
    with replaced(folder, JSON_FILES[0], data.draw(inputs[JSON_FILES[0]])):
        load(folder / JSON_FILES[0])
        mooring.select(folder / "run")


@seed(0)
@fuzzed
@given(data=st.data(), name=st.sampled_from(JSON_FILES[1:]))
def test_tokenizers(folder: Path, inputs: Any, data: Any, name: str) -> None:
    with replaced(folder, name, data.draw(inputs[name])):
        one = folder / "tokenizer"
        for value in (special_tokens(one), chat_template(one), ids_by_token(vocabulary(one))):
            as_json(value)
        adds_tokens(folder / "other", one, 10**6)
        load_tokenizer(one)


@seed(0)
@fuzzed
@given(data=st.data())
def test_headers_of_safetensors(folder: Path, inputs: Any, data: Any) -> None:
    file = folder / "model.safetensors"
    with replaced(folder, file.name, data.draw(inputs[file.name])):
        for info in read_header(file):
            assert 0 < info.offset <= info.offset + info.nbytes <= file.stat().st_size


@seed(0)
@fuzzed
@given(data=st.data())
def test_headers_of_gguf(folder: Path, inputs: Any, data: Any) -> None:
    """What passes the check, the library reads; each tensor lies in the file."""
    import gguf

    file = folder / "model.gguf"
    with replaced(folder, file.name, data.draw(inputs[file.name])):
        check_header(file)
        for tensor in gguf.GGUFReader(file).tensors:
            assert tensor.data_offset + tensor.n_bytes <= file.stat().st_size
