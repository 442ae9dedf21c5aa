"""The page on which people label answers: one answer at a time, blind to the model and to the judge's verdict."""

import dataclasses
from collections.abc import Mapping, Sequence

from mooring.labels import Word
from mooring.printable import visible
from mooring.reporting.page import assets


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """An answer as it is shown: nothing tells which model gave it, or what the judge says of it."""

    item: str
    split: str
    prompt_id: str
    prompt: str
    response: str


def as_html(
    cards: Sequence[Card],
    *,
    title: str,
    token: str = "",
    annotator: str = "",
    known: Mapping[str, Mapping[str, Word]] | None = None,
) -> str:
    """The page as HTML, which needs nothing else and runs one script.

    Texts reach the script as data, and it shows them as text. The content security policy names script and style by
    their hashes; it allows requests to the page's own server if there is one.

    Args:
        cards: The answers, in the order in which they are shown.
        title: What is labelled, for the heading.
        token: The secret that a server wants with each label; without it the page saves labels to a file.
        annotator: The name that the page begins with.
        known: By annotator, the labels that exist already, by answer.
    """
    from markupsafe import Markup

    style, script = assets.read(__name__, "label.css"), assets.read(__name__, "label.js")
    data = {
        "token": token,
        "annotator": annotator,
        "known": known or {},
        # Untrusted, and shown so that nothing in it acts unseen.
        "cards": [[c.item, c.split, c.prompt_id, visible(c.prompt), visible(c.response)] for c in cards],
    }
    template = assets.environment().from_string(assets.read(__name__, "label.html.jinja"))
    return template.render(
        title=title,
        policy=assets.policy(script, style, connect=bool(token)),
        style=Markup(style),
        script=Markup(script),
        data=Markup(assets.embedded(data)),
    )
