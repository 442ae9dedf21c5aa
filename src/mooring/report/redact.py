"""Leave the texts of harmful prompts, and of the answers to them, out of a report."""

import dataclasses
import hashlib

from mooring.report.results import Results, Row

HARMFUL = ("asr", "refusal")
"""Measures whose prompts are harmful requests."""


def redact(results: Results) -> Results:
    """The same results without the text of any harmful prompt, or of any answer to one; verdicts and numbers stay.

    Their ids, which may be words of a user's own, become digests; categories stay, since numbers are told by them.
    """
    rows = [_bare(row) if row.measure in HARMFUL else row for row in results.rows]
    agreement = [
        dataclasses.replace(each, parted=[_unnamed(key) for key in each.parted]) if each.measure in HARMFUL else each
        for each in results.agreement
    ]
    return dataclasses.replace(results, rows=rows, agreement=agreement, redacted=True)


def _bare(row: Row) -> Row:
    answers = {lam: dataclasses.replace(answer, response="") for lam, answer in row.answers.items()}
    return dataclasses.replace(row, id=_unnamed(row.id), prompt="", answers=answers)


def _unnamed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
