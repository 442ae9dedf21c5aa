"""The page docs/errors.md: every code with its meaning and the way out, read from the places that raise it.

A message or a hint is an expression; it is shown as it reads, with what is filled in at run time as `<name>` or `…`.
Names are looked up in the function, the module, and the module that they were imported from.
"""

import ast
import functools
import itertools
import re
import string
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

SOURCE = Path(__file__).resolve().parent.parent / "src" / "mooring"
DOMAINS = {
    "usage": "How a command or function was called",
    "recipe": "Recipes and options",
    "model": "Models, adapters, engines and servers",
    "data": "Data sets, completions, results of runs",
    "output": "Folders and files that are written",
    "cluster": "Ray clusters",
    "storage": "Buckets that a run folder is copied to",
    "extra": "Packages that are not installed",
}
"""What a code begins with, in the order of the page."""
Node = TypeVar("Node", bound=ast.AST)
DEEPEST, MOST = 4, 3
"""How many names are followed, and how many wordings of one code are shown."""

INTRO = """# Errors by code

Built by `make docs` from the places that raise them: what each error says, and the way out that it names. `<name>` and
`…` stand for what the message fills in: your file, field or number.

Every error that a user can fix is one line and has a stable code, `<domain>.<reason>`: `error.code` in Python, and in
the JSON that a command prints with `--json`. Messages may change, codes do not. The exit code is 2. Any other
exception is a bug, and keeps its traceback ([exit codes](cli.md#exit-codes)). `mooring doctor` shows what is installed
and works.
"""


