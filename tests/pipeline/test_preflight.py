"""What is refused before any work, in the plan as in the run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mooring.config import Recipe
from mooring.errors import UserError
from mooring.models.resolve import local_model
from mooring.pipeline.forecast import forecast
from mooring.pipeline.plan import build
from mooring.pipeline.results import describe
from mooring.pipeline.run import run
from wrapper_models import in_cache, save_any


def write_task(folder: Path, longest: int = 1) -> Path:
    path = folder / "task.jsonl"
    rows = [{"prompt": f"Say {i}.", "completion": str(i)} for i in range(16)]
    rows[7]["prompt"] = "alarm " * longest
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(tmp_path: Path, base: Path, changes: Mapping[str, Any], longest: int = 1) -> Recipe:
    task = str(write_task(tmp_path, longest))
    return Recipe.parse(
        {
            "base": str(base),
            "out": str(tmp_path / "run"),
            "generate": {"max_tokens": 4} | changes.get("generate", {}),
            "score": {"task": task, "safety": [task], "over_refusal": None, "ordinary": None, "limit": 8}
            | {"metrics": ["response_loss"]}
            | changes.get("score", {}),
            "select": {"margin": 0.9, "confidence": None},
            **({"tune": {"data": [task], **changes["tune"]}} if "tune" in changes else {"tuned": changes["tuned"]}),
        }
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("preflight") / "tuned", seed=1))


def refused(given: Recipe, code: str) -> None:
    for do in (forecast, run):
        with pytest.raises(UserError) as caught:
            do(given)
        assert caught.value.code == code
        assert "\n" not in str(caught.value)
        assert not given.folder.exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"generate": {"device": "cuda:99"}}, "recipe.no_device"),
        ({"generate": {"device": "meta"}}, "recipe.no_device"),
        ({"generate": {"device": "no such"}}, "recipe.no_device"),
        ({"generate": {"max_tokens": 400}}, "data.context_exceeded"),
        ({"tune": {"target_modules": "nothing"}}, "recipe.bad_target"),
        ({"tune": {"target_modules": "("}}, "recipe.bad_target"),
    ],
)
def test_a_plan_refuses_what_the_run_refuses(
    tmp_path: Path, tiny_model_folder: Path, tuned: str, changes: dict[str, Any], code: str
) -> None:
    refused(recipe(tmp_path, tiny_model_folder, {"tuned": tuned} | changes), code)


def test_the_device_of_a_judge_is_checked_too(tmp_path: Path, tiny_model_folder: Path, tuned: str) -> None:
    judge = {"name": "llm", "model": str(tiny_model_folder), "device": "cuda:99"}
    refused(recipe(tmp_path, tiny_model_folder, {"tuned": tuned, "score": {"judges": [judge]}}), "recipe.no_device")


def test_devices_of_a_cluster_are_not_this_machines(tmp_path: Path, tiny_model_folder: Path, tuned: str) -> None:
    given = recipe(tmp_path, tiny_model_folder, {"tuned": tuned, "generate": {"device": "cuda:7"}})
    refused(given, "recipe.no_device")
    forecast(given.override({"resources.on": "ray"}))


def test_models_that_do_not_belong_together(tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any) -> None:
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=3)
    for changed, code in ((other, "model.architecture_mismatch"), (tiny_model_folder, "model.equal")):
        refused(recipe(tmp_path, tiny_model_folder, {"tuned": str(changed)}), code)


def test_a_base_without_a_class(tmp_path: Path, tiny_model_folder: Path, tuned: str) -> None:
    folder = shutil.copytree(tiny_model_folder, tmp_path / "unknown")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "tomorrow"}
    (folder / "config.json").write_text(json.dumps(config))
    refused(recipe(tmp_path, folder, {"tuned": tuned}), "model.unknown_type")


def test_a_prompt_that_is_too_long_is_refused_or_left_out_and_counted(
    tmp_path: Path, tiny_model_folder: Path, tuned: str
) -> None:
    changes: dict[str, Any] = {"tuned": tuned}
    refused(recipe(tmp_path, tiny_model_folder, changes, longest=300), "data.context_exceeded")
    given = recipe(tmp_path, tiny_model_folder, changes | {"score": {"too_long": "skip"}}, longest=300)
    plan = build(given)
    assert sum(plan.skipped.values()) == 2  # in `task`, and in `safety`
    assert not any("alarm" in p.messages[-1].content for half in plan.sets["task"].values() for p in half)
    assert sum(len(half) for half in plan.sets["task"].values()) == 15
    assert forecast(given).facts["left out"] == describe(plan.skipped)
    assert "1 of task" in describe(plan.skipped)


def test_no_prompt_that_fits_is_an_error(tmp_path: Path, tiny_model_folder: Path, tuned: str) -> None:
    changes = {"tuned": tuned, "score": {"too_long": "skip"}, "generate": {"max_tokens": 300}}
    refused(recipe(tmp_path, tiny_model_folder, changes), "data.context_exceeded")


def test_a_model_in_the_cache_of_the_hub_is_local(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = in_cache(tmp_path / "hub", "tiny/base", tiny_model_folder, monkeypatch)
    assert local_model("tiny/base") == snapshot
    assert local_model("tiny/other") is None
    (snapshot / "model.safetensors").unlink()
    assert local_model("tiny/base") is None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "qwen3-moe"])
def test_what_a_run_tunes_it_can_merge(tmp_path: Path, tiny_tokenizer: Any, family: str) -> None:
    base = save_any(tmp_path / "base", family, tiny_tokenizer)
    given = recipe(tmp_path, base, {"tune": {"max_steps": 1, "val_set_size": 0}})
    assert dict(forecast(given).stages)["tune"].startswith("LoRA")
    outcome = run(given)
    assert (outcome.model / "config.json").is_file()
    if family == "gemma3":
        assert (outcome.model / "preprocessor_config.json").is_file()
