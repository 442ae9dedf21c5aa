"""Reads the text files of patterns in this folder.

`[name]` begins a pattern, a regular expression with one alternative, or several joined by `|`, per line. A line that
ends with `(?:` opens a group of alternatives, which a line that begins with `)` closes. `{NAME}` inserts another
pattern. White space at both ends of a line and lines that begin with `#` are ignored.
"""

import re
from importlib.resources import files


def load(name: str) -> dict[str, re.Pattern[str]]:
    """The patterns of `<name>.txt`, by name."""
    return parse(files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8"))


def parse(text: str) -> dict[str, re.Pattern[str]]:
    """The patterns of a text in this format, by name."""
    texts: dict[str, str] = {}
    current = ""
    for line in map(str.strip, text.splitlines()):
        if header := re.fullmatch(r"\[([a-z_]+)\]", line):
            current = header[1]
            texts[current] = ""
        elif line and not line.startswith("#"):
            before = texts[current]
            continues = not before or before.endswith("(?:") or line.startswith(")")
            texts[current] = before + ("" if continues else "|") + line

    def expand(text: str) -> str:
        return re.sub(r"\{([A-Z_]+)\}", lambda piece: expand(texts[piece[1].lower()]), text)

    return {key: re.compile(expand(text)) for key, text in texts.items()}
