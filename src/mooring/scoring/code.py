"""pass@k: from completions to programs, from the programs' outcomes to scores."""

import ast
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import get_args

from mooring.errors import DataError
from mooring.events import OnEvent
from mooring.records import Completion, Prompt, Score
from mooring.scoring.sandbox import Limits, Outcome, Program, Status, run_programs
from mooring.scoring.scores import make_score, mean_interval
from mooring.stats import wilson

FIELDS = ("prompt", "test", "entry_point")
"""The fields of a prompt's `extra`: HumanEval's own names."""
_LONGEST = 400
"""The most lines of a completion that are searched for the end of the code."""
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_LEFTOVER = re.compile(r"<\|[a-z_]+\|>|</s>|<(?:end|start)_of_turn>|\[/?INST\]")
_GOES_ON = re.compile(r"\A\s*\n?[ \t]+\S|^\s*return\b", re.MULTILINE)
_OPENING = re.compile(r"(?:from|import|def|class|async def)\s|@\w")


def code_scores(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    ks: Sequence[int] = (1,),
    *,
    limits: Limits | None = None,
    workers: int | None = None,
    unsafe: bool = False,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> dict[str, Score]:
    """Run every completion against its prompt's tests: the Score `pass@k` for each k.

    Args:
        prompts: Each with `FIELDS` in its `extra`.
        completions: At least max(ks) per prompt.
        ks: The numbers of attempts.
        limits: The resources of each program.
        workers: Programs at once.
        unsafe: Run without the sandbox.
        seed: Seed of the bootstrap.
        on_event: Called after each program. Equal programs run once.

    Raises:
        DataError: A prompt lacks a field, or has fewer completions than k.
        MissingExtraError: bubblewrap is not installed.
        SandboxError: No sandbox can be made here.
    """
    samples = _keys(prompts, completions, max(ks))  # checked before any program runs
    outcomes = run_completions(prompts, completions, limits=limits, workers=workers, unsafe=unsafe, on_event=on_event)
    return pass_scores(samples, outcomes, ks, unsafe=unsafe, seed=seed)


def run_completions(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    limits: Limits | None = None,
    workers: int | None = None,
    unsafe: bool = False,
    on_event: OnEvent | None = None,
) -> dict[str, Outcome]:
    """The outcome of each completion, by its `key`; arguments and errors as those of `code_scores`."""
    by_id = {prompt.id: prompt for prompt in prompts}
    programs = {c.key: to_program(by_id[c.prompt_id], c.text) for c in completions if c.prompt_id in by_id}
    distinct = list(dict.fromkeys(programs.values()))
    outcomes = dict(zip(distinct, run_programs(distinct, limits, workers, unsafe, on_event), strict=True))
    return {key: outcomes[program] for key, program in programs.items()}


def pass_scores(
    samples: Mapping[str, Sequence[str]],
    outcomes: Mapping[str, Outcome],
    ks: Sequence[int],
    *,
    unsafe: bool = False,
    seed: int = 0,
) -> dict[str, Score]:
    """The mean of pass@k over problems, with a 95 % interval over problems, the unit of sampling.

    The interval is Wilson's if every problem's value is 0 or 1, else the bootstrap's, which has no width if all values
    are equal. One problem has no interval. `samples` has the keys of each problem's completions, `outcomes` the outcome
    by key.
    """
    statuses = [outcomes[key].status for keys in samples.values() for key in keys]
    details = {"samples": len(statuses)} | {s.replace(" ", "_"): statuses.count(s) for s in get_args(Status)}
    counts = [(len(keys), sum(outcomes[key].status == "passed" for key in keys)) for keys in samples.values()]
    scores = {}
    for k in ks:
        values = [pass_at_k(n, passed, k) for n, passed in counts]
        binary = len(values) > 1 and set(values) <= {0.0, 1.0}
        scores[f"pass@{k}"] = make_score(
            f"pass@{k}",
            math.fsum(values) / len(values) if values else None,
            wilson(values.count(1.0), len(values)) if binary else mean_interval(values, seed),
            n=len(values),
            method=f"unbiased pass@{k}, programs run {'WITHOUT a sandbox' if unsafe else 'in bubblewrap'}",
            details=details,
            each=dict(zip(samples, values, strict=True)),
        )
    return scores


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k answers drawn from n, of which c are right, is right: 1 − C(n−c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), equation 1, as a product so that nothing overflows.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right among {n}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def to_program(prompt: Prompt, text: str) -> Program:
    """A completion as a program, with its prompt's tests.

    Raises:
        DataError: The prompt lacks one of `FIELDS`.
    """
    if missing := [name for name in FIELDS if not prompt.extra.get(name)]:
        raise DataError(
            f"{prompt.place}: has no {', '.join(missing)}",
            "code is scored on rows with HumanEval's fields",
            code="data.no_tests",
        )
    start, test, entry_point = (prompt.extra[name] for name in FIELDS)
    helpers = {node.name for node in _parse(start).body if isinstance(node, ast.FunctionDef)} - {entry_point}
    setup = start if any(re.search(rf"\b{name}\b", test) for name in helpers) else ""
    return Program(assemble(start, text, entry_point), f"{test}\ncheck({entry_point})\n", entry_point, setup)


def assemble(start: str, text: str, entry_point: str) -> str:
    """The source of the program that a completion stands for.

    The first code fence that defines the function is used, else the first one, else the text. It may define the
    function again (the part of the prompt before the function is then put in front) or continue the prompt, with or
    without its indentation. Words before and after the code, and tokens of a chat template, are removed: the longest
    run of lines that is valid Python is used; if there is none, `start` and the text joined.

    Args:
        start: The beginning of the program: imports, helpers, the function's head and its docstring.
        text: The completion.
        entry_point: The function's name.
    """
    if (leftover := _LEFTOVER.search(text)) is not None:
        text = text[: leftover.start()]
    head = re.compile(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\s*\(", re.MULTILINE)
    text = _unfence(text, head)
    if head.search(text) and not re.match(r"[ \t]+\S", text.lstrip("\r\n")):
        place = head.search(start)
        before = start[: place.start()] if place else ""
        lines = text.splitlines(keepends=True)
        for index, line in enumerate(lines):
            if _OPENING.match(line) and (source := _longest(before, lines[index:], entry_point)) is not None:
                return source
    stripped = text.lstrip("\r\n")
    first = "    " + stripped.lstrip(" \t") if stripped else ""
    every = "".join("    " + line for line in stripped.splitlines(keepends=True))
    for body in dict.fromkeys((text, first, every)):
        if _error_line(start + body) is None:
            return start + body
    cut = [_longest(start, body.splitlines(keepends=True), entry_point) for body in (text, first, every)]
    return max((source for source in cut if source is not None), key=len, default=start + text)


def _unfence(text: str, head: re.Pattern[str]) -> str:
    """The code among words and fences; text before a fence that only closes is code too."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return text
    before = text[: fences[0].start()]
    for block in (fence[2] for fence in fences):
        if head.search(block):
            return block
    if head.search(before) or _GOES_ON.search(before) or not any(fence[2].strip() for fence in fences):
        return before
    return fences[0][2]


def _longest(before: str, lines: Sequence[str], entry_point: str) -> str | None:
    """The longest run of lines, from the first on, that is a program after `before`."""
    end, above = min(len(lines), _LONGEST), before.count("\n")
    while end >= 0:
        source = before + "".join(lines[:end])
        error_line = _error_line(source)
        if error_line is None:
            return source if _defines(source, entry_point) else None
        end = min(end, error_line - above) - 1  # no run that includes the faulty line is valid
    return None


def _error_line(source: str) -> int | None:
    """The line of the first syntax error; 0 if unknown, None if the source is valid Python."""
    try:
        with warnings.catch_warnings(action="ignore"):  # the parser warns about '\d'
            compile(source, "<program>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return error.lineno or 0
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return 0
    return None


def _defines(source: str, entry_point: str) -> bool:
    defined = ast.FunctionDef | ast.AsyncFunctionDef
    return any(isinstance(node, defined) and node.name == entry_point for node in _parse(source).body)


def _parse(source: str) -> ast.Module:
    """The source's syntax tree; empty if it is not valid Python."""
    try:
        with warnings.catch_warnings(action="ignore"):  # the parser warns about '\d'
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def _keys(prompts: Sequence[Prompt], completions: Sequence[Completion], least: int) -> dict[str, Sequence[str]]:
    """The keys of each prompt's completions; raises if there are fewer than `least`."""
    keys = defaultdict(list)
    for completion in completions:
        keys[completion.prompt_id].append(completion.key)
    for prompt in prompts:
        if len(keys[prompt.id]) < least:
            raise DataError(
                f"pass@{least}: {prompt.place} has {len(keys[prompt.id])} completions",
                f"generate {least} samples per prompt, or use a smaller k",
                code="data.too_few_samples",
            )
    return {prompt.id: keys[prompt.id] for prompt in prompts}
