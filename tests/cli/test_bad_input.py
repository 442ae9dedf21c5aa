"""Bad input through the command line: one line, exit 2, and nothing half-written."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mooring.data import load_prompts

from .conftest import Run, check_refused, write_task  # type: ignore[import-not-found]

MERGE = ("--lam", 0.5, "--out", "out")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda p: None, "model.not_found"),
        (lambda p: p.mkdir(), "model.empty"),
        (lambda p: (p.mkdir(), (p / "notes.txt").write_text("x")), "model.no_config"),
        (lambda p: p.write_text("x"), "model.not_a_folder"),
    ],
    ids=["missing", "empty", "not-a-model", "file"],
)
def test_a_folder_that_is_not_a_model(run: Run, tmp_path: Path, tiny_model_folder: Path, make: Any, code: str) -> None:
    make(tmp_path / "bad")
    check_refused(run, code, "merge", "./bad", tiny_model_folder, *MERGE)
    check_refused(run, code, "merge", tiny_model_folder, "./bad", *MERGE)
    assert not (tmp_path / "out").exists()


def test_another_architecture(run: Run, tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any) -> None:
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=3)
    check_refused(run, "model.architecture_mismatch", "merge", tiny_model_folder, other, *MERGE)
    check_refused(run, "model.architecture_mismatch", "safeguard", tiny_model_folder, other, "--out", "out")
    assert not (tmp_path / "out").exists()


def test_equal_models(run: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "same")
    check_refused(run, "model.equal", "merge", tiny_model_folder, "./same", *MERGE)
    check_refused(run, "model.equal", "safeguard", tiny_model_folder, "./same", "--out", "run")
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


def test_swapped_models_and_an_adapter_of_another_base(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path
) -> None:
    lora = adapter(tiny_model_folder, tmp_path / "lora")
    check_refused(run, "model.swapped", "merge", lora, tiny_model_folder, *MERGE)
    check_refused(run, "model.base_mismatch", "merge", tuned, lora, *MERGE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_shard(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, damage: str) -> None:
    shutil.copytree(tuned, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "model.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-100] if damage == "cut" else b"\xff" * 64 + data[64:])
    check_refused(run, "model.corrupt", "merge", tiny_model_folder, "./damaged", *MERGE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lam", "code"),
    [("1.5", "usage.lambda_out_of_range"), ("-0.1", "usage.lambda_out_of_range"), ("nan", "usage.bad_number")],
)
def test_lambda_out_of_range(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, lam: str, code: str
) -> None:
    check_refused(run, code, "merge", tiny_model_folder, tuned, "--lam", lam, "--out", "out")
    check_refused(
        run, "recipe.bad_value", "safeguard", tiny_model_folder, tuned, "--lambdas", f"0.5,{lam}", "--out", "out"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("where", ["base", "tuned"])
def test_a_run_folder_within_a_model_or_below_a_file(
    run: Run, tmp_path: Path, save_tiny_model: Any, where: str, dry: tuple[str, ...]
) -> None:
    models = {name: save_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "tuned"))}
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    command = ("safeguard", models["base"], models["tuned"], *dry)
    check_refused(run, "output.in_model", *command, "--out", models[where] / "runs" / "x", names=where)
    check_refused(run, "output.is_a_file", *command, "--out", tmp_path / "file" / "x")
    check_refused(run, "output.name_too_long", *command, "--out", "x" * 300)
    (tmp_path / "link").symlink_to(models[where], target_is_directory=True)
    check_refused(run, "output.in_model", *command, "--out", tmp_path / "link" / "x")
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def chained(first: str, entry: str, levels: int) -> str:
    """YAML in which each level refers nine times to the one before."""
    names = ["a", *(f"k{level}" for level in range(levels))]
    lines = [entry.format(new, ", ".join([f"*{old}"] * 9)) for old, new in itertools.pairwise(names)]
    return "\n".join([f"a: &a {first}", *lines])


HOSTILE_YAML = {
    "aliases": chained("[x, x]", "{0}: &{0} [{1}]", 9),
    "merge keys": chained("{x: 1}", "{0}: &{0}\n  <<: [{1}]", 12),
    "depth": "base: " + "[" * 100_000,
    "dashes": "- " * 100_000,
    "itself": "base: &b [*b]",
    "long integer": "seed: 1" + "0" * 5000,
    "long binary integer": "seed: 0b" + "1" * 50_000,
    "no such date": "base: 2001-99-99",
    "no time": "base: !!timestamp x",
    "no truth": "base: !!bool x",
    "an object": "base: !!python/object/apply:os.getcwd []",
    "a null byte": "base: \0",
}


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML.keys())
def test_hostile_yaml_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    check_refused(run, "recipe.invalid_yaml", "run", "r.yaml", names="r.yaml")
    check_refused(run, "recipe.invalid_yaml", "mergekit", "run", "r.yaml", "--out", "out", names="r.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("text", ["a,b", "", " , "])
def test_lambdas_that_are_not_numbers(run: Run, tiny_model_folder: Path, tuned: Path, text: str) -> None:
    check_refused(run, "recipe.bad_value", "safeguard", tiny_model_folder, tuned, "--lambdas", text, "--out", "out")


def test_an_unknown_method(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    check_refused(run, "usage.unknown_method", "merge", tiny_model_folder, tuned, "--method", "magic", *MERGE)
    check_refused(run, "recipe.bad_value", "safeguard", tiny_model_folder, tuned, "--method", "magic", "--out", "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_with_an_unknown_key_or_a_bad_value(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"base": "b", "tune": {"data": ["x"], "learning_rat": 1}}))
    check_refused(run, "recipe.unknown_key", "run", path)
    path.write_text(yaml.safe_dump({"base": "b", "tune": {"data": ["x"], "r": -1}}))
    check_refused(run, "recipe.bad_value", "run", path)
    check_refused(run, "recipe.unreadable", "run", "none.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("", "data.empty", "task.jsonl"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n', "data.not_json", "task.jsonl:2"),
        ('{"prompt": "a", "completion": "b"}\n{"completion": "b"}\n', "data.no_prompt", "task.jsonl:2"),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', "data.no_reference", "task.jsonl:"),
    ],
    ids=["empty", "malformed", "no-prompt", "no-reference"],
)
def test_a_bad_data_set(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, text: str, code: str, place: str
) -> None:
    task = write_task(tmp_path, text)
    check_refused(run, code, "safeguard", tiny_model_folder, tuned, "--task", task, "--out", "out", names=place)
    check_refused(run, code, "tune", tiny_model_folder, task, "--out", "adapter", names=place)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "adapter").exists()


def test_a_prompt_longer_than_the_context(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    rows = [{"prompt": "short", "completion": "a"}, {"prompt": "long " * 400, "completion": "b"}]
    task = write_task(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    check_refused(
        run,
        "data.context_exceeded",
        "generate",
        tuned,
        task,
        "--max-tokens",
        8,
        "--out",
        "a.jsonl",
        names="task.jsonl:2",
    )
    assert not list(tmp_path.glob("a.jsonl*"))


def test_a_full_disk_is_an_error_before_the_work(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    check_refused(run, "output.disk_full", "merge", tiny_model_folder, tuned, *MERGE)
    check_refused(run, "output.disk_full", "safeguard", tiny_model_folder, tuned, "--out", "run")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


def test_an_output_that_holds_something_else(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    task = write_task(tmp_path)
    check_refused(run, "output.not_empty", "merge", tiny_model_folder, tuned, *MERGE)
    check_refused(run, "output.not_a_run", "safeguard", tiny_model_folder, tuned, "--out", "out")
    check_refused(run, "output.not_empty", "tune", tiny_model_folder, task, "--out", "out")
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    assert (out / "thesis.tex").read_text() == "mine"


def test_scores_of_other_prompts(run: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    task = write_task(tmp_path)
    code, _, err = run("generate", tiny_model_folder, task, "--max-tokens", 2, "--out", "a.jsonl")
    assert code == 0, err
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "something else", "completion": "x"}\n')
    check_refused(run, "data.other_prompts", "score", "a.jsonl", other, "--kind", "task")


def test_files_that_are_not_completions(run: Run, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    score = ("score", "a.jsonl", task, "--kind", "task")
    check_refused(run, "data.unreadable", *score)
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    check_refused(run, "data.not_utf8", *score)
    (tmp_path / "a.jsonl").write_text("null\n")
    check_refused(run, "data.not_rows", *score, names="a.jsonl:1")
    rows = [{"prompt_id": p.id, "text": "x", "tokens": 1, "finish": "stop"} for p in load_prompts(str(task))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_refused(run, "data.unreadable", *score, "--likelihood", "none.jsonl")
    check_refused(run, "data.unreadable", "prefer", "a.jsonl", "none.jsonl", task, "--judge", "j")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--n", 0), "recipe.bad_value"),
        (("--repetition-penalty", 0), "recipe.bad_value"),
        (("--repetition-penalty", "nan"), "recipe.bad_value"),
        (("--engine", "openai"), "recipe.conflict"),
        (("--base-url", "http://x"), "recipe.conflict"),
    ],
)
def test_options_out_of_range(
    run: Run, tmp_path: Path, tiny_model_folder: Path, options: tuple[object, ...], code: str
) -> None:
    task = write_task(tmp_path)
    check_refused(run, code, "generate", tiny_model_folder, task, "--out", "a.jsonl", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["task.jsonl"]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, seed: int) -> None:
    task = write_task(tmp_path)
    check_refused(run, "recipe.bad_value", "generate", tiny_model_folder, task, "--seed", seed, "--out", "a.jsonl")
    check_refused(run, "recipe.bad_value", "safeguard", tiny_model_folder, tuned, "--seed", seed, "--out", "out")
    for recipe in ({"seed": seed, "tuned": "t"}, {"tune": {"data": ["x"], "seed": seed}}):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "b", **recipe}))
        check_refused(run, "recipe.bad_value", "run", "r.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml", "task.jsonl"]


def test_a_recipe_with_a_task_that_is_not_a_name(run: Run, tmp_path: Path) -> None:
    for task in (["code"], {"a": 1}):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "b", "task": task}))
        check_refused(run, "recipe.bad_value", "run", "r.yaml")


def test_a_folder_that_is_not_a_run(run: Run, tmp_path: Path) -> None:
    check_refused(run, "data.not_a_run", "report", tmp_path)
    check_refused(run, "data.not_a_run", "select", tmp_path)


def test_the_bundled_model_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooring.models.bundled.PACKAGE", "llm-not-there")
    check_refused(run, "extra.missing", "quickstart", "--out", "q")
    assert not Path("q").exists()
