"""Progress bars of a run in a notebook or a terminal, as an `on_event`."""

from typing import Any

from mooring.events import Event


class ProgressBars:
    """Shows a bar for each step at work: widgets in a notebook that has them, else text.

    >>> mooring.safeguard("base/", "tuned/", out="runs/mine", on_event=mooring.ProgressBars())  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Take an event into account."""
        from tqdm.auto import tqdm

        if event.kind in ("info", "warning"):
            tqdm.write(event.message)
        elif event.kind == "progress":
            bar = self._bars.get(event.step)
            if bar is None:
                label = event.label or event.step
                bar = self._bars[event.step] = tqdm(desc=label, total=event.total or None, unit=f" {event.unit}")
            bar.update(event.done - bar.n)
        elif event.kind == "finished" and (bar := self._bars.pop(event.step, None)) is not None:
            bar.close()
