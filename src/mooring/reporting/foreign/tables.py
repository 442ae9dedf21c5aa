"""All answers and scores of a run as tables: CSV or Parquet.

In CSV an apostrophe stands before a text that a spreadsheet would take for a formula; Parquet has texts as they are.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mooring.reporting.foreign.answers import AnsweredSet, asked, encodable
from mooring.text import without_formula


def answer_rows(sets: Iterable[AnsweredSet]) -> list[dict[str, Any]]:
    """A row for each answer, with a column for each metric."""
    rows = []
    for found in sets:
        for prompt, completions in found.answers:
            for completion in completions:
                rows.append(
                    {
                        "model": found.point.label,
                        "lam": found.point.lam,
                        "set": found.name,
                        "split": found.split,
                        "id": prompt.id,
                        "sample": completion.sample,
                        "category": prompt.category,
                        "prompt": asked(prompt),
                        "response": completion.answer,
                        "thoughts": completion.thoughts,
                        "reference": prompt.reference,
                        "finish": completion.finish,
                        "tokens": completion.tokens,
                        **found.scores_of(prompt),
                    }
                )
    return [{key: encodable(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]


def score_rows(sets: Iterable[AnsweredSet]) -> list[dict[str, Any]]:
    """A row for each score of each set."""
    return [
        {"model": each.point.label, "lam": each.point.lam, "set": each.name, "split": each.split, **row}
        for each in sets
        for score in each.totals.values()
        for row in score.to_rows()
    ]


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write rows as CSV, the columns in order of appearance; a missing value is an empty cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writerow({name: _cell(name) for name in columns})
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return path


def _cell(value: object) -> object:
    return without_formula(value) if isinstance(value, str) else value


def write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write rows as Parquet."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    columns = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), path)
    return path
