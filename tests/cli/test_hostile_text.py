"""Hostile text from files, servers and names, through every command: nothing of it acts on the terminal."""

import contextlib
import dataclasses
import io
import json
import os
import pty
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "reporting"))
sys.path.insert(2, str(Path(__file__).parents[1] / "inference"))

from fake_server import Act, answer, error, fake_server
from report_sample import VERDICT, results

from fuzzing import limited
from mooring.cli import main
from mooring.cli.app import top
from mooring.cli.terminal import Screen
from mooring.config import Recipe
from mooring.printable import visible
from mooring.reporting.results import dumps

from .conftest import Run  # type: ignore[import-not-found]

MARK = "HOSTILE"
TEXT = f"{MARK}\x1b[31m\x1b]0;t\x07\x1bP1$q\x1b\\\x9b2J\x9d0;t\x9c\u202ex\u2066\u200b\x7f\x08\r"
"""A colour, a title, a device control string, the same by C1 controls, bidirectional overrides, and what goes back."""


def commands(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command of a group, and of its groups."""
    for name, command in group.commands.items():
        words = (*before, name)
        yield from commands(command, words) if isinstance(command, click.Group) else (words,)


VERBS = tuple(commands(top))


def required(words: tuple[str, ...]) -> list[str]:
    """A command with hostile text for all that it requires."""
    command: click.Command = top
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    given = list(words)
    for param in command.get_params(click.Context(command)):
        if isinstance(param, click.Argument):
            given.append(f"{TEXT}{len(given)}")
        elif param.required:
            given += [param.opts[0], "1" if param.name == "rank" else TEXT]
    return [*given, *MORE.get(" ".join(words), ())]


MORE = {
    "merge": ("--lam", "0.5"),
    "mergekit export": ("--lam", "0.5"),
    "compare": ("--prompt", TEXT),
    "plugins": ("--plugin", TEXT),
}
"""Options that are required only together with others."""


def shown(run: Run, *args: object) -> str:
    """What a command prints, which must hold nothing that acts, whatever its exit code is."""
    with limited():
        code, out, err = run(*args)
    assert code in (0, 2, 3), err
    for text in (out, err):
        assert visible(text) == text, repr(text)
    return out + err


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_command_with_hostile_arguments(run: Run, words: tuple[str, ...], options: tuple[str, ...]) -> None:
    """A new command is tried too."""
    if words in (("doctor",), ("quickstart",)):  # nothing is required: what is installed is not untrusted
        return
    printed = shown(run, *required(words), *options)
    assert MARK in printed or "No such option '--json'" in printed


@pytest.mark.parametrize("words", [*VERBS, (), ("mergekit",)], ids=" ".join)
def test_every_command_with_a_hostile_option(run: Run, words: tuple[str, ...]) -> None:
    assert MARK in shown(run, *words, f"--{TEXT}")
    assert MARK in shown(run, *words, f"--{TEXT}", "--json")


# --- Content: each verb that reads a kind of input, and is bound to print it ---


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run folder with hostile text wherever its files have text that a command prints."""
    folder = tmp_path / "run"
    (folder / "report").mkdir(parents=True)
    recipe = Recipe.parse({"base": TEXT, "tuned": "t", "score": {"task": "bundled:tools"}})
    verdict = dataclasses.replace(VERDICT, sentence=TEXT, caveats=[TEXT], judge=TEXT)
    plain = recipe.model_dump(mode="json", exclude={"out"})
    found = results(recipe=plain, verdict=verdict, notes=[TEXT], title=TEXT, judges=[TEXT])
    (folder / "recipe.yaml").write_text(recipe.dump())
    (folder / "report" / "results.json").write_text(dumps(found))
    return folder


def test_a_run_with_hostile_text(run: Run, made: Path) -> None:
    for command in (
        ("gate",),
        ("gate", "--json"),
        ("select",),
        ("select", "--json"),
        ("report",),
        ("report", "--json"),
    ):
        printed = shown(run, command[0], "run", *command[1:])
        assert MARK in printed or command[0] != "gate"
    for command in (("label", "run", "--show"), ("rejudge", "run", "--judges", TEXT)):
        shown(run, *command)
    assert MARK in shown(run, "paper", ".", "--out", TEXT)
    (made / "ledger.json").write_text(json.dumps({"steps": {TEXT: {"label": TEXT, "key": TEXT}}}))
    for command in ("select", "gate", "report"):
        assert MARK in shown(run, command, "run")


def test_the_plan_and_the_refusal_of_a_recipe(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    models = {"base": str(tiny_model_folder), "tuned": str(tuned), "select": {"confidence": None}}
    row = {"prompt": "Hi", "category": TEXT}
    (tmp_path / f"{TEXT}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"prompt": "Yo"}) + "\n")
    tokens = {"safety": {"max_tokens": 8}, "task": {"max_tokens": 8}}
    good = {**models, "out": TEXT, "score": {"safety": f"{TEXT}.jsonl"}, "generate": tokens}
    bad: list[dict[str, Any]] = [
        {**models, TEXT: 1},
        {**models, "merge": {TEXT: 1}},
        {**models, "merge": {"method": TEXT}},
        {**models, "score": {"judges": [TEXT]}},
        {**models, "score": {"judges": [{"name": "llm", "model": TEXT}], "safety": f"{TEXT}.jsonl"}},
        {**models, "score": {"safety": TEXT}},
        {**models, "score": {"metrics": [TEXT]}},
        {**models, "score": {"attacks": [TEXT]}},
        {**models, "generate": {"dtype": TEXT}},
        {**models, "base": TEXT},
    ]
    for data in (good, *bad):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
        for options in ((), ("--json",)):
            assert MARK in shown(run, "run", "r.yaml", "--dry-run", *options), data


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.slow
def test_configurations_of_models(run: Run, tmp_path: Path, save_tiny_model: Any, tuned: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    shown(run, "merge", base, tuned, "--lam", 0.5, "--out", "merged")
    for fields in ({"digest": TEXT}, {"mooring": TEXT, "format": TEXT}, {"digests": {TEXT: TEXT}}):
        edit(tmp_path / "merged" / "mooring.json", **fields)
        for options in ((), ("--json",)):
            shown(run, "verify", "merged", *options)
            shown(run, "check-merge", "merged", base, tuned, *options)
            shown(run, "push", "merged", "me/mine", *options)
    edit(base / "tokenizer_config.json", eos_token=TEXT, tokenizer_class=TEXT)
    for command in (
        ("inspect", base, tuned, "--quick"),
        ("merge", base, tuned, "--lam", 0.5, "--out", "again"),
        ("data", tmp_path / "set.jsonl", "--model", base),
        ("to-gguf", base, "--out", "gguf"),
    ):
        (tmp_path / "set.jsonl").write_text('{"prompt": "Hi", "completion": "Ho"}\n')
        shown(run, *command)
    edit(base / "config.json", model_type=TEXT, architectures=[TEXT], quantization_config={"quant_method": TEXT})
    for verb in (("inspect", base, tuned), ("merge", base, tuned, "--lam", 0.5, "--out", "third")):
        assert MARK in shown(run, *verb)
    for verb in (("to-gguf", base, "--out", "gguf"), ("extract-lora", base, tuned, "--rank", 1, "--out", "lora")):
        assert MARK in shown(run, *verb)
    assert MARK in shown(run, "compare", base, tuned, "--prompt", "Hi")
    shown(run, "tune", base, "set.jsonl", "--out", "adapter")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": TEXT, "r": 1}))
    assert MARK in shown(run, "merge", tuned, "adapter", "--lam", 0.5, "--out", "fourth")


def test_a_mergekit_configuration(run: Run, tmp_path: Path) -> None:
    for data in ({"merge_method": TEXT}, {TEXT: 1}):
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(data))
        assert MARK in shown(run, "mergekit", "run", "m.yaml", "--out", "out")


def test_data_and_answers(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    row = {"prompt": TEXT, "completion": TEXT, "category": TEXT, TEXT: 1}
    (tmp_path / "set.jsonl").write_text(json.dumps(row) + "\n")
    for command in (
        ("data", "set.jsonl"),
        ("data", "set.jsonl", "--json"),
        ("data", "set.jsonl", "--model", tiny_model_folder),
        ("compare", tiny_model_folder, tuned, "--prompt", TEXT, "--max-tokens", 2, "--lambdas", 0.5),
        ("compare", tiny_model_folder, tuned, "--prompt", TEXT, "--max-tokens", 2, "--lambdas", 0.5, "--json"),
    ):
        assert MARK in shown(run, *command)
    shown(run, "score", "set.jsonl", "set.jsonl", "--kind", "safety")
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"id": f"{n}", TEXT: n % 2, "score": n % 2, "prompt": "x"}) + "\n" for n in range(3))
        )
    shown(run, "compare-evals", "one.jsonl", "two.jsonl")
    (tmp_path / "published.csv").write_text(TEXT * 10_000)
    assert "published.csv" in shown(run, "paper", ".", "--out", "out", "--published", "published.csv")
    (tmp_path / "set.jsonl").write_text(TEXT)
    assert shown(run, "data", "set.jsonl")


