"""λ by gradient in a run: the tiny pair, its own gradients and answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.config import Recipe
from mooring.errors import DataError, RecipeError
from mooring.events import Event, ignore
from mooring.merge_point import MergePoint
from mooring.merging.in_memory import OpenMerge
from mooring.merging.pair import open_pair
from mooring.models import open_checkpoint
from mooring.pipeline.forecast import forecast
from mooring.pipeline.gradient import search_gradient
from mooring.pipeline.module_groups import LEVELS, grouped, patterns, tensor_names
from mooring.pipeline.plan import build
from mooring.pipeline.run import Run
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.records import GradientSearch, read_record
from mooring.reporting import page
from mooring.reporting.results import load
from search_recipe import search_recipe


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("gradient") / "tuned", seed=1)
    return folder


def recipe(base: Path, tuned: Path, out: Path, **changes: Any) -> Recipe:
    """Little data, two λ, four prompts of each kind for the search."""
    select = {
        "search": "gradient",
        "search_safety": str(out / "others.jsonl"),
        "search_ordinary": str(out / "ordinary.jsonl"),
        "search_prompts": 4,
        "margin": 1.0,
        "confidence": None,
    }
    return search_recipe(base, tuned, out, select, changes)


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_found_has_a_lower_loss_and_stays_as_near_to_the_base(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path, level: Any
) -> None:
    plan = build(recipe(tiny_model_folder, tuned, tmp_path / "a"))
    assert {kind: len(prompts) for kind, prompts in plan.search_sets.items()} == {
        "harmful": 4,
        "ordinary": 4,
        "task": 4,
    }
    spec = SweepSpec(pair=open_pair(tiny_model_folder, tuned), runner=plan.recipe.generate)
    found = search_gradient(spec, MergePoint(0.7), plan.search_sets, level, ignore)
    groups = grouped(spec.tensor_names, level)
    same = {name for name in groups if "norm" in name} if level == "tensors" else set()  # which tuning left alone
    assert {*found.groups} == {group for name, group in groups.items() if group and name not in same}
    assert found.single is not None
    assert found.found is not None
    assert found.found.task < found.single.task
    assert found.found.harmful <= found.single.harmful * 1.005
    assert found.found.ordinary <= found.single.ordinary * 1.005  # type: ignore[operator]
    assert found.point.overrides.items() <= dict(zip(found.groups, found.lams, strict=True)).items()


def test_lambda_by_layer_and_by_tensor_is_what_is_merged(tiny_model_folder: Path, tuned: Path) -> None:
    pair = open_pair(tiny_model_folder, tuned)
    names = tensor_names(pair.base)
    for level in LEVELS[1:]:
        groups = grouped(names, level)
        lams = {group: (number % 10) / 10 for number, group in enumerate(sorted(filter(None, groups.values())))}
        point = MergePoint(0.3, lams)
        made = OpenMerge(pair).tensors(patterns(names, point.overrides, point.lam))
        for name in names:
            alone = OpenMerge(pair).tensors(lams.get(groups[name] or "", 0.3))
            assert torch.equal(made[name], alone[name]), (level, name)


@pytest.mark.slow
def test_a_run_tests_what_it_found_writes_it_and_reports_it(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    wanted = recipe(tiny_model_folder, tuned, tmp_path / "r")
    done = Run(wanted).execute()
    results = load(done.report)
    found = results.by_module
    assert found is not None
    gradient = found.gradient
    assert gradient == read_record(done.folder / "gradient.json", GradientSearch)
    assert gradient is not None
    assert gradient.point.by_module
    assert [each.trial.point for each in found.tried] == [gradient.point]
    assert found.chosen == 0
    assert done.choice is not None
    assert done.choice.point == gradient.point == found.test.point  # type: ignore[union-attr]
    pair = open_pair(tiny_model_folder, tuned)
    want = OpenMerge(pair).tensors(patterns(tensor_names(pair.base), gradient.point.overrides, gradient.point.lam))
    with open_checkpoint(done.folder / "model") as written:
        assert all(torch.equal(written.tensor(name), value) for name, value in want.items())
    text = page.as_markdown(results)
    assert gradient.sentence in text.replace("\\", "")
    for name, lam in zip(gradient.groups, gradient.lams, strict=True):
        assert f"| {name} | {lam:g} |" in text
    # Nothing is done twice; a stopped search begins again.
    events: list[Event] = []
    assert not Run(wanted).execute(events.append).worked
    other = wanted.model_copy(update={"select": wanted.select.model_copy(update={"groups": "modules"})})
    again = Run(other).execute(events.append)
    started = {event.step for event in events if event.kind == "started"}
    assert "search_gradient" in started
    assert "select" not in started
    assert load(again.report).by_module.gradient.groups != gradient.groups  # type: ignore[union-attr]


def test_it_is_refused_without_a_task_on_other_engines_and_with_prompts_that_are_measured(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    def refused(name: str, error: type[Exception], **changes: Any) -> str:
        with pytest.raises(error) as caught:
            forecast(recipe(tiny_model_folder, tuned, tmp_path / name, **changes))
        return str(caught.value)

    assert "`search: gradient`" in refused("a", RecipeError, score={"task": None, "metrics": ()})
    assert "vllm does not compute" in refused("b", RecipeError, generate={"engine": "vllm"})
    assert "`merge.method: linear`, not slerp" in refused("c", RecipeError, merge={"method": "slerp"})
    same = str(tmp_path / "d" / "refuse.jsonl")
    message = refused("d", DataError, select={"search_safety": same})
    assert "select.search_safety: 8 of its prompts are among those that are measured" in message


def test_a_plan_counts_one_merge_more(tiny_model_folder: Path, tuned: Path, tmp_path: Path) -> None:
    stages = dict(forecast(recipe(tiny_model_folder, tuned, tmp_path / "f")).stages)
    assert stages["select"].endswith("; then λ by gradient (layers), and a test of the result")
