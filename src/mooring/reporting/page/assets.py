"""What self-contained pages share: their files, a content security policy, and data that HTML does not read."""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any


def read(package: str, name: str) -> str:
    """A file of a package, with one kind of line end: HTML knows no other, and its hash counts."""
    text = importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def policy(script: str, style: str, *, inline: bool = False, connect: bool = False) -> str:
    """What a page may do: run this script and use this style, each named by its hash.

    Args:
        script: The script.
        style: The style sheet.
        inline: Whether elements may have style attributes, as figures do.
        connect: Whether the script may send requests to the page's own server.
    """
    script, style = (
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (script, style)
    )
    parts = [
        "default-src 'none'",
        f"script-src {script}",
        f"style-src-elem {style}",
        *(["style-src-attr 'unsafe-inline'"] if inline else []),
        *(["connect-src 'self'"] if connect else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(parts)


def embedded(data: Mapping[str, Any]) -> str:
    """Data as JSON without a character that HTML would read."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
