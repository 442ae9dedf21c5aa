"""Every error for users carries a literal code of its class's domain."""

import ast
from pathlib import Path

import mooring
from mooring import errors

SOURCE = Path(mooring.__file__).parent
CLASSES = {
    name: kind.domain
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.UserError) and kind is not errors.MissingExtraError
}


def literals(node: ast.expr) -> list[str]:
    """The texts that an expression may have, if it is one or a choice between some."""
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def test_every_raise_of_a_user_error_has_a_literal_code_of_its_domain() -> None:
    faults = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute))):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name not in CLASSES:
                continue
            code = next((keyword.value for keyword in node.keywords if keyword.arg == "code"), None)
            if isinstance(code, (ast.Name, ast.Attribute)):
                continue  # a helper passes its caller's code on
            found = literals(code) if code is not None else []
            if not found or any(not text.startswith(f"{CLASSES[name]}.") for text in found):
                faults.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {name}: {found or 'no code'}")
    assert not faults, "\n".join(faults)
