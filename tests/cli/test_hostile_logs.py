"""Logs and tables of other tools that are anything at all, through the commands that read them: one line, soon."""

import gzip
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzzing import limited, listing
from mooring.data.rows import read_rows
from mooring.printable import visible

from .conftest import Run  # type: ignore[import-not-found]

ANSWER = {"choices": [{"message": {"content": "Oslo"}, "stop_reason": "stop"}], "usage": {"output_tokens": 3}}
SAMPLE: dict[str, Any] = {"id": "a", "input": "P", "output": ANSWER, "scores": {"match": {"value": "C"}}}


def log(path: Path, *samples: Any) -> None:
    """Write an `.eval` log of Inspect."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, sample in enumerate(samples):
            text = sample if isinstance(sample, bytes) else json.dumps(sample)
            archive.writestr(f"samples/{number}.json", text)


def lies(path: Path) -> None:
    """A log whose sample is 400 MiB, and says that it is 10 bytes."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(packed.compress(b" " * 2**20) for _ in range(400)) + packed.flush()
    log(path, SAMPLE)
    whole = bytearray(path.read_bytes())
    start = whole.index(b"samples/0.json") + len("samples/0.json")
    end = whole.index(b"PK\x01\x02")
    whole[start:end] = data
    for signature, at in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
        place = whole.index(signature) + at
        whole[place : place + 8] = len(data).to_bytes(4, "little") + (10).to_bytes(4, "little")
    directory = start + len(data)
    at = whole.rindex(b"PK\x05\x06") + 16
    whole[at : at + 4] = directory.to_bytes(4, "little")
    path.write_bytes(whole)


