"""Models in pairs: which stand beside which, on which prompts, and what the numbers are."""

import csv
import dataclasses
import io
from pathlib import Path

import pytest

from mooring.merge_point import MergePoint
from mooring.reporting.paper.figures import all_figures
from mooring.reporting.paper.paired import pairs, to_numbers, to_table
from mooring.reporting.paper.runs import Run, as_run, grouped
from mooring.reporting.paper.write import write_paper
from mooring.reporting.render import as_csv, as_latex, as_markdown
from mooring.reporting.results import Answer, Results, Row, dumps
from mooring.stats import compare_rates, compare_scores

from .conftest import found  # type: ignore[import-not-found]

PROMPTS = 40


def answered(results: Results, safe: dict[str, int], *, ids: str = "h", misses: int = 0) -> Results:
    """Results with an answer to each harmful prompt: at λ the first `safe[λ]` prompts are answered safely."""

    def answer(place: int, count: int) -> Answer:
        good = None if place < misses else place < count
        return Answer(response="…", verdict="refused" if good else "answered", good=good)

    rows = [
        Row(
            id=f"{ids}{place}",
            measure="asr",
            split="test",
            prompt="?",
            answers={lam: answer(place, count) for lam, count in safe.items()},
        )
        for place in range(PROMPTS)
    ]
    return dataclasses.replace(results, rows=rows)


def scored(results: Results, right: dict[float, int]) -> Results:
    """Results whose call match is known prompt by prompt."""
    trials = []
    for trial in results.trials:
        scores = dict(trial.scores)
        if trial.split == "test" and trial.point.lam in right:
            each = {f"t{place}": float(place < right[trial.point.lam]) for place in range(20)}
            scores["call_match"] = dataclasses.replace(scores["call_match"], each=each)
        trials.append(dataclasses.replace(trial, scores=scores))
    return dataclasses.replace(results, trials=trials)


def run(name: str, safe: dict[str, int], right: dict[float, int], **settings: object) -> Run:
    return as_run(name, scored(answered(found(name, **settings), safe), right))


LINEAR = ({"0": 39, "0.4": 38, "1": 15}, {0.0: 2, 0.4: 14, 1.0: 18})


def test_a_run_is_compared_with_its_own_tuned_model_and_base() -> None:
    made = pairs(grouped([run("a", *LINEAR)])[0])
    assert [(pair.first, pair.second) for pair in made] == [("tuned", "linear, λ = 0.4"), ("base", "linear, λ = 0.4")]
    harmful = {lam: {f"h{n}": n >= count for n in range(PROMPTS)} for lam, count in LINEAR[0].items()}
    right = {lam: {f"t{n}": float(n < count) for n in range(20)} for lam, count in LINEAR[1].items()}
    assert made[0].rate == compare_rates(harmful["1"], harmful["0.4"])
    assert made[0].score == compare_scores(right[1.0], right[0.4])
    assert (made[0].rate.worse, made[0].rate.better) == (0, 23)
    assert made[0].rate.value == -23 / 40
    assert made[0].score.value == -0.2  # the merged model has 4 of 20 fewer right
    assert made[1].rate.value == 1 / 40
    assert made[1].score.value == 12 / 20


def test_of_several_tuned_models_of_one_seed_each_stands_beside_itself() -> None:
    def made(name: str, tuned: str, **settings: object) -> Run:
        return run(name, *LINEAR, tuned=tuned, **settings)

    runs = [made("a", "1"), made("b", "2"), made("c", "2", method="slerp"), made("d", "3", method="slerp")]
    between = [pair for pair in pairs(grouped(runs)[0]) if pair.first.startswith("linear") and "slerp" in pair.second]
    assert len(between) == 1  # of the tuned model 2; nothing stands beside 3
    alone = pairs(grouped([made("a", "1"), made("c", "2", method="slerp")])[0])
    assert len(alone) == 5  # tuned twice by one recipe and seed, on machines whose bits differ


