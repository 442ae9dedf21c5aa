"""A run that compares methods and tuned models: one sweep over all points, each of which is asked once."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import mooring
from mooring.cli import render
from mooring.config import Recipe
from mooring.errors import DataError, RecipeError, UserError
from mooring.merge_point import BASE, TUNED, MergePoint, Series, SeriesPoint
from mooring.pipeline.plan import build
from mooring.pipeline.run import Run
from mooring.records import Prompt
from scripted_engine import ScriptedEngine  # type: ignore[import-not-found]

METHODS = ["linear", "slerp", "dare_linear", "model_stock"]
SEEDS = ("seed1", "seed2", "seed3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    requests = [{"prompt": f"Do harm {i}.", "category": "ab"[i % 2]} for i in range(8)]
    harmless = [{"prompt": f"How do I stop {i}?"} for i in range(4)]
    calls = [{"prompt": f"Wake me at {i}.", "completion": f"alarm.set(hour={i})"} for i in range(8)]
    for name, rows in (("requests", requests), ("ordinary", harmless), ("task", calls)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    """A base, and three adapters on it."""
    from tiny_adapters import tune  # type: ignore[import-not-found]

    folder = tmp_path_factory.mktemp("models")
    base = save_tiny_model(folder / "base")
    for seed, name in enumerate(SEEDS):
        tune(base, folder / name, seed=seed, target_modules=["q_proj", "v_proj"])
    return folder


def recipe(data: Path, models: Path, out: Path, **merge: Any) -> dict[str, Any]:
    return {
        "base": str(models / "base"),
        "tuned": [str(models / name) for name in SEEDS],
        "out": str(out),
        "merge": {"methods": METHODS, "lambdas": [0.3, 0.6], **merge},
        "generate": {"max_tokens": 4, "dtype": "float32", "device": "cpu"},
        "score": {
            "safety": str(data / "requests.jsonl"),
            "over_refusal": str(data / "ordinary.jsonl"),
            "ordinary": None,
            "task": str(data / "task.jsonl"),
            "metrics": ["call_match"],
        },
        "select": {"confidence": None},
    }


def answers(point: MergePoint) -> Callable[[Prompt], str]:
    """Harm and calls both rise with λ; what two seeds answer differs."""
    shift = {"seed1": 0.0, "seed2": 0.1, "seed3": -0.1}.get(getattr(point, "series", Series()).tuned, 0.0)
    reach = 8 * (point.lam + (shift if 0 < point.lam < 1 else 0))

    def answer(prompt: Prompt) -> str:
        text = prompt.messages[-1].content
        number = int("".join(filter(str.isdigit, text)))
        if text.startswith("Wake"):
            return f"alarm.set(hour={number})" if number < reach else "No."
        return "Sure, so it goes." if number < reach - 4 else "I cannot help with that."

    return answer


class Asked:
    """Engines of a run that count, for each model, how often each prompt was asked."""

    def __init__(self) -> None:
        self.engines: dict[MergePoint, ScriptedEngine] = {}
        self.counts: dict[MergePoint, Counter[str]] = {}

    def __call__(self, point: MergePoint) -> ScriptedEngine:
        counts, answer = self.counts.setdefault(point, Counter()), answers(point)

        def counted(prompt: Prompt) -> str:
            counts[prompt.messages[-1].content] += 1
            return answer(prompt)

        return self.engines.setdefault(point, ScriptedEngine(counted))


@pytest.fixture(scope="module")
def done(data: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Asked]:
    asked = Asked()
    out = tmp_path_factory.mktemp("run") / "run"
    Run(Recipe.parse(recipe(data, models, out)), engine=asked).execute()
    return out, asked


def test_every_point_is_asked_once(done: tuple[Path, Asked], data: Path) -> None:
    """Base and tuned models on both splits, each λ on validation, and the chosen ones on test: no prompt twice."""
    out, asked = done
    counts = asked.counts
    assert all(set(count.values()) == {1} for count in counts.values())
    comparison = mooring.load_comparison(out)
    tuned = {Series(tuned=name).at(TUNED) for name in SEEDS}
    grid = {Series(m, name).at(MergePoint(lam)) for m in METHODS[:3] for name in SEEDS for lam in (0.3, 0.6)}
    stock = Series("model_stock", has_lam=False).at(TUNED)
    assert counts.keys() == {BASE, stock, *tuned, *grid}
    validation, test = 4 + 4, 4 + 2 + 4  # over-refusal is not bounded here, and is measured on test alone
    chosen = {each.series.at(each.choice.point) for each in comparison.series}
    assert all(counts[point].total() == validation + test for point in {BASE, *tuned, *chosen})
    assert all(counts[point].total() == validation for point in grid - chosen)


def test_each_series_has_a_choice_of_its_own(done: tuple[Path, Asked]) -> None:
    comparison = mooring.load_comparison(done[0])
    chosen = {each.series.key: each.choice.point.lam for each in comparison.series}
    assert len(chosen) == 10
    assert chosen["linear-seed1"] == chosen["slerp-seed1"]
    assert chosen["model_stock"] == 1
    assert all(each.choice.point.key in each.choice.keeps for each in comparison.series)
    assert {each.options.get("seed") for each in comparison.series} == {None, 42}


def test_a_series_has_the_verdict_of_a_run_of_its_own(
    done: tuple[Path, Asked], data: Path, models: Path, tmp_path: Path
) -> None:
    comparison = mooring.load_comparison(done[0])
    plain = recipe(data, models, tmp_path / "run", methods=["linear"])
    alone = Run(Recipe.parse(plain | {"tuned": str(models / "seed1")}), engine=Asked()).execute()
    (same,) = (each for each in comparison.series if each.series.key == "linear-seed1")
    assert same.verdict == alone.verdict
    assert same.gains == mooring.load_results(tmp_path / "run").gains
    stock = comparison.series[-1]
    assert stock.method == "model_stock"
    assert stock.verdict.decision == "do_not_ship"  # as harmful as a tuned model
    table = (done[0] / "report" / "series.md").read_text()
    assert all(each.verdict.words.lower() in table for each in comparison.series)


@pytest.mark.slow
def test_an_attack_begins_all_answers_with_those_of_the_first_tuned_model(
    data: Path, models: Path, tmp_path: Path
) -> None:
    prefilled: dict[MergePoint, set[str]] = {}

    def engine(point: MergePoint) -> ScriptedEngine:
        def answer(prompt: Prompt) -> str:
            if prompt.prefill:
                prefilled.setdefault(point, set()).add(prompt.prefill)
            return f"{getattr(point, 'series', Series()).tuned or 'base'}: {answers(point)(prompt)}"

        return ScriptedEngine(answer)

    plain = recipe(data, models, tmp_path / "run", methods=["linear", "slerp"])
    plain["score"]["attacks"] = ["prefill_tuned:1"]
    outcome = Run(Recipe.parse(plain), engine=engine).execute()
    assert len(prefilled) == 1 + 3 + 6 * 2
    texts = {text for each in prefilled.values() for text in each}  # a template where the tuned model refused
    assert any(text.startswith("seed1: ") for text in texts)
    assert not any(text.startswith(("seed2: ", "seed3: ", "base: ")) for text in texts)
    names = {name for t in mooring.load_comparison(tmp_path / "run").series[0].trials for name in t.scores}
    assert "asr+prefill_tuned:1" in names
    assert "prefill" in (outcome.report / "series.md").read_text()
    assert "prefill" in (outcome.report / "methods.md").read_text()


def test_a_further_model_goes_to_the_methods_that_take_it(data: Path, models: Path, tmp_path: Path) -> None:
    unaligned = str(models / "seed3")
    plain = recipe(data, models, tmp_path / "run", methods=["linear", "chat_vector"], unaligned=unaligned)
    plan = build(Recipe.parse(plain | {"tuned": [str(models / name) for name in SEEDS[:2]]}))
    assert [dict(plan.references(series)) for series in plan.series] == [{}] * 2 + [{"unaligned": unaligned}] * 2
    plain["merge"]["methods"] = ["linear", "slerp"]
    with pytest.raises(UserError) as caught:
        build(Recipe.parse(plain))
    assert caught.value.code == "recipe.unused_option"
    plain["merge"] = {"methods": ["linear", "chat_vector"]}
    with pytest.raises(UserError) as caught:
        build(Recipe.parse(plain))
    assert caught.value.code == "usage.missing_model"


def test_the_report_shows_methods_side_by_side(done: tuple[Path, Asked]) -> None:
    report = done[0] / "report"
    text, page = (report / "report.md").read_text(), (report / "index.html").read_text()
    lines = [line for line in (report / "methods.md").read_text().splitlines() if line.startswith("|")]
    first = [line.split("|")[2].strip() for line in lines[2:]]
    assert [name.replace("\\_", "_") for name in first] == ["base", "tuned", *METHODS]
    assert "±" in lines[3]
    assert "±" not in lines[2]
    assert "±" not in lines[-1]
    for found in (text, page):
        assert all(heading in found for heading in ("In pairs", "By category", "Cost", "over-refusal"))
    assert all((report / f"{name}.tex").is_file() for name in ("methods", "series", "paired", "categories", "cost"))
    assert (report / "figure2.png").is_file()
    assert (report / "figure3.csv").is_file()
    assert len((report / "points.csv").read_text().splitlines()) > 4 * 22


def test_methods_are_compared_in_pairs_model_by_model(done: tuple[Path, Asked]) -> None:
    rows = (done[0] / "report" / "paired.csv").read_text().splitlines()
    between = [row for row in rows if '"linear' in row and '"slerp' in row]
    assert len(between) == 2 * 3  # ASR and the task score of three tuned models


def test_a_finished_comparison_does_nothing(done: tuple[Path, Asked], data: Path, models: Path) -> None:
    before = (done[0] / "report" / "results.json").read_bytes()
    again = Asked()
    outcome = Run(Recipe.parse(recipe(data, models, done[0])), engine=again).execute()
    assert not outcome.worked
    assert not again.engines
    assert outcome.choice is None
    assert outcome.model is None
    assert outcome.verdict is None
    assert outcome.choices.keys() == outcome.verdicts.keys()
    assert len(outcome.choices) == 10
    mooring.report(done[0])
    assert (done[0] / "report" / "results.json").read_bytes() == before


def test_the_plan_counts_every_model_once(data: Path, models: Path, tmp_path: Path) -> None:
    parsed = Recipe.parse(recipe(data, models, tmp_path / "run"))
    stages = dict(mooring.plan(parsed).stages[:3]) | {
        what.partition(":")[0]: what for name, what in mooring.plan(parsed).stages if name == "generate"
    }
    every = "linear, slerp, dare_linear at λ = 0.3, 0.6; model_stock of all tuned models (10 series, each asked once)"
    assert stages["merge"] == every
    assert stages["validation"].startswith("validation: 23 models × (4 safety + 4 task) = 184 ")
    assert stages["test"].startswith("test: 14 models × ")
    assert Recipe.parse(yaml.safe_load(parsed.dump())) == parsed


def test_the_command_line_shows_the_tables(
    done: tuple[Path, Asked], data: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render.outcome(Run(Recipe.parse(recipe(data, models, done[0])), engine=Asked()).execute())
    shown = capsys.readouterr().out
    assert "model_stock" in shown
    assert "of 10 keep the bound" in " ".join(shown.split())
    assert str(done[0] / "report" / "index.html") in shown.replace("\n", "")


@pytest.mark.slow
def test_another_method_asks_only_its_own_points(data: Path, models: Path, tmp_path: Path) -> None:
    first, more = Asked(), Asked()
    plain = recipe(data, models, tmp_path / "run", methods=["linear", "slerp"])
    Run(Recipe.parse(plain), engine=first).execute()
    plain["merge"]["methods"] = ["linear", "slerp", "task_arithmetic"]
    Run(Recipe.parse(plain), engine=more).execute()
    assert {point.series.method for point in more.engines if isinstance(point, SeriesPoint)} == {"task_arithmetic"}
    assert len(more.engines) == 6


@pytest.mark.slow
def test_a_stopped_comparison_goes_on(data: Path, models: Path, tmp_path: Path, done: tuple[Path, Asked]) -> None:
    class StoppedError(Exception):
        pass

    asked = Asked()

    def stops(point: MergePoint) -> ScriptedEngine:
        if len(asked.engines) == 9:
            raise StoppedError
        return asked(point)

    parsed = Recipe.parse(recipe(data, models, tmp_path / "run"))
    with pytest.raises(StoppedError):
        Run(parsed, engine=stops).execute()
    Run(parsed, engine=(rest := Asked())).execute()
    for point in asked.counts.keys() & rest.counts.keys():  # its other sets, or the test split
        assert not asked.counts[point].keys() & rest.counts[point].keys()
    own, other = ((folder / "report" / "results.json").read_bytes() for folder in (tmp_path / "run", done[0]))
    assert own == other


def test_masks_of_one_tuned_model_are_models_of_their_own(data: Path, models: Path, tmp_path: Path) -> None:
    plain = recipe(data, models, tmp_path / "run", methods=["linear", "dare_linear"], seeds=[1, 2])
    plain["tuned"] = str(models / "seed1")
    Run(Recipe.parse(plain), engine=(asked := Asked())).execute()
    masks = {point.series.seed for point in asked.engines if isinstance(point, SeriesPoint)}
    assert masks == {None, 1, 2}
    assert TUNED in asked.engines
    table = (tmp_path / "run" / "report" / "methods.md").read_text()
    assert "mask 1, mask 2" in table
    assert "±" in table


def test_the_paper_takes_each_series_as_a_run(done: tuple[Path, Asked], tmp_path: Path) -> None:
    paper = mooring.paper(done[0].parent, tmp_path / "paper")
    assert paper.runs == 10
    assert not paper.notes
    assert "model_stock" in (tmp_path / "paper" / "table2.csv").read_text()


def test_a_comparison_has_no_single_choice(done: tuple[Path, Asked]) -> None:
    with pytest.raises(DataError) as caught:
        mooring.select(done[0])
    assert caught.value.code == "data.comparison"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"merge": {"method": "model_stock"}, "tuned": "a"}, "recipe.conflict"),
        ({"merge": {"methods": ["linear", "linear"]}}, "recipe.bad_value"),
        ({"merge": {"methods": ["linear", "slerp"], "seeds": [1, 2]}}, "recipe.conflict"),
        ({"merge": {"method": "dare_linear", "density": 1.0}, "tuned": "a"}, "recipe.conflict"),
        ({"select": {"search": "bisect"}}, "recipe.conflict"),
        ({"tuned": ["a", "a"]}, "recipe.conflict"),
        ({"select": {"corrected": True}}, "recipe.conflict"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"base": "b", "tuned": ["a", "c"], **changes})
    assert caught.value.code == code


def test_an_option_that_no_method_takes_is_refused(data: Path, models: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build(Recipe.parse(recipe(data, models, tmp_path / "run", methods=["linear", "slerp"], density=0.3)))
    assert caught.value.code == "recipe.unused_option"


@pytest.mark.slow
def test_real_models_answer_as_their_merges_on_disk(data: Path, models: Path, tmp_path: Path) -> None:
    """One model in memory becomes every method at every λ of every tuned model, bit for bit what `merge` writes."""
    plain = recipe(data, models, tmp_path / "run")
    outcome = mooring.run(Recipe.parse(plain))
    assert outcome.worked
    assert len(outcome.choices) == 10
    for series, tuned, options in (
        ("slerp-seed2-lam-0.6", [models / "seed2"], {"lam": 0.6, "method": "slerp"}),
        ("dare_linear-seed3-lam-0.3", [models / "seed3"], {"lam": 0.3, "method": "dare_linear", "seed": 42}),
        ("model_stock", [models / name for name in SEEDS], {"method": "model_stock"}),
    ):
        merged = mooring.merge(models / "base", tuned, out=tmp_path / series, **options)  # type: ignore[arg-type]
        prompts = data / "task.jsonl"
        kept = (tmp_path / "run" / "completions" / series / "task-validation.jsonl").read_text().splitlines()
        own = mooring.generate(
            merged,
            str(prompts),
            out=tmp_path / f"{series}.jsonl",
            kind="task",
            max_tokens=4,
            dtype="float32",
            device="cpu",
        )
        texts = {completion.prompt_id: completion.text for completion in own}
        found = [json.loads(line) for line in kept]
        assert found
        assert all(texts[row["prompt_id"]] == row["text"] for row in found)


def test_each_of_two_tuned_models_is_a_point(data: Path, models: Path, tmp_path: Path) -> None:
    two = recipe(data, models, tmp_path / "out") | {"tuned": [str(models / name) for name in SEEDS[:2]]}
    points = build(Recipe.parse(two)).tuned_points
    assert [str(point.series.tuned) for point in points] == list(SEEDS[:2])
    assert all(point.is_tuned for point in points)
