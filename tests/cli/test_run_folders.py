"""Run folders that are half done, of another version or edited by hand: one line, exit 2, and nothing is touched."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))

from report_sample import results

from mooring.config import Recipe
from mooring.ledger import Ledger, StepRecord, as_plain, sha256
from mooring.reporting.results import dumps

from .conftest import Run, write_task  # type: ignore[import-not-found]

Edit = Callable[[Path], object]
READERS: dict[str, tuple[str, ...]] = {
    "select": ("select", "made"),
    "report": ("report", "made"),
    "redact": ("report", "made", "--redact"),
    "paper": ("paper", "made", "--out", "tables"),
}
OUT = ("--out", "made")
RECIPE = {"base": "b", "tuned": "t", "score": {"task": "bundled:tools"}}


def changed(change: Callable[[Any], object]) -> Edit:
    """An edit of a JSON file's values."""

    def edit(path: Path) -> None:
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return edit


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


WHATEVER: dict[str, Edit] = {
    "empty": lambda p: p.write_text(""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "null": lambda p: p.write_text("null"),
    "list": lambda p: p.write_text("[]"),
    "text": lambda p: p.write_text('"text"'),
    "number": lambda p: p.write_text("7"),
    "binary": lambda p: p.write_bytes(b"\xff\xfe\x00"),
    "nested": lambda p: p.write_text("[" * 100_000),
    "folder": folder_instead,
}
RESULTS: dict[str, Edit] = {
    **WHATEVER,
    "mapping": lambda p: p.write_text("{}"),
    "dropped": changed(lambda d: d["trials"][0].pop("scores")),
    "renamed": changed(lambda d: d.update(trial=d.pop("trials"))),
    "type": changed(lambda d: d["trials"][0]["scores"]["asr"].update(value="low")),
    "nan": changed(lambda d: d["trials"][0]["scores"]["asr"].update(value=float("nan"))),
    "huge": changed(lambda d: d["choice"].update(bound=10**400)),
    "huge-count": changed(lambda d: d["choice"].update(prompts=10**40)),
    "infinite": lambda p: p.write_text(p.read_text().replace('"lam": 0.4', '"lam": 1e999', 1)),
    "twice": lambda p: p.write_text(p.read_text().replace('"lam": 0.4', '"lam": 0.4, "lam": 0.4', 1)),
    "interval": changed(lambda d: d["trials"][0]["scores"]["asr"].update(value=0.9)),
    "no-tuned": changed(lambda d: d.update(trials=[t for t in d["trials"] if t["point"]["lam"] != 1])),
    "older": changed(lambda d: d.update(format=1)),
    "newer": changed(lambda d: d.update(format=99)),
}
LEDGER: dict[str, Edit] = {
    **WHATEVER,
    "mapping": lambda p: p.write_text("{}"),
    "steps": changed(lambda d: d.update(steps=[])),
    "done": changed(lambda d: d["steps"]["report"].update(done="yes")),
    "key": changed(lambda d: d["steps"]["select"].pop("key")),
    "seconds": changed(lambda d: d["steps"]["select"].update(seconds="3")),
    "unknown": changed(lambda d: d["steps"]["select"].update(paid=True)),
}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A finished run folder with made-up numbers, its ledger without digests, as older ones are."""
    folder = tmp_path / "made"
    (folder / "report").mkdir(parents=True)
    recipe = Recipe.parse(RECIPE)
    (folder / "recipe.yaml").write_text(recipe.dump())
    found = results(recipe=recipe.model_dump(mode="json", exclude={"out"}))
    (folder / "report" / "results.json").write_text(dumps(found))
    write_ledger(folder, digests=False)
    return folder


def write_ledger(folder: Path, *, digests: bool = True, done: bool = True, judged: str = "") -> None:
    file = "report/results.json"
    report = StepRecord(label="report", key="b", done=done, files={file: sha256(folder / file)} if digests else {})
    ledger = Ledger(steps={"select": StepRecord(label="select", key="a", done=True, seconds=1.5), "report": report})
    if judged:
        judge = StepRecord(label="judge", key="c", done=True, files={judged: sha256(folder / judged)})
        ledger = Ledger(steps={**ledger.steps, "judge": judge})
    (folder / "ledger.json").write_text(json.dumps(as_plain(ledger)))


def state(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def check_refused(run: Run, command: tuple[object, ...], *words: str) -> None:
    """Exit 2, one line that says the words, and the working folder as it was."""
    before = state(Path())
    code, out, err = run(*command)
    assert (code, out.strip()) == (2, ""), err
    (line,) = err.strip().splitlines()
    assert line.startswith("mooring: made")
    for word in words:
        assert word in line
    assert state(Path()) == before


@pytest.mark.slow
@pytest.mark.parametrize("verb", READERS)
def test_a_whole_one_is_taken(run: Run, made: Path, verb: str) -> None:
    for digests in (False, True):
        write_ledger(made, digests=digests)
        code, _, err = run(*READERS[verb])
        assert code == 0, err


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("edit", RESULTS)
def test_results_that_are_something_else(run: Run, made: Path, edit: str, verb: str) -> None:
    RESULTS[edit](made / "report" / "results.json")
    check_refused(run, READERS[verb], "results.json")


@pytest.mark.parametrize("verb", READERS)
def test_results_with_another_number(run: Run, made: Path, verb: str) -> None:
    write_ledger(made)
    changed(lambda d: d["trials"][0]["scores"]["asr"].update(value=0.015))(made / "report" / "results.json")
    check_refused(run, READERS[verb], "results.json: was modified after the run wrote it")


@pytest.mark.parametrize("verb", READERS)
def test_verdicts_that_were_edited(run: Run, made: Path, verb: str) -> None:
    judged = "completions/lam-0/verdicts-safety-validation-rules.jsonl"
    (made / judged).parent.mkdir(parents=True)
    (made / judged).write_text("{}\n")
    write_ledger(made, judged=judged)
    (made / judged).write_text("{ }\n")
    check_refused(run, READERS[verb], f"{judged}: was modified after the run wrote it")
    (made / judged).unlink()  # a run's answers may be thrown away
    assert run(*READERS[verb])[0] == 0


@pytest.mark.parametrize("verb", READERS)
def test_a_ledger_that_is_a_pipe(run: Run, made: Path, verb: str) -> None:
    (made / "ledger.json").unlink(missing_ok=True)
    os.mkfifo(made / "ledger.json")
    code, _, err = run(*READERS[verb])
    assert (code, err.count("\n")) == (2, 1)
    assert "ledger.json: is not an ordinary file" in err or verb == "paper"


@pytest.mark.parametrize("verb", READERS)
def test_half_done(run: Run, made: Path, verb: str) -> None:
    (made / "report" / "results.json").unlink()
    write_ledger(made, done=False)
    words = "is half done: it stopped at `report`; `mooring run made/recipe.yaml` continues it"
    check_refused(run, READERS[verb], "half done" if verb == "paper" else f"made: {words}")
    (made / "ledger.json").unlink()
    check_refused(run, READERS[verb], "no finished run" if verb == "paper" else "made: is not a run folder")
    check_refused(run, (verb, "made/none") if verb in ("select", "report") else READERS[verb])


@pytest.mark.parametrize("edit", LEDGER)
def test_a_ledger_that_is_something_else(run: Run, made: Path, edit: str) -> None:
    (made.parent / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    LEDGER[edit](made / "ledger.json")
    others = [] if edit == "folder" else [("rejudge", "made", "--judges", "rules"), ("run", "r.yaml", *OUT)]
    for command in (*READERS.values(), *others):  # where the ledger is a folder, there is no run folder at all
        check_refused(run, command, "ledger.json")


def safeguard(run: Run, base: Path, tuned: Path) -> tuple[int, str, str]:
    return run(
        *("safeguard", base, tuned, "--task", "task.jsonl", "--safety", "task.jsonl", "--over-refusal", ""),
        *("--lambdas", "0.5", "--margin", 1, "--max-tokens", 2, "--batch-size", 8, "--out", "made"),
    )


ANSWERS = "completions/lam-0.5"
LEFT = (
    *("choice.json", "pair.json", "changes.json", f"{ANSWERS}/trial-test.json", "report/results.json"),
    *(f"{ANSWERS}/task-validation.jsonl", f"{ANSWERS}/safety-test.jsonl"),
    f"{ANSWERS}/verdicts-safety-test-classifier.jsonl",
)


@pytest.mark.slow
def test_a_run_goes_on_from_what_it_left_alone(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    """One run, and every record of it edited in turn, then taken away."""
    rows = [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(60)]
    write_task(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = safeguard(run, tiny_model_folder, tuned)
    assert code == 0, err
    folder = tmp_path / "made"
    left = {name: (folder / name).read_bytes() for name in LEFT}
    for name, data in left.items():
        (folder / name).write_bytes(data + b" ")
        code, _, err = safeguard(run, tiny_model_folder, tuned)
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert f"{name}: was modified after the run wrote it; restore it, or delete it to make it again" in err
        assert (folder / name).read_bytes() == data + b" "
        if "safety-test.jsonl" in name:
            again = run("rejudge", "made", "--judges", "rules")
            assert again[0] == 2
            assert f"{name}: was modified after the run wrote it" in again[2]
        (folder / name).unlink()
        code, _, err = safeguard(run, tiny_model_folder, tuned)
        assert code == 0, err
    assert {name: (folder / name).read_bytes() for name in LEFT} == left
