"""Data sets on the hub: what is read, and errors of the hub in one line."""

import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from mooring import errors
from mooring.data import load_examples, load_prompts
from mooring.errors import DataError

from . import hub_errors

NOT_FOUND = datasets.exceptions.DatasetNotFoundError
CHAT = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}]
QUESTIONS = [{"prompt": f"Question {n}?", "label": "safe" if n % 2 else "unsafe"} for n in range(6)]


@pytest.fixture
def hub(monkeypatch):
    """Replaces the hub; returns the list of requests."""
    calls = []

    def answer(splits):
        def load(repo, config=None, split=None):
            calls.append((repo, config, split))
            made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
            return made if split is None else made[split]

        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return answer


@pytest.mark.parametrize(
    ("ref", "call", "origin"),
    [
        ("me/set", ("me/set", None, None), "me/set:train:row 1"),
        ("me/set:test", ("me/set", None, "test"), "me/set:test:row 1"),
        ("me/set@v1.0", ("me/set", "v1.0", None), "me/set@v1.0:train:row 1"),
        ("me/set@main:test", ("me/set", "main", "test"), "me/set@main:test:row 1"),
    ],
)
def test_reference_names_config_and_split(hub, ref, call, origin):
    calls = hub({"train": QUESTIONS, "test": QUESTIONS})
    prompts = load_prompts(ref)
    assert calls == [call]
    assert (len(prompts), prompts[0].origin) == (6, origin)


def test_rows_of_the_only_split_and_nested_fields(hub):
    hub({"validation": CHAT})
    (prompt,) = load_examples("me/chat")
    assert (prompt.messages[0].content, prompt.reference) == ("Hi", "Hello.")
    assert prompt.origin == "me/chat:validation:row 1"


def test_draw_from_the_hub(hub):
    hub({"train": QUESTIONS})
    assert len(load_prompts("me/set#4")) == 4


def test_several_splits_without_train(hub):
    hub({"a": QUESTIONS, "b": QUESTIONS})
    with pytest.raises(DataError) as caught:
        load_prompts("me/set")
    assert caught.value.code == "data.unknown_split"
    assert "a, b" in caught.value.message


def test_empty_split(hub):
    hub({"train": []})
    with pytest.raises(DataError) as caught:
        load_prompts("me/set")
    assert caught.value.code == "data.empty"
    assert caught.value.message.startswith("me/set:train: ")


def test_named_set_from_the_hub_where_there_is_no_folder(hub, monkeypatch, tmp_path):
    rows = [{"prompt": f"Question {n}?", "label": "safe" if n < 250 else "unsafe"} for n in range(450)]
    calls = hub({"test": rows})
    monkeypatch.delenv("MOORING_DATA", raising=False)
    assert len(load_prompts("xstest")) == 250
    monkeypatch.setenv("MOORING_DATA", str(tmp_path))  # a folder without the file
    assert len(load_prompts("xstest")) == 250
    assert calls == [("walledai/XSTest", None, "test")] * 2


def test_named_set_that_changed_on_the_hub(hub, monkeypatch):
    hub({"harmful": [{"Goal": "Say hello.", "Category": "x"}] * 99})
    monkeypatch.delenv("MOORING_DATA", raising=False)
    with pytest.raises(DataError) as caught:
        load_prompts("jailbreakbench")
    assert caught.value.code == "data.row_count"
    assert re.search("JBB-Behaviors: `jailbreakbench` .*100.*99", caught.value.message)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NOT_FOUND("Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated."), "hf auth login"),
        (hub_errors.gated(), "accept its terms on https://huggingface.co/datasets/walledai/AdvBench"),
        (NOT_FOUND("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."), "neither here nor on the hub"),
        (hub_errors.missing(), "check the spelling"),
        (hub_errors.no_revision(), "no such revision"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)"), "offline"),
        (hub_errors.offline(), "$MOORING_DATA"),
        (hub_errors.timed_out(), "The read operation timed out"),
        (hub_errors.broken(), "said the hub"),
        (ValueError("BuilderConfig 'x' not found. Available: ['behaviors']\nmore"), "Available: ['behaviors']"),
        (ValueError("Unknown split \"x\". Should be one of ['train']."), "Should be one of ['train']"),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "scripts are no longer supported"),
        (datasets.exceptions.DatasetGenerationError("An error occurred"), "An error occurred"),
    ],
)
def test_errors_of_the_hub_are_one_line(monkeypatch, error, words):
    monkeypatch.delenv("MOORING_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", hub_errors.raiser(error))
    for ref in ("advbench", "walledai/AdvBench"):
        with pytest.raises(DataError) as caught:
            load_prompts(ref)
        assert str(caught.value).startswith("walledai/AdvBench: ")
        assert caught.value.code in ("data.not_fetched", "data.unknown_split")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.hint


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", hub_errors.raiser(AttributeError("ours")))
    with pytest.raises(AttributeError):
        load_prompts("me/set")


def test_offline_for_real_and_imports_stay_light(tmp_path):
    code = f"""
import sys, types
mooring = sys.modules["mooring"] = types.ModuleType("mooring")  # what these modules import, not what the package does
mooring.__path__ = [{str(Path(errors.__file__).parent)!r}]
from mooring.errors import DataError
from mooring.data import load_prompts, load_splits
load_splits("bundled:tools", limit=2)
heavy = [m for m in ("torch", "transformers", "datasets", "pyarrow", "huggingface_hub") if m in sys.modules]
assert not heavy, heavy
try:
    load_prompts("walledai/AdvBench")
except DataError as error:
    print(error)
assert "torch" not in sys.modules
"""
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "walledai/AdvBench: cannot be fetched: the hub is out of reach" in done.stdout
    assert all(word in done.stdout for word in ("HF_HUB_OFFLINE", "$MOORING_DATA", "hf auth login"))
    assert done.stdout.count("\n") == 1
