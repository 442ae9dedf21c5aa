"""Hostile configurations: each is refused in one line, or inspected, in little memory, and nothing is written."""

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mooring.merging.inspect import inspect

SECONDS = 120
MEMORY = 2**30
"""Bytes that all inputs together may add to the peak."""
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8"},
    "text_config": {"vocab_size": 8},
    "transformers_version": "5.0.0",
}
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
    "target_parameters": None,
    "trainable_token_indices": None,
}
HOSTILE = ("", "\x1b[2J", "\x9b31m", "\ud800", "‮", "(a+)+$", "(", "x" * 500, "../..", "/proc/self/mem", "NaN", "\0")
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(HOSTILE)
    | st.text(max_size=8)
    | st.just(10**350)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
ODD_TEXTS = st.sampled_from(
    [
        b"",
        b"[]",
        b"null",
        b"1",
        b"{",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"a":' * 2000,
        b"1" * 5000,
        b'{"a": 1e999}',
        b"\xef\xbb\xbf{}",
    ]
)


def changed(known: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """The text of a configuration in which some fields have other values, or are gone; or another text."""
    fields = st.dictionaries(st.sampled_from(sorted(known)) | st.text(max_size=6), VALUES, max_size=4)
    gone = st.sets(st.sampled_from(sorted(known)), max_size=2)

    def text(fields: dict[str, Any], gone: set[str]) -> bytes:
        return json.dumps({key: value for key, value in (known | fields).items() if key not in gone}).encode()

    return st.builds(text, fields, gone) | ODD_TEXTS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, a tuned model and an adapter, tiny."""
    root = tmp_path_factory.mktemp("fuzz")
    query = "model.layers.0.self_attn.q_proj.weight"
    for name in ("base", "tuned"):
        (root / name).mkdir()
        tensors = {"model.embed_tokens.weight": torch.ones(8, 4), query: torch.full((4, 4), float(len(name)))}
        save_file(tensors, root / name / "model.safetensors")
        (root / name / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": None}))
    (root / "adapter").mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 4), f"{module}.lora_B.weight": torch.ones(4, 2)}
    save_file(factors, root / "adapter" / "adapter_model.safetensors")
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    return root / "base", root / "tuned", root / "adapter"


@pytest.fixture
def bounded() -> Iterator[None]:
    """Nothing may hang, and the peak of memory may not rise by more than `MEMORY`."""

    def late(*_: object) -> None:
        raise TimeoutError("a case hangs")

    before, peak = signal.signal(signal.SIGALRM, late), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    if sys.platform == "linux":  # in KiB
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < MEMORY


def listing(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


def attempt(base: Path, tuned: Path, file: Path, text: bytes) -> None:
    """Inspect a pair with another text in a file: any fault is a problem of one printable line."""
    whole = file.read_bytes()
    file.write_bytes(text)
    before = listing(base.parent)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        found = inspect(base, tuned, quick=True, threads=1)
        for line in (*found.problems, *found.warnings):
            assert line.isprintable()
            assert len(line) < 25_000
        found.to_dict()
        assert listing(base.parent) == before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        file.write_bytes(whole)


FEW, MANY = 40, int(os.environ.get("MOORING_FUZZ", "300"))
OPTIONS: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.mark.usefixtures("bounded")
@settings(max_examples=FEW, derandomize=True, **OPTIONS)
@given(text=changed(CONFIG))
def test_some_configurations(folders: tuple[Path, Path, Path], text: bytes) -> None:
    attempt(folders[0], folders[1], folders[1] / "config.json", text)


@pytest.mark.usefixtures("bounded")
@settings(max_examples=FEW, derandomize=True, **OPTIONS)
@given(text=changed(ADAPTER))
def test_some_configurations_of_adapters(folders: tuple[Path, Path, Path], text: bytes) -> None:
    attempt(folders[0], folders[2], folders[2] / "adapter_config.json", text)


@pytest.mark.slow
@pytest.mark.usefixtures("bounded")
@settings(max_examples=MANY, **OPTIONS)
@given(text=changed(CONFIG), of_base=st.booleans())
def test_configurations(folders: tuple[Path, Path, Path], text: bytes, of_base: bool) -> None:
    attempt(folders[0], folders[1], folders[0 if of_base else 1] / "config.json", text)


@pytest.mark.slow
@pytest.mark.usefixtures("bounded")
@settings(max_examples=MANY, **OPTIONS)
@given(text=changed(ADAPTER))
def test_configurations_of_adapters(folders: tuple[Path, Path, Path], text: bytes) -> None:
    attempt(folders[0], folders[2], folders[2] / "adapter_config.json", text)


LARGE = {
    "lists": b"[" + b"[]," * (200 * 2**20 // 3) + b"[]]",
    "mappings": b"[" + b"{}," * (200 * 2**20 // 3) + b"{}]",
    "one text": b'{"a": "' + b"x" * (200 * 2**20) + b'"}',
}


@pytest.mark.slow
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_large_files_take_little_memory(tmp_path: Path, kind: str, name: str) -> None:
    for folder in ("base", "tuned"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": None}))
        if name != "model.safetensors.index.json":
            weights = {"a": torch.full((4, 4), float(len(folder)))}
            save_file(weights, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / name).write_bytes(LARGE[kind])
    found = inspect(tmp_path / "base", tmp_path / "tuned", quick=True)
    assert len(found.problems) == 1
    assert name in found.problems[0]
