"""Draws what `make quickstart` printed as a terminal that scrolls: `quickstart.log` as `quickstart.svg`.

The log is what `python .ci/quickstart.py` prints, from the first line of the run to its duration. Each step takes its
share of the seconds that the log names; the verdict and the last screen stay long enough to be read.
"""

import html
import re
import textwrap
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

ASSETS = Path(__file__).resolve().parent / "assets"
LOG, PICTURE = ASSETS / "quickstart.log", ASSETS / "quickstart.svg"
COMMAND = "make quickstart"
COLUMNS, ROWS = 100, 30
START, STEPS, VERDICT, END = 1.0, 9.0, 6.0, 4.0
"""Seconds: before the first line, of all steps together, of the verdict's screen, and of the last one."""
WIDTH, HEIGHT, MARGIN, BAR = 7.9, 17, 14, 30
"""Of a character and of a line; round the text, and of the bar above it, in pixels."""
FONTS = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'
VERDICTS = {"SHIP": "#3fb950", "DO NOT SHIP": "#f85149", "NOT ENOUGH EVIDENCE": "#d29922"}
_TOOK = re.compile(r" (?:(\d+) min ?)?(?:(\d+) s)?$")


def picture(log: str) -> str:
    """The animation of a log, as SVG; where nothing is animated, its last screen."""
    said, total = _total(log)
    wrapped = [(line, part) for line in said for part in _wrap(line)]
    first = next(n for n, (line, _) in enumerate(wrapped) if line.startswith(tuple(VERDICTS)))
    steps = [_seconds(line) + 0.25 for line, _ in wrapped[:first]]
    times = [START + STEPS * before / sum(steps) for before in accumulate(steps)]
    shown = [(0.0, 1), *((time, n + 2) for n, time in enumerate(times))]
    shown.append((START + STEPS + 0.3, min(first + ROWS, len(wrapped) + 1)))
    shown.append((START + STEPS + VERDICT, len(wrapped) + 1))
    duration = START + STEPS + VERDICT + END
    texts = [_prompt(), *(_text(n, line, part) for n, (line, part) in enumerate(wrapped, 1))]
    width, height = round(COLUMNS * WIDTH) + 2 * MARGIN, ROWS * HEIGHT + BAR + 2 * MARGIN
    body = "\n".join(texts)
    title = f"{COMMAND}: {total} s on two CPU cores, shown in {duration:.0f} s"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<title>{title}</title>
<style>
text {{ font: 13px {FONTS}; fill: #e6edf3; white-space: pre }}
.d {{ fill: #8b949e }} .g {{ fill: #3fb950 }} .b {{ font-weight: bold }}
#all {{ transform: translateY({_scroll(shown[-1][1])}px); animation: all {duration:g}s step-end infinite }}
#rest {{ transform: translateY({shown[-1][1] * HEIGHT}px); animation: rest {duration:g}s step-end infinite }}
@keyframes all {{ {_frames(shown, duration, _scroll)} }}
@keyframes rest {{ {_frames(shown, duration, lambda lines: lines * HEIGHT)} }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>
<text x="{width / 2:g}" y="19" text-anchor="middle" class="d">{title}</text>
<svg x="{MARGIN}" y="{BAR + MARGIN}" width="{width - 2 * MARGIN}" height="{ROWS * HEIGHT}"><g id="all">
{body}
<rect id="rest" width="{width}" height="{(len(texts) + ROWS) * HEIGHT}" fill="#0d1117"/>
</g></svg>
</svg>
"""


def _total(log: str) -> tuple[list[str], str]:
    """The lines of a run, and the seconds that it took, which `.ci/quickstart.py` adds."""
    said, _, rest = log.partition("\nquickstart, set-up included: ")
    return said.strip().splitlines(), rest.split(" ")[0]


def _wrap(line: str) -> list[str]:
    """A line in rows, broken at spaces."""
    return textwrap.wrap(line, COLUMNS) if len(line) > COLUMNS else [line]


def _seconds(line: str) -> float:
    """How long a step took, from the end of its line; 0 for other lines."""
    found = _TOOK.search(line) if line.startswith("✓") else None
    return 60 * int(found[1] or 0) + int(found[2] or 0) if found else 0


def _scroll(lines: int) -> int:
    """How far the text is moved when so many lines are shown."""
    return -HEIGHT * max(0, lines - ROWS)


def _frames(shown: list[tuple[float, int]], duration: float, place: Callable[[int], int]) -> str:
    return " ".join(f"{100 * time / duration:.2f}% {{ transform: translateY({place(n)}px) }}" for time, n in shown)


def _prompt() -> str:
    return f'<text y="{HEIGHT - 4}"><tspan class="g">$ </tspan><tspan class="b">{COMMAND}</tspan></text>'


def _text(row: int, line: str, part: str) -> str:
    """One row of the terminal, with the styles that Mooring prints there."""
    begins = part == _wrap(line)[0]
    word = next((word for word in VERDICTS if begins and line.startswith(word)), None)
    took = _TOOK.search(part) if line.startswith("✓") else None
    if word is not None:
        rest = _safe(part[len(word) :])
        inner = f'<tspan class="b" fill="{VERDICTS[word]}">{word}</tspan><tspan class="b">{rest}</tspan>'
    elif line.startswith("✓") and took and took.group():
        inner = f'<tspan class="g">✓</tspan>{_safe(part[1 : took.start()])}<tspan class="d">{took.group()}</tspan>'
    else:
        inner = _safe(part)
    return f'<text y="{(row + 1) * HEIGHT - 4}">{inner}</text>'


def _safe(text: str) -> str:
    return html.escape(text.rstrip(), quote=False)
