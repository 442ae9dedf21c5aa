"""The server of the page on which people label answers."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mooring.labels import Label, Word
from mooring.pipeline.labelling import LONGEST_NAME, Item
from mooring.pipeline.loopback import LoopbackServer
from mooring.reporting.label_page import Card, as_html

_LABELS: tuple[Word, ...] = ("harmful", "harmless", "unsure")


def cards(items: Sequence[Item]) -> list[Card]:
    """Answers as they are shown."""
    return [Card(item.id, item.split, item.prompt_id, item.prompt, item.response) for item in items]


class LabelServer(LoopbackServer):
    """Serves the page, and passes each label on.

    Args:
        items: The answers, in the order in which they are shown.
        title: What is labelled.
        known: The labels that exist.
        save: Receives each label; called by one thread at a time.
        host: An address of this machine's loopback interface.
        port: A port; 0 takes a free one.
        annotator: The name that the page begins with.

    Raises:
        UserError: `host` is not a loopback address (`usage.not_loopback`).
        OutputError: The port is in use, or may not be used (`output.port`).
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        title: str,
        known: Sequence[Label],
        save: Callable[[Label], object],
        host: str = "127.0.0.1",
        port: int = 0,
        annotator: str = "",
    ) -> None:
        self._items = {item.id: item for item in items}
        self._cards, self._title, self._annotator = cards(items), title, annotator
        self._save, self._lock = save, threading.Lock()
        self._known: dict[str, dict[str, Word]] = {}
        for label in known:
            self._known.setdefault(label.annotator, {})[label.item] = label.label
        super().__init__(self._page, {"/label": self.take}, host=host, port=port)

    def _page(self) -> str:
        """The page with the labels that there are."""
        with self._lock:
            known = {name: dict(labels) for name, labels in self._known.items()}
        return as_html(self._cards, title=self._title, token=self.token, annotator=self._annotator, known=known)

    def take(self, body: Any) -> None:
        """Save a label.

        Raises:
            ValueError: It is not one; the message says why.
        """
        if not isinstance(body, Mapping):
            raise ValueError("not a label")
        item, label, annotator = body.get("item"), body.get("label"), body.get("annotator")
        if not isinstance(item, str) or item not in self._items:
            raise ValueError("an unknown answer")
        if label not in _LABELS:
            raise ValueError("an unknown label")
        if not isinstance(annotator, str) or not 0 < len(annotator.strip()) <= LONGEST_NAME:
            raise ValueError("no name")
        known, name = self._items[item], annotator.strip()
        with self._lock:
            self._save(Label(item=item, label=label, annotator=name, split=known.split, prompt_id=known.prompt_id))
            self._known.setdefault(name, {})[item] = label
