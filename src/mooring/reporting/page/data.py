"""What the page's script works on: every prompt, response and number, as JSON that can stand inside HTML."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mooring.attacks import attack_of, without_attack
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.printable import one_line, visible
from mooring.records import Score
from mooring.reporting.page import assets
from mooring.reporting.results import Results, Row, is_harmful, is_whole
from mooring.reporting.tables import attacks_in, bounded_rate, in_order
from mooring.text import ARROWS, name_of, score_number

ROOM = 4_000_000
"""Bytes of the data, so that the whole page stays below 5 MB."""
LIMITS = (200, 400, 600, 800, 1000, 1300, 1600, 2000, 2500, 3000, 4000, 6000, 8000, 12_000, 20_000)
"""Characters of a text that are shown: the largest of these with which the data stays within `ROOM`."""
SHARED = 24
"""Characters of a common beginning from which on a response refers to the one before."""

Text = str | tuple[int, int, str]
"""A text; or the number of another one, how much of it to use (UTF-16 units, as a script counts), and what follows."""


class Texts:
    """Texts, each stored once; of a response that begins like the one before, only the rest is stored."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: list[Text] = []
        self._numbers: dict[str, int] = {}

    def add(self, text: str, before: str | None = None) -> int:
        """Add a text and return its number; `before` is an added text that may begin alike."""
        shown = self._cut(text)
        if shown not in self._numbers:
            self._numbers[shown] = len(self.kept)
            self.kept.append(self._after(shown, before))
        return self._numbers[shown]

    def _cut(self, text: str) -> str:
        # Cut before it is made visible, so that a text of controls alone costs no more than eight times as much.
        more = len(text) - self.limit
        return visible(text) if more <= 0 else visible(text[: self.limit]) + f" … ({more} more characters)"

    def _after(self, shown: str, before: str | None) -> Text:
        if before is None:
            return shown
        earlier = self._cut(before)
        alike = _alike(earlier, shown)
        if alike < SHARED:
            return shown
        return self._numbers[earlier], len(shown[:alike].encode("utf-16-le")) // 2, shown[alike:]


def _alike(one: str, other: str) -> int:
    """The length of the common beginning of two texts, by bisection."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def embedded(results: Results, places: Mapping[str, Mapping[MergePoint, Sequence[tuple[float, float]]]]) -> str:
    """The data as JSON without a character that HTML would read; texts are cut if there is no `ROOM` for them."""
    cursors = {name: [found.get(point, []) for point in _points(results)] for name, found in places.items()}

    def tried(limit: int) -> str:
        return assets.embedded({**explorer(results, limit), "cursors": cursors})

    best, low, high = tried(LIMITS[-1]), 0, len(LIMITS) - 1
    if _bytes(best) <= ROOM:
        return best
    best = tried(LIMITS[0])
    while high - low > 1:
        middle = (low + high) // 2
        text = tried(LIMITS[middle])
        if _bytes(text) <= ROOM:
            best, low = text, middle
        else:
            high = middle
    return best


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def explorer(results: Results, limit: int = LIMITS[-1]) -> dict[str, Any]:
    """Plain values: λ, measures, scores and prompts. Every string is shown so that nothing in it acts unseen.

    A prompt is [id, measure, split, category, text, answers], an answer [λ, text, verdict, good, verdicts by judge,
    thoughts], the last two only if there are any; measure, split, text, thoughts and λ are indices in their lists, good
    is 1, 0 or `None`. The answer of λ by module that was taken has the index after the last λ.
    """
    points = _points(results)
    chosen = results.choice.point
    keys = [point.key for point in points] + ([chosen.key] if chosen.by_module else [])
    texts, attacks = Texts(limit), attacks_in(results)
    measures = in_order({row.measure for row in results.rows})
    judges = sorted({judge for row in results.rows for answer in row.answers.values() for judge in answer.judges})
    return {
        "lams": [_slider_label(results, point) for point in points],
        "chosen": points.index(results.single),
        "taken": one_line(chosen.label) if chosen.by_module else None,
        "attacks": len(attacks),
        "measures": [
            {
                "name": name_of(name),
                "set": name_of(without_attack(name)),
                "attack": attacks.index(attack_of(name)),
                "harmful": is_harmful(name),
                "kind": _kind(name),
            }
            for name in measures
        ],
        "judges": [one_line(judge) for judge in judges],
        "scores": list(_scores(results, points, attacks)),
        "rows": [_row(row, measures, judges, keys, texts) for row in results.rows],
        "texts": texts.kept,
        "redacted": results.redacted,
    }


def _points(results: Results) -> list[MergePoint]:
    """Every single λ that was measured, in order."""
    return sorted({BASE, TUNED, results.single} | {trial.point for trial in results.trials})


def _slider_label(results: Results, point: MergePoint) -> str:
    single_is = ", the best single λ" if results.single_is == "single" else f", {results.single_is}"
    return point.long_label + (single_is if point == results.single else "")


def _kind(measure: str) -> str:
    """What a good answer to a prompt is."""
    if is_harmful(measure):
        return "refuse"
    return "answer" if measure in ("over_refusal", "ordinary_refusal") else "task"


def _scores(results: Results, points: Sequence[MergePoint], attacks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The whole scores (of no single set or judge), each with its values on both splits over λ."""
    found: dict[str, dict[str, dict[MergePoint, Score]]] = {}
    for trial in results.trials:
        for name, score in trial.scores.items():
            if is_whole(name):
                found.setdefault(name, {}).setdefault(trial.split, {})[trial.point] = score
    for name in in_order(found):
        better = next(iter(next(iter(found[name].values())).values())).better
        yield {
            "name": name_of(name),
            "arrow": ARROWS[better],
            "main": name == results.choice.metric or name == bounded_rate(results, attack_of(name)),
            "attack": attacks.index(attack_of(name)) if is_harmful(name) else None,
            **{
                split: [_shown(values.get(point)) for point in points]
                for split, values in sorted(found[name].items(), reverse=True)
            },
        }


def _shown(score: Score | None) -> list[str] | None:
    """A value and its interval."""
    number = score_number(score)
    return [number.short, number.interval] if number else None


def _row(row: Row, measures: Sequence[str], judges: Sequence[str], keys: Sequence[str], texts: Texts) -> list[Any]:
    answers: list[list[Any]] = []
    before = thought_before = None
    for place, key in enumerate(keys):
        if key not in row.answers:
            continue
        answer = row.answers[key]
        good = None if answer.good is None else int(answer.good)
        words = [one_line(answer.judges[j]) if j in answer.judges else None for j in judges] if answer.judges else []
        text = texts.add(answer.response, before)
        more: list[Any] = [words] if words or answer.thoughts else []
        if answer.thoughts:
            more.append(texts.add(answer.thoughts, thought_before))
            thought_before = answer.thoughts
        answers.append([place, text, one_line(answer.verdict), good, *more])
        before = answer.response
    split = ("validation", "test").index(row.split)
    category = one_line(row.category or "")
    return [one_line(row.id), measures.index(row.measure), split, category, texts.add(row.prompt), answers]
