"""λ by module in a report: what was tried, what was taken, and no number of the one under the other's name."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
import rich.console
from report_sample import results, score

from mooring.errors import DataError
from mooring.merge_point import MergePoint
from mooring.records import Attempt, ByModule, GradientSearch, SearchLosses, Trial
from mooring.reporting import figures, model_card, page, tables
from mooring.reporting.page import data
from mooring.reporting.render import as_terminal
from mooring.reporting.results import Answer, Results, check, dumps, load
from mooring.reporting.tables import category_table, summary_table

MODULES = {"early attention": 0.6, "early mlp": 0.4, "late mlp": 0.2}


def merged(split: str, task: float, asr: float, modules: dict[str, float] | None = None) -> Trial:
    scores = {
        "call_match": dataclasses.replace(score("call_match", task), each={f"c{i}": float(i < 3) for i in range(4)}),
        "asr": score("asr", asr),
    }
    return Trial(point=MergePoint(0.4, modules or {}), method="linear", split=split, scores=scores)  # type: ignore[arg-type]


def searched(chosen: int | None = 0, name: str = "early attention") -> Results:
    """A report of a search that tried two merges."""
    modules = {name: 0.6, "early mlp": 0.4, "late mlp": 0.2}
    made = results()
    tried = [
        Attempt(trial=merged("validation", 0.66, 0.014, modules), upper=0.061, within=True, beats=True),
        Attempt(trial=merged("validation", 0.7, 0.2, {"late mlp": 0.6}), upper=None, within=False, beats=False),
    ]
    single = next(t for t in made.trials if (t.split, t.point) == ("validation", MergePoint(0.4)))
    found = ByModule(
        single=single,
        groups=list(modules),
        budget=2,
        confidence=0.995,
        tried=tried,
        chosen=chosen,
        sentence="λ by module <b>beats</b> it.",
        test=None if chosen is None else merged("test", 0.675, 0.017, modules),
    )
    point = MergePoint(0.4, modules if chosen is not None else {})
    rows = [
        dataclasses.replace(
            row, answers={**row.answers, point.key: Answer(response="x", verdict="refused", good=row.id != "h0")}
        )
        for row in made.rows
    ]
    choice = dataclasses.replace(made.choice, point=point, confidence=0.96, upper={"0.4": 0.063})
    return dataclasses.replace(made, by_module=found, choice=choice, rows=rows if point.by_module else made.rows)


def test_the_merged_column_is_what_was_taken_and_is_named_so() -> None:
    found = searched()
    summary = summary_table(found)
    assert summary.columns[3].heading == "merged (λ by module)"
    assert {row[0].split("\u00a0")[0]: row[3] for row in summary.text_rows}["call match"].startswith("67.5 %")
    assert found.score("merged", "asr", "validation") == score("asr", 0.014)
    categories = category_table(found)
    assert categories is not None
    assert [row[-1] for row in categories.text_rows] == ["1 / 3", "0 / 3"]  # of the answers of λ by module
    plain = searched(None)
    assert summary_table(plain).columns[3].heading == "merged (λ = 0.4)"
    assert plain.score("merged", "call_match") == score("call_match", 0.62)


def test_the_table_of_what_was_tried_begins_with_the_single_lambda() -> None:
    table = tables.tried_table(searched())
    assert table is not None
    assert [row[0] for row in table.text_rows] == [
        "single λ = 0.4", "early attention 0.6, late mlp 0.2, else 0.4, taken", "late mlp 0.6, else 0.4",
    ]  # fmt: skip
    assert [row[3] for row in table.text_rows] == ["6.3 %", "6.1 %", "–"]
    assert [row[5] for row in table.text_rows] == ["", "yes", "no"]
    assert "99.5 %" in table.columns[3].heading
    assert tables.tried_table(results()) is None


def test_what_was_taken_stands_beside_the_single_lambda_on_test() -> None:
    table = tables.module_test_table(searched())
    assert table is not None
    cells = {row[0]: row[1:] for row in table.text_rows}
    assert cells["call match"][0].startswith("62.0 %")
    assert cells["call match"][1].startswith("67.5 %")
    assert tables.module_test_table(searched(None)) is None


def test_a_metric_with_a_sign_in_its_name_stands_on_test_too_and_one_judges_own_does_not() -> None:
    found = searched()
    assert found.by_module is not None
    assert found.by_module.test is not None

    def more(trial: Trial) -> Trial:
        names = ("pass@1", "lm_eval:bbh", "asr@rules", "lm_eval:bbh/one")
        others = {name: dataclasses.replace(trial.scores["asr"], name=name) for name in names}
        return dataclasses.replace(trial, scores={**trial.scores, **others})

    single = [more(t) if (t.point, t.split) == (MergePoint(0.4), "test") else t for t in found.trials]
    taken = dataclasses.replace(found.by_module, test=more(found.by_module.test))
    table = tables.module_test_table(dataclasses.replace(found, trials=single, by_module=taken))
    assert table is not None
    assert [row[0] for row in table.text_rows] == ["call match", "attack success rate", "pass@1", "bbh"]


def test_numbers_are_aligned_to_the_right_and_words_to_the_left() -> None:
    tried, tested = tables.tried_table(searched()), tables.module_test_table(searched())
    assert tried is not None
    assert tested is not None
    numeric = [[column.numeric for column in table.columns] for table in (tried, tested, summary_table(searched()))]
    assert numeric == [
        [False, True, True, True, False, False], [False, True, True, True], [False, True, True, True, True, False],
    ]  # fmt: skip


def test_what_was_taken_answers_in_the_page_after_the_last_lambda() -> None:
    shown = data.explorer(searched())
    assert shown["taken"] == "λ by module (early attention 0.6, late mlp 0.2, else 0.4)"
    assert {row[5][-1][0] for row in shown["rows"]} == {len(shown["lams"])}
    assert [shown["texts"][row[5][-1][1]] for row in shown["rows"]] == ["x"] * len(shown["rows"])
    assert data.explorer(searched(None))["taken"] is None


@pytest.mark.parametrize("part", ["single", "test"])
def test_a_number_of_it_that_contradicts_itself_is_refused(part: str) -> None:
    found = searched()
    check(found)
    assert found.by_module is not None
    trial = getattr(found.by_module, part)
    asr = dataclasses.replace(trial.scores["asr"], value=0.9)
    odd = dataclasses.replace(trial, scores={**trial.scores, "asr": asr})
    edited = dataclasses.replace(found.by_module, **{part: odd})
    with pytest.raises(DataError) as caught:
        check(dataclasses.replace(found, by_module=edited))
    assert caught.value.code == "data.edited_results"


def test_every_form_of_the_report_says_whether_it_did() -> None:
    found = searched()
    html, text, readme = page.as_html(found), page.as_markdown(found), model_card.run_card(found)
    assert '<h2 id="by-module">λ by module</h2>' in html
    assert "λ by module &lt;b&gt;beats&lt;/b&gt; it." in html
    assert "## λ by module\n\nλ by module \\<b\\>beats\\</b\\> it." in text
    assert "The merged model is at λ by module (early attention 0.6, late mlp 0.2, else 0.4): λ is the weight" in html
    assert "Ringed: the single λ = 0.4, around which λ by module was chosen." in text
    assert "**λ by module (early attention 0.6, late mlp 0.2, else 0.4)**, the weight" in readme
    assert "λ = 0.4, the best single λ" in data.explorer(found)["lams"]
    assert "chosen" not in " ".join(data.explorer(found)["lams"])
    assert "by-module" not in page.as_html(results())


def test_the_figures_show_what_was_taken_as_a_star_and_call_no_single_lambda_reported() -> None:
    found = searched()
    for axes, name in zip(figures.tradeoff(found).axes, ("call_match", "asr"), strict=True):
        handles, labels = axes.get_legend_handles_labels()
        assert "test (reported)" not in labels
        star = handles[labels.index("test, λ by module")][0]
        taken = found.score("merged", name)
        assert taken is not None
        assert taken.value is not None
        assert list(star.get_ydata()) == pytest.approx([100 * taken.value])
    (star,) = (line for line in figures.plane(found).axes[0].lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == pytest.approx((1.4, 66.0))
    assert "Star: λ by module, which was taken, on the test split." in page.caption(found)
    plain = searched(None)
    assert "Star" not in page.as_html(plain)
    assert not [line for line in figures.plane(plain).axes[0].lines if line.get_marker() == "*"]


def by_gradient() -> Results:
    """A report of a search by gradient that was taken."""
    made = searched()
    assert made.by_module is not None
    lams = {f"layer {i} mlp": i / 100 for i in range(1, 31)}
    gradient = GradientSearch(
        point=MergePoint(0.4, lams),
        groups=list(lams),
        lams=list(lams.values()),
        single=SearchLosses(task=1.25, harmful=0.5),
        found=SearchLosses(task=1.0, harmful=0.25),
        evaluations=7,
        sentence="So.",
    )
    return dataclasses.replace(made, by_module=dataclasses.replace(made.by_module, gradient=gradient))


def test_a_search_by_gradient_shows_its_losses_and_the_lambda_of_each_group() -> None:
    found = by_gradient()
    losses, groups = tables.gradient_table(found), tables.group_table(found)
    assert losses is not None
    assert groups is not None
    assert [row[1:] for row in losses.text_rows] == [["1.25", "1"], ["0.5", "0.25"]]  # no ordinary requests
    assert groups.text_rows[0] == ["layer 1 mlp", "0.01"]
    assert len(groups.text_rows) == 30
    tried = tables.tried_table(found)
    assert tried is not None
    assert tried.columns[-1].heading == "better task score"
    text = page.as_markdown(found)
    assert "| layer 30 mlp | 0.3 |" in text
    assert "that a lead there is no evidence" in text
    assert "layer 30 mlp" in page.as_html(found)
    assert (tables.gradient_table(searched()), tables.group_table(searched())) == (None, None)


def test_in_a_terminal_of_80_columns_a_merge_takes_two_lines_at_most() -> None:
    table = tables.tried_table(searched())
    assert table is not None
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(as_terminal(table))
    shown = console.export_text().splitlines()
    assert max(map(len, shown)) <= 80
    (single,) = [" ".join(line.split()) for line in shown if "61.0 %" in line]
    assert single == "single λ = 0.4 61.0 % 2.9 % 6.3 % yes"  # no column is cut
    lines = [line.split("  ")[0].strip() for line in shown]
    place = lines.index("single λ = 0.4")
    assert lines[place + 1 : place + 4] == [
        "early attention 0.6, late mlp", "0.2, else 0.4, taken", "late mlp 0.6, else 0.4",
    ]  # fmt: skip


def test_a_group_with_a_hostile_name_adds_no_markup() -> None:
    found = searched(name="<img src=x>\u202e|*")
    assert "<img" not in page.as_html(found)
    for text in (page.as_markdown(found), model_card.run_card(found).split("---", 2)[2]):
        assert "<img" in text
        assert "<img" not in text.replace("\\<img", "")  # each is escaped


@pytest.mark.parametrize("chosen", [0, None])
def test_results_are_read_as_they_were_written(tmp_path: Path, chosen: int | None) -> None:
    path = tmp_path / "results.json"
    path.write_text(dumps(searched(chosen)))
    again = load(path)
    assert dumps(again) == path.read_text()
    assert again.by_module is not None
    assert again.by_module.chosen == chosen
    assert json.loads(path.read_text())["by_module"]["budget"] == 2


def test_a_choice_of_what_was_never_tried_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    edited = json.loads(dumps(searched()))
    edited["by_module"]["chosen"] = 7
    path.write_text(json.dumps(edited))
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.code == "data.bad_results"