SERVED: dict[str, tuple[Act, list[dict[str, Any]]]] = {
    "completion": (answer(TEXT), [{"id": "m"}]),
    "error": (error(400, TEXT, code=TEXT), [{"id": "m"}]),
    "model list": (answer(TEXT), [{"id": TEXT, "owned_by": TEXT}, {"id": f"{TEXT}2"}]),
    "model": (answer(TEXT), [{"id": TEXT, "owned_by": TEXT}]),
}


@pytest.mark.parametrize("kind", SERVED)
def test_servers(run: Run, tmp_path: Path, made: Path, tiny_model_folder: Path, tuned: Path, kind: str) -> None:
    act, models = SERVED[kind]
    (tmp_path / "set.jsonl").write_text('{"prompt": "Hi", "completion": "Ho"}\n')
    with fake_server(lambda number, body: act, models=models) as server:
        engine = ("--engine", "openai", "--base-url", server.url)
        judge = ("--judge-engine", "openai", "--judge-base-url", server.url)
        printed = [
            shown(
                run, "generate", "m" if kind != "model list" else server.url, "set.jsonl", *engine, "--out", "a.jsonl"
            ),
            shown(run, "generate", server.url, "set.jsonl", *engine, "--out", "b.jsonl", "--json"),
            shown(
                run,
                "score",
                "set.jsonl",
                "set.jsonl",
                "--kind",
                "safety",
                "--judges",
                "llm",
                "--judge-model",
                "m",
                *judge,
            ),
            shown(run, "prefer", "set.jsonl", "set.jsonl", "set.jsonl", "--judge", server.url, *judge[2:]),
            shown(run, "compare", tiny_model_folder, tuned, "--prompt", "Hi", *engine),
            shown(run, "rejudge", "run", "--judges", "llm", "--judge-model", "m", *judge),
            shown(run, "verify-served", "run", "--base-url", server.url),
            shown(run, "lm-eval", server.url, "--tasks", TEXT, *engine),
            shown(run, "data", "a.jsonl"),
        ]
    assert any(MARK in text for text in printed) or "model" in kind  # a list of models is not always printed


