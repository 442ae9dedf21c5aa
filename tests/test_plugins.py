"""Plug-ins by reference, in recipes and by entry points; those that fail give one line."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(1, str(Path(__file__).parent / "reporting"))

from report_sample import results

import mooring
from mooring import plugins
from mooring.cli import main
from mooring.config import Recipe
from mooring.errors import RecipeError
from mooring.metrics import METRICS
from mooring.pipeline.plan import build
from mooring.pipeline.steps import Keys
from mooring.reporting.results import dumps

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugin"
MODULE = EXAMPLE / "src" / "mooring_example" / "__init__.py"


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test loads its own plug-ins."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "_files", {})


@pytest.fixture
def answers(tmp_path: Path) -> tuple[str, str]:
    """A file of completions, and that of their prompts."""
    prompts = [{"id": "a", "prompt": "P", "completion": "Oslo"}, {"id": "b", "prompt": "Q", "completion": "Bergen"}]
    completions = [{"prompt_id": "a", "text": "It is Oslo."}, {"prompt_id": "b", "text": "I do not know."}]
    for name, rows in (("p", prompts), ("c", completions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "c.jsonl"), str(tmp_path / "p.jsonl")


def test_a_metric_and_a_judge_of_a_file_score_answers(answers: tuple[str, str]) -> None:
    assert "contains" not in METRICS
    loaded = (f"{MODULE}:METRIC", f"{MODULE}:JUDGE")
    (score,) = mooring.score(*answers, kind="task", metrics="contains", plugins=loaded).values()
    assert (score.value, score.name) == (0.5, "contains")
    scores = mooring.score(*answers, judges="short-refusals", plugins=loaded)
    assert scores["refusal"].value == 0
    assert scores["asr"].method.startswith("short-refusals-1")


def test_a_merge_method_of_a_file_merges(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    for name, value in (("base", 1.0), ("tuned", 3.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"w": torch.full((4,), value)}, tmp_path / name / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    mooring.merge(tmp_path / "base", tmp_path / "tuned", out=out, lam=0.5, method="damped", plugins=f"{MODULE}:METHOD")
    assert load_file(out / "model.safetensors")["w"].tolist() == [1.5] * 4


def test_an_engine_a_prompt_set_and_an_attack_answer(tmp_path: Path) -> None:
    for name in ("ENGINE", "PROMPTS", "ATTACK"):
        plugins.load(f"{MODULE}:{name}")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    harmless = {"engine": "echo", "kind": "safety", "attacks": "shouting"}
    found = mooring.generate(tmp_path, "capitals", out=tmp_path / "out.jsonl", **harmless)  # type: ignore[arg-type]
    assert found[0].text == "WHAT IS THE CAPITAL OF NORWAY?"
    assert len(found) == 4


def recipe(tmp_path: Path, **more: Any) -> Recipe:
    task = tmp_path / "task.jsonl"
    task.write_text("".join(json.dumps({"prompt": f"P{n}", "completion": "C"}) + "\n" for n in range(4)))
    values = {"base": "b", "tuned": "t", "out": str(tmp_path / "run"), **more}
    return Recipe.parse(values | {"score": {"task": str(task), **more.get("score", {})}})


def test_a_recipe_names_its_plugins_and_their_version_is_part_of_the_keys(tmp_path: Path) -> None:
    def keys(text: str) -> dict[str, str]:
        plugins._loaded.clear()
        file = tmp_path / "mine.py"
        file.write_text(text)
        made = recipe(
            tmp_path,
            plugins=[f"{file}:METHOD", f"{file}:METRIC"],
            merge={"method": "damped"},
            score={"metrics": ["contains"]},
        )
        assert Recipe.parse(made.model_dump(mode="json")) == made
        plan = build(made)
        measured = Keys(lambda: plan.steps, lambda reference: str(reference))
        return {id: measured.of(step) for id, step in plan.steps.items()}

    text = MODULE.read_text()
    before, after = keys(text), keys(text + "\n# another version\n")
    again = {id for id in before if before[id] != after[id]}
    assert {"generate/0.4/safety/validation", "score/0/validation", "score/0/test"} <= again
    assert not again & {"generate/0/safety/validation", "generate/1/safety/validation", "check_pair"}
    assert keys(text) == before


_NAMED = "import dataclasses\nfrom mooring.metrics import METRICS\nX = dataclasses.replace(METRICS['asr'], name={name})"
FAILING = {
    "raises": ("1 / 0", "recipe.plugin_failed", "ZeroDivisionError"),
    "exits": ("raise SystemExit(3)", "recipe.plugin_failed", "SystemExit"),
    "syntax": ("def (", "recipe.plugin_failed", "SyntaxError"),
    "missing": ("", "recipe.plugin_failed", "has no `X`"),
    "property": (
        "import sys\nsys.modules[__name__].__class__ = type('M', (type(sys),), {'X': property(lambda self: 1 / 0)})",
        "recipe.plugin_failed",
        "ZeroDivisionError",
    ),
    "error without text": (
        "class E(Exception):\n    def __str__(self): 1 / 0\nraise E",
        "recipe.plugin_failed",
        "bad.py:X: E: …",
    ),
    "name that acts": (_NAMED.format(name="'a\\x1b[31m'"), "recipe.plugin_failed", "its name is not a text"),
    "long name": (_NAMED.format(name="'a' * 5000"), "recipe.plugin_failed", "its name is not a text"),
    "name that is a list": (_NAMED.format(name="['a']"), "recipe.plugin_failed", "its name is not a text"),
    "other": ("X = 3", "recipe.not_a_plugin", "is int, not one of Judge"),
    "taken": (
        "from mooring.metrics import Metric\nX = Metric('exact_match', 'x', 'task')",
        "recipe.plugin_name_taken",
        "taken by a built-in one",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_plugin_that_fails_gives_one_line(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, code, words = FAILING[name]
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        plugins.load(f"{file}:X")
    assert caught.value.code == code
    assert words in str(caught.value)
    with pytest.raises(SystemExit) as stopped:
        main(["plugins", "--plugin", f"{file}:X"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


READERS = (
    ("select", "run"),
    ("gate", "run"),
    ("report", "run"),
    ("label", "run", "--show"),
    ("rejudge", "run", "--judges", "rules"),
    ("export", "run", "--format", "csv", "--out", "tables"),
    ("serve", "run", "--no-browser"),
    ("verify-served", "run", "--base-url", "http://127.0.0.1:9"),
)


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_a_run_folder_runs_no_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    """Its recipe may name a file in it, or a module; what reads a run folder loads only what its user names."""
    monkeypatch.chdir(tmp_path)
    reference = "run/evil.py:X"
    recipe = Recipe.parse({"base": "b", "tuned": "t", "score": {"task": "bundled:tools"}})
    plain = recipe.model_dump(mode="json") | {"plugins": [reference]}
    (tmp_path / "run" / "report").mkdir(parents=True)
    code = "open('ran', 'w').close()\n" + _NAMED.format(name="'evil'")
    (tmp_path / "run" / "evil.py").write_text(code)
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps({**yaml.safe_load(recipe.dump()), "plugins": [reference]}))
    (tmp_path / "run" / "report" / "results.json").write_text(dumps(results(recipe=plain)))
    (tmp_path / "run" / "ledger.json").write_text('{"steps": {}}')
    with pytest.raises(SystemExit) as stopped:
        main([*command])
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"if you trust it: MOORING_PLUGINS={reference}" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    if command[0] in ("select", "gate"):
        monkeypatch.setenv("MOORING_PLUGINS", f"other:Y,{reference}")
        with pytest.raises(SystemExit) as stopped:
            main([*command])
        assert stopped.value.code in (0, 3)
        assert (tmp_path / "ran").exists()


def test_a_file_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(RecipeError, match="is not an ordinary file") as caught:
        plugins.load(f"{tmp_path / 'pipe.py'}:X")
    assert caught.value.code == "recipe.plugin_failed"


@pytest.mark.parametrize("reference", ["nothing", "no.such.module:X", "missing.py:X", ":X", "json:"])
def test_a_reference_to_nothing_is_refused(reference: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plugins.load(reference)
    assert caught.value.code == "recipe.plugin_failed"


def test_an_entry_point_that_fails_is_listed_with_its_error(
    answers: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = importlib.metadata.EntryPoint("mine", "no_such_module:X", "mooring.judges")
    monkeypatch.setattr(plugins, "_entry_points", lambda group: {"mine": bad} if group == "judges" else {})
    with pytest.raises(SystemExit) as stopped:
        main(["plugins"])
    assert stopped.value.code == 2
    shown = capsys.readouterr().out
    assert "No module named 'no_such_module'" in shown
    assert "classifier, rules" in shown.replace("\n", " ")
    with pytest.raises(RecipeError, match="no_such_module"):
        mooring.score(*answers, judges="mine")


@pytest.mark.slow
def test_the_template_is_installed_and_used(tmp_path: Path, answers: tuple[str, str]) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
    done = subprocess.run([*pip, str(tmp_path / "site"), str(EXAMPLE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mooring.cli import main; main(sys.argv[1:])"

    def run(*argv: str) -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "site"), *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    listed = {each["name"]: each for each in json.loads(run("plugins", "--json")) if each["source"] != "built-in"}
    assert {*listed} == {"short-refusals", "damped", "contains", "capitals", "shouting", "echo"}
    assert {each["source"] for each in listed.values()} == {"mooring-example 0.1.0"}
    scores = json.loads(run("score", *answers, "--kind", "task", "--metrics", "contains", "--json"))
    assert scores["contains"]["value"] == 0.5
