"""A run's results in a notebook: the verdict, the figure, the table."""

from typing import TYPE_CHECKING

from mooring.export import to_pandas
from mooring.records import Trial
from mooring.reporting import figures
from mooring.reporting.page import assets
from mooring.reporting.results import Results
from mooring.reporting.tables import summary_table

if TYPE_CHECKING:
    import pandas

_TEMPLATE = """<div style="max-width: 46rem">
<p><strong style="font-size: 1.3em">{{ verdict.words }}</strong> {{ verdict.sentence }}</p>
{% if figure %}<figure style="background: white; margin: 0">{{ figure }}</figure>{% endif %}
<table>
<thead><tr>{% for column in table.columns %}<th>{{ column.heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.text_rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% for caveat in verdict.caveats %}<p style="opacity: .75">{{ caveat }}</p>
{% endfor %}
</div>"""


class Trials(tuple[Trial, ...]):
    """The trials of a run: all scores of each model on each half."""

    __slots__ = ()

    def to_pandas(self) -> "pandas.DataFrame":
        """A data frame with a row for each model, half and score.

        Raises:
            MissingExtraError: pandas is not installed (`extra.pandas`).
        """
        return to_pandas(self)


def as_html(results: Results) -> str:
    """The verdict, the figure over λ and the table as HTML without a script; every text is escaped."""
    from markupsafe import Markup

    drawing = figures.tradeoff(results)
    return (
        assets.environment()
        .from_string(_TEMPLATE)
        .render(
            verdict=results.verdict,
            figure=Markup(figures.inline(drawing, "tradeoff")) if drawing is not None else None,
            table=summary_table(results),
        )
    )
