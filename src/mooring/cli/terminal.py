"""The only place that prints: whatever is printed, nothing in it acts on the terminal but Mooring's own styles.

`safe_output` covers everything that reaches standard output and standard error, also from libraries and tracebacks;
`Screen` is for what has styles, and writes past it.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mooring.printable import visible


class _Visible:
    """A text stream in which what would act on a terminal is written out (`printable.visible`)."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text; returns its own length."""
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Write out whatever would act on a terminal in all that is printed while the block runs."""
    out: Any = _Visible(sys.stdout)
    err: Any = _Visible(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


class Screen(Console):
    """A console of rich, without highlighting; what it prints holds no control but those of rich's own styles.

    Args:
        file: Where to print; defaults to standard output.
        options: Further options of `Console`.
    """

    def __init__(self, file: Any = None, **options: Any) -> None:
        file = sys.stdout if file is None else file
        # Styles are controls, so they must not pass through a stream that writes those out.
        super().__init__(file=getattr(file, "stream", file), highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Any:
        """See `Console.render_str`: before widths are measured."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """See `Console.render`: all that is printed passes here, also within tables and texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
