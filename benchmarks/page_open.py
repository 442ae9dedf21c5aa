"""How large is the report of 850 prompts at 6 λ, and how soon is it open in Chromium?

    python benchmarks/page_open.py [--characters 1200] [--times 7]

The prompts are the size of AdvBench and HEx-PHI together. No two answers are the same; each begins as the one at the
λ before does, for about half of its length. Prints, last, size and time beside their limits: 5 MB and 2 s.
"""

import argparse
import dataclasses
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "browser"), str(TESTS / "reporting")]

from chromium import launched  # noqa: E402
from report_sample import results, swept  # noqa: E402

from mooring.reporting.write import write  # noqa: E402

PROMPTS, BYTES, SECONDS = 850, 5_000_000, 2.0
DRAWN = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))"
"""Scripts have run, and a frame was drawn."""
WORDS = ("boat", "harbour", "tide", "moors", "line", "anchor", "under", "slowly", "evening", "rain", "that", "turns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=1200, help="length of an answer")
    parser.add_argument("--times", type=int, default=7, help="how often the page is opened")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        path = write(results(rows=_rows(given.characters)), Path(folder))
        print(f"written in {time.perf_counter() - started:.1f} s")
        size = path.stat().st_size
        seconds = []
        with launched() as browser, browser.new_page(viewport={"width": 1280, "height": 900}) as page:
            for _ in range(given.times):
                started = time.perf_counter()
                page.goto(path.absolute().as_uri())
                page.evaluate(DRAWN)
                seconds.append(time.perf_counter() - started)
    middle = statistics.median(seconds)
    print(f"{PROMPTS} prompts × 6 λ, answers of {given.characters} characters: {size:,} bytes")
    print(f"open in {middle:.2f} s (median of {given.times}; slowest {max(seconds):.2f} s)")
    print(f"size / limit: {size / BYTES:.2f}, time / limit: {middle / SECONDS:.2f}")


def _rows(characters: int) -> list:
    drawn = random.Random(0)

    def words(length: int) -> str:
        return " ".join(drawn.choices(WORDS, k=length // 5 + 1))[:length]

    rows = []
    for row in swept(PROMPTS):
        answers, before = {}, ""
        for lam, answer in row.answers.items():
            start = before[: drawn.randrange(characters)]
            before = start + words(characters - len(start))
            answers[lam] = dataclasses.replace(answer, response=before)
        rows.append(dataclasses.replace(row, answers=answers))
    return rows


if __name__ == "__main__":
    main()
