"""The numbers in the tables are those of the trials."""

import dataclasses
import io
from typing import Any

import pytest
from report_sample import results, score, trials
from rich.console import Console

from mooring.merge_point import MergePoint
from mooring.records import Choice, Trial
from mooring.reporting.render import as_csv, as_latex, as_markdown, as_terminal
from mooring.reporting.results import Answer, Row
from mooring.reporting.tables import (
    Count,
    Table,
    agreement_table,
    category_table,
    columns,
    detail_table,
    summary_table,
)
from mooring.text import name_of, score_number


def row(label: str, **changes: object) -> list[str]:
    rows = {cells[0].partition("\u00a0")[0]: list(cells) for cells in summary_table(results(**changes)).text_rows}
    return rows[label]


def test_the_cells_are_the_scores_of_the_test_split() -> None:
    table = summary_table(results())
    assert [column.heading for column in table.columns[1:4]] == ["base (λ = 0)", "tuned (λ = 1)", "merged (λ = 0.4)"]
    asr = {t.point.role: t.scores["asr"] for t in trials() if t.split == "test"}
    cells = row("attack success rate")
    for cell, model in zip(cells[1:4], ("base", "tuned", "merged"), strict=True):
        s = asr[model]
        assert cell == f"{100 * s.value:.1f} % [{100 * s.low:.1f}, {100 * s.high:.1f}]"
    assert cells[4:] == ["70", "refusal rules"]
    assert row("response loss (nats)")[3].startswith("0.134 [0.067, 0.201]")


def test_arrows_show_which_way_is_good() -> None:
    arrows = [cells[0][-1] for cells in summary_table(results()).text_rows[:6]]
    assert arrows == ["↓", "↑", "↓", "↓", "↑", "↓"]


def test_the_gains_are_shown() -> None:
    assert row("gain kept: call match")[1:5] == ["0 %", "100 %", "74 % [66, 83]", "100"]
    hidden = row("gain kept: response loss")
    assert hidden[1:4] == ["–", "–", "–"]
    assert hidden[5] == "tuning gained nothing to keep"


def test_what_was_not_measured_or_is_undefined_is_said_so() -> None:
    undefined = Trial(point=MergePoint(0.4), method="linear", split="test", scores={"asr": score("asr", None)})
    base = next(t for t in trials() if t.point.role == "base" and t.split == "test")
    cells = row("attack success rate", trials=[base, undefined])
    assert cells[2:4] == ["–", "undefined"]
    assert row("call match", trials=[base, undefined])[3] == "–"


def test_different_counts_are_all_shown() -> None:
    changed = [
        dataclasses.replace(
            t, scores={"asr": dataclasses.replace(t.scores["asr"], n=69 if t.point.role == "tuned" else 70)}
        )
        for t in trials()
    ]
    assert row("attack success rate", trials=changed)[4] == "70 / 69"


def test_the_merged_column_follows_the_choice() -> None:
    other = Choice(point=MergePoint(0.8), within=True, bound=0.1, metric="call_match", reason="")
    extra = dataclasses.replace(next(t for t in trials() if t.point.lam == 0.8), split="test")
    assert row("call match", choice=other, trials=[*trials(), extra])[3].startswith("79.0 %")


def test_judges_beside_each_other() -> None:
    table = agreement_table(results().agreement)
    assert table is not None
    assert table.text_rows == [["attack success rate", "wildguard and rules", "0.81", "190 / 210", "2"]]
    assert agreement_table(()) is None


def test_names_of_sets_judges_and_tasks() -> None:
    assert name_of("asr:hex-phi") == "attack success rate, hex-phi"
    assert name_of("over_refusal@rules") == "over-refusal (look-alikes), by rules"
    assert name_of("asr:advbench@rules") == "attack success rate, advbench, by rules"
    assert name_of("pass@10") == "pass@10"
    assert name_of("lm_eval:bbh/navigate") == "bbh/navigate"


