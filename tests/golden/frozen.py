"""The JSON files of the golden tests: one case per line, floats exact."""

import functools
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@functools.cache
def load(name: str) -> dict[str, Any]:
    """The cases of `name.json`; empty if it does not exist yet."""
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def text(value: Any) -> str:
    """A value as JSON text, in which −0.0 differs from 0.0, and 1 from 1.0."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


def write(name: str, cases: dict[str, Any]) -> Path:
    """Write `name.json`, one case per line."""
    groups = []
    for group, value in cases.items():
        if isinstance(value, dict) and value:
            lines = ",\n".join(f"  {text(key)}: {text(each)}" for key, each in value.items())
            groups.append(f"{text(group)}: {{\n{lines}\n}}")
        else:
            groups.append(f"{text(group)}: {text(value)}")
    path = FOLDER / f"{name}.json"
    path.write_text("{\n" + ",\n".join(groups) + "\n}\n", encoding="utf-8")
    return path


def check(name: str, group: str, made: dict[str, Any]) -> None:
    """Assert that a group of cases equals the frozen one; the message shows the first differences."""
    known = load(name).get(group)
    assert known is not None, f"{group} is not in {name}.json: run tests/golden/freeze.py"
    assert list(made) == list(known)
    wrong = [
        f"{key}\n  frozen {text(known[key])}\n  now    {text(made[key])}"
        for key in made
        if text(made[key]) != text(known[key])
    ]
    assert not wrong, f"{len(wrong)} of {len(made)} differ\n" + "\n".join(wrong[:5])
