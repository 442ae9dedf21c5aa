"""The page docs/comparison.md: merge methods at equal safety and λ by gradient, from the numbers as measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "comparison_results.json"
MEASURES = {"response_loss": "response loss (nats per token)", "asr": "ASR", "call_match": "call match"}

TEXT = """# Merge methods at equal safety

Every method at its own strength, chosen under the same certified bound, on the same prompts, in pairs against Linear;
and λ by gradient beside the single λ. `python benchmarks/comparison_pairs.py PAIR` measures each pair below
(`benchmarks/comparison_results.json`), from which `python docs/build.py` makes this page.

## What these pairs can show
All pairs have one base of 135 million parameters, which was made to refuse by a small adapter, LoRA of rank 8, and
one kind of task, function calls. They can show that a method works as described, and a difference that is large
beside the chance of some tens of prompts. They cannot show which method is best for an 8B model: larger models refuse
for more reasons than the wording of a request, their changes are of lower rank beside their weights, and other tasks
forget other things. ASR is by the wording of answers, not by a judge model. Intervals are not corrected for the
number of rows. A method whose interval includes 0 is neither shown to be better than Linear nor to be as good.
Models compute in bfloat16, so that a single answer may differ between two tables, whose batches differ.

## λ by gradient
Around Linear's chosen λ, on the test half, in pairs on the same prompts. A lower loss is better.

{gradient}

{counted}
"""


def comparison() -> str:
    """The page."""
    results: Mapping[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = [_gradient_row(name, metric, pair) for name, pair in results.items() for metric in pair["gradient"]["test"]]
    heads = [("pair", False), ("single λ", True), ("measure", False), ("single", True), ("by gradient", True)]
    heads += [("difference", True), ("prompts", True)]
    better = [name for name, pair in results.items() if _keeps_more(pair)]
    counted = (
        f"The loss is lower with its interval below 0 in {_some(_lower(results), results)}, and more calls match with "
        f"the interval above 0 in {_some(better, results)}. The bound was tested for the single λ on validation; that "
        "λ by gradient keeps it is what `search: gradient` tests in a run, and the row of ASR is the evidence here."
    )
    parts = [TEXT.format(gradient=_table(heads, rows), counted=counted)]
    return "\n".join([*parts, *(_section(name, pair) for name, pair in results.items())])


def _some(found: Sequence[str], results: Mapping[str, Any]) -> str:
    names = f" ({', '.join(found)})" if found else ""
    return f"{len(found)} of {len(results)} pairs{names}"


def _keeps_more(pair: Mapping[str, Any]) -> bool:
    low = pair["gradient"]["test"]["call_match"]["difference"]["low"]
    return low is not None and low > 0


def _lower(results: Mapping[str, Any]) -> list[str]:
    highs = {name: pair["gradient"]["test"]["response_loss"]["difference"]["high"] for name, pair in results.items()}
    return [name for name, high in highs.items() if high is not None and high < 0]


def _gradient_row(name: str, metric: str, pair: Mapping[str, Any]) -> list[str]:
    found = pair["gradient"]["test"][metric]
    rate = metric != "response_loss"
    scale, digits, unit = (100, 1, " %") if rate else (1, 3, "")
    ends = [found["difference"][part] for part in ("value", "low", "high")]
    gap = "–"
    if None not in ends:
        value, low, high = (f"{scale * end:.{digits}f}".replace("-", "−") for end in ends)
        gap = f"{value} [{low}, {high}]{' points' * rate}"
    values = [
        "–" if found[which] is None else f"{scale * found[which]:.{digits}f}{unit}" for which in ("single", "gradient")
    ]
    return [name, f"{pair['linear']['lam']:g}", MEASURES[metric], *values, gap, str(found["difference"]["n"])]


def _section(name: str, pair: Mapping[str, Any]) -> str:
    lams = pair["lambdas"].replace(",", ", ")
    within = "" if pair["linear"]["within"] else " No λ of Linear is within the bound: the nearest one is shown."
    search = pair["gradient"]
    return (
        "\n\n".join(
            [
                f"## Pair: {name}",
                f"`{pair['base']}`, tuned on `{pair['data']}` with seed {pair['seed']}; task `{pair['task']}`; at most "
                f"{pair['limit']} prompts of each kind and half; λ tried: {lams}.{within}",
                *(_plain(pair[part]) for part in ("series", "pairs")),
                f"λ by gradient ({search['groups']}, {search['prompts']} prompts of each kind): "
                f"{search['search']['sentence']}",
            ]
        )
        + "\n"
    )


def _plain(table: Mapping[str, Any]) -> str:
    return f"{table['caption']}\n\n{_table([tuple(column) for column in table['columns']], table['rows'])}"


def _table(heads: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    lines = [[head for head, _ in heads], ["---:" if numeric else "---" for _, numeric in heads], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