def test_a_figure_calls_no_lambda_chosen_around_which_lambda_by_module_was_taken() -> None:
    plain = as_run("a", found("a"))
    point = MergePoint(plain.results.choice.point.lam, {"late mlp": 0.2})
    choice = dataclasses.replace(plain.results.choice, point=point)
    taken = as_run("b", dataclasses.replace(plain.results, choice=choice))
    for one, more in ((plain, ""), (taken, ", or the single λ around which λ by module was chosen")):
        captions = [figure.caption for figure in all_figures(grouped([one])[0], one.base)]
        assert len(captions) == 2
        assert all(f"Ringed: the chosen λ{more}." in caption for caption in captions)


def test_methods_stand_beside_linear_seed_by_seed_where_they_measured_alike() -> None:
    other = ({"0": 39, "0.4": 30, "1": 15}, {0.0: 2, 0.4: 16, 1.0: 18})
    runs = [
        run("slerp", *other, method="slerp"),
        run("linear", *LINEAR),
        run("slerp 2", *other, method="slerp", seed=7),  # linear has no such seed
        run("ties", *other, method="ties", limit=9),  # asked otherwise
    ]
    made = [pair for pair in pairs(grouped(runs)[0]) if pair.first not in ("base", "tuned")]
    assert [(pair.seed, pair.first, pair.second) for pair in made] == [(42, "linear, λ = 0.4", "slerp, λ = 0.4")]
    assert (made[0].rate.worse, made[0].rate.better, made[0].rate.value) == (8, 0, 0.2)
    assert made[0].rate.p == pytest.approx(2 / 2**8)


def test_other_prompts_are_never_compared_and_misses_are_left_out() -> None:
    same = as_run("a", answered(found("a"), LINEAR[0], misses=5))
    other = as_run("b", answered(found("b", method="slerp"), LINEAR[0], ids="other"))
    made = pairs(grouped([same, other])[0])
    assert [pair.second for pair in made] == ["linear, λ = 0.4"] * 2 + ["slerp, λ = 0.4"] * 2
    assert {pair.rate.n for pair in made[:2]} == {PROMPTS - 5}
    assert {pair.score for pair in made} == {None}  # call match was not kept prompt by prompt
    assert pairs(grouped([as_run("c", found("c"))])[0]) == []  # no answers


def test_the_three_forms_say_the_same() -> None:
    made = pairs(grouped([run("a", *LINEAR)])[0])
    rows = list(csv.DictReader(io.StringIO(as_csv(to_numbers(made)))))
    assert [(row["from"], row["measure"], row["difference"]) for row in rows] == [
        ("tuned", "asr", "-0.575"),
        ("tuned", "call_match", "-0.2"),
        ("base", "asr", "0.025"),
        ("base", "call_match", "0.6"),
    ]
    assert (rows[0]["became_unsafe"], rows[0]["became_safe"], rows[1]["p"]) == ("0", "23", "")
    for text in (
        as_markdown(to_table(made)).replace("\\[", "["),
        as_latex(to_table(made), "x").replace("$-$", "−").replace("{[}", "[").replace("{]}", "]"),
    ):
        assert "−57.5 [" in text
        assert "0 / 23 of 40" in text
        assert "+60.0 [" in text
    assert "< 0.001" in as_latex(to_table(made), "x").replace(r"\textless{}", "<")


def test_the_paper_folder_holds_them_and_drops_them_when_there_are_none(tmp_path: Path) -> None:
    report = tmp_path / "runs" / "a" / "report"
    report.mkdir(parents=True)
    (report / "results.json").write_text(dumps(scored(answered(found("a"), LINEAR[0]), LINEAR[1])))
    made = write_paper(tmp_path / "runs", tmp_path / "out")
    assert {"paired.md", "paired.tex", "paired.csv"} <= set(made.files)
    assert "0 / 23 of 40" in (tmp_path / "out" / "paper.md").read_text()
    (report / "results.json").write_text(dumps(found("a")))
    made = write_paper(tmp_path / "runs", tmp_path / "out")
    assert not {"paired.md", "paired.tex", "paired.csv"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert "In pairs" not in (tmp_path / "out" / "paper.md").read_text()
