"""Tables in every format: Markdown, LaTeX (booktabs), CSV, terminal; and a recipe as YAML.

For HTML see the macro `table` of the page.
"""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mooring.printable import visible
from mooring.reporting.tables import Cell, Table, cell_text
from mooring.text import NO_BREAK, Number, csv_cell, latex, markdown

if TYPE_CHECKING:
    import rich.table
    from rich.text import Text


def as_markdown(table: Table) -> str:
    """A table in Markdown: caption, rows, notes."""
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    heads = [markdown(column.heading) for column in table.columns]
    lines = [heads, rule, *([markdown(cell) for cell in row] for row in table.text_rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(filter(None, [markdown(table.full_caption), body, *map(markdown, table.notes)]))


def as_latex(table: Table, label: str) -> str:
    """A table in LaTeX with the label `tab:…`; the document loads `booktabs`, and numbers it itself."""
    groups = [index for index, column in enumerate(table.columns) if column.group]
    lines = [
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{latex(table.caption)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in table.columns)}}}",
        r"\toprule",
        " & ".join(latex(column.heading) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    before = None
    for row in table.text_rows:
        group = [row[index] for index in groups]
        if before is not None and group != before:
            lines.append(r"\addlinespace")
        before = group
        lines.append(" & ".join(map(latex, row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def as_csv(table: Table) -> str:
    """A table's headings and cells as CSV; a cell without a value is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([csv_cell(column.heading) for column in table.columns])
    writer.writerows([_csv(cell) for cell in row] for row in table.rows)
    return out.getvalue()


def _csv(cell: Cell) -> str:
    return "" if cell is None else csv_cell(cell) if isinstance(cell, str) else cell_text(cell)


def as_terminal(table: Table, *, narrow: bool = True) -> "rich.table.Table":
    """A table for a terminal.

    A narrow one fits in 80 columns: intervals are below their numbers, details below the first cell of a row, and
    headings are broken between words.
    """
    import rich.box
    import rich.table
    from rich.text import Text

    caption = Text(table.full_caption) if table.caption else None
    made = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    shown = [index for index, column in enumerate(table.columns) if not (narrow and column.detail)]
    cells = [[_terminal(row[index], narrow) for index in shown] for row in table.rows]
    for place, index in enumerate(shown):
        column, width = table.columns[index], None
        heading = visible(column.heading).replace("λ = ", f"λ{NO_BREAK}={NO_BREAK}")
        if narrow and place:
            width = max(map(len, [*heading.split(" "), *(line for row in cells for line in row[place].split("\n"))]))
            heading = textwrap.fill(heading, width)
        made.add_column(
            Text(heading),
            justify="right" if column.numeric or (narrow and place) else "left",
            style="bold" if column.main else None,
            max_width=width,
            no_wrap=not narrow and (column.numeric or not place),
            overflow="fold",
        )
    for row, texts in zip(table.rows, cells, strict=True):
        made.add_row(_first(table, row) if narrow else Text(texts[0]), *map(Text, texts[1:]))
    return made


def _terminal(cell: Cell, narrow: bool) -> str:
    if narrow and isinstance(cell, Number):
        return "\n".join(filter(None, (cell.short, cell.interval)))
    return visible(cell_text(cell))


def _first(table: Table, row: Sequence[Cell]) -> "Text":
    """The first cell of a row, with the details below it."""
    from rich.text import Text

    found = [
        f"{column.heading} = {cell_text(cell)}" if column.numeric else cell_text(cell)
        for column, cell in zip(table.columns, row, strict=True)
        if column.detail and cell not in ("", None)
    ]
    text = Text(visible(cell_text(row[0])))
    if found:
        text.append("\n  " + visible(", ".join(found)), style="dim")
    return text


def as_yaml(recipe: Mapping[str, Any]) -> str:
    """Format a recipe as YAML, with its fields in their order."""
    import yaml

    return str(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
