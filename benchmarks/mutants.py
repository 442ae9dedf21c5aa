"""Change one operator, comparison or constant of the code at a time, and count how many changes the tests detect.

    python benchmarks/mutants.py [--mutants 200] [--seed 1] [FILE:TESTS …]

Each argument is a source file and, after the colon, the tests that cover it (several separated by commas); without
one, the files of `TARGETS` are changed. The heavy libraries are imported once, and each mutant runs in a fork of this
process, where only the tests that call the changed function run; all of them do for code outside of functions. A
mutant that survives these counts as not detected. The last line is the share detected.
"""

import argparse
import ast
import functools
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

SELECTION = ",".join(
    [f"tests/selection/test_{name}.py" for name in ("modules", "choose", "limits", "bisect", "sensitivity")]
    + ["tests/selection/test_several_bounds.py", "tests/selection/test_verdict.py", "tests/golden/test_statistics.py"]
)
TARGETS = {
    **{
        f"src/mooring/selection/{name}.py": SELECTION
        for name in ("limits", "per_module", "policies", "explain", "gains", "sensitivity", "verdict", "corrected")
    },
    "src/mooring/selection/bisect.py": "tests/selection/test_bisect.py",
    "src/mooring/stats.py": "tests/test_stats.py,tests/test_paired.py,tests/golden/test_statistics.py",
    "src/mooring/pipeline/plan.py": "tests/pipeline/test_checks.py,tests/test_recipe.py,tests/pipeline/test_steps.py,"
    "tests/pipeline/test_comparison.py,tests/pipeline/test_groups.py",
    "src/mooring/pipeline/preflight.py": "tests/pipeline/test_checks.py,tests/pipeline/test_preflight.py",
    "src/mooring/pipeline/sets.py": "tests/pipeline/test_sets.py,tests/pipeline/test_checks.py,"
    "tests/pipeline/test_attacked_run.py",
    "src/mooring/merging/tensor_value.py": "tests/merging/test_tensor_value.py,tests/merging/test_rules.py",
    "src/mooring/merging/job.py": "tests/merging/test_rules.py,tests/merging/test_inputs.py,"
    "tests/merging/test_further_methods.py,tests/merging/test_tensor_value.py",
}
"""Statistics, selection, runs and the settings of merges, each with its tests."""
LONG = " and ".join(
    f"not {part}" for part in ("hardest_curves", "risk_is_what", "risk_of", "bootstrap_against", "covers_the", "simul")
)
"""Leaves out simulations that take longer than all other tests."""

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def mutations(node: ast.AST) -> Iterator[str]:
    """Apply each mutation that fits the node in place, yield its description, and undo it."""
    if isinstance(node, ast.Compare):
        for index, old in enumerate(node.ops):
            if type(old) in COMPARISONS:
                node.ops[index] = COMPARISONS[type(old)]()
                yield f"{type(old).__name__} -> {type(node.ops[index]).__name__}"
                node.ops[index] = old
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATORS:
        old_op = node.op
        node.op = OPERATORS[type(old_op)]()
        yield f"{type(old_op).__name__} -> {type(node.op).__name__}"
        node.op = old_op
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        test = node.test
        node.test = ast.UnaryOp(ast.Not(), test)
        yield "condition negated"
        node.test = test
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        value = node.value
        node.value = not value if isinstance(value, bool) else value + 1
        yield f"{value!r} -> {node.value!r}"
        node.value = value