def large(path: Path) -> None:
    """A log of 400 MiB in 400 KiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("samples/0.json", "w") as file:
        for _ in range(400):
            file.write(b" " * 2**20)


def parquet(path: Path, **columns: Any) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    pq.write_table(pa.table(columns), path)


def repeated(path: Path) -> None:
    """A text of a megabyte, 10,000 times, which Parquet stores once."""
    import pyarrow as pa

    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["x" * 10**6]))
    parquet(path, id=texts)


def nulls(path: Path) -> None:
    import pyarrow as pa

    parquet(path, id=pa.nulls(20_000_000))


def lines(*rows: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def linked(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**35)


def bomb(path: Path) -> None:
    with gzip.open(path, "wb") as file:
        for _ in range(400):
            file.write(b" " * 2**20)


BATCH = {"custom_id": "a", "response": {"body": ANSWER}}
LONG = "1" * 2**21
FILES: dict[str, Callable[[Path], object]] = {
    "list.eval": lambda p: log(p, []),
    "number.eval": lambda p: log(p, 1),
    "nothing.eval": lambda p: log(p),
    "bytes.eval": lambda p: log(p, b"\xff"),
    "deep.eval": lambda p: log(p, b"[" * 10**5),
    "text.eval": lambda p: log(p, {**SAMPLE, "error": {"x": 1}, "output": "x", "scores": ["x"]}),
    "wrong.eval": lambda p: log(
        p, {"id": [], "input": {}, "output": {"choices": [[]]}, "scores": {"a": {"value": {}}}}
    ),
    "numbers.eval": lambda p: log(p, {**SAMPLE, "scores": {"a": 1e308, "b": float("nan"), "c": 10**299}}, SAMPLE),
    "lies.eval": lies,
    "large.eval": large,
    "fifo.eval": os.mkfifo,
    "device.eval": linked,
    "sparse.eval": sparse,
    "folder.eval": Path.mkdir,
    "no.eval": lambda p: p.write_text("no archive"),
    "turns.eval": lambda p: log(p, {**SAMPLE, "input": [1.5, {"role": "user", "content": "P"}]}),
    "wrong.json": lambda p: p.write_text(json.dumps({"eval": 1, "samples": [{"error": 1, "output": []}, 1]})),
    "samples.json": lambda p: p.write_text(json.dumps({"eval": {}, "samples": [{**SAMPLE, "output": ["x"]}]})),
    "harmbench.json": lambda p: p.write_text(json.dumps({"a": [{"generation": 1, "label": "\ud800"}], "b": [{}]})),
    "lm_eval.jsonl": lines({"doc_id": 0, "filter": [], "metrics": 5, "resps": [[1]], "doc": [], "arguments": 1}),
    "metrics.jsonl": lines({"doc_id": {}, "filter": "x", "metrics": ["m"], "m": 10**299, "resps": [], "doc_hash": 1}),
    "digits.jsonl": lines({"id": LONG, "text": "x", "score": 1}, {"id": f"{LONG}x", "text": "y", "score": 1}),
    "batch.jsonl": lines({**BATCH, "response": {"body": {**ANSWER, "usage": {"completion_tokens": -5}}}}),
    "tokens.jsonl": lines({**BATCH, "response": {"body": {**ANSWER, "usage": {"completion_tokens": 10**299}}}}),
    "calls.jsonl": lines({"id": "a", "choices": [{"message": {"tool_calls": [1], "content": [1, {"type": 5}]}}]}),
    "surrogate.jsonl": lines({"id": "\ud800", "text": "\udfff", "score": 1, "prompt": "\ud83d"}),
    "infinite.jsonl": lines({"id": 1, "text": "x", "score": float("inf")}, {"id": 2, "text": "x", "score": 1e308}),
    "huge.jsonl": lines({"id": "a", "score": 1e308}, {"id": "b", "score": 1e308}, {"id": "c", "score": -1e308}),
    "repeated.parquet": repeated,
    "nulls.parquet": nulls,
    "fifo.parquet": os.mkfifo,
    "no.parquet": lambda p: p.write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1"),
    "bomb.jsonl.gz": bomb,
    "fifo.jsonl": os.mkfifo,
}
HEAVY = ("repeated.parquet", "nulls.parquet", "lies.eval", "large.eval", "bomb.jsonl.gz")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in FILES])
def test_whatever_a_log_is(run: Run, tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    (tmp_path / "set.jsonl").write_text('{"id": "a", "prompt": "P"}\n{"id": "b", "prompt": "Q"}\n')
    for command in (
        ("score", name, "set.jsonl", "--kind", "safety"),
        ("compare-evals", name, name),
        ("compare-evals", name, name, "--metric", "m", "--common", "--json"),
    ):
        before = listing(tmp_path)
        with limited():
            code, out, err = run(*command)
        assert code in (0, 2), err
        assert err.count("\n") == (code == 2), err
        assert len(err) < 3000
        assert visible(out + err) == out + err
        assert "Infinity" not in out
        assert "NaN" not in out
        if code == 2:
            assert listing(tmp_path) == before


def test_what_another_tool_says_of_tokens_is_kept_only_if_it_can_be(tmp_path: Path) -> None:
    from mooring.data.completions import read_completions
    from mooring.records import Message, Prompt

    said = {"a": 7, "b": -5, "c": 10**299, "d": "9", "e": True, "f": 2.5}
    rows = (
        {**BATCH, "custom_id": id, "response": {"body": {**ANSWER, "usage": {"completion_tokens": n}}}}
        for id, n in said.items()
    )
    lines(*rows)(tmp_path / "b.jsonl")
    prompts = [Prompt(id=id, messages=(Message("user", id),)) for id in said]
    found = read_completions(tmp_path / "b.jsonl", prompts)
    assert {each.prompt_id: each.tokens for each in found} == {"a": 7, "b": 0, "c": 0, "d": 0, "e": 0, "f": 0}


def test_parquet_of_every_kind_is_read_as_it_is(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as pa

    pairs = pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string()))
    columns: dict[str, Any] = {
        "text": ["x", None],
        "turns": [[{"role": "user", "content": "Hi"}], []],
        "number": [decimal.Decimal("1.5"), decimal.Decimal("2.5")],
        "at": [datetime.datetime(2020, 1, 1), None],
        "bytes": [b"a", b""],
        "floats": [[1.0, 2.0], None],
        "large": pa.array([["a", "b"], []], pa.large_list(pa.large_string())),
        "fixed": pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2)),
        "map": pairs,
    }
    parquet(tmp_path / "x.parquet", **columns)
    expected = pa.table(columns).to_pylist()
    assert [dict(row.values) for row in read_rows(tmp_path / "x.parquet")] == expected
