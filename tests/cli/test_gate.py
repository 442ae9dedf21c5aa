"""`mooring gate`: exit codes, JSON by its schema, JUnit XML, a job's summary; and the jobs of docs/ci.md."""

import dataclasses
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))

from report_sample import VERDICT, results

import mooring
from mooring.cli import main
from mooring.config import Recipe
from mooring.records import Decision
from mooring.reporting.results import dumps

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def run_with(tmp_path: Path) -> Callable[..., Path]:
    """`run_with(decision, **changes)` writes a run folder with this verdict."""

    def make(decision: Decision, **changes: str) -> Path:
        folder = tmp_path / "run"
        (folder / "report").mkdir(parents=True)
        recipe = Recipe.parse({"base": "b", "tuned": "t"}).model_dump(mode="json", exclude={"out"})
        found = results(recipe=recipe, verdict=dataclasses.replace(VERDICT, decision=decision, **changes))
        (folder / "report" / "results.json").write_text(dumps(found), encoding="utf-8")
        return folder

    return make


def gate(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["gate", *map(str, arguments)])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("decision", "code"), [("ship", 0), ("do_not_ship", 3), ("not_enough_evidence", 3)])
def test_only_ship_lets_a_pipeline_go_on(
    run_with: Callable[..., Path], decision: Decision, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_with(decision)
    assert gate(folder, "--json") == code
    printed = json.loads(capsys.readouterr().out)
    assert printed == mooring.load_results(folder).verdict.to_dict()
    schema = json.loads((DOCS / "verdict.schema.json").read_text(encoding="utf-8"))
    assert set(schema["required"]) <= schema["properties"].keys() == printed.keys()
    assert decision in schema["properties"]["decision"]["enum"]
    assert printed["format"] == schema["properties"]["format"]["const"] == 1
    check = schema["$defs"]["VerdictCheck"]
    assert all(check["properties"].keys() == each.keys() for each in printed["checks"])


def test_what_is_no_finished_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path / "nothing") == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_junit_has_a_case_per_check(run_with: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "mooring.xml"
    assert gate(run_with("not_enough_evidence", sentence="<b>\x1b[31m & \u202e"), "--junit", out) == 3
    suite = ET.parse(out).getroot()
    cases = {case.get("name"): case for case in suite}
    assert cases.keys() == {"verdict", "asr", "task"}
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert cases["asr"].find("failure") is None
    unknown = cases["task"].find("failure")
    assert unknown is not None
    assert (unknown.get("type"), unknown.get("message")) == ("unknown", "Not clearly better than the base")
    verdict = cases["verdict"].find("failure")
    assert verdict is not None
    assert verdict.get("message") == "Not enough evidence. <b>⟨U+001B⟩[31m & ⟨U+202E⟩"


def test_the_summary_is_appended(
    run_with: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, summary = run_with("ship"), tmp_path / "summary.md"
    summary.write_text("Before.\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert gate(folder, "--github-summary") == 0
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("Before.\n## ✅ Ship: ")
    assert VERDICT.sentence in text
    assert "| attack success rate" in text


def test_without_a_job_there_is_no_summary(
    run_with: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert gate(run_with("ship"), "--github-summary") == 2
    assert "GITHUB_STEP_SUMMARY is not set" in capsys.readouterr().err


def test_the_jobs_of_the_docs_are_yaml_with_commands_that_exist() -> None:
    """Every `mooring` command of docs/ci.md is parsed by the command line itself."""
    from mooring.cli.app import top

    jobs = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", (DOCS / "ci.md").read_text(), re.DOTALL)]
    github, gitlab = jobs
    steps = github["jobs"]["gate"]["steps"]
    lines = [step["run"] for step in steps if "run" in step]
    lines += [*gitlab["safety"]["script"], *gitlab["safety"]["after_script"]]
    commands = [line.split()[1:] for line in lines if line.startswith("mooring ")]
    assert len(commands) == 7
    for name, *arguments in commands:
        top.commands[name].make_context(name, arguments)