def places(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield each node with the qualified name of the function whose body it is in, "" outside of functions."""

    def walk(node: ast.AST, scope: str, function: str) -> Iterator[tuple[str, ast.AST]]:
        yield function, node
        if isinstance(node, ast.ClassDef):
            for child in ast.iter_child_nodes(node):
                yield from walk(child, f"{scope}{node.name}.", function)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = scope + node.name
            for child in ast.iter_child_nodes(node):
                within = any(child is each for each in node.body)
                yield from walk(child, f"{name}.<locals>." if within else scope, name if within else function)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, scope, function)

    return walk(tree, "", "")


def mutants(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield description, function and source of every mutant of a file. Annotations and docstrings are left alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(child)
        for node in ast.walk(tree)
        for name in ("annotation", "returns")
        if getattr(node, name, None) is not None
        for child in ast.walk(getattr(node, name))
    }
    for function, node in places(tree):
        if id(node) not in skipped:
            for change in mutations(node):
                source = ast.unparse(ast.fix_missing_locations(tree))
                yield f"{path}:{getattr(node, 'lineno', 0)} {change}", function, source


class Callers:
    """A pytest plugin that records which tests call each function of some files.

    What is called while a test is set up counts for all tests of its file, because fixtures are shared.
    """

    def __init__(self, paths: list[Path], out: Path) -> None:
        self.tests: dict[str, dict[str, set[str]]] = {str(path): defaultdict(set) for path in paths}
        self.out, self.current = out, ""
        sys.setprofile(self.record)

    def record(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and self.current and (found := self.tests.get(frame.f_code.co_filename)) is not None:
            found[frame.f_code.co_qualname].add(self.current)

    def pytest_runtest_setup(self, item: Any) -> None:
        self.current = item.nodeid.partition("::")[0]

    def pytest_runtest_call(self, item: Any) -> None:
        self.current = item.nodeid

    def pytest_sessionfinish(self) -> None:
        sys.setprofile(None)
        self.out.write_text(
            json.dumps({path: {name: sorted(tests) for name, tests in by.items()} for path, by in self.tests.items()})
        )


def passes(
    arguments: list[str], seconds: int, sources: Mapping[Path, str], plugins: Sequence[Callable[[], object]] = ()
) -> bool:
    """Return whether pytest passes with these sources in place of the files. A timeout counts as a failure."""
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        loader = importlib.machinery.SourceFileLoader
        original = loader.get_code

        def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> object:
            path = Path(self.path).resolve()
            return compile(sources[path], str(path), "exec") if path in sources else original(self, name)

        loader.get_code = get_code  # type: ignore[method-assign,assignment]
        import pytest

        made = [plugin() for plugin in plugins]
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments], made)))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def callers(paths: list[Path], tests: str, expression: str, seconds: int) -> dict[Path, dict[str, list[str]]]:
    """Return the tests that call each function of the files, "" standing for code outside of functions."""
    listed = tests.split(",")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callers.json"
        sources = {path: path.read_text(encoding="utf-8") for path in paths}  # compiled with resolved paths
        record = functools.partial(Callers, paths, out)
        if not passes(["-k", expression, *listed], seconds, sources, [record]):
            sys.exit(f"{tests}: they fail, or take more than {seconds} s, without a mutation")
        return {Path(path): {"": listed, **found} for path, found in json.loads(out.read_text()).items()}


def main() -> None:
    """Sample mutants over all files in proportion to how many each has, and print each that survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [":".join(each) for each in TARGETS.items()]
    parser.add_argument("targets", nargs="*", metavar="FILE:TESTS", default=known)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-k", default=LONG, help="pytest's expression that selects tests")
    parser.add_argument(
        "--seconds",
        type=int,
        default=180,
        help="time limit per mutant",
    )
    options = parser.parse_args()
    import numpy
    import pydantic
    import pytest
    import torch
    import transformers

    del numpy, pydantic, pytest, torch, transformers
    population = []
    for target in options.targets:
        name, tests = target.rsplit(":", 1)
        path = Path(name).resolve()
        population += [(path, tests, *each) for each in mutants(path)]
    sample = random.Random(options.seed).sample(population, min(options.mutants, len(population)))
    covered = defaultdict(set)
    for path, tests, *_ in sample:
        covered[tests].add(path)
    chosen = {
        path: found
        for tests, paths in covered.items()
        for path, found in callers(sorted(paths), tests, options.k, 20 * options.seconds).items()
    }
    detected = 0
    for number, (path, _, change, function, source) in enumerate(sample, 1):
        called_by = chosen[path].get(function, [])
        if not called_by:
            print(f"not called: {change}", flush=True)
        elif passes(["-k", options.k, *called_by], options.seconds, {path: source}):
            print(f"survived: {change}", flush=True)
        else:
            detected += 1
        if number % 20 == 0:
            print(f"{number}/{len(sample)} done, {detected} detected", flush=True)
    print(f"{len(population)} possible mutants; detected {detected}/{len(sample)} = {detected / len(sample):.3f}")


if __name__ == "__main__":
    main()