def test_the_tasks_of_a_group_have_a_table_of_their_own() -> None:
    def with_group(trial: Trial) -> Trial:
        scores = {
            n: dataclasses.replace(score("call_match", 0.5), name=n) for n in ("lm_eval:bbh", "lm_eval:bbh/snarks")
        }
        return dataclasses.replace(trial, scores={**trial.scores, **scores})

    made = results(trials=[with_group(t) for t in trials()])
    table = detail_table(made)
    assert table is not None
    assert [row[0] for row in table.rows] == ["bbh/snarks"]
    shown = [cells[0] for cells in summary_table(made).text_rows]
    assert "bbh\u00a0↑" in shown
    assert not [name for name in shown if "snarks" in name]
    assert detail_table(results()) is None


def test_categories_are_counted_from_the_answers() -> None:
    def asked(category: str | None, measure: str, *marks: bool | None, split: Any = "test") -> Row:
        answers = {m: Answer(response="", verdict="", good=g) for m, g in zip(("0", "1", "0.4"), marks, strict=False)}
        return Row(id="x", measure=measure, split=split, prompt="", category=category, answers=answers)

    rows = [
        asked("fraud", "asr", True, False, True),
        asked("fraud", "asr", True, False, None),
        asked("arms", "asr", True, True, False),
        asked("time", "call_match", False, True),
        asked("fraud", "asr", False, False, False, split="validation"),
        asked(None, "asr", False, False, False),
    ]
    table = category_table(results(rows=rows))
    assert table is not None
    assert table.text_rows == [
        ["attack success rate", "arms", "0 / 1", "0 / 1", "1 / 1"],
        ["attack success rate", "fraud", "0 / 2", "2 / 2", "0 / 1"],
        ["call match", "time", "0 / 1", "1 / 1", "–"],
    ]
    assert category_table(results(rows=rows[-1:])) is None


@pytest.mark.parametrize("text", ["a|b", "a\nb", "a\r\nb", "a\\|b", "<b>", "`x`", "[x](y)", "a\u2028b"])
def test_markdown_cells_keep_the_table_whole(text: str) -> None:
    lines = as_markdown(Table("", columns(("one", "two")), [(text, "end")])).split("\n")
    assert len(lines) == 3
    # A pipe is a border unless an odd number of backslashes stands before it.
    borders = [i for i, c in enumerate(lines[2]) if c == "|" and _backslashes(lines[2], i) % 2 == 0]
    assert len(borders) == 3
    assert not {"<b>", "`x`", "[x]"} & {text} or text not in lines[2]


def _backslashes(line: str, index: int) -> int:
    return len(line[:index]) - len(line[:index].rstrip("\\"))


def test_the_terminal_table_fits_in_80_columns_and_cuts_nothing() -> None:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(as_terminal(summary_table(results())))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for text in ("53.9 %", "[42.2, 65.6]", "n = 70, refusal rules", "[0.535, 0.725]", "74 %"):
        assert text in shown


def test_every_format_has_the_same_cells() -> None:
    table = Table(
        "50 % of {all}", columns(["name"], ["asr", "share"]), [["a & b", score_number(score("asr", 0.1)), Count(1, 2)]]
    )
    shown = "10.0 % [3.0, 17.0]"
    assert table.text_rows == [["a & b", shown, "1 / 2"]]
    assert table.to_rows()[0] | {"asr": 0.1} == table.to_rows()[0]  # rates are from 0 to 1 in Python
    assert shown.replace("[", r"\[").replace("]", r"\]") in as_markdown(table)
    assert r"a \& b & 10.0 \% {[}3.0, 17.0{]} & 1 / 2 \\" in as_latex(table, "x")
    assert r"\caption{50 \% of \{all\}}" in as_latex(table, "x")
    assert as_csv(Table("", columns(["a", "b", "c"]), [["=1", None, 0.123456789]])) == "a,b,c\n'=1,,0.123457\n"
