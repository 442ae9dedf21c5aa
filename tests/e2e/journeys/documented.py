"""The commands and files that the pages of the documentation show, and what stands in for their models and data."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

WORDS = {
    "BASE": "base",
    "TUNED": "tuned",
    "ADAPTER": "adapter",
    "base/": "base",
    "tuned/": "tuned",
    "meta-llama/Llama-3.1-8B-Instruct": "base",
    "advbench": "harmful.jsonl",
    "wildguard,rules": "rules",
    "llama-guard-3": "rules",
    "…": "What is 1 and 2?",
}
"""Words of a command, and what they are here: models of 4 layers and a dozen prompts."""
SMALL = {
    "safeguard": "--safety harmful.jsonl --max-tokens 6 --lambdas 0.5 --margin 1 --limit 6",
    "run": "--margin 1 --set score.limit=6 --set generate.max_tokens=6",
    "tune": "--max-steps 4 --learning-rate 0.02",
    "generate": "--max-tokens 6",
    "compare": "--max-tokens 6",
    "select": "--margin 1",
}
"""Options added to a command, so that it takes a second; of several values of an option the last one counts."""


def blocks(page: str, language: str = "") -> list[str]:
    """The code blocks of a page in a language."""
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [text for given, text in found if given == language]


def commands(page: str) -> Iterator[list[str]]:
    """The `mooring` commands in the blocks of a page, split into words, without `mooring` itself and the comments."""
    for text in (*blocks(page), *blocks(page, "bash")):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith("mooring ") else []
            if words:
                yield words[1:]


def small(words: list[str]) -> list[str]:
    """A command with the stand-ins for its models and data."""
    return [WORDS.get(word, word) for word in words] + SMALL.get(words[0], "").split()
