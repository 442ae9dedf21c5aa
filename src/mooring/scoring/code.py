"""Score code by running it: from what a model wrote to a program, from verdicts to pass@k."""

import ast
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from mooring.errors import DataError
from mooring.records import Completion, Prompt, Score
from mooring.scoring.sandbox import Limits, Outcome, Program, run_programs
from mooring.stats import bootstrap_ratio, wilson

FIELDS = ("prompt", "test", "entry_point")
"""What a prompt's `extra` holds: HumanEval's own names."""
_LONGEST = 400
"""Lines of a completion among which the end of the code is looked for."""
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
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Score]:
    """Run every completion against its prompt's tests: `pass@k` for each k.

    Args:
        prompts: Each with `FIELDS` in its `extra`.
        completions: At least the greatest k for each prompt.
        ks: How many answers one may look at.
        limits: What a program may use.
        workers: Programs at once.
        unsafe: Without the sandbox.
        seed: Seed of the bootstrap.
        on_progress: Called with the number of programs done; equal ones are run once.

    Raises:
        DataError: A prompt lacks a field, or has fewer completions than k.
        UserError: No sandbox can be made here.
    """
    samples = _by_prompt(prompts, completions, ks)  # before anything is run
    outcomes = run_completions(
        prompts, completions, limits=limits, workers=workers, unsafe=unsafe, on_progress=on_progress
    )
    return pass_scores(samples, outcomes, ks, unsafe=unsafe, seed=seed)


def run_completions(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    limits: Limits | None = None,
    workers: int | None = None,
    unsafe: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Outcome]:
    """How each completion fared, by its `key`; arguments and errors as those of `code_scores`."""
    by_id = {prompt.id: prompt for prompt in prompts}
    programs = {c.key: to_program(by_id[c.prompt_id], c.text) for c in completions if c.prompt_id in by_id}
    distinct = list(dict.fromkeys(programs.values()))
    outcomes = dict(zip(distinct, run_programs(distinct, limits, workers, unsafe, on_progress), strict=True))
    return {key: outcomes[program] for key, program in programs.items()}


def pass_scores(
    samples: Mapping[str, Sequence[str]],
    outcomes: Mapping[str, Outcome],
    ks: Sequence[int],
    *,
    unsafe: bool = False,
    seed: int = 0,
) -> dict[str, Score]:
    """The mean of pass@k over problems, with an interval over problems: they are what was drawn.

    It is Wilson's where every problem's value is 0 or 1, else the bootstrap's, which would have no width where they are
    all the same. One problem has none.

    Args:
        samples: The keys of each problem's completions.
        outcomes: How each completion fared, by key.
        ks: How many answers one may look at.
        unsafe: Said in the method.
        seed: Seed of the bootstrap.
    """
    counts = [(len(keys), sum(outcomes[key].status == "passed" for key in keys)) for keys in samples.values()]
    statuses = [outcomes[key].status for keys in samples.values() for key in keys]
    details: dict[str, float] = {"samples": len(statuses)}
    for status in ("passed", "failed", "timed out", "killed"):
        details[status.replace(" ", "_")] = statuses.count(status)
    found = {}
    for k in ks:
        values = [pass_at_k(n, passed, k) for n, passed in counts]
        interval = _interval(values, seed)
        found[f"pass@{k}"] = Score(
            name=f"pass@{k}",
            value=math.fsum(values) / len(values) if values else None,
            low=interval[0] if interval else None,
            high=interval[1] if interval else None,
            n=len(values),
            better="higher",
            method=f"unbiased pass@{k}, programs run {'WITHOUT a sandbox' if unsafe else 'in bubblewrap'}",
            details=details,
            each=dict(zip(samples, values, strict=True)),
        )
    return found


def _interval(values: Sequence[float], seed: int) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    if set(values) <= {0.0, 1.0}:
        return wilson(values.count(1.0), len(values))
    return bootstrap_ratio(values, [1.0] * len(values), seed=seed)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k answers, drawn from n of which c are right, is right: 1 − C(n−c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), equation 1, as a product so that nothing overflows.

    Raises:
        ValueError: Not 0 ≤ c ≤ n and 1 ≤ k ≤ n.
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
    missing = [name for name in FIELDS if not prompt.extra.get(name)]
    if missing:
        where = prompt.origin or f"prompt {prompt.id}"
        raise DataError(f"{where}: has no {', '.join(missing)}", "code is scored on rows with HumanEval's fields")
    start, test, entry_point = (prompt.extra[name] for name in FIELDS)
    helpers = {node.name for node in _parse(start).body if isinstance(node, ast.FunctionDef)} - {entry_point}
    setup = start if any(re.search(rf"\b{name}\b", test) for name in helpers) else ""
    return Program(assemble(start, text, entry_point), f"{test}\ncheck({entry_point})\n", entry_point, setup)


def assemble(start: str, text: str, entry_point: str) -> str:
    """The program that a completion stands for.

    The first code fence that defines the function counts, else the first one, else the text. It may be the
    function again (with what the prompt has before it put in front) or go on where the prompt stops, its first line's
    or all its indentation lost or not. Words before and after, and what is left of a chat template, are cut: the
    longest run of lines that Python can read is taken.

    Args:
        start: Where the program starts: imports, helpers, the function's head and its docstring.
        text: What the model wrote.
        entry_point: The function's name.

    Returns:
        Source; where no way of reading it gives Python, the two put together as they are.
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
            if _OPENING.match(line):
                found = _longest(before, lines[index:], entry_point)
                if found is not None:
                    return found
    stripped = text.lstrip("\r\n")
    first = "    " + stripped.lstrip(" \t") if stripped else ""
    every = "".join("    " + line for line in stripped.splitlines(keepends=True))
    for body in dict.fromkeys((text, first, every)):
        if _wrong(start + body) is None:
            return start + body
    cut = [_longest(start, body.splitlines(keepends=True), entry_point) for body in (text, first, every)]
    return max((source for source in cut if source is not None), key=len, default=start + text)


def _unfence(text: str, head: re.Pattern[str]) -> str:
    """The code among words and fences; what stands before a fence that only closes is code too."""
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
    """The most of the lines, from the first on, that make a program with what is before them."""
    end, above = min(len(lines), _LONGEST), before.count("\n")
    while end >= 0:
        source = before + "".join(lines[:end])
        wrong = _wrong(source)
        if wrong is None:
            return source if _defines(source, entry_point) else None
        end = min(end, wrong - above) - 1  # no run of lines with the wrong one in it is better
    return None


def _wrong(source: str) -> int | None:
    """The line at which Python stops reading the source; None where it reads all of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's '\d' makes the parser warn
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
    """The source's tree; an empty one where it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's '\d' makes the parser warn
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def _by_prompt(
    prompts: Sequence[Prompt], completions: Sequence[Completion], ks: Sequence[int]
) -> dict[str, Sequence[str]]:
    """The keys of each prompt's completions."""
    keys = defaultdict(list)
    for completion in completions:
        keys[completion.prompt_id].append(completion.key)
    for prompt in prompts:
        if len(keys[prompt.id]) < max(ks):
            raise DataError(
                f"pass@{max(ks)}: {prompt.origin or f'prompt {prompt.id}'} has {len(keys[prompt.id])} completions",
                f"make {max(ks)} samples a prompt, or ask for a smaller k",
            )
    return {prompt.id: keys[prompt.id] for prompt in prompts}
