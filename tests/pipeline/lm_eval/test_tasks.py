"""Tasks on local files: right and wrong answers, samples, and errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from mooring.api import lm_eval
from mooring.errors import DataError, MissingExtraError, UserError
from mooring.files import sha256
from mooring.pipeline.lm_eval.evaluate import TaskRun, run_tasks
from mooring.pipeline.lm_eval.tasks import lm_eval_version, load_tasks, local_data, score_dependencies

NAVIGATE, SNARKS = "bbh_cot_fewshot_navigate", "bbh_cot_fewshot_snarks"


def rows(*targets: str) -> str:
    return json.dumps({"examples": [{"input": f"Question {n}?", "target": t} for n, t in enumerate(targets)]})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "navigate.json").write_text(rows("Yes", "No", "No"))
    (folder / "snarks.json").write_text(rows("(A)", "(B)"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("right", "expected"), [(True, 1.0), (False, 0.0)])
def test_scripted_answers(scripted: Any, data: Path, right: bool, expected: float) -> None:
    model = scripted(lambda row: f"So the answer is {row['target'] if right else 'none'}.")
    result = run_tasks(model, TaskRun(names=[NAVIGATE, SNARKS], data=data))
    assert list(result.scores) == [f"lm_eval:{NAVIGATE}", f"lm_eval:{SNARKS}"]
    for score, n in zip(result.scores.values(), (3, 2), strict=True):
        assert (score.value, score.n, score.better) == (expected, n, "higher")
        assert (score.low, score.high)[right] == expected
    assert result.scores[f"lm_eval:{NAVIGATE}"].method == (
        f"lm-eval {lm_eval_version()}, {NAVIGATE} v4.0, 3-shot, exact_match,get-answer, "
        "chat template, examples as turns, rows of navigate.json"
    )


@pytest.mark.slow
def test_samples_and_limit(scripted: Any, data: Path, tmp_path: Path) -> None:
    result = run_tasks(
        scripted(lambda row: "So the answer is Yes."), TaskRun(names=[NAVIGATE], data=data, limit=2, num_fewshot=1)
    )
    score = result.scores[f"lm_eval:{NAVIGATE}"]
    assert (score.value, score.n) == (0.5, 2)
    assert "1-shot" in score.method
    assert "the first 2 questions" in score.method
    result.write_samples(tmp_path / "samples.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["resps"] for row in kept] == [[["So the answer is Yes."]]] * 2
    assert [(row["task"], row["target"], row["exact_match"]) for row in kept] == [
        (NAVIGATE, "Yes", 1.0),
        (NAVIGATE, "No", 0.0),
    ]


@pytest.mark.slow
def test_prompts_are_lm_eval_s_own(scripted: Any, data: Path) -> None:
    """The examples of the task's own file are there, whether as turns or as one text."""
    prompts = []
    for chat in (True, False):
        result = run_tasks(
            scripted(lambda row: "."), TaskRun(names=[NAVIGATE], data=data, limit=1, apply_chat_template=chat)
        )
        prompts.append(result.samples[0]["arguments"][0][0])
    assert all(prompt.count("So the answer is") == 3 for prompt in prompts)
    assert all(prompt.endswith("Q: Question 0?\nA: Let's think step by step.\n") for prompt in prompts)


