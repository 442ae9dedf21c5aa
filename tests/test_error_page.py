"""The page of errors says of every code in the source what is wrong, and what to do."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """The module that makes docs/errors.md."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import errors_page

        yield errors_page
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.fixture
def source(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(page, "SOURCE", tmp_path)
    monkeypatch.setattr(page, "IN_WORDS", {})
    return tmp_path / "one.py"


def test_every_code_of_the_source_has_a_meaning_and_a_way_out(page: Any) -> None:
    literal = {
        code
        for path in page.SOURCE.rglob("*.py")
        for code in re.findall(r'code="((?:model|data|recipe|output|extra|usage)\.\w+)"', path.read_text())
    }
    codes = page.error_codes()
    assert literal <= set(codes)
    assert all(any(each.message for each in raised) and any(each.hint for each in raised) for raised in codes.values())


def test_no_code_is_put_into_words_that_its_source_says(page: Any) -> None:
    words = page.IN_WORDS
    codes = page.error_codes()
    assert not set(words) - set(codes)
    for code, (message, hint) in words.items():
        own = codes[code][:-1]
        assert not (any(each.message for each in own) and message), code
        assert not (any(each.hint for each in own) and hint), code


def test_the_nearest_words_before_an_error_are_its_own(page: Any, source: Path) -> None:
    source.write_text(
        'HINT = "give another"\n'
        "def check(path, kind):\n"
        "    if kind:\n"
        '        what = f"{path}: is of kind {kind}"\n'
        '        raise DataError(what, HINT, code="data.first")\n'
        '    what = f"{path}: is empty"\n'
        '    hint = "fill it" if kind else "remove it"\n'
        '    raise DataError(what, hint, code="data.second")\n'
    )
    codes = page.error_codes()
    assert codes["data.first"][0] == page.Raised("<path>: is of kind <kind>", "give another")
    assert codes["data.second"][0] == page.Raised("<path>: is empty", "fill it; or remove it")


def test_a_code_without_a_way_out_stops_the_build(page: Any, source: Path) -> None:
    source.write_text('raise DataError("it is empty", code="data.third")\n')
    with pytest.raises(SystemExit, match="third"):
        page.error_codes()