IN_WORDS = {
    "data.bad_csv": ("a published table is not valid CSV at this line", ""),
    "data.bad_field": ("a field of a row has another type than it needs", "correct that field of the row"),
    "data.bad_ledger": ("ledger.json of a run is not valid", ""),
    "data.bad_results": ("results.json of a run is not valid", ""),
    "data.bad_yaml": ("a published table is not a valid list", ""),
    "data.no_user_turn": ("", "add a message of the user to the prompt"),
    "data.too_large": ("the file, or one of its rows, is larger than is read into memory", ""),
    "model.adapters_incompatible": ("the adapters do not add up to one adapter", ""),
    "model.bad_adapter": (
        "adapter_config.json or a tensor of the adapter is not as PEFT writes it",
        "save it again with PEFT",
    ),
    "model.bad_quantization": ("the tensors of a quantized weight do not fit together", ""),
    "model.download_failed": ("the hub did not provide the model", ""),
    "storage.credentials": (
        "",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`; for `gs` run "
        "`gcloud auth application-default login`; for `az` set AZURE_STORAGE_CONNECTION_STRING",
    ),
    "recipe.plugin_failed": ("", "correct or install the plug-in, or correct its reference"),
    "model.server_unavailable": ("the server does not answer", ""),
    "output.port": ("the page cannot be served on this port", ""),
    "recipe.bad_value": ("", "give a value of the type and within the limits that the message names"),
    "recipe.conflict": ("", "change the one that the message names"),
    "recipe.invalid_yaml": ("the file is not valid YAML at this line", ""),
    "recipe.mergekit_malformed": ("a mergekit configuration has a value of another kind here", "correct it there"),
    "recipe.mergekit_missing": ("", "add it to the mergekit configuration"),
    "recipe.mergekit_unsupported": ("", "leave it out, or merge with mergekit itself"),
    "recipe.unreadable": ("the file is not here, or cannot be read", ""),
    "usage.bad_pattern": (
        "a pattern of names is not closed, or has a range that is not one",
        "see `mooring merge --help`",
    ),
    "usage.mergekit_cannot": ("mergekit cannot do this merge", "merge it with `mooring merge`"),
    "usage.option_out_of_range": (
        "an option of a merge method is outside its range",
        "give a value within it (docs/methods.md)",
    ),
}
"""Meaning and way out, or one of them, of codes whose words come from a library or a caller."""


@dataclass(frozen=True)
class Raised:
    """An error as one place raises it: its message and its hint, "" if there is none."""

    message: str
    hint: str


@dataclass(frozen=True)
class Scope:
    """A module, and the nodes around an expression from the inside out."""

    module: ast.Module
    around: tuple[ast.AST, ...] = ()


def error_codes() -> dict[str, list[Raised]]:
    """Every literal `code="…"` of a call in the package, as the places that name it word it."""
    codes: dict[str, list[Raised]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = _module(path)
        for call, around in _nodes(ast.Call, module):
            names = [each.value for each in call.keywords if each.arg == "code"]
            for node in (node for name in names for node in ast.walk(name) if isinstance(node, ast.Constant)):
                if isinstance(node.value, str) and node.value.partition(".")[0] in DOMAINS:
                    raised = _raised(call, Scope(module, around))
                    if raised not in codes.setdefault(node.value, []):
                        codes[node.value].append(raised)
    return {code: _in_words(code, raised) for code, raised in sorted(codes.items())}


def _in_words(code: str, raised: list[Raised]) -> list[Raised]:
    message, hint = IN_WORDS.get(code, ("", ""))
    known = any(each.message for each in raised), any(each.hint for each in raised)
    added = Raised("" if known[0] else message, "" if known[1] else hint)
    if not (known[0] or added.message) or not (known[1] or added.hint):
        sys.exit(
            f"{code}: say what is wrong and what to do where it is raised, or in IN_WORDS of {Path(__file__).name}"
        )
    return [*raised, added]


def errors() -> str:
    """The page."""
    codes = error_codes().items()
    parts = [INTRO]
    for domain, title in DOMAINS.items():
        rows = [_row(code, raised) for code, raised in codes if code.partition(".")[0] == domain]
        if rows:
            parts.append(
                f"## {title}\n\n| code | what it says | what to do |\n|---|---|---|\n" + "\n".join(rows) + "\n"
            )
    return "\n".join(parts)


def _row(code: str, raised: list[Raised]) -> str:
    says = list(dict.fromkeys(each.message for each in raised if each.message))[:MOST]
    hints = list(dict.fromkeys(each.hint for each in raised if each.hint))[:MOST]
    return f'| <a id="{code}"></a>`{code}` | {"<br>".join(map(_cell, says))} | {"<br>".join(map(_cell, hints))} |'


def _cell(text: str) -> str:
    for mark in "\\<>|*_[]":
        text = "`".join(
            part if number % 2 else part.replace(mark, "&#" + str(ord(mark)) + ";")
            for number, part in enumerate(text.split("`"))
        )
    return text


# --- Reading the source ---


@functools.cache
def _module(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _nodes(
    kind: type[Node], node: ast.AST, around: tuple[ast.AST, ...] = ()
) -> Iterator[tuple[Node, tuple[ast.AST, ...]]]:
    """Every node of a kind below a node, with itself and the nodes that it is in."""
    around = (node, *around)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, kind):
            yield child, (child, *around)
        yield from _nodes(kind, child, around)


def _raised(call: ast.Call, scope: Scope) -> Raised:
    name = ast.unparse(call.func)
    message = _words(call.args[0], scope) if call.args else []
    hint = _argument(call, 1, "hint")
    if name == "MissingExtraError":
        return Raised(f"{_say(message)} is not installed", f"run: {_say(_words(hint, scope))}")
    if hint is None and (helper := _definition(name, scope.module)):  # a function that makes the error
        made = next((each for each, _ in _nodes(ast.Call, helper) if _argument(each, 1, "hint") is not None), None)
        hint, scope = (made and _argument(made, 1, "hint")), Scope(scope.module)
    return Raised(_say(message), _say(_words(hint, scope)))


def _argument(call: ast.Call, place: int, name: str) -> ast.expr | None:
    named = next((each.value for each in call.keywords if each.arg == name), None)
    return call.args[place] if len(call.args) > place else named


def _say(choices: list[str]) -> str:
    """The wordings that carry meaning: without those that are nothing but what is filled in."""
    blank = [re.sub("<.*?>", "", text).split() for text in choices]
    kept = [
        text
        for text, words in zip(choices, blank, strict=True)
        if any(w.strip(string.punctuation).islower() for w in words)
    ]
    return "; or ".join(dict.fromkeys(kept[:MOST]))


def _words(node: ast.expr | None, scope: Scope, depth: int = 0) -> list[str]:
    """What an expression may read as."""
    match node:
        case None:
            return []
        case ast.Constant(value=value):
            return [str(value)]
        case ast.JoinedStr(values=values):
            return _joined([_words(value, scope, depth) for value in values])
        case ast.FormattedValue(value=value):
            inner = _words(value, scope, depth + 2) if isinstance(value, (ast.Name, ast.IfExp)) else []
            return _plain(inner) or [_blank(value)]
        case ast.IfExp(body=body, orelse=other):
            return _words(body, scope, depth) + _words(other, scope, depth)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _joined([_words(left, scope, depth), _words(right, scope, depth)])
        case ast.BoolOp(values=values):
            return [text for value in values for text in _words(value, scope, depth)]
        case ast.Subscript(value=ast.Dict(values=values)):
            return [text for value in values for text in _words(value, scope, depth)]
        case ast.Name(id=name) if depth < DEEPEST:
            return [text for value, where in _values(name, scope) for text in _words(value, where, depth + 1)] or [
                _blank(node)
            ]
        case ast.Call(func=ast.Name(id=name)) if depth < DEEPEST and (function := _definition(name, scope.module)):
            made = [(each.value, Scope(scope.module, around)) for each, around in _nodes(ast.Return, function)]
            return [text for value, where in made for text in _words(value, where, depth + 1)] or [_blank(node)]
        case _:
            return [_blank(node)]


def _plain(choices: list[str]) -> list[str]:
    return [text for text in choices if text.lower() != "none" and re.fullmatch(r"[^<…]*[a-z][^<…]*", text)]


def _joined(parts: list[list[str]]) -> list[str]:
    return ["".join(each) for each in itertools.islice(itertools.product(*(part or ["…"] for part in parts)), MOST)]


def _blank(node: ast.expr) -> str:
    """What stands for a value: its name if it has one."""
    while isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        node = node.args[0]
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return f"<{name.strip('_').lower()}>" if name else "…"


def _values(name: str, scope: Scope) -> list[tuple[ast.expr, Scope]]:
    """What a name is assigned: in the functions around, else in the module, else where it was imported from."""
    for inner, outer in itertools.pairwise(scope.around):
        if isinstance(outer, (ast.Module, ast.ClassDef)):
            break
        found = _before(inner, outer, name)
        if found:
            return [(value, scope) for value in found]
    found = [value for node in scope.module.body for value in _assigned(node, name)]
    if found:
        return [(value, Scope(scope.module)) for value in found]
    for node in ast.walk(scope.module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mooring."):
            for alias in node.names:
                file = SOURCE.joinpath(*node.module.split(".")[1:])
                file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
                if (alias.asname or alias.name) == name and file.is_file():
                    return _values(alias.name, Scope(_module(file)))
    return []


def _before(inner: ast.AST, outer: ast.AST, name: str) -> list[ast.expr]:
    """What a name is assigned in a node before one of its parts: by the nearest statement that assigns it at all."""
    earlier: list[ast.AST] = []
    for _, part in ast.iter_fields(outer):
        if isinstance(part, list) and inner in part:
            earlier += part[: part.index(inner)]
        elif isinstance(part, ast.expr) and part is not inner:
            earlier.insert(0, part)
    for statement in reversed(earlier):
        if found := [value for node in ast.walk(statement) for value in _assigned(node, name)]:
            return found
    return []


def _assigned(node: ast.AST, name: str) -> Iterator[ast.expr]:
    match node:
        case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
            yield value
        case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
            yield value
        case ast.NamedExpr(target=ast.Name(id=target), value=value) if target == name:
            yield value
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            pairs: Mapping[str, ast.expr] = {
                target.id: value for target, value in zip(targets, values, strict=False) if isinstance(target, ast.Name)
            }
            if name in pairs:
                yield pairs[name]


def _definition(name: str, module: ast.Module) -> ast.FunctionDef | None:
    return next((each for each in module.body if isinstance(each, ast.FunctionDef) and each.name == name), None)
