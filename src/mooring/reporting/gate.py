"""A run's verdict for a pipeline: JUnit XML, and Markdown for the summary of a pull request."""

import xml.etree.ElementTree as ET

from mooring.printable import one_line
from mooring.records import RunVerdict
from mooring.reporting.render import as_markdown
from mooring.reporting.results import Results
from mooring.reporting.tables import summary_table
from mooring.text import markdown

MARKS = {"passed": "✅", "failed": "❌", "unknown": "❔"}


def as_junit(verdict: RunVerdict, title: str) -> str:
    """The verdict as a JUnit test suite: one test case per check, and the verdict itself as the first.

    A check that is unknown is a failure of the type `unknown`, since a gate that cannot tell stays closed.
    """
    suite = ET.Element("testsuite", name=one_line(f"mooring: {title}"))
    decided = "passed" if verdict.passed else verdict.decision
    cases: list[tuple[str, str, str]] = [("verdict", decided, f"{verdict.words}. {verdict.sentence}")]
    cases += [(check.name, check.outcome, check.sentence) for check in verdict.checks]
    for name, outcome, sentence in cases:
        case = ET.SubElement(suite, "testcase", classname="mooring", name=name)
        if outcome == "passed":
            ET.SubElement(case, "system-out").text = one_line(sentence)
        else:
            ET.SubElement(case, "failure", type=outcome, message=one_line(sentence)).text = one_line(sentence)
    failures = sum(outcome != "passed" for _, outcome, _ in cases)
    suite.attrib |= {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "skipped": "0"}
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def as_summary(results: Results) -> str:
    """The verdict with its checks and the table of the test half, as Markdown."""
    verdict = results.verdict
    checks = [f"- {MARKS[check.outcome]} {markdown(check.sentence)}" for check in verdict.checks]
    parts = [
        f"## {MARKS['passed' if verdict.passed else 'failed']} {verdict.words}: {markdown(results.title)}",
        markdown(verdict.sentence),
        "\n".join(checks),
        *map(markdown, verdict.caveats),
        as_markdown(summary_table(results)),
    ]
    return "\n\n".join(parts) + "\n"
