"""What self-contained pages share: files, escaping, a content security policy, and data that HTML does not read."""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mooring.printable import visible

if TYPE_CHECKING:
    import jinja2


def environment() -> "jinja2.Environment":
    """The environment of templates: all but `Markup` is escaped, and shown so that nothing in it acts unseen."""
    import jinja2
    from markupsafe import Markup

    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )


def read(package: str, name: str) -> str:
    """A file of a package, with one kind of line end: HTML knows no other, and its hash counts."""
    text = importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def policy(script: str | None, style: str, *, inline: bool = False, connect: bool = False) -> str:
    """What a page may do: run this script and use this style, each named by its hash.

    Args:
        script: The script; None if no script may run.
        style: The style sheet.
        inline: Whether elements may have style attributes, as figures do.
        connect: Whether the script may send requests to the page's own server.
    """
    parts = [
        "default-src 'none'",
        *([] if script is None else [f"script-src {_hash(script)}"]),
        f"style-src-elem {_hash(style)}",
        *(["style-src-attr 'unsafe-inline'"] if inline else []),
        *(["connect-src 'self'"] if connect else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(parts)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def embedded(data: Mapping[str, Any]) -> str:
    """Data as JSON without a character that HTML would read."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
