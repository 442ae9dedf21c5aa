"""Leave the texts of harmful prompts, and of the answers to them, out of a report."""

import dataclasses

from mooring.report.results import Results, Row

HARMFUL = ("asr", "refusal")
"""Measures whose prompts are harmful requests."""


def redact(results: Results) -> Results:
    """The same results without the text of any harmful prompt, or of any answer to one; verdicts and numbers stay."""
    rows = [_bare(row) if row.measure in HARMFUL else row for row in results.rows]
    return dataclasses.replace(results, rows=rows, redacted=True)


def _bare(row: Row) -> Row:
    answers = {lam: dataclasses.replace(answer, response="") for lam, answer in row.answers.items()}
    return dataclasses.replace(row, prompt="", answers=answers)