@pytest.mark.slow
def test_on_a_model_and_on_a_merge(save_tiny_model: Any, data: Path, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", max_position_embeddings=1100)
    tuned = save_tiny_model(tmp_path / "tuned", seed=1, max_position_embeddings=1100)
    arguments: dict[str, Any] = {"tasks": [SNARKS], "data": data, "limit": 1, "device": "cpu"}

    def answers(name: str, **model: Any) -> list[Any]:
        scores = lm_eval(base, samples=tmp_path / name, **model, **arguments)
        assert "system prompt" in scores[f"lm_eval:{SNARKS}"].method
        return [json.loads(line)["resps"] for line in (tmp_path / name).read_text().splitlines()]

    plain = answers("base.jsonl")
    assert answers("zero.jsonl", tuned=tuned, lam=0) == plain
    assert answers("half.jsonl", tuned=tuned, lam=0.5) != plain


@pytest.mark.slow
def test_the_record_of_truncation_and_system_prompt(save_tiny_model: Any, data: Path, tmp_path: Path) -> None:
    """The tiny context holds no three examples; a template without a system role shows no default text, but others."""
    from mooring.inference.transformers import TransformersEngine

    folder = save_tiny_model(tmp_path / "base", max_position_embeddings=1100)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("1100", "1040"))

    def run(system: str) -> tuple[str, float, str]:
        engine = TransformersEngine.load(folder, device="cpu", system=system)
        engine.tokenizer.chat_template = (
            "{% for message in messages if message.role != 'system' %}{{ message.content }}{% endfor %}"
        )
        result = run_tasks(engine, TaskRun(names=[SNARKS], data=data, limit=1), cache=tmp_path / "cache.jsonl")
        (score,) = result.scores.values()
        return score.method, score.details["truncated"], result.samples[0]["arguments"][0][0]

    method, truncated, prompt = run("You are a helpful assistant.")
    assert "system prompt" not in method
    assert truncated == 1
    assert method.endswith("1 prompt truncated on the left")
    assert "helpful assistant" not in prompt
    method, truncated, prompt = run("Be kind.")
    assert "system prompt" in method
    assert "Be kind." in prompt
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("names", "code", "hint"),
    [
        ([], "usage.no_tasks", "bbh"),
        pytest.param(["bhb"], "usage.unknown_task", "did you mean", marks=pytest.mark.slow),  # lists all tasks
        ([NAVIGATE, NAVIGATE], "usage.repeated_task", "once"),
        (["humaneval"], "usage.unsafe_task", "mooring generate MODEL humaneval"),
    ],
)
def test_bad_names(data: Path, names: list[str], code: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_tasks(names, data=data)
    assert caught.value.code == code
    assert hint in caught.value.hint


def test_missing_data(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MOORING_DATA", raising=False)
    for names, path, code, part in (
        ([NAVIGATE], None, "data.download_failed", NAVIGATE),
        (["bbh_cot_fewshot_web_of_lies"], data, "data.no_rows_for_task", "name its file web_of_lies"),
        ([NAVIGATE, SNARKS], data / "navigate.json", "data.single_file", "navigate.json"),
        ([NAVIGATE], tmp_path / "nowhere", "data.not_found", "nowhere"),
    ):
        with pytest.raises(DataError, match=part) as caught:
            load_tasks(names, data=path)
        assert caught.value.code == code
    (data / "navigate.json").write_text("[]")
    with pytest.raises(DataError) as caught:
        load_tasks([NAVIGATE], data=data)
    assert caught.value.code == "data.empty"


def test_one_file_for_one_task(data: Path) -> None:
    renamed = shutil.copy(data / "navigate.json", data.parent / "mine.json")
    loaded = load_tasks([NAVIGATE], data=Path(renamed))
    assert len(loaded.tasks[NAVIGATE].eval_docs) == 3
    assert loaded.data[NAVIGATE].name == "mine.json"


def test_rows_without_a_field(scripted: Any, data: Path) -> None:
    (data / "navigate.json").write_text(json.dumps([{"question": "a", "target": "b"}]))
    with pytest.raises(DataError) as caught:
        run_tasks(scripted(lambda row: row["input"]), TaskRun(names=[NAVIGATE], data=data))
    assert caught.value.code == "data.unloadable_task"


def test_missing_nltk_data(scripted: Any, data: Path) -> None:
    nltk = pytest.importorskip("nltk", reason="nltk is not installed")
    with pytest.raises(DataError, match=r"python -m nltk\.downloader nothing_such") as caught:
        run_tasks(scripted(lambda row: nltk.data.find("tokenizers/nothing_such")), TaskRun(names=[NAVIGATE], data=data))
    assert caught.value.code == "data.missing_nltk_data"
    with pytest.raises(KeyError):  # a fault keeps its traceback
        run_tasks(scripted(lambda row: row["nothing"]), TaskRun(names=[NAVIGATE], data=data))


def test_a_package_of_a_task_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "langdetect", None)
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"langdetect.*pip install 'lm-eval\[ifeval\]'") as caught:
        load_tasks(["ifeval"])
    assert caught.value.code == "extra.lm_eval_task"


def test_lm_eval_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'mooring\[lm-eval\]'"):
        lm_eval("anything", tasks=["bbh"])


