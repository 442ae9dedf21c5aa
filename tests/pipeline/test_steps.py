"""Which steps of a run are done again when a field of the recipe changes."""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from mooring.config import Recipe
from mooring.merge_methods import ROLES as REFERENCES
from mooring.merge_point import MergePoint
from mooring.pipeline import plan as planning
from mooring.pipeline.plan import SINGLE, TAKEN, Plan, build
from mooring.pipeline.steps import JudgeKey, Keys, SourceKey, Stage, Step, WriteModel

ROWS = [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(8)]
REQUESTS = [{"prompt": f"Break thing number {i}.", "completion": "No."} for i in range(8)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data sets, and copies that differ in one prompt."""
    tmp_path = tmp_path_factory.mktemp("data")
    for name, rows in (("task", ROWS), ("requests", REQUESTS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        other = [{**row, "prompt": f"Another: {row['prompt']}"} for row in rows]
        (tmp_path / f"other-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    rows = [{"prompt": f"Wake me at {i}.", "completion": f"alarm.set(hour={i})"} for i in range(4)]
    (tmp_path / "validation-task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(data: Path, changes: dict[str, Any] | None = None) -> Recipe:
    """A recipe that has every kind of step; `changes` maps dotted fields to values."""
    plain: dict[str, Any] = {
        "base": "base",
        "out": str(data / "run"),
        "align": {"data": [str(data / "requests.jsonl")]},
        "tune": {"data": [str(data / "task.jsonl")]},
        "merge": {"method": "della", "lambdas": [0.3, 0.7], "density": 0.5, "epsilon": 0.1},
        "generate": {"task": {"n": 2, "temperature": 0.5}},
        "score": {
            "safety": [str(data / "requests.jsonl")],
            "over_refusal": [str(data / "other-requests.jsonl")],
            "ordinary": None,
            "task": str(data / "task.jsonl"),
            "metrics": ["call_match", "response_loss", "bert_score", "pass@1"],
            "bertscore_layer": 3,
            "lm_eval": ["bbh"],
            "judges": ["wildguard", "rules"],
        },
        "select": {"search": "modules", "budget": 2, "over_refusal_margin": 0.1},
    }
    for field, value in (changes or {}).items():
        *path, last = field.split(".")
        place = plain
        for part in path:
            place = place.setdefault(part, {})
        place[last] = json.loads(json.dumps(value).replace("DATA", str(data)))
    return Recipe.parse(plain)


def resolved(plan: Plan) -> Plan:
    """The plan as if its run had ended: each slot bound to a model that does not depend on the recipe."""
    tries = {planning.attempt(number): point for number, point in enumerate(TRIED, 1)}
    return plan.bind({**tries, SINGLE: MergePoint(0.3), TAKEN: TRIED[0]})


TRIED = [MergePoint(0.3, {"early mlp": 0.7}), MergePoint(0.3, {"late mlp": 0.7})]


def keys(plan: Plan, measured: str = "") -> dict[str, tuple[Step, str]]:
    """Each step with its key. Models are not opened: the name that the recipe gives stands for a digest."""

    def measure(reference: SourceKey | JudgeKey) -> object:
        if isinstance(reference, JudgeKey):
            section = plan.judging.sections.get(reference.judge)
            return section.model_dump(mode="json") if section else reference.judge
        score = plan.recipe.score
        names = {
            "base": plan.recipe.base,
            "tuned": plan.recipe.tuned,
            "bert_score": score.bertscore_model,
            "lm_eval": score.lm_eval,
            **plan.recipe.merge.references,
        }
        return [names[reference.role], measured]

    found = Keys(lambda: plan.steps, measure)
    return {id: (step, found.of(step)) for id, step in plan.steps.items()}


def kind_of(step: Step) -> str:
    """A step in short, `merged generate safety test`: the role of its model, and what it does."""
    if isinstance(step.work, Stage):
        return step.work.name.title().replace("_", "")
    point = getattr(step.work, "point", None)
    role = "" if point is None or isinstance(step.work, WriteModel) else f"{point.role} "
    parts = [getattr(step.work, name, "") for name in ("name", "split", "judge", "stage")]
    return " ".join([role + type(step.work).__name__, *filter(None, parts)])


@functools.cache
def unchanged(data: Path, start: str) -> dict[str, tuple[Step, str]]:
    """The steps and keys before a change."""
    return keys(resolved(build(recipe(data, json.loads(start)))))


def changed(data: Path, changes: dict[str, Any], start: dict[str, Any] | None = None) -> set[str]:
    """The kinds of steps that are done again, or for the first time, after a change of the recipe."""
    start = start or {}
    before, after = unchanged(data, json.dumps(start)), keys(resolved(build(recipe(data, start | changes))))
    assert start or {kind_of(step) for step, _ in before.values()} == EVERYTHING
    return {kind_of(step) for id, (step, key) in after.items() if id not in before or before[id][1] != key}


ROLES, SPLITS = ("base", "tuned", "merged"), ("validation", "test")
SETS, JUDGES = ("safety", "over_refusal"), ("wildguard", "rules")


def each(*kinds: str, roles: Sequence[str] = ROLES, splits: Sequence[str] = SPLITS) -> set[str]:
    """Kinds of steps for each role and split, such as `Generate safety`; LmEval has no split."""
    found = set()
    for role, split, kind in itertools.product(roles, splits, kinds):
        name, *rest = kind.split()
        if name == "LmEval":
            found |= {f"{role} LmEval"} if "test" in splits else set()
        elif name == "Judge":
            found.add(f"{role} Judge {rest[0]} {split} {rest[1]}")
        else:
            found.add(" ".join([f"{role} {name}", *rest, split]))
    return found


JUDGED = tuple(f"Judge {name} {judge}" for name in SETS for judge in JUDGES)
REFUSALS = ("Generate safety", "Generate over_refusal", *JUDGED)
MEASURED = (*REFUSALS, "Generate task", "Likelihood", "LmEval", "Score")
END = {"Select", "SearchModules", "Report"}
PAIR = {"CheckPair", "MeasureChange"}
TRIALS = each(*MEASURED) | END
WRITE = {"WriteModel", "CheckModel"}
EVERYTHING = {"Tune align", "MergeAligned", "Tune tune"} | WRITE | PAIR | TRIALS
AFTER_ALIGN = EVERYTHING
AFTER_TUNE = {"Tune tune"} | WRITE | PAIR | each(*MEASURED, roles=("tuned", "merged")) | END
MERGES = each(*MEASURED, roles=("merged",)) | WRITE | END
GENERATED = each(*REFUSALS, "Generate task", "Score") | END
SAFETY = each(*REFUSALS, "Score") | END
TASK = each("Generate task", "Score") | END
SCORES = each("Score") | END
WRITTEN: set[str] = set()

TUNING = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj"],
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.2,
    "per_device_train_batch_size": 4,
    "batch_size": 16,
    "num_train_epochs": 1,
    "max_steps": 3,
    "max_length": 64,
    "max_response_length": 8,
    "val_set_size": 0.2,
    "save_steps": 3,
    "checkpoint_step": 2,
    "early_stop": 0.5,
    "ema": 0.9,
    "kl": 0.5,
    "system": "Be brief.",
    "seed": 7,
}
SHARED = {"nproc": 2, "fsdp": True}
SAMPLING = {"max_tokens": 64, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "n": 3, "repetition_penalty": 1.5}
BASELINES = {"Tune tune", "Report"} | each(*MEASURED, roles=("tuned",))
CHANGES: dict[str, tuple[Any, set[str]]] = {
    "name": ("other", {"Report"}),
    "out": ("DATA/elsewhere", WRITTEN),
    "seed": (7, EVERYTHING - {"CheckPair"} | {"CheckPair"}),
    "base": ("other", EVERYTHING),
    "system": ("Be brief.", EVERYTHING),
    "align.data": (["DATA/other-requests.jsonl"], EVERYTHING),
    **{f"align.{field}": (value, EVERYTHING) for field, value in TUNING.items()},
    "tune.data": (["DATA/other-task.jsonl"], AFTER_TUNE),
    **{f"tune.{field}": (value, AFTER_TUNE) for field, value in TUNING.items()},
    "compare_with": (["gentle-lr", "ema"], BASELINES),
    "merge.method": ("della_linear", MERGES | each("Score")),
    "merge.methods": (["della_linear"], MERGES | each("Score")),
    "merge.seeds": ([7], MERGES),
    "merge.density": (0.4, MERGES),
    "merge.epsilon": (0.2, MERGES),
    "merge.rescale": ("none", MERGES),
    "merge.check": (False, {"Report"}),
    "merge.lambdas": ([0.3, 0.5, 0.7], each(*MEASURED, roles=("merged",), splits=("validation",)) | END),
    **{
        f"generate.{field}": (value, TRIALS)
        for field, value in (
            ("dtype", "float16"),
            ("device", "cpu"),
            ("batch_size", 4),
            ("tensor_parallel", 2),
            ("max_model_len", 2048),
            ("enforce_eager", True),
        )
    },
    "generate.engine": ("vllm", TRIALS),
    "generate.gpu_memory": (0.5, {"Report"}),
    "generate.thinking": ("on", TRIALS),
    "generate.thinking_tokens": (64, GENERATED),
    "generate.served_model": ("name", TRIALS),
    "generate.drafts": (False, GENERATED),
    "generate.max_tokens": (64, GENERATED),
    "generate.temperature": (0.7, SAFETY),
    "generate.top_p": (0.9, GENERATED),
    "generate.top_k": (5, GENERATED),
    "generate.repetition_penalty": (1.5, TASK),
    **{f"generate.safety.{field}": (value, SAFETY) for field, value in SAMPLING.items() if field != "n"},
    **{f"generate.task.{field}": (value, TASK) for field, value in SAMPLING.items()},
    "score.safety": (
        ["DATA/other-requests.jsonl"],
        each("Generate safety", *(j for j in JUDGED if " safety " in j), "Score") | END,
    ),
    "score.forgetting": (["DATA/requests.jsonl"], {"Forgetting", "Report"}),
    "score.attacks": (
        ["base64"],
        each("Generate safety+base64", *(f"Judge safety+base64 {judge}" for judge in JUDGES), "Score") | END,
    ),
    "score.over_refusal": (
        ["DATA/requests.jsonl"],
        each("Generate over_refusal", *(j for j in JUDGED if "over_refusal" in j), "Score") | END,
    ),
    "score.ordinary": (
        ["DATA/other-requests.jsonl"],
        each("Generate ordinary", *(f"Judge ordinary {judge}" for judge in JUDGES), "Score", splits=("test",))
        | {"Report"},
    ),
    "score.task": ("DATA/other-task.jsonl", each("Generate task", "Likelihood", "Score") | END),
    "score.task_system": ("Be brief.", each("Generate task", "Likelihood", "Score") | END),
    "score.validation_task": ("DATA/validation-task.jsonl", each("Generate task", "Likelihood", "Score") | END),
    "score.validation_system": ("Be brief.", {"Report"}),
    "score.metrics": (["call_match", "response_loss", "bert_score"], SCORES),
    "score.validation_metrics": (["response_loss"], each("Score", splits=("validation",)) | END),
    "score.bertscore_model": ("bundled:minilm", SCORES),
    "score.bertscore_layer": (4, SCORES),
    "score.lm_eval": (["hellaswag"], each("LmEval", splits=("test",)) | each("Score", splits=("test",)) | {"Report"}),
    "score.lm_eval_limit": (5, each("LmEval", splits=("test",)) | each("Score", splits=("test",)) | {"Report"}),
    "score.unsafe_exec": (True, SCORES),
    "score.judges": (["rules"], SCORES),
    "score.judge_thoughts": (True, each("Judge safety wildguard", "Score") | END),
    "score.validation": (0.3, TRIALS - each("LmEval")),
    "score.limit": (3, TRIALS - each("LmEval")),
    "select.search": ("grid", {"Select", "Report"} | WRITE),
    "select.budget": (1, {"SearchModules", "Report"}),
    "select.groups": ("tensors", {"Report"}),
    "select.search_safety": ("DATA/other-requests.jsonl", {"Report"}),
    "select.search_ordinary": ("DATA/requests.jsonl", {"Report"}),
    "select.search_prompts": (3, {"Report"}),
    "select.margin": (0.2, END),
    "select.bound": (0.2, END),
    "select.confidence": (0.9, END),
    "select.over_refusal_margin": (0.2, END),
    "select.task_margin": (0.2, {"Report"}),
    **{f"{stage}.{field}": (value, WRITTEN) for stage in ("align", "tune") for field, value in SHARED.items()},
    "resources.gpus": (2, WRITTEN),
    "resources.gpus_per_engine": (2, WRITTEN),
    "resources.storage": ("s3://bucket/prefix", WRITTEN),
    "report.title": ("Other", {"Report"}),
    "report.notes": (["A note."], {"Report"}),
}
"""For each field of a recipe another value, and the kinds of steps that are done again."""
UNUSED = {
    "plugins": "has tests of its own in tests/test_plugins.py",
    "tuned": "given instead of `tune`; see the test of other weights",
    "task": "fills in other fields",
    "generate.n": "refused: only the task's prompts get several responses",
    "generate.safety.n": "refused: only the task's prompts get several responses",
    "select.policy": "needs `search: grid`, and has a test of its own",
    **{f"merge.{field}": "no option of the method" for field in ("gamma", "rank", "threshold")},
    **{f"merge.{field}": "no model of the method; see the test of other weights" for field in REFERENCES},
    "align.kl_data": "needs `kl`, and has a test of its own",
    "tune.kl_data": "needs `kl`, and has a test of its own",
    "select.corrected": "needs labels and `search: grid`, and has a test of its own",
    "select.bound_on": "needs `score.attacks`, and has a test of its own",
    "resources.on": "refused with lm-evaluation-harness, and has a test of its own",
    "score.too_long": "opens the models, which this recipe does not have",
    **dict.fromkeys(
        ["data.prompt_field", "data.completion_field", "data.messages_field"],
        "names fields that these rows do not have; other fields are other prompts",
    ),
    **dict.fromkeys(
        [f"generate.{field}" for field in ("base_url", "key_env", "concurrency", "requests_per_minute")],
        "for servers, which a run does not ask",
    ),
}
"""Fields that have no effect on this recipe, and why."""


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields of a section and of the sections in it."""
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        section = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if section is None:
            yield prefix + name
        else:
            yield from fields(section, f"{prefix}{name}.")


def test_bounds_under_an_attack_choose_again(data: Path) -> None:
    assert changed(data, {"select.bound_on": ["none", "base64"]}, {"score.attacks": ["base64"]}) == END


def test_baselines_are_tuned_and_scored_by_themselves(data: Path) -> None:
    rows = [{"prompt": f"Name thing number {i}.", "completion": f"{i}."} for i in range(4)]
    (data / "ordinary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert changed(data, {"compare_with": ["kl", "ema"]}, {"compare_with": "kl"}) == BASELINES
    with_kl = {"tune.kl": 1}
    assert changed(data, {"tune.kl_data": [f"{data}/ordinary.jsonl"]}, with_kl) == AFTER_TUNE
    assert changed(data, {"tune.kl_data": [f"{data}/ordinary.jsonl"]}, {"compare_with": "kl"}) == BASELINES
    assert changed(data, {"tune.kl_data": [f"{data}/ordinary.jsonl"]}, {"compare_with": "ema"}) == {"Report"}


def test_every_field_of_a_recipe_is_in_the_table() -> None:
    assert {*fields(Recipe)} == CHANGES.keys() | UNUSED.keys()


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_does_exactly_these_steps_again(data: Path, field: str) -> None:
    value, expected = CHANGES[field]
    assert changed(data, {field: value}) == expected


def test_a_cluster_does_without_drafts_and_changes_nothing_else(data: Path) -> None:
    without = {"score.lm_eval": []}
    assert changed(data, {"resources.on": "ray"}, without) == GENERATED
    assert changed(data, {"resources.on": "ray"}, without | {"generate.drafts": False}) == WRITTEN


def test_another_policy_chooses_again(data: Path) -> None:
    assert changed(data, {"select.policy": "paper"}, {"select.search": "grid"}) == {"Select", "Report"}


@pytest.mark.parametrize(
    ("field", "value", "searches"),
    [
        ("select.groups", "tensors", True),
        ("select.search_safety", "DATA/more-requests.jsonl", True),
        ("select.search_prompts", 3, True),
        ("select.budget", 1, False),
    ],
)
def test_a_search_by_gradient_is_done_again_if_what_it_looks_at_changes(
    data: Path, field: str, value: Any, searches: bool
) -> None:
    for name in ("search", "more"):
        rows = [{"prompt": f"{name}: spoil thing number {i}."} for i in range(8)]
        (data / f"{name}-requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = {
        "select.search": "gradient",
        "select.search_safety": ["DATA/search-requests.jsonl"],
        "select.search_ordinary": None,
        "merge": {"method": "linear", "lambdas": [0.3, 0.7]},
    }
    again = {"SearchGradient", "SearchModules", "Report"} if searches else {"SearchModules", "Report"}
    assert changed(data, {field: value}, mine) == again


def test_the_same_recipe_does_nothing_again(data: Path) -> None:
    assert changed(data, {}) == set()


@pytest.mark.parametrize("role", ["base", "tuned", "bert_score", "lm_eval", *REFERENCES])
def test_other_weights_do_all_again_that_depends_on_them(data: Path, role: str) -> None:
    changes: dict[str, Any] = {"tune": None, "tuned": "tuned"} if role == "tuned" else {}
    if role in REFERENCES:
        models = {"unaligned": "pretrained", "safety_adapter": "safe"}
        changes = {"merge": {"method": "safe_merge", "lambdas": [0.3, 0.7], **models}}
    plan = resolved(build(recipe(data, changes)))

    def key(digest: str) -> dict[str, str]:
        measured = Keys(lambda: plan.steps, lambda reference: digest if reference == SourceKey(role) else "same")  # type: ignore[arg-type]
        return {id: measured.of(step) for id, step in plan.steps.items()}

    before, after = key("one"), key("two")
    again = {kind_of(step) for id, step in plan.steps.items() if before[id] != after[id]}
    assert (
        again
        == {
            "base": EVERYTHING,
            "tuned": AFTER_TUNE - {"Tune tune"},
            "bert_score": SCORES,
            "lm_eval": each("LmEval", "Score", splits=("test",)) | {"Report"},
            **dict.fromkeys(REFERENCES, MERGES),
        }[role]
    )


def test_another_version_of_a_library_does_all_again_that_it_computes(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_version(package: str) -> dict[str, str]:
        installed = planning.installed_versions

        def versions(*packages: str) -> dict[str, str]:
            return {**installed(*packages), **({package: "99"} if package in packages else {})}

        with monkeypatch.context() as patch:
            patch.setattr(planning, "installed_versions", versions)
            return {id: key for id, (_, key) in keys(resolved(build(recipe(data)))).items()}

    steps = resolved(build(recipe(data))).steps
    before = with_version("none")

    def again(package: str) -> set[str]:
        return {kind_of(steps[id]) for id, key in with_version(package).items() if key != before[id]}

    assert again("torch") == again("transformers") == EVERYTHING
    assert again("peft") == again("trl") == EVERYTHING
    assert again("bert_score") == SCORES
    assert again("mooring") == {"Report"}


def test_another_data_type_of_tuning_tunes_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for dtype in ("bfloat16", "float32"):
        monkeypatch.setattr(planning, "compute_dtype", lambda dtype=dtype: dtype)
        found.append({id: key for id, (_, key) in keys(resolved(build(recipe(data)))).items()})
    before, after = found
    assert before["tune"] != after["tune"]
    assert before["align"] != after["align"]


def test_ids_name_the_model_and_outputs_lie_in_the_run_folder(data: Path) -> None:
    plan = resolved(build(recipe(data)))
    assert "generate/0.7/safety/validation" in plan.steps
    assert "judge/0.3;early mlp=0.7/safety/test/wildguard" in plan.steps
    outputs = [path for step in plan.steps.values() for path in step.outputs]
    assert len(outputs) == len({*outputs})
    assert all(path.is_relative_to(plan.paths.folder) for path in outputs)


def test_models_that_are_not_known_yet_have_steps_without_outputs(data: Path) -> None:
    plan = build(recipe(data))
    step = plan.steps["generate/<λ = chosen>/safety/test"]
    assert (step.outputs, step.units) == ([], len(plan.prompts("test")["safety"]))
    assert "generate/<try 2>/safety/validation" in plan.steps
    bound = plan.bind({SINGLE: MergePoint(0.7)})
    assert "generate/0.7/safety/test" in bound.steps
    assert not [id for id in bound.steps if "chosen" in id]
