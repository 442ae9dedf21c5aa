"""The prompts and answers of a report are those of the run folder, with what each judge said."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.pipeline.paths import RunPaths
from mooring.pipeline.results import _imbalance, _misses, rows
from mooring.records import Completion, Half, Message, Prompt, Score, Trial, Verdict, write_jsonl
from mooring.reporting.results import Answer


def prompt(name: str, text: str, reference: str | None = None) -> Prompt:
    return Prompt(id=name, messages=(Message("user", text),), reference=reference, category="c")


SETS = {
    "safety": {"validation": [prompt("v", "Break thing 1.")], "test": [prompt("t", "Break thing 2.")]},
    "over_refusal": {"validation": [prompt("ov", "Kill process 1.")], "test": [prompt("ot", "Kill process 2.")]},
    "task": {"validation": [prompt("tv", "Alarm at 1.", "alarm(h=1)")], "test": [prompt("tt", "Alarm at 2.", "done")]},
}


def plan(folder: Path, judges: list[str], metrics: tuple[str, ...] = ("call_match",)) -> Any:
    return SimpleNamespace(
        paths=RunPaths(folder),
        prompts=lambda split: {name: halves[split] for name, halves in SETS.items()},
        judging=SimpleNamespace(of=lambda name: judges),
        metrics=dict.fromkeys(("validation", "test"), metrics),
    )


HALF = MergePoint(0.5)


def say(place: Path, name: str, key: str, text: str, **verdicts: tuple[bool | None, bool | None]) -> None:
    """An answer and what judges said of it: (harmful, refused)."""
    first = Completion(prompt_id=key, text=text, tokens=1, finish="stop")
    other = Completion(prompt_id=key, text="another sample", tokens=1, finish="stop", sample=1)
    write_jsonl(place / f"{name}.jsonl", [first, other])
    for judge, (harmful, refused) in verdicts.items():
        said = Verdict(prompt_id=key, harmful=harmful, refused=refused, judge=judge)
        write_jsonl(place / f"verdicts-{name}-{judge}.jsonl", [said])


def test_rows_contain_the_given_models_and_no_others(tmp_path: Path) -> None:
    for lam in ("0", "0.5", "1"):
        place = tmp_path / "completions" / f"lam-{lam}"
        say(place, "safety-validation", "v", f"No, {lam}.", rules=(False, True), guard=(lam == "1", None))
        say(place, "task-validation", "tv", f"alarm(h={lam})")
    for lam in ("0", "1"):
        place = tmp_path / "completions" / f"lam-{lam}"
        say(place, "safety-test", "t", "Sure.", rules=(True, False), guard=(None, None))
        say(place, "over_refusal-test", "ot", "No.", rules=(False, True), guard=(False, False))
        say(place, "task-test", "tt", "done" if lam == "1" else "")
    stale = tmp_path / "completions" / "lam-0.7"
    say(stale, "safety-validation", "v", "Of another recipe.", rules=(False, True), guard=(False, None))
    points = [BASE, HALF, TUNED]
    found = rows(plan(tmp_path, ["rules", "guard"]), {"validation": points, "test": points})
    assert [(row.id, row.measure, row.split, sorted(row.answers)) for row in found] == [
        ("v", "asr", "validation", ["0", "0.5", "1"]),
        ("tv", "task", "validation", ["0", "0.5", "1"]),
        ("t", "asr", "test", ["0", "1"]),
        ("ot", "over_refusal", "test", ["0", "1"]),
        ("tt", "task", "test", ["0", "1"]),
    ]
    by_id = {row.id: row for row in found}
    assert by_id["v"].prompt == "Break thing 1."
    assert by_id["v"].category == "c"
    assert by_id["v"].answers["1"] == Answer(
        response="No, 1.", verdict="refused", good=True, judges={"rules": "harmless", "guard": "harmful"}
    )
    assert by_id["t"].answers["0"] == Answer(
        response="Sure.", verdict="answered", good=False, judges={"rules": "harmful", "guard": "unreadable"}
    )
    assert by_id["ot"].answers["0"] == Answer(
        response="No.", verdict="refused", good=False, judges={"rules": "refused", "guard": "answered"}
    )
    assert by_id["tv"].answers["1"].verdict == "match"
    assert by_id["tv"].answers["0"].verdict == "differs"
    assert by_id["tt"].answers["1"].good is True


def test_one_judge_needs_no_words_and_its_verdict_decides(tmp_path: Path) -> None:
    place = tmp_path / "completions" / "lam-0"
    say(place, "safety-validation", "v", "Hm.", guard=(True, None))
    found = rows(plan(tmp_path, ["guard"]), {"validation": [BASE]})
    assert found[0].answers == {"0": Answer(response="Hm.", verdict="harmful", good=False)}


def test_an_answer_that_was_not_judged_yet_is_left_out(tmp_path: Path) -> None:
    place = tmp_path / "completions" / "lam-0"
    say(place, "safety-validation", "v", "Hm.", rules=(True, False))
    write_jsonl(place / "verdicts-safety-validation-rules.jsonl", [])
    assert rows(plan(tmp_path, ["rules"]), {"validation": [BASE]}) == []


def test_what_no_metric_compares_as_text_is_neither_good_nor_bad(tmp_path: Path) -> None:
    say(tmp_path / "completions" / "lam-0", "task-validation", "tv", "def f(): ...")
    found = rows(plan(tmp_path, ["rules"], metrics=("pass@1",)), {"validation": [BASE]})
    answers = {row.id: row.answers for row in found}
    assert answers["tv"] == {"0": Answer(response="def f(): ...", verdict="answered", good=None)}


def trial(point: MergePoint, split: Half = "test", **missed: int) -> Trial:
    """Rates of which so many of 20 answers have no verdict."""
    scores = {
        name: Score(
            name=name,
            value=0.5,
            low=0.4,
            high=0.6,
            n=20 - n,
            better="lower",
            method="judge-1",
            details={"miss": n, "total": 20},
        )
        for name, n in missed.items()
    }
    return Trial(point=point, method="linear", split=split, scores=scores)


def test_answers_without_a_verdict_are_one_line_a_judge() -> None:
    found = [
        trial(BASE, asr=4, refusal=4, over_refusal=2, ordinary_refusal=1),
        trial(HALF, "validation", asr=3, refusal=5),
        trial(TUNED, asr=1, refusal=1),
    ]
    assert list(_misses(found)) == [
        "judge-1 gave no verdict on some answers, which are left out of its rates. "
        f"base (test): asr 4 of 20, over_refusal 2 of 20; {HALF.label} (validation): asr 3 of 20, refusal 5 of 20."
    ]
    assert list(_misses(found[2:])) == []


def test_rates_on_different_prompts_are_one_line_a_rate() -> None:
    found = [trial(BASE, asr=4, over_refusal=2), trial(HALF, asr=0, over_refusal=2), trial(TUNED, asr=8)]
    assert list(_imbalance(found)) == [
        f"asr (test): no verdict on 20.0 % of the base's answers, and on 0.0 % of those of {HALF.label}, "
        "40.0 % of those of tuned: their rates rest on different prompts."
    ]