def test_lam_and_tuned_come_together(tiny_model_folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        lm_eval(tiny_model_folder, tasks=[NAVIGATE], lam=0.5)
    assert caught.value.code == "usage.no_tuned_model"
    with pytest.raises(UserError) as caught:
        lm_eval(tiny_model_folder, tiny_model_folder, tasks=[NAVIGATE])
    assert caught.value.code == "usage.no_lam"


@pytest.mark.parametrize("numbers", [{"limit": 0}, {"num_fewshot": -1}])
def test_numbers_out_of_range(numbers: dict[str, int]) -> None:
    with pytest.raises(UserError) as caught:
        TaskRun(names=[NAVIGATE], **numbers)  # type: ignore[arg-type]
    assert caught.value.code == "usage.out_of_range"


def test_all_of_big_bench_hard_from_local_files(bbh: Path, scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_tasks(["bbh"])
    assert len(loaded.tasks) == len(loaded.data) == 27
    assert sum(len(task.eval_docs) for task in loaded.tasks.values()) == 6511
    assert {task.get_config("num_fewshot") for task in loaded.tasks.values()} == {3}

    def answer(row: dict[str, Any]) -> str:
        return f"So the answer is {row['target']}."

    result = run_tasks(scripted(answer), TaskRun(names=["bbh"], data=bbh, limit=2))
    scores = dict(result.scores)
    mean = scores.pop("lm_eval:bbh")
    assert (mean.value, mean.n, mean.details["tasks"], mean.details["mean_of_tasks"]) == (1.0, 54, 27, 1.0)
    assert mean.high == 1.0
    assert len(scores) == 27
    assert {score.value for score in scores.values()} == {1.0}


@pytest.mark.slow
def test_big_bench_hard_end_to_end(bbh: Path, save_tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Two tasks, two questions each, from prompt to score, offline, on a real (tiny) model."""
    base = save_tiny_model(tmp_path / "base", max_position_embeddings=1200)
    scores = lm_eval(base, tasks=[NAVIGATE, SNARKS], limit=2, device="cpu", samples=tmp_path / "samples.jsonl")
    assert [score.n for score in scores.values()] == [2, 2]
    assert all(0 <= (score.value or 0) <= 1 for score in scores.values())
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 4


def test_a_folder_with_some_of_a_groups_rows(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A given folder must be complete; one below MOORING_DATA is ignored if it is not, or if it is another set's."""
    with pytest.raises(DataError, match="bbh_cot_fewshot_boolean_expressions") as caught:
        load_tasks(["bbh"], data=data)
    assert caught.value.code == "data.no_rows_for_task"
    (data.parent / "home" / "bbh").mkdir(parents=True)
    data.rename(data.parent / "home" / "bbh" / "tasks")
    monkeypatch.setenv("MOORING_DATA", str(data.parent / "home"))
    assert load_tasks([SNARKS]).data[SNARKS].name == "snarks.json"
    with pytest.raises(DataError) as caught:
        load_tasks(["bbh"])
    assert caught.value.code == "data.download_failed"
    assert local_data("x", {"dataset_path": "somebody/bbh", "dataset_name": "snarks"}, None) is None


def test_scores_depend_on_the_version_and_on_local_rows(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = data.parent / "home"
    (home / "bbh").mkdir(parents=True)
    data.rename(home / "bbh" / "tasks")
    monkeypatch.setenv("MOORING_DATA", str(home))
    file = home / "bbh/tasks/snarks.json"
    assert score_dependencies([SNARKS, "bhb"]) == {
        "lm_eval": lm_eval_version(),
        "rows": {f"{SNARKS}/test": sha256(file)},
    }
    monkeypatch.delenv("MOORING_DATA")
    assert score_dependencies([SNARKS])["rows"] == {}


def test_rows_of_another_split(tmp_path: Path) -> None:
    for name in ("a", "a-train", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"input": "x"}\n')
    config = {"dataset_name": "a", "test_split": "test", "training_split": "train"}
    found = local_data("t", config, tmp_path)
    assert found
    assert {split: path.name for split, path in found.splits.items()} == {"test": "a.jsonl", "train": "a-train.jsonl"}
    assert {split: len(rows) for split, rows in found.read(version=1).items()} == {"test": 1, "train": 1}
