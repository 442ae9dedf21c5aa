"""Two users type what the documentation says: exit codes and first lines, in a clean environment and an empty home."""

import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `--import-mode=importlib` puts no test folder on the path

from documented import PAGES, ROOT, blocks, commands, small
from typed import fill, type_all

from mooring.cli.app import top


@pytest.fixture
def desk(tmp_path: Path, save_tiny_model: Any) -> Path:
    """A folder with the models and files that the pages name."""
    return fill(tmp_path, save_tiny_model)


FIRST = {
    "safeguard": "(NOT ENOUGH EVIDENCE|runs/mine is finished)",
    "gate": "NOT ENOUGH EVIDENCE",
    "inspect": "can be merged: tuned",
    "tune": "The adapter is in adapter",
    "merge": "(note: a LoRA adapter|The merged model is in merged)",
    "mergekit": "(# Written by Mooring|The merged model is in merged-by-config)",
    "verify": "merged is what was written: ",
    "generate": "12 completions are in advbench.jsonl",
    "score": "score +value",
    "rejudge": "judge +model",
    "lm-eval": "mooring: lm-eval: the data of bbh cannot be downloaded",
    "select": "λ = 0.5 has the highest call match",
    "report": "The report is runs/mine/report-redacted/index.html",
    "paper": "1 run: the tables and figures are in tables/paper.md",
    "compare": "What is 1 and 2",
}
"""How the first line of each verb's output begins."""
CODES = {"lm-eval": 2, "gate": 3}
"""Exit codes other than 0: without a network there is no BIG-Bench Hard, and six prompts are no evidence."""


@pytest.mark.slow
def test_the_commands_of_the_readme_and_of_getting_started(desk: Path) -> None:
    typed = [*commands("README.md"), *commands("docs/getting-started.md"), ["gate", "runs/mine"]]
    verbs = {words[0] for words in typed}
    assert verbs == FIRST.keys()
    before = next(place for place, words in enumerate(typed) if words[0] == "mergekit")
    typed.insert(before, ["mergekit", "export", "base", "tuned", "--lam", "0.6", ">", "mergekit.yml"])
    for words, (code, out, err) in zip(typed, type_all(desk, [small(words) for words in typed]), strict=True):
        assert code == CODES.get(words[0], 0), (words, err)
        first = next(line.strip() for line in (err if code == 2 else out).splitlines() if line.strip())
        assert re.match(FIRST[words[0]], first), (words, first)


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that a line names, and the rest of the line."""
    command, rest = top.commands[words[0]], words[1:]
    while isinstance(command, click.Group):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("page", PAGES)
def test_every_documented_command_exists_with_its_options(page: str) -> None:
    for words in commands(page):
        command, rest = command_of(words)
        params = command.get_params(click.Context(command))
        known = {name for param in params for name in (*param.opts, *param.secondary_opts)}
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert given <= {*known, "--help"}, words


def test_each_option_that_getting_started_names_is_one_of_safeguard() -> None:
    command, _ = command_of(["safeguard"])
    known = {name for param in command.get_params(click.Context(command)) for name in param.opts}
    text = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8").split("## If you have a base")[0]
    assert set(re.findall(r"`(--[a-z-]+)", text)) | {"--task"} <= known


def test_make_has_the_targets_that_the_readme_names() -> None:
    targets = re.findall(r"^make ([\w-]+)", "\n".join(blocks("README.md")), re.MULTILINE)
    assert targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
