"""Names and paths in a recipe that are hostile: each is a name like any other, or is refused in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzzing import limited, listing
from mooring.printable import visible

from .conftest import Run  # type: ignore[import-not-found]

NAMES = {
    "a path": "a/b",
    "a path up": "../../x",
    "a null character": "a\0b",
    "300 bytes": "x" * 300,
    "a dash": "-x",
    "an option": "--help",
    "a look-alike": "\u0430dvbench",
    "a full-width path": "\uff0e\uff0e\uff0fx",
    "an override": "\u202eevil",
    "a parent": "..",
    "nothing": "",
    "two lines": "a\nb",
    "a home": "~",
    "no home": "~#3",
    "another's home": "~nobody-here/x",
    "a revision": "a@b",
    "a count": "a#b",
    "two dashes": "a--b",
    "a surrogate": "\ud800",
    "a separator of Windows": "a\\b",
    "a device": "/dev/null",
    "a pattern": "*",
}
PLACES: dict[str, Any] = {
    "out": lambda name: {"out": name},
    "out below": lambda name: {"out": f"runs/{name}"},
    "base": lambda name: {"base": name},
    "tuned": lambda name: {"tuned": [name, "tuned"]},
    "judge": lambda name: {"score": {"judges": [name]}},
    "judge's model": lambda name: {"score": {"judges": [{"name": "llm", "model": name}]}},
    "judge of another name": lambda name: {"score": {"judges": [{"name": name, "model": "base"}]}},
    "set": lambda name: {"score": {"safety": [name]}},
    "rows of a set": lambda name: {"score": {"safety": [f"set.jsonl#{name}"]}},
    "task": lambda name: {"score": {"task": name}},
    "attack": lambda name: {"score": {"attacks": [name]}},
    "metric": lambda name: {"score": {"metrics": [name]}},
    "method": lambda name: {"merge": {"method": name}},
    "reference": lambda name: {"merge": {"safety_adapter": name}},
    "examples": lambda name: {"tuned": None, "tune": {"data": [name]}},
    "address": lambda name: {"generate": {"base_url": name}},
    "key": lambda name: {name: 1},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_name_in_a_recipe(run: Run, tmp_path: Path, place: str) -> None:
    """The models are not on this machine: a plan that refuses nothing else says so."""
    (tmp_path / "set.jsonl").write_text('{"prompt": "Hi"}\n')
    for kind, name in NAMES.items():
        own = PLACES[place](name)
        score = {"over_refusal": None, "ordinary": None, **own.get("score", {})}  # what takes no time to read
        (tmp_path / "r.yaml").write_text(json.dumps({"base": "base", "tuned": "tuned", **own, "score": score}))
        before = listing(tmp_path)
        with limited():
            code, out, err = run("run", "r.yaml", "--dry-run")
        assert (code, err.count("\n")) in ((0, 0), (2, 1)), f"{kind}: {err}"
        assert visible(out + err) == out + err
        assert listing(tmp_path) == before


@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind not in ("a null character", "a surrogate")])
def test_a_hostile_name_on_the_command_line(run: Run, tmp_path: Path, kind: str) -> None:
    for command in (
        ("safeguard", f"{NAMES[kind]}/base", "tuned", "--out", NAMES[kind], "--dry-run"),
        ("merge", "base", NAMES[kind], "--lam", 0.5, "--out", "x"),
        ("select", f"./{NAMES[kind]}"),
        ("data", NAMES[kind]),
    ):
        code, _, err = run(*command)
        assert (code, err.count("\n")) in ((0, 0), (2, 1)), f"{command[0]}: {err}"
        assert not any(tmp_path.iterdir())
