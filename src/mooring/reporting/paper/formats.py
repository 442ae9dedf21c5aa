"""The paper's tables set in type: Markdown, LaTeX (booktabs), CSV."""

import csv
import io
import re
from collections.abc import Container, Mapping, Sequence
from string import ascii_lowercase

from mooring.records import Score
from mooring.reporting.paper.tables import TASK_SCORE, Key, Line, PaperTable, deviation, mean, shown, unit
from mooring.reporting.results import COLUMNS
from mooring.text import MISSING, is_rate, markdown, name_of, one_line

READ = (
    "Test split. One seed: 95 % interval in brackets, over prompts. Several: mean ± standard deviation over seeds "
    "(n − 1), each with its own λ. ASR: attack success rate, lower is better. λ is the weight of the tuned model."
)
"""How a table is read."""


def caption(table: PaperTable) -> str:
    """A table's number, title, and by what its task scores and ASR were measured."""
    scores = [score for line in table.lines for entry in line.entries.values() for score in entry.scores]
    judges = dict.fromkeys(score.method for score in scores if score.name.partition(":")[0] == "asr")
    by = f" ASR by {', '.join(map(one_line, judges))}." if judges else ""
    return f"Table {table.number}. {table.title}. {READ}{by}"


def grid(table: PaperTable, published: Mapping[Key, float]) -> tuple[list[str], list[list[str]], list[str]]:
    """A table as plain text.

    Returns:
        Header, rows, and footnotes, which the rows name by `[a]`, `[b]`, …
    """
    many_bases = len({line.base for line in table.lines}) > 1
    wide = many_bases or table.number == 3
    known = [c for c in table.columns if any(c in line.entries and line.key(c) in published for line in table.lines)]
    header = [*(["base"] if wide else []), "task", "model", "λ", "task measure"]
    for column in table.columns:
        header += [column, "published"] if column in known else [column]
    header.append("seeds")
    letters: dict[str, str] = {}
    rows = []
    for line in table.lines:
        mark = ""
        if line.odd:
            mark = f" [{letters.setdefault(line.odd, _letter(len(letters)))}]"
        measure = name_of(line.entries[TASK_SCORE].measure) if TASK_SCORE in line.entries else MISSING
        model = line.model if table.number == 2 or line.model in COLUMNS else f"merged ({line.model})"
        row = [*([line.base] if wide else []), line.task, model + mark, line.lam, measure]
        for column in table.columns:
            entry = line.entries.get(column)
            row.append(shown(entry.scores) if entry else MISSING)
            if column in known:
                row.append(_published(line, column, published))
        rows.append([one_line(cell) for cell in [*row, line.seeds]])
    return header, rows, [f"[{letter}] {text}" for text, letter in letters.items()]


def _letter(number: int) -> str:
    return ascii_lowercase[number] if number < 26 else str(number)


def _published(line: Line, column: str, published: Mapping[Key, float]) -> str:
    if column not in line.entries or line.key(column) not in published:
        return MISSING
    value = published[line.key(column)]
    return f"{value:.1f} %" if is_rate(line.entries[column].measure) else f"{value:.3f}"


def as_markdown(table: PaperTable, published: Mapping[Key, float]) -> str:
    """A table in Markdown, its caption above and its footnotes below."""
    header, rows, notes = grid(table, published)
    left = {"base", "task", "model", "task measure"}
    rule = ["---" if head in left else "---:" for head in header]
    lines = [[markdown(head) for head in header], rule, *([markdown(cell) for cell in row] for row in rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([markdown(caption(table)), body, *map(markdown, notes)]) + "\n"


def as_latex(table: PaperTable, published: Mapping[Key, float]) -> str:
    """A table in LaTeX; the document loads `booktabs`."""
    header, rows, notes = grid(table, published)
    left = {"base", "task", "model", "task measure"}
    groups = [f"{line.base}\0{line.task}" for line in table.lines]
    title = caption(table).partition(". ")[2]
    return booktabs(title, f"mooring-{table.number}", header, rows, left, groups, notes)


def booktabs(
    title: str,
    label: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Container[str],
    groups: Sequence[str],
    notes: Sequence[str] = (),
) -> str:
    """A table in LaTeX, from plain text.

    Args:
        title: Its caption.
        label: What a document refers to it by, after `tab:`.
        header: Headings.
        rows: Cells.
        left: Headings of the columns that are set to the left; the others hold numbers.
        groups: The group of each row; a space parts two groups.
        notes: Lines below it.
    """
    lines = [
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{latex(title)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{''.join('l' if head in left else 'r' for head in header)}}}",
        r"\toprule",
        " & ".join(map(latex, header)) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(rows):
        if number and groups[number] != groups[number - 1]:
            lines.append(r"\addlinespace")
        lines.append(" & ".join(map(latex, row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {latex(note)}" for note in notes]
    return "\n".join([*lines, r"\end{table}", ""])


_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",
    "]": "{]}",
    "λ": r"$\lambda$",
    "κ": r"$\kappa$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "⟨": r"$\langle$",
    "⟩": r"$\rangle$",
    "\u00a0": "~",
}


def latex(text: str) -> str:
    """Untrusted text as plain words of LaTeX, in one line."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


CSV_HEADER = (
    *("table", "base", "task", "model", "lambda", "measure", "value", "low", "high", "sd", "seeds", "n"),
    *("published", "measured_by", "note"),
)


def as_csv(table: PaperTable, published: Mapping[Key, float]) -> str:
    """A table's numbers, one a row, in percent or nats; an interval for one seed, a standard deviation for several."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for line in table.lines:
        for column in table.columns:
            entry = line.entries.get(column)
            if entry is None:
                continue
            known = published.get(line.key(column))
            names = (line.base, line.task, line.model, line.lam, entry.measure)
            tail = ("" if known is None else f"{known:g}", _methods(entry.scores), line.odd)
            numbers = _numbers(entry.scores)
            count = [line.seeds, "; ".join(dict.fromkeys(str(score.n) for score in entry.scores))]
            writer.writerow([table.number, *map(safe_cell, names), *numbers, *count, *map(safe_cell, tail)])
    return out.getvalue()


def _methods(scores: Sequence[Score]) -> str:
    return one_line("; ".join(dict.fromkeys(score.method for score in scores)))


def _numbers(scores: Sequence[Score]) -> list[str]:
    """Value, low, high and standard deviation, whole; blank where there is none."""
    value = mean(scores)
    if value is None:
        return ["", "", "", ""]
    if len(scores) > 1:
        spread = deviation(scores)
        return [f"{value:.6g}", "", "", "" if spread is None else f"{spread:.6g}"]
    scale = unit(scores)
    bounds = ["" if end is None else f"{scale * end:.6g}" for end in (scores[0].low, scores[0].high)]
    return [f"{value:.6g}", *bounds, ""]


def safe_cell(text: str) -> str:
    """Text for a spreadsheet, which must not take it for a formula."""
    return f"'{text}" if re.match(r"[=+\-@\t\r]", text) else text
