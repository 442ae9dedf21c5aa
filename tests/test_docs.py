"""The pages of the documentation: tables are whole, and links between pages lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"))
)
FENCE = re.compile(r"^\s*(```|~~~)")
LINK = re.compile(r"\]\(([^()\s]+)\)")


def lines(page: str) -> Iterator[tuple[int, str]]:
    """The lines of a page outside of its code blocks, numbered from 1."""
    code = False
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            code = not code
        elif not code:
            yield number, line


def cells(row: str) -> int:
    """Number of cells of a table's row; as in GitHub's Markdown, a bar in code is a separator unless it is escaped."""
    return len(re.split(r"(?<!\\)\|", row.strip().removeprefix("|").removesuffix("|")))


def broken_rows(page: str) -> list[str]:
    """The rows of a page's tables that have another number of cells than the header."""
    found, width = [], 0
    for number, line in lines(page):
        if not line.lstrip().startswith("|"):
            width = 0
            continue
        width = width or cells(line)
        if cells(line) != width:
            found.append(f"{page}:{number}: {cells(line)} cells, the header has {width}: {line[:80]}")
    return found


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for _, line in lines(page):
        if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = sum(1 for one in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one))
            found.add(f"{slug}-{count}" if count else slug)
    return found


def broken_links(page: str) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of it."""
    found = []
    for number, line in lines(page):
        for target in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (ROOT / page).parent / name if name else ROOT / page
            if not file.exists():
                found.append(f"{page}:{number}: {target}: no such file")
            elif anchor and anchor not in anchors(file.resolve().relative_to(ROOT).as_posix()):
                found.append(f"{page}:{number}: {target}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_row_of_a_table_has_the_cells_of_its_header(page: str) -> None:
    assert broken_rows(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files_and_headings(page: str) -> None:
    assert broken_links(page) == []


def test_a_broken_row_and_broken_links_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (
        "# One `x`: two\n\n| a | b |\n|---|---|\n| `x|y` | z |\n| `x\\|y` | z |\n[a](#one-x-two) [b](#two) [c](no.md)\n"
    )
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr("test_docs.ROOT" if __name__ == "test_docs" else f"{__name__}.ROOT", tmp_path)
    assert [found.split(": ")[0] for found in broken_rows("page.md")] == ["page.md:5"]
    assert [found.split(": ")[1] for found in broken_links("page.md")] == ["#two", "no.md"]
