"""Refuse words of a private idiom in code and docs: say it as PyTorch, PEFT or httpx would. Part of `make check`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = {
    r"mend(?:s|ed|ing)?": "fix",
    r"anew": "again",
    r"foret(?:ell\w*|old)": "estimate, expected",
    r"hang(?:s|ing)? on": "depends on",
    r"by halves": "by bisection",
    r"in vain": "wasted",
    r"nobody's": "no one's, or name the reason",
    r"(?:is|are) told": "is called with, receives",
    r"Told (?:of|\()": "Called with",
    r"oftener": "more often",
    r"beside which": "next to which",
    r"in so many words": "explicitly",
    r"rubbish": "leftovers",
    r"hold_that\w*": "check_…",
    r"Hold that": "Check that, Raise if",
    r"begun": "started; prefilled",
    r"parted": "separated, split",
    r"told from (?:zero|none)": "distinguished from zero",
    r"nats a token": "nats per token",
    r"Likewise\.": "say it again, or refer to the name",
}
"""What must not be written, as regular expressions, and what to write instead."""
FILES = ("src/**/*.py", "src/**/*.jinja", "docs/*.md", "docs/*.py", "README.md", "CONTRIBUTING.md", "recipes/**/*.yaml")


def main() -> None:
    """Print every place, and exit with 1 if there is one."""
    found = []
    for path in sorted({path for pattern in FILES for path in ROOT.glob(pattern)}):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            for word, better in WORDS.items():
                if match := re.search(rf"(?<![\w`]){word}(?!\w)", line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}: write {better!r}")
    print("\n".join(found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