# --- The place itself ---


def test_what_a_library_prints_a_traceback_and_a_table_do_not_act(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mooring

    def broken(*args: object, **options: object) -> None:
        print(TEXT)
        sys.stdout.writelines([TEXT])
        warnings.warn(TEXT, stacklevel=1)
        click.echo(TEXT, err=True)
        raise ZeroDivisionError(TEXT)

    monkeypatch.setattr(mooring, "verify", broken)
    with pytest.raises(SystemExit) as ended:
        main(["verify", "x"])
    captured = capsys.readouterr()
    assert ended.value.code == 1
    assert "Traceback" in captured.err
    assert captured.err.count(MARK) >= 2
    assert captured.out.count(MARK) == 2
    assert visible(captured.out + captured.err) == captured.out + captured.err


def test_on_a_terminal_only_styles_act(tmp_path: Path) -> None:
    """What a table, markup and a text print to a terminal, with styles of their own."""
    from rich.table import Table
    from rich.text import Text

    file = io.StringIO()
    screen = Screen(file, force_terminal=True, color_system="standard", width=200)
    table = Table(TEXT, title=TEXT)
    table.add_row(Text(TEXT, style="red"))
    for each in (table, Text(TEXT), TEXT):
        screen.print(each, markup=False)
    left = _without_styles(file.getvalue())
    assert visible(left) == left
    assert left.count(MARK) == 5


def _without_styles(text: str) -> str:
    return re.sub(r"\x1b\[(0|1|3|31|1;3|;)*m", "", text)


def test_a_command_on_a_terminal(tmp_path: Path) -> None:
    """A real terminal: the styles of a refused inspection are sent, and none of the configuration's."""
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": TEXT}))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mooring", "inspect", f"{TEXT}/base", "tuned"]
    done = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 2**16):
            text += part
    os.close(ours)
    assert done.wait() == 2
    assert MARK.encode() in text
    for control in (b"\x1b[31m\x1b]", b"\x1b]0;t", b"\x1bP", "\x9b".encode(), "\u202e".encode(), b"\x08"):
        assert control not in text


def test_nothing_prints_but_by_the_terminal() -> None:
    """Consoles are made in one place, and streams are written to by nothing else."""
    source = Path(str(sys.modules["mooring"].__file__)).parent
    for path in sorted(source.rglob("*.py")):
        text = path.read_text()
        if path.name != "terminal.py":
            assert " Console(" not in text, path
        for raw in ("sys.__std", "stdout.buffer", "stderr.buffer", "os.write(1", "os.write(2"):
            assert raw not in text, path
