"""What models thought, in a report: kept, shown escaped, and left out with the answers to harmful requests."""

import dataclasses

from report_sample import results

from mooring.reporting.page.data import embedded, explorer
from mooring.reporting.results import HARMFUL, Results, redact

THOUGHT = "Hm </script><b>bold</b>"


def with_thoughts() -> Results:
    sample = results()
    rows = [
        dataclasses.replace(
            row, answers={key: dataclasses.replace(each, thoughts=THOUGHT) for key, each in row.answers.items()}
        )
        for row in sample.rows
    ]
    return dataclasses.replace(sample, rows=rows)


def test_the_page_has_the_thoughts_and_no_markup_of_theirs() -> None:
    data = explorer(with_thoughts())
    number = data["texts"].index(THOUGHT)
    assert all(answer[5] == number or isinstance(data["texts"][answer[5]], tuple) for answer in data["rows"][0][5])
    text = embedded(with_thoughts(), {})
    assert "\\u003c/script\\u003e" in text
    assert "</script>" not in text
    assert all(len(answer) <= 5 for row in explorer(results())["rows"] for answer in row[5])


def test_thoughts_on_harmful_requests_are_redacted() -> None:
    bare = redact(with_thoughts())
    found = {row.measure in HARMFUL: {each.thoughts for each in row.answers.values()} for row in bare.rows}
    assert found[True] == {""}
    assert found.get(False, {THOUGHT}) == {THOUGHT}
