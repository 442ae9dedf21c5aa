"""Every code block of the docs: commands parse by the real command line, Python compiles and names what exists, …"""

import ast
import contextlib
import inspect
import io
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml

import mooring
import mooring.options
from mooring.cli.app import top
from mooring.config import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks/README.md"]
BLOCK = re.compile(r"^( *)```([\w+-]*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
OTHER_YAML = ("ci.md", "clusters.md", "plugins.md")
"""Pages whose YAML is not of recipes (tests/cli/test_gate.py and tests/test_clusters_page.py read it), or names
plug-ins that are not there."""


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: Path
    language: str
    text: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            inner = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
            yield Block(page, match[2], inner, text.count("\n", 0, match.start()) + 1)


BLOCKS = list(blocks())


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def commands(text: str) -> Iterator[str]:
    """The `mooring` commands among the lines of a text, without comments and what follows in the shell."""
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"\s#\s.*$", "", line.strip())
        for part in re.split(r"\s(?:&&|\|\||\||>>?|;)\s", line):
            if part.startswith("mooring ") and "[OPTIONS]" not in part:
                yield part


def parse(command: str) -> None:
    """Parse a command by the command line itself; raises click's error if it is not one."""
    group: click.Command = top
    arguments = shlex.split(command)[1:]
    while isinstance(group, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in group.commands:
            raise click.UsageError(f"no such command: {name}")
        group = group.commands[name]
    with contextlib.suppress(click.exceptions.Exit):  # --help, --version
        group.make_context(group.name, arguments, help_option_names=["-h", "--help"])


SHELL = [(block, command) for block in of("", "bash", "sh", "console") for command in commands(block.text)]


def test_there_are_commands_on_the_pages() -> None:
    assert len(SHELL) > 150
    assert {block.language for block in BLOCKS} <= {"", "bash", "python", "yaml", "json", "toml", "diff", "text"}


def test_every_command_in_a_block_is_one() -> None:
    faults = []
    for block, command in SHELL:
        try:
            parse(command)
        except (click.ClickException, ValueError) as error:
            message = error.format_message() if isinstance(error, click.ClickException) else str(error)
            faults.append(f"{block.place}: {command}: {message}")
    assert not faults, "\n".join(faults)


def test_a_command_that_does_not_exist_is_found() -> None:
    for command in ("mooring safeguard a b --no-such-option 1 --out c", "mooring nothing", "mooring merge a"):
        with pytest.raises(click.ClickException):
            parse(command)


def test_commands_and_options_within_the_text_exist() -> None:
    """`mooring VERB … --option` between backquotes, where arguments may be left out."""
    faults = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for span in re.findall(r"(?<!`)`(mooring [a-z][^`]*)`(?!`)", text):
            try:
                parse(span.replace("…", ""))
            except click.UsageError as error:
                if isinstance(error, click.NoSuchOption) or "no such command" in error.message:
                    faults.append(f"{page.name}: {span}: {error.format_message()}")
    assert not faults, "\n".join(faults)


# --- Python ---


def mooring_calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call | None]]:
    """Each `mooring.name` of a program, and the call of it, if it is called."""
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mooring":
            yield node.attr, called.get(id(node))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mooring"):
            for alias in node.names:
                if node.module == "mooring":
                    yield alias.name, None


def keywords(name: str) -> set[str]:
    """The keywords that a function of `mooring` takes, those of its options included."""
    function = getattr(mooring, name)
    taken = set(inspect.signature(function).parameters)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            kind = re.search(r"opt\.(\w+)", str(parameter.annotation))
            assert kind, f"{name}: its options are not typed"
            shared = getattr(mooring.options, kind[1])
            taken |= shared.__required_keys__ | shared.__optional_keys__
    return taken


@pytest.mark.parametrize("block", of("python"), ids=lambda block: block.place)
def test_python_compiles_and_names_what_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    for name, call in mooring_calls(tree):
        assert hasattr(mooring, name), f"mooring.{name}"
        if call is not None and callable(getattr(mooring, name)) and not inspect.isclass(getattr(mooring, name)):
            given = {each.arg for each in call.keywords if each.arg}
            assert given <= keywords(name), f"mooring.{name}: {given - keywords(name)}"


def test_python_that_only_calculates_prints_what_its_comment_says() -> None:
    seen = 0
    for block in of("python"):
        lines = re.findall(r"^print\(.*\)  # (.+)$", block.text, re.MULTILINE)
        if lines and "import" not in block.text:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, block.place, "exec"), {})
            assert printed.getvalue().splitlines() == lines, block.place
            seen += 1
    assert seen


def test_a_diff_names_files_that_exist() -> None:
    for block in of("diff"):
        for path in re.findall(r"^\+\+\+ b/(\S+)", block.text, re.MULTILINE):
            assert (ROOT / path).is_file(), f"{block.place}: {path}"


# --- Recipes and data ---


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.place)
def test_a_recipe_is_one(block: Block) -> None:
    fields = yaml.safe_load(block.text)
    if block.page.name in OTHER_YAML:
        assert isinstance(fields, dict)
        return
    least = {"name": "part", "base": "base/"} | ({} if "tune" in fields else {"tuned": "tuned/"})
    Recipe.parse(least | fields, block.place)


def test_json_and_toml_parse() -> None:
    for block in of("json"):
        json.loads(block.text)
    for block in of("toml"):
        tomllib.loads(block.text)
