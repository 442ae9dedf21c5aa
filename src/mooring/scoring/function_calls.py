"""Parse a function call from a completion, and compare two calls.

Nothing is evaluated: `ast` parses the text, and only literals are accepted. A model's text may be hostile, so its size
and depth are checked before it is parsed.
"""

import ast
import dataclasses
import json
import math
import re
import warnings
from typing import Any

LONGEST = 20_000
"""The most characters; a longer text is not a call."""
DEEPEST = 40
"""The deepest nesting of brackets; a deeper text is not a call. Python's own parser fails at about 200."""
_LONGEST_NUMBER = 400  # digits; Python refuses to convert more than 4300

_QUOTES = str.maketrans({"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"'})
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None, "nan": "nan", "inf": "inf"}


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A call. Values are `canonical`, so that equivalent ones are equal; named arguments are sorted by name."""

    name: str
    positional: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]


def parse_call(text: str) -> Call | None:
    """Parse a text that consists of one function call.

    `name(a=1, b='x')`, where the name may be dotted, or JSON, `{"name": …, "arguments": {…}}`. Both may be in a code
    fence, in back-quotes, or in `<tool_call>` tags. Returns None for anything else: prose around the call, two calls,
    an argument that is not a literal, or a text that is too long or too deep.
    """
    if len(text) > LONGEST:
        return None
    text = _unwrap(text)
    if not text or _depth(text) > DEEPEST or re.search(rf"\d{{{_LONGEST_NUMBER}}}", text):
        return None
    try:
        return _from_json(text) if text[0] in "{[" else _from_python(text)
    except (ValueError, TypeError, RecursionError, MemoryError, OverflowError):
        return None


def call_match(text: str, reference: str) -> bool:
    """Whether a text is the same call as the reference, up to quoting and the order of named arguments."""
    expected = parse_call(reference)
    return expected is not None and parse_call(text) == expected


def _unwrap(text: str) -> str:
    """The text without code fence, back-quotes and tool-call tags, each at most once."""
    # Not a regular expression: one for fences takes quadratic time on a text of back-quotes.
    for _ in range(2):
        text = text.strip()
        if text.startswith("```") and text.endswith("```") and len(text) >= 6:
            text = text[3:-3].strip()
            language, newline, rest = text.partition("\n")
            text = rest if newline and re.fullmatch(r"[\w+-]*\s*", language) else text
        for tag in ("tool_call", "function_call"):
            text = text.removeprefix(f"<{tag}>").removesuffix(f"</{tag}>") if text.endswith(f"</{tag}>") else text
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "`":
        text = text[1:-1].strip()
    return text[:-1].rstrip() if text.endswith(");") else text


def _depth(text: str) -> int:
    """The deepest nesting of brackets, or the longest run of unary signs; quoting is ignored."""
    depth = deepest = signs = 0
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        signs = signs + 1 if character in "+-~" else 0 if not character.isspace() else signs
        deepest = max(deepest, depth, signs)
    return deepest


def _from_python(text: str) -> Call | None:
    for candidate in dict.fromkeys((text, text.translate(_QUOTES))):
        try:
            with warnings.catch_warnings(action="ignore"):  # the parser warns about texts such as '\d' or 1(2)
                node = ast.parse(candidate, mode="eval").body
        except SyntaxError:
            continue
        if not isinstance(node, ast.Call) or any(k.arg is None for k in node.keywords):
            return None
        named = {str(k.arg): _literal(k.value) for k in node.keywords}
        if len(named) < len(node.keywords):
            return None
        return _call(_dotted(node.func), [_literal(a) for a in node.args], named)
    return None


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError("not a name")


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or of one of JSON's words (`true`, `null`); raises ValueError for anything else."""
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null", "NaN", "Infinity"):
        return _WORDS.get(node.id.lower(), node.id)
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_key(_literal(k)): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    value = ast.literal_eval(node)
    if isinstance(value, bytes | complex) or value is ...:
        raise ValueError("not a value of JSON")
    return value


def _key(value: Any) -> str:
    if isinstance(value, list | dict):
        raise ValueError("a key is a plain value")
    return str(value)


def _from_json(text: str) -> Call | None:
    def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    for candidate in dict.fromkeys((text, text.translate(_QUOTES))):
        try:
            data = json.loads(candidate, object_pairs_hook=plain)
        except ValueError:
            continue
        if isinstance(data, list) and len(data) == 1:
            data = data[0]
        if not isinstance(data, dict):
            return None
        if isinstance(data.get("function"), dict):
            data = data["function"]
        arguments = data.get("arguments", data.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments, object_pairs_hook=plain)
        if not isinstance(data.get("name"), str) or not isinstance(arguments, dict):
            return None
        return _call(data["name"], [], arguments)
    return None


def _call(name: str, positional: list[Any], named: dict[str, Any]) -> Call:
    return Call(name, tuple(map(canonical, positional)), tuple(sorted((k, canonical(v)) for k, v in named.items())))


def canonical(value: Any) -> Any:
    """A value in a hashable form in which equivalent values are equal.

    Numbers, words and strings of them become the same text: 5, 5.0 and "5"; True and "true". White space is normalised
    and typographic quotes are replaced in strings.
    """
    if isinstance(value, dict):
        return ("dict", tuple(sorted((str(k), canonical(v)) for k, v in value.items())))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(canonical, value)))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value.is_integer() else repr(value)
    text = " ".join(str(value).translate(_QUOTES).split())
    if text.lower() in ("true", "false", "none", "null"):
        return str(_WORDS[text.lower()]).lower()
    if _NUMBER.fullmatch(text) and not re.match(r"[+-]?0\d", text):  # a leading zero is a code, not a number
        return canonical(float(text)) if not re.fullmatch(r"[+-]?\d+", text) else str(int(text))
    return text
